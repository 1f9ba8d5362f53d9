"""The sandbox process's control socket: who may call, frames with descriptors, one task per call.

The frames and calls are those of the agent protocol; a request may bring descriptors with it (SCM_RIGHTS),
whose number stands in ``params["fds"]``. A client with another user id than ours is turned away.
"""

from __future__ import annotations

import array
import asyncio
import contextlib
import logging
import os
import socket
import struct
from collections import deque
from collections.abc import Awaitable, Callable
from typing import Any

from hako.errors import HakoError
from hako.wire import calls, frames

log = logging.getLogger(__name__)

#: Descriptors one request may bring.
MAX_FDS = 8
_READ_SIZE = 256 << 10

Handler = Callable[["Connection", str, dict[str, Any], list[int]], Awaitable[dict[str, Any]]]


class Connection:
    """One client. ``handler`` owns the descriptors it is given."""

    def __init__(self, sock: socket.socket, handler: Handler, on_closed: Callable[[Connection], None]) -> None:
        sock.setblocking(False)
        self._sock = sock
        self._handler = handler
        self._on_closed = on_closed
        self._loop = asyncio.get_running_loop()
        self._decoder = frames.Decoder(calls.MAX_CALL)
        self._fds: deque[int] = deque()
        self._tasks: set[asyncio.Task[None]] = set()
        self._outgoing = bytearray()
        self.closed = asyncio.Event()
        self._loop.add_reader(sock, self._on_readable)

    def close(self) -> None:
        """End the connection. Calls under way are cancelled."""
        if self.closed.is_set():
            return
        self.closed.set()
        self._loop.remove_reader(self._sock)
        self._loop.remove_writer(self._sock)
        self._sock.close()
        for fd in self._fds:
            os.close(fd)
        self._fds.clear()
        for task in self._tasks:
            task.cancel()
        self._on_closed(self)

    def _on_readable(self) -> None:
        try:
            data, ancillary, flags, _ = self._sock.recvmsg(
                _READ_SIZE, socket.CMSG_SPACE(4 * MAX_FDS), socket.MSG_CMSG_CLOEXEC
            )
        except BlockingIOError:
            return
        except OSError:
            data, ancillary, flags = b"", [], 0
        for level, kind, payload in ancillary:
            if level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS:
                fds = array.array("i")
                fds.frombytes(payload[: len(payload) - len(payload) % fds.itemsize])
                self._fds.extend(fds)
        if not data or flags & socket.MSG_CTRUNC:
            self.close()
            return
        try:
            for frame in self._decoder.feed(data):
                if frame.kind == frames.REQUEST:
                    self._start(frame)
        except (frames.FrameError, calls.MalformedError) as error:
            log.warning("A client of the control socket broke the protocol: %s", error)
            self.close()

    def _start(self, frame: frames.Frame) -> None:
        method, params = calls.decode_request(frame.data)
        count = params.pop("fds", 0)
        if type(count) is not int or not 0 <= count <= len(self._fds):
            raise calls.MalformedError("fds: not the number of descriptors that came along")
        fds = [self._fds.popleft() for _ in range(count)]
        task = self._loop.create_task(self._serve(frame.stream, method, params, fds))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _serve(self, number: int, method: str, params: dict[str, Any], fds: list[int]) -> None:
        try:
            answer = calls.encode_result(await self._handler(self, method, params, fds))
        except HakoError as error:
            exit_code = error.exit_code if error.exit_code in (126, 127) else None
            answer = calls.encode_error(calls.CallError(error.grpc_code, str(error), exit_code))
        except Exception as error:
            log.exception("%s failed", method)
            answer = calls.encode_error(calls.CallError(calls.INTERNAL, f"{method}: {type(error).__name__}: {error}"))
        self._send(frames.encode(number, frames.RESPONSE, answer))

    def _send(self, data: bytes) -> None:
        if self.closed.is_set():
            return
        self._outgoing += data
        self._flush()

    def _flush(self) -> None:
        try:
            while self._outgoing:
                del self._outgoing[: self._sock.send(self._outgoing)]
        except BlockingIOError:
            self._loop.add_writer(self._sock, self._flush)
            return
        except OSError:
            self.close()
            return
        self._loop.remove_writer(self._sock)


class ControlServer:
    """Listens at ``path``; ``handler`` answers the calls of every client."""

    def __init__(self, path: str, handler: Handler) -> None:
        self._path = path
        self._handler = handler
        self._connections: set[Connection] = set()
        self._loop = asyncio.get_running_loop()
        self._listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
        with contextlib.suppress(FileNotFoundError):
            os.unlink(path)
        # Through a descriptor, because a socket's address is limited to 107 bytes.
        directory = os.open(os.path.dirname(path), os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            self._listener.bind(f"/proc/self/fd/{directory}/{os.path.basename(path)}")
        finally:
            os.close(directory)
        os.chmod(path, 0o600)
        self._listener.listen(64)
        self._listener.setblocking(False)
        self._loop.add_reader(self._listener, self._on_client)

    def adopt(self, sock: socket.socket) -> Connection:
        """Serve a client whose connection was made in another way."""
        connection = Connection(sock, self._handler, self._connections.discard)
        self._connections.add(connection)
        return connection

    def _on_client(self) -> None:
        try:
            sock, _ = self._listener.accept()
        except OSError:
            return
        _, uid, _ = struct.unpack("3i", sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12))
        if uid != os.geteuid():
            sock.close()
            return
        self.adopt(sock)

    def close(self) -> None:
        """Stop listening and end all connections."""
        self._loop.remove_reader(self._listener)
        self._listener.close()
        with contextlib.suppress(FileNotFoundError):
            os.unlink(self._path)
        for connection in list(self._connections):
            connection.close()
