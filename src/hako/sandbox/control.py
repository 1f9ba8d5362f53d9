"""The sandbox process's control socket: JSON calls that bring descriptors with them; serving.py does the rest.

The frames and calls are those of the agent protocol; a request may bring descriptors with it (SCM_RIGHTS),
whose number stands in ``params["fds"]``. A client with another user id than ours is turned away.
"""

from __future__ import annotations

import array
import logging
import os
import socket
from collections import deque
from collections.abc import Awaitable, Callable
from typing import Any

from hako.errors import ConfigError, HakoError
from hako.sandbox.serving import READ_SIZE, FrameConnection, FrameServer
from hako.wire import calls, frames

log = logging.getLogger(__name__)

#: Descriptors one request may bring.
MAX_FDS = 8
_NAME = "the control socket"

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


class Connection(FrameConnection):
    """One client."""

    def __init__(self, sock: socket.socket, handler: Handler, on_closed: Callable[[Connection], None]) -> None:
        self._handler = handler
        self._fds: deque[int] = deque()
        super().__init__(sock, _NAME, frames.Decoder(calls.MAX_CALL), self._on_request, lambda: self._end(on_closed))

    def _end(self, on_closed: Callable[[Connection], None]) -> None:
        for fd in self._fds:
            os.close(fd)
        self._fds.clear()
        on_closed(self)

    def receive(self) -> bytes:
        """What the client sent; the descriptors that come with it are kept for the calls that ask for them."""
        data, ancillary, flags, _ = self._sock.recvmsg(
            READ_SIZE, socket.CMSG_SPACE(4 * MAX_FDS), socket.MSG_CMSG_CLOEXEC
        )
        for level, kind, payload in ancillary:
            if level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS:
                fds = array.array("i")
                fds.frombytes(payload[: len(payload) - len(payload) % fds.itemsize])
                self._fds.extend(fds)
        return b"" if flags & socket.MSG_CTRUNC or len(self._fds) > 2 * MAX_FDS else data

    def _on_request(self, frame: frames.Frame) -> None:
        if frame.kind != frames.REQUEST:
            return
        method, params = calls.decode_request(frame.data)
        count = params.pop("fds", 0)
        if type(count) is not int or not 0 <= count <= len(self._fds):
            raise calls.MalformedError("fds: not the number of descriptors that came along")
        if len(self.tasks) >= calls.MAX_CALLS:
            raise calls.MalformedError(f"more than {calls.MAX_CALLS} calls at a time")
        fds = Fds([self._fds.popleft() for _ in range(count)])
        self.start(self._serve(frame.stream, method, params, fds), fds.close)

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
        self.send(frames.encode(number, frames.RESPONSE, answer))


class ControlServer(FrameServer[Connection]):
    """Serves every client of ``listener``, which it owns; ``handler`` answers their calls."""

    def __init__(self, listener: socket.socket, handler: Handler) -> None:
        super().__init__(listener, _NAME, lambda sock, on_closed: Connection(sock, handler, on_closed))
