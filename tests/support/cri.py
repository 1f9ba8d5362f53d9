"""A client of the Container Runtime Interface, by which a kubelet has containers made.

Streams (exec, attach, port-forward) are WebSockets here: a message begins with the number of its channel.
Sources: kubernetes/cri-api, api.proto; kubernetes/apimachinery, pkg/util/remotecommand; containerd 1.6,
pkg/cri/streaming.
"""

from __future__ import annotations

import contextlib
import json
import socket
import time
from collections.abc import Callable
from typing import Any, TypeVar

from bench.cri import client, grpc
from hako.wire.protobuf import Message
from support import cri_messages as m
from support.websocket import WebSocket

CallError = grpc.CallError

_IMAGES = "runtime.v1.ImageService"
_PROTOCOL = "v4.channel.k8s.io"
_STDIN, _STDOUT, _STDERR, _ERROR, _RESIZE = range(5)

#: Connects to an address where the streaming server is.
Connect = Callable[[tuple[str, int]], socket.socket]
_M = TypeVar("_M", bound=Message)


class Cri(client.Client):
    """The services at a socket. Calls raise CallError."""

    def __init__(self, address: str, connect: Connect = socket.create_connection) -> None:
        super().__init__(address)
        self.connect = connect

    def images(self) -> list[m.Image]:
        """The images that pods can have."""
        answer = grpc.call(self.address, _IMAGES, "ListImages", b"", 60)
        return m.ListImagesResponse.decode(answer).images

    def pod_status(self, pod: str) -> m.PodSandboxStatus:
        answer = self.call("PodSandboxStatus", m.PodSandboxRequest(pod_sandbox_id=pod), m.PodSandboxStatusResponse)
        return _there(answer.status)

    def pod_info(self, pod: str) -> dict[str, Any]:
        """What containerd itself knows of a pod: ``pid``, ``runtimeSpec`` and more."""
        request = m.PodSandboxRequest(pod_sandbox_id=pod, verbose=True)
        return dict(json.loads(self.call("PodSandboxStatus", request, m.PodSandboxStatusResponse).info["info"]))

    def pod_stats(self, pod: str) -> m.PodSandboxStats:
        answer = self.call("PodSandboxStats", m.PodSandboxRequest(pod_sandbox_id=pod), m.PodSandboxStatsResponse)
        return _there(answer.stats)

    def containers(self, **filter: Any) -> list[m.Container]:
        """The containers that pass a filter, see ContainerFilter."""
        request = m.ListContainersRequest(filter=m.ContainerFilter(**filter))
        return self.call("ListContainers", request, m.ListContainersResponse).containers

    def update(self, container: str, **resources: Any) -> None:
        """Change what a container may have, see LinuxContainerResources."""
        linux = m.LinuxContainerResources(**resources)
        request = m.UpdateContainerResourcesRequest(container_id=container, linux=linux)
        self.call("UpdateContainerResources", request, m.Empty)

    def reopen_log(self, container: str) -> None:
        self.call("ReopenContainerLog", m.ContainerRequest(container_id=container), m.Empty)

    def stats(self, container: str) -> m.ContainerStats:
        answer = self.call("ContainerStats", m.ContainerRequest(container_id=container), m.ContainerStatsResponse)
        return _there(answer.stats)

    def list_stats(self, **filter: Any) -> list[m.ContainerStats]:
        """The statistics of the containers that pass a filter, see ContainerStatsFilter."""
        request = m.ListContainerStatsRequest(filter=m.ContainerStatsFilter(**filter))
        return self.call("ListContainerStats", request, m.ListContainerStatsResponse).stats

    def exec(self, container: str, *command: str, tty: bool = False, stdin: bool = False) -> Streams:
        """Start a command and be connected with it."""
        request = m.ExecRequest(
            container_id=container, cmd=list(command), tty=tty, stdin=stdin, stdout=True, stderr=not tty
        )
        return self._streams("Exec", request)

    def attach(self, container: str, *, tty: bool = False, stdin: bool = False) -> Streams:
        """Be connected with a container's first process."""
        request = m.AttachRequest(container_id=container, stdin=stdin, tty=tty, stdout=True, stderr=not tty)
        return self._streams("Attach", request)

    def _streams(self, method: str, request: Message) -> Streams:
        return Streams(WebSocket(self.call(method, request, m.UrlResponse).url, _PROTOCOL, self.connect))

    def port_forward(self, pod: str, port: int) -> Forwarded:
        """A connection to a port that a container of the pod listens on."""
        answer = self.call("PortForward", m.PortForwardRequest(pod_sandbox_id=pod, port=[port]), m.UrlResponse)
        return Forwarded(WebSocket(f"{answer.url}?port={port}", _PROTOCOL, self.connect))


class Streams:
    """The streams of a process, and how it ended. A context manager."""

    def __init__(self, link: WebSocket) -> None:
        self._link = link
        self.output = {_STDOUT: b"", _STDERR: b""}
        self._status: dict[str, Any] | None = None
        self._open = True

    def __enter__(self) -> Streams:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Go away, which is the end of standard input too."""
        self._link.close()

    @property
    def stdout(self) -> bytes:
        """What has come so far."""
        return self.output[_STDOUT]

    @property
    def stderr(self) -> bytes:
        return self.output[_STDERR]

    def write(self, data: bytes) -> None:
        """Write to standard input, in messages of 16 KiB: servers refuse longer ones than 32."""
        for at in range(0, len(data), 1 << 14):
            self._link.send(bytes((_STDIN,)) + data[at : at + (1 << 14)])

    def resize(self, columns: int, rows: int) -> None:
        """Tell the size of the terminal."""
        self._link.send(bytes((_RESIZE,)) + json.dumps({"Width": columns, "Height": rows}).encode())

    def until(self, text: bytes, seconds: float = 30) -> bytes:
        """Wait until ``text`` is in the standard output; all of that so far."""
        self._read(lambda: text in self.stdout, seconds)
        assert text in self.stdout, f"{text!r} did not come in {seconds} s, but {self.output}"
        return self.stdout

    def wait(self, seconds: float = 30) -> int:
        """Wait for the end of the process; its exit code."""
        self._read(lambda: False, seconds)
        assert not self._open, f"no end in {seconds} s, but {self.output}"
        assert self._status is not None, f"the end without a status: {self.output}"
        if self._status["status"] == "Success":
            return 0
        causes = self._status.get("details", {}).get("causes", [])
        codes = [int(cause["message"]) for cause in causes if cause.get("reason") == "ExitCode"]
        assert codes, f"the process has not ended by itself: {self._status}"
        return codes[0]

    def wait_closed(self, seconds: float = 30) -> None:
        """Wait until the server closes the streams, with or without saying how the process has ended."""
        self._read(lambda: False, seconds)
        assert not self._open, f"not closed in {seconds} s"

    def _read(self, enough: Callable[[], bool], seconds: float) -> None:
        deadline = time.monotonic() + seconds
        while self._open and not enough() and (left := deadline - time.monotonic()) > 0:
            self._link.set_timeout(left)
            with contextlib.suppress(TimeoutError):
                self._take(self._link.receive())

    def _take(self, message: bytes | None) -> None:
        if message is None:
            self._open = False
        elif message and message[0] in self.output:
            self.output[message[0]] += message[1:]
        elif len(message) > 1 and message[0] == _ERROR:
            try:
                self._status = json.loads(message[1:])
            except ValueError:
                raise AssertionError(f"an error that is no status: {message[1:]!r}") from None


class Forwarded:
    """A connection to a pod's port. A context manager."""

    def __init__(self, link: WebSocket) -> None:
        self._link = link
        self.received = b""
        self.error = b""
        # Before anything else the server sends on both channels which port they are of.
        self._skip = {0: 2, 1: 2}
        self._open = True

    def __enter__(self) -> Forwarded:
        return self

    def __exit__(self, *_: object) -> None:
        self._link.close()

    def send(self, data: bytes) -> None:
        for at in range(0, len(data), 1 << 14):
            self._link.send(b"\0" + data[at : at + (1 << 14)])

    def read(self, size: int, seconds: float = 30) -> bytes:
        """All that has been received, once that are ``size`` bytes or the other side has closed or said an error."""
        deadline = time.monotonic() + seconds
        while self._open and len(self.received) < size and not self.error:
            left = deadline - time.monotonic()
            assert left > 0, f"{len(self.received)} of {size} bytes in {seconds} s"
            self._link.set_timeout(left)
            with contextlib.suppress(TimeoutError):
                self._take(self._link.receive())
        return self.received

    def _take(self, message: bytes | None) -> None:
        if not message:
            self._open = message is not None
            return
        channel, data = message[0], message[1:]
        skipped = min(self._skip[channel], len(data))
        self._skip[channel] -= skipped
        if channel == 0:
            self.received += data[skipped:]
        else:
            self.error += data[skipped:]


def _there(found: _M | None) -> _M:
    assert found is not None, "the answer is empty"
    return found
