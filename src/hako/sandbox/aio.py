"""The library on asyncio: the calls of api.py as coroutines. Any number can be under way at once."""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
from collections.abc import Mapping, Sequence
from types import TracebackType
from typing import Any

from hako import ids
from hako.config.load import load
from hako.config.settings import Config
from hako.errors import NotFoundError, ProtocolError, TimedOutError, from_wire
from hako.sandbox import api, capture, client, daemon, records, requests
from hako.sandbox.build import Build, build
from hako.sandbox.fdio import FdReader, FdWriter
from hako.sandbox.requests import Mount, Result
from hako.sandbox.spec import NO_NETWORK
from hako.wire import calls, frames

__all__ = ["Container", "Mount", "Process", "Result", "Sandbox"]

_READ_SIZE = 256 << 10


async def _exchange(
    sock: socket.socket, method: str, params: dict[str, Any], fds: Sequence[int] = ()
) -> dict[str, Any]:
    """As client.exchange(), without blocking. ``sock`` must be non-blocking."""
    loop = asyncio.get_running_loop()
    data = frames.encode(1, frames.REQUEST, calls.encode_request(method, {**params, "fds": len(fds)}))
    try:
        # A fresh connection takes its first piece, and with it the descriptors, at once.
        sent = socket.send_fds(sock, [data], list(fds)) if fds else 0
        await loop.sock_sendall(sock, data[sent:])
        decoder = frames.Decoder(calls.MAX_CALL)
        while received := await loop.sock_recv(sock, _READ_SIZE):
            for frame in decoder.feed(received):
                if frame.kind == frames.RESPONSE:
                    return calls.decode_response(frame.data)
    except OSError as error:
        raise NotFoundError("The sandbox has ended.") from error
    except calls.CallError as error:
        raise from_wire(error.code, error.message, error.exit_code) from None
    except (frames.FrameError, calls.MalformedError) as error:
        raise ProtocolError(f"The sandbox process broke the protocol: {error}.") from error
    raise NotFoundError("The sandbox has ended.")


async def _call(sandbox_id: str, method: str, params: dict[str, Any], fds: Sequence[int] = ()) -> dict[str, Any]:
    with client.connect(sandbox_id) as sock:
        sock.setblocking(False)
        return await _exchange(sock, method, params, fds)


class Process:
    """One process of a container."""

    def __init__(self, sandbox_id: str, container_id: str, exec_id: str) -> None:
        self._sandbox_id = sandbox_id
        self._container_id = container_id
        self.exec_id = exec_id

    async def _call(self, method: str, **params: Any) -> dict[str, Any]:
        return await _call(self._sandbox_id, method, requests.target(self._container_id, self.exec_id, **params))

    async def wait(self, timeout: float | None = None) -> Result:
        """Wait for the end, at most ``timeout`` seconds. Raises TimedOutError."""
        try:
            async with asyncio.timeout(timeout):
                return requests.result(await self._call("Wait"))
        except TimeoutError:
            raise TimedOutError(f"The process did not end within {timeout:g} s.") from None

    async def kill(self, signal: int = 15, *, everyone: bool = False) -> None:
        """Send a signal."""
        await self._call("Kill", signal=int(signal), all=everyone)

    async def resize(self, columns: int, rows: int) -> None:
        """Set the size of the process's terminal."""
        await self._call("Resize", width=columns, height=rows)


class Container:
    """One container of a sandbox."""

    def __init__(self, sandbox_id: str, container_id: str) -> None:
        self._sandbox_id = sandbox_id
        self.id = container_id
        self.main = Process(sandbox_id, container_id, "")

    async def _call(self, method: str, **params: Any) -> dict[str, Any]:
        return await _call(self._sandbox_id, method, requests.target(self.id, **params))

    @property
    def record(self) -> dict[str, Any]:
        """What is known of the container; a look at the disk, not a call."""
        return api.Container(self._sandbox_id, self.id).record

    @property
    def status(self) -> str:
        """created, running, paused or stopped."""
        return str(self.record["status"])

    async def start(self) -> None:
        """Let the first process of a created container run."""
        await self._call("Start")

    async def exec(
        self,
        args: Sequence[str],
        *,
        env: Mapping[str, str] | None = None,
        cwd: str = "",
        user: str = "",
        tty: bool = False,
        stdin: int | None = None,
        stdout: int | None = None,
        stderr: int | None = None,
    ) -> Process:
        """Start one more process."""
        exec_id = ids.new_id()
        variables = [f"{key}={value}" for key, value in (env or {}).items()]
        process = requests.exec_process(
            self.record, args, env=variables, cwd=cwd, user=user, terminal=tty,
            rootfs=records.live_rootfs(self._sandbox_id, self.id),
        )  # fmt: skip
        fds = capture.named(stdin, stdout, stderr)
        params = requests.exec(self.id, exec_id, process, list(fds))
        await _call(self._sandbox_id, "Exec", params, list(fds.values()))
        return Process(self._sandbox_id, self.id, exec_id)

    async def run(
        self,
        args: Sequence[str],
        *,
        input: bytes | str | None = None,
        timeout: float | None = None,
        env: Mapping[str, str] | None = None,
        cwd: str = "",
        user: str = "",
    ) -> Result:
        """Run a command in the container to its end and return its output."""
        with capture.Pipes(input) as pipes:
            process = await self.exec(args, env=env, cwd=cwd, user=user, **pipes.child())
            return await _finish(pipes, process, timeout)

    async def wait(self, timeout: float | None = None) -> Result:
        """Wait for the end of the first process."""
        return await self.main.wait(timeout)

    async def kill(self, signal: int = 15, *, everyone: bool = False) -> None:
        """Send a signal to the first process, or with ``everyone`` to all."""
        await self.main.kill(signal, everyone=everyone)

    async def pause(self) -> None:
        """Freeze all processes."""
        await self._call("Pause")

    async def resume(self) -> None:
        """Thaw them."""
        await self._call("Resume")

    async def update(
        self, *, memory: int | str | None = None, cpus: float | None = None, pids: int | None = None
    ) -> None:
        """Change limits."""
        await self._call("Update", resources=requests.resources(memory, cpus, pids))

    async def stats(self) -> dict[str, Any]:
        """Usage: cpu (µs), memory and io (bytes), pids."""
        return await self._call("Stats")

    async def processes(self) -> list[dict[str, Any]]:
        """The processes of the container."""
        found = (await self._call("Ps")).get("processes")
        return found if isinstance(found, list) else []

    async def delete(self, *, force: bool = False) -> None:
        """Remove the container with its layer and log."""
        await self._call("Delete", force=force)


class Sandbox:
    """A VM that holds containers: ``async with hako.aio.Sandbox("busybox") as sb: ...``"""

    def __init__(
        self,
        image: str = "",
        *,
        name: str = "",
        memory: int | str | None = None,
        cpus: float | None = None,
        guest_image: str = "",
        labels: Mapping[str, str] | None = None,
        annotations: Mapping[str, str] | None = None,
        network: str = NO_NETWORK,
        ports: Sequence[str] = (),
        dns: Sequence[str] = (),
        dns_search: Sequence[str] = (),
        hosts: Sequence[str] = (),
        owned: bool = True,
        retain: bool = False,
        config: Config | None = None,
    ) -> None:
        self.config = config or load()
        self.image = image
        self._spec = requests.sandbox_spec(
            self.config, name=name, memory=memory, cpus=cpus, guest_image=guest_image,
            labels=labels, annotations=annotations, owned=owned, retain=retain,
            network=network, ports=ports, dns=dns, dns_search=dns_search, hosts=hosts,
        )  # fmt: skip
        self.id = self._spec.id
        self._owner: socket.socket | None = None

    async def __aenter__(self) -> Sandbox:
        await self.launch()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self.stop()

    async def launch(self) -> None:
        """Start the sandbox; ``async with`` does it by itself."""
        self._owner = await asyncio.to_thread(daemon.spawn, self._spec, self.config)
        if not self._spec.owned:
            self._release()

    async def wait_ready(self) -> dict[str, Any]:
        """Wait until the VM's agent has answered; return what the VM is."""
        info = (await _call(self.id, "Ready", {})).get("info")
        return info if isinstance(info, dict) else {}

    async def create(
        self,
        args: Sequence[str] = (),
        *,
        image: str = "",
        name: str = "",
        start: bool = True,
        stdin: int | None = None,
        stdout: int | None = None,
        stderr: int | None = None,
        **options: Any,
    ) -> Container:
        """Make a container and, with ``start``, run it. ``options`` are those of hako.Sandbox.create()."""
        asked = Build(image or self.image, args, **options)
        built = await asyncio.to_thread(build, asked, self.config)
        container_id = name or ids.new_id()
        fds = capture.named(stdin, stdout, stderr)
        params = requests.create(
            container_id,
            built.spec,
            lower=built.lower,
            stdio=list(fds),
            start=start,
            image=built.image,
            digest=built.digest,
        )
        await _call(self.id, "Create", params, list(fds.values()))
        return Container(self.id, container_id)

    async def run(
        self,
        args: Sequence[str] = (),
        *,
        input: bytes | str | None = None,
        timeout: float | None = None,
        **options: Any,
    ) -> Result:
        """Run a command in a fresh container to its end, delete the container, return the command's output."""
        with capture.Pipes(input) as pipes:
            container = await self.create(args, **options, **pipes.child())
            try:
                return await _finish(pipes, container.main, timeout)
            finally:
                with contextlib.suppress(NotFoundError):
                    await container.delete(force=True)

    async def share(self, source: str, destination: str, *, read_only: bool = False) -> None:
        """Give every container made from now on a directory of the host."""
        params = {"source": os.path.abspath(source), "destination": destination, "readonly": read_only}
        await _call(self.id, "Share", params)

    async def connect(self, port: int) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        """A connection to the TCP server at ``port`` of the VM's loopback, as asyncio.open_connection() makes them.

        Raises NotFoundError when nothing listens.
        """
        ours, theirs = socket.socketpair()
        try:
            with theirs:
                await _call(self.id, "Dial", requests.dial(port), [theirs.fileno()])
            return await asyncio.open_unix_connection(sock=ours)
        except BaseException:
            ours.close()
            raise

    async def stop(self) -> None:
        """End the VM and everything in it; returns when it is gone."""
        try:
            with client.connect(self.id) as sock:
                sock.setblocking(False)
                await _exchange(sock, "Stop", {})
                with contextlib.suppress(OSError):
                    while await asyncio.get_running_loop().sock_recv(sock, _READ_SIZE):
                        pass
        except NotFoundError:
            pass
        finally:
            self._release()

    def _release(self) -> None:
        if self._owner is not None:
            self._owner.close()
            self._owner = None


async def _finish(pipes: capture.Pipes, process: Process, timeout: float | None) -> Result:
    """As Pipes.finish(), on the event loop."""
    ours = pipes.take()
    stdin = FdWriter(ours["stdin"]) if "stdin" in ours else None
    readers = {name: FdReader(ours[name]) for name in ("stdout", "stderr")}
    try:
        async with asyncio.timeout(timeout), asyncio.TaskGroup() as group:
            if stdin is not None:
                group.create_task(_feed(stdin, pipes.input))
            outputs = {name: group.create_task(_read_all(reader)) for name, reader in readers.items()}
            end = group.create_task(process.wait())
    except TimeoutError:
        raise TimedOutError(f"The command did not end within {timeout:g} s.") from None
    except BaseExceptionGroup as group_error:
        raise group_error.exceptions[0] from None
    finally:
        for endpoint in (stdin, *readers.values()):
            if endpoint is not None:
                endpoint.close()
    return requests.with_output(end.result(), outputs["stdout"].result(), outputs["stderr"].result())


async def _feed(writer: FdWriter, data: bytes) -> None:
    await writer.write(data)
    writer.close()


async def _read_all(reader: FdReader) -> bytes:
    found = bytearray()
    while data := await reader.read():
        found += data
    return bytes(found)
