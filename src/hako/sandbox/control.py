"""The sandbox process's control socket: who may call, frames with descriptors, one task per call.

The frames and calls are those of the agent protocol; a request may bring descriptors with it (SCM_RIGHTS),
whose number stands in ``params["fds"]``. A client with another user id than ours is turned away.
"""

from __future__ import annotations

import array
import asyncio
import logging
import os
import socket
import struct
from collections import deque
from collections.abc import Awaitable, Callable
from typing import Any

from hako.errors import ConfigError, HakoError
from hako.wire import calls, frames

log = logging.getLogger(__name__)

#: Descriptors one request may bring.
MAX_FDS = 8
_READ_SIZE = 256 << 10
#: Bytes of answers that may wait for a client before its calls have to wait.
_MAX_ANSWERS = 8 << 20
#: Seconds without new clients after one could not be taken.
_ACCEPT_PAUSE = 0.5

Handler = Callable[["Connection", str, dict[str, Any], "Fds"], Awaitable[dict[str, Any]]]


class Fds:
    """Descriptors that came with a call; those that nobody has taken when it has been answered are closed."""

    def __init__(self, fds: list[int]) -> None:
        self._fds = fds

    def take(self, names: object, allowed: tuple[str, ...]) -> dict[str, int]:
        """The descriptors by name, in the order of the list ``names``; whoever takes them owns them.

        Raises ConfigError when ``names`` is not as many different ones of ``allowed``.
        """
        valid = isinstance(names, list) and all(isinstance(name, str) and name in allowed for name in names)
        if not valid or not isinstance(names, list) or not len(names) == len(set(names)) == len(self._fds):
            raise ConfigError("$.stdio: not the names of the descriptors that came along.")
        taken, self._fds = self._fds, []
        return dict(zip(names, taken, strict=True))

    def close(self) -> None:
        """Close what nobody has taken."""
        fds, self._fds = self._fds, []
        for fd in fds:
            os.close(fd)


class Connection:
    """One client."""

    def __init__(self, sock: socket.socket, handler: Handler, on_closed: Callable[[Connection], None]) -> None:
        sock.setblocking(False)
        self._sock = sock
        #: Process id of whoever made the connection.
        self.peer: int = struct.unpack("3i", sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12))[0]
        self._handler = handler
        self._on_closed = on_closed
        self._loop = asyncio.get_running_loop()
        self._decoder = frames.Decoder(calls.MAX_CALL)
        self._fds: deque[int] = deque()
        self.tasks: set[asyncio.Task[None]] = set()
        self._outgoing = bytearray()
        self._deaf = False
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
        for task in self.tasks:
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
        if not data or flags & socket.MSG_CTRUNC or len(self._fds) > 2 * MAX_FDS:
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
        if len(self.tasks) >= calls.MAX_CALLS:
            raise calls.MalformedError(f"more than {calls.MAX_CALLS} calls at a time")
        fds = Fds([self._fds.popleft() for _ in range(count)])
        task = self._loop.create_task(self._serve(frame.stream, method, params, fds))
        self.tasks.add(task)

        def ended(task: asyncio.Task[None]) -> None:
            # Here, because a task that is cancelled before its first step never runs any of its own code.
            fds.close()
            self.tasks.discard(task)

        task.add_done_callback(ended)

    async def _serve(self, number: int, method: str, params: dict[str, Any], fds: Fds) -> None:
        try:
            answer = calls.encode_result(await self._handler(self, method, params, fds))
        except HakoError as error:
            exit_code = error.exit_code if error.exit_code in (126, 127) else None
            answer = calls.encode_error(calls.CallError(error.grpc_code, str(error), exit_code))
        except calls.CallError as error:
            answer = calls.encode_error(error)
        except Exception as error:
            log.exception("%s failed", method)
            answer = calls.encode_error(calls.CallError(calls.INTERNAL, f"{method}: {type(error).__name__}: {error}"))
        self._send(frames.encode(number, frames.RESPONSE, answer))

    def _send(self, data: bytes) -> None:
        if self.closed.is_set():
            return
        self._outgoing += data
        self._flush()
        if len(self._outgoing) > _MAX_ANSWERS and not self._deaf and not self.closed.is_set():
            # Whoever does not take the answers is not listened to until he does.
            self._deaf = True
            self._loop.remove_reader(self._sock)

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
        if self._deaf:
            self._deaf = False
            self._loop.add_reader(self._sock, self._on_readable)


class ControlServer:
    """Serves every client of ``listener``, which it owns; ``handler`` answers their calls."""

    def __init__(self, listener: socket.socket, handler: Handler) -> None:
        self._handler = handler
        self._connections: set[Connection] = set()
        self._loop = asyncio.get_running_loop()
        self._listener = listener
        self._listener.setblocking(False)
        self._pause: asyncio.TimerHandle | None = None
        self._listen()

    def _listen(self) -> None:
        self._loop.add_reader(self._listener, self._on_client)

    def adopt(self, sock: socket.socket) -> Connection:
        """Serve a client whose connection was made in another way."""
        connection = Connection(sock, self._handler, self._connections.discard)
        self._connections.add(connection)
        return connection

    def _on_client(self) -> None:
        try:
            sock, _ = self._listener.accept()
        except BlockingIOError:
            return
        except OSError as error:
            # Out of descriptors, most likely: the client stays in the queue, and trying at once would not help.
            log.warning("Cannot take a client of the control socket: %s", error.strerror)
            self._loop.remove_reader(self._listener)
            self._pause = self._loop.call_later(_ACCEPT_PAUSE, self._listen)
            return
        _, uid, _ = struct.unpack("3i", sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12))
        if uid != os.geteuid():
            sock.close()
            return
        self.adopt(sock)

    async def drain(self, timeout: float) -> None:
        """Wait until the calls under way have their answers, at most ``timeout`` seconds."""
        calls_under_way = [task for connection in self._connections for task in connection.tasks]
        if calls_under_way:
            await asyncio.wait(calls_under_way, timeout=timeout)

    def close(self) -> None:
        """Stop listening and end all connections."""
        if self._pause is not None:
            self._pause.cancel()
        self._loop.remove_reader(self._listener)
        self._listener.close()
        for connection in list(self._connections):
            connection.close()
