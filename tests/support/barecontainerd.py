"""What a containerd of 2.3 or later is to a shim, without one: parameters for ``start``, calls, a place for events."""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
import subprocess
from pathlib import Path
from typing import Any, Self, TypeVar

from hako.shim import event_messages as events
from hako.shim import task_messages as messages
from hako.shim.bootstrap_messages import BootstrapParams, BootstrapResult
from hako.shim.messages import Empty
from hako.shim.ttrpc import Client, Method, Server
from hako.wire.protobuf import Message
from support import leaks
from support.containerd import write_shim
from support.machine import Machine

NAMESPACE = "default"

_M = TypeVar("_M", bound=Message)


class BareContainerd:
    """A shim's other side, on a machine of its own. A context manager that fails when something is left of it."""

    def __init__(self, base: str) -> None:
        """``base`` is a directory to make, with a short name."""
        self.base = base
        self.sockets = f"{base}/s"  #: where shims are told to listen
        self.machine = Machine(base)
        os.mkdir(f"{base}/bin")
        write_shim(f"{base}/bin")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        try:
            leaks.stop_keepers()  # they keep templates for the next start, in this machine's namespaces
            left = self.machine.leftovers()
        finally:
            self.machine.close()
        assert not left, "shims left behind:\n" + "\n".join(left)

    @property
    def events_address(self) -> str:
        """Where events are taken."""
        return f"{self.base}/ttrpc"

    def parameters(self, container_id: str, **more: Any) -> BootstrapParams:
        """What containerd says of itself and of the container."""
        return BootstrapParams(
            instance_id=container_id,
            namespace=NAMESPACE,
            containerd_version="v2.3.0",
            containerd_ttrpc_address=self.events_address,
            containerd_grpc_address=f"{self.base}/grpc",
            containerd_binary="/usr/bin/containerd",
            socket_dir=self.sockets,
            **more,
        )

    def run(self, container_id: str, bundle: Path, verb: str, input: bytes = b"") -> subprocess.CompletedProcess[bytes]:
        """Run the shim's program as containerd does. The events' address is in the parameters alone."""
        words = ["-namespace", NAMESPACE, "-address", f"{self.base}/grpc", "-publish-binary", "/usr/bin/containerd"]
        argv = ["env", "-C", str(bundle), f"{self.base}/bin/containerd-shim-hako-v2", *words, "-id", container_id]
        if verb == "delete":
            argv += ["-bundle", str(bundle)]
        return subprocess.run(
            self.machine.inside(*argv, verb),
            env=self.machine.environment,
            input=input,
            capture_output=True,
            timeout=60,
            check=False,
        )

    def start(self, container_id: str, bundle: Path) -> BootstrapResult:
        """Run ``start``, which succeeds and says nothing else."""
        done = self.run(container_id, bundle, "start", self.parameters(container_id).encode())
        assert (done.returncode, done.stderr) == (0, b"")
        return BootstrapResult.decode(done.stdout)


class Events:
    """Takes events, as an async context manager."""

    def __init__(self, path: str) -> None:
        self.heard: list[events.Envelope] = []
        self._path = path

    async def __aenter__(self) -> Self:
        listener = socket.socket(socket.AF_UNIX)
        listener.bind(self._path)
        listener.listen()
        self._server = Server(listener, {events.SERVICE: {"Forward": Method(events.ForwardRequest, self._take)}})
        return self

    async def __aexit__(self, *_: object) -> None:
        self._server.close()
        os.unlink(self._path)
        await asyncio.sleep(0)  # cancelled tasks get their turn

    async def _take(self, request: events.ForwardRequest) -> Empty:
        assert request.envelope is not None
        self.heard.append(request.envelope)
        return Empty()

    def topics(self) -> list[str]:
        """What they were about: ``create``, ``start``, …"""
        return [envelope.topic.removeprefix("/tasks/") for envelope in self.heard]

    def one(self, kind: type[_M], number: int = 0) -> _M:
        """One of those of a kind."""
        found = [envelope.event for envelope in self.heard if envelope.event and envelope.event.holds(kind)]
        made = found[number].unpack(kind)
        assert made is not None
        return made


class TaskService:
    """A shim's Task service, version 3."""

    def __init__(self, client: Client) -> None:
        self._client = client

    async def close(self) -> None:
        """Hang up."""
        await self._client.close()

    async def __call__(self, method: str, **fields: Any) -> Any:
        """Make a call with the request's ``fields``; returns its answer."""
        request, response = _METHODS[method]
        return await self._client.call(messages.SERVICE_V3, method, request(**fields), response, timeout=60)


_METHODS: dict[str, tuple[type[Message], type[Message]]] = {
    "Connect": (messages.ConnectRequest, messages.ConnectResponse),
    "Create": (messages.CreateTaskRequest, messages.CreateTaskResponse),
    "Start": (messages.StartRequest, messages.StartResponse),
    "State": (messages.StateRequest, messages.StateResponse),
    "Wait": (messages.WaitRequest, messages.WaitResponse),
    "Pids": (messages.PidsRequest, messages.PidsResponse),
    "Exec": (messages.ExecProcessRequest, Empty),
    "Stats": (messages.StatsRequest, messages.StatsResponse),
    "CloseIO": (messages.CloseIORequest, Empty),
    "Pause": (messages.PauseRequest, Empty),
    "Resume": (messages.ResumeRequest, Empty),
    "Kill": (messages.KillRequest, Empty),
    "Delete": (messages.DeleteRequest, messages.DeleteResponse),
    "Shutdown": (messages.ShutdownRequest, Empty),
}


class Fifos:
    """The standard streams of a process, made as containerd makes them: this end only reads, or only writes."""

    def __init__(self, directory: Path, *names: str) -> None:
        directory.mkdir()
        self.paths = {name: str(directory / name) for name in names}
        self._read: dict[str, bytes] = dict.fromkeys(names, b"")
        self._fds: dict[str, int] = {}
        for name, path in self.paths.items():
            os.mkfifo(path, 0o700)
            if name != "stdin":
                self._fds[name] = os.open(path, os.O_RDONLY | os.O_NONBLOCK)

    def write(self, data: bytes) -> None:
        """Write to standard input, which the shim has open."""
        if "stdin" not in self._fds:
            self._fds["stdin"] = os.open(self.paths["stdin"], os.O_WRONLY | os.O_NONBLOCK)
        assert os.write(self._fds["stdin"], data) == len(data)

    async def until(self, name: str, text: bytes) -> bytes:
        """Read until ``text`` has come; all that has come so far."""
        async with asyncio.timeout(30):
            while text not in self._read[name]:
                with contextlib.suppress(BlockingIOError):
                    self._read[name] += os.read(self._fds[name], 1 << 16)
                await asyncio.sleep(0.02)
        return self._read[name]

    def close(self) -> None:
        """Let go of them."""
        for fd in self._fds.values():
            os.close(fd)
