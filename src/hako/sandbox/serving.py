"""Serving a UNIX socket on which clients make calls in frames: who may call, one task per call, answers.

The control socket and containerd's ttrpc socket differ in what a call looks like; how clients come and go, and what
becomes of one that does not take its answers, is the same.
"""

from __future__ import annotations

import asyncio
import logging
import os
import socket
import struct
from collections.abc import Callable, Coroutine
from typing import Any, Generic, TypeVar

from hako.wire import calls, frames

log = logging.getLogger(__name__)

READ_SIZE = 256 << 10
#: Bytes of answers that may wait for a client before its calls have to wait.
_MAX_ANSWERS = 8 << 20
#: Seconds without new clients after one could not be taken.
_ACCEPT_PAUSE = 0.5


def _credentials(sock: socket.socket) -> tuple[int, int, int]:
    """Process id, effective user id and effective group id of whoever made the connection."""
    pid, uid, gid = struct.unpack("3i", sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12))
    return pid, uid, gid


class FrameConnection:
    """One client of ``name``. ``on_frame`` gets its frames; MalformedError from there ends the connection."""

    def __init__(
        self,
        sock: socket.socket,
        name: str,
        decoder: frames.Decoder,
        on_frame: Callable[[frames.Frame], None],
        on_closed: Callable[[], None],
    ) -> None:
        sock.setblocking(False)
        self._sock = sock
        self._name = name
        #: Process id of whoever made the connection.
        self.peer = _credentials(sock)[0]
        self._decoder = decoder
        self._on_frame = on_frame
        self._on_closed = on_closed
        self._loop = asyncio.get_running_loop()
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
        for task in self.tasks:
            task.cancel()
        self._on_closed()

    def receive(self) -> bytes:
        """What the client sent; empty when it is gone. Raises BlockingIOError when there is nothing, or OSError."""
        return self._sock.recv(READ_SIZE)

    def start(self, call: Coroutine[Any, Any, None], on_ended: Callable[[], None] | None = None) -> None:
        """Serve a call; ``on_ended`` runs in any case, even if the call is cancelled before its first step."""
        task = self._loop.create_task(call)
        self.tasks.add(task)

        def ended(task: asyncio.Task[None]) -> None:
            if on_ended is not None:
                on_ended()
            self.tasks.discard(task)

        task.add_done_callback(ended)

    def send(self, data: bytes) -> None:
        """Queue an answer."""
        if self.closed.is_set():
            return
        self._outgoing += data
        self._flush()
        if len(self._outgoing) > _MAX_ANSWERS and not self._deaf and not self.closed.is_set():
            # Whoever does not take the answers is not listened to until he does.
            self._deaf = True
            self._loop.remove_reader(self._sock)

    def _on_readable(self) -> None:
        try:
            data = self.receive()
        except BlockingIOError:
            return
        except OSError:
            data = b""
        if not data:
            self.close()
            return
        try:
            for frame in self._decoder.feed(data):
                if not self.closed.is_set():
                    self._on_frame(frame)
        except (frames.FrameError, calls.MalformedError) as error:
            log.warning("A client of %s broke the protocol: %s", self._name, error)
            self.close()

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


C = TypeVar("C", bound=FrameConnection)


class FrameServer(Generic[C]):
    """Serves every client of ``listener``, which it owns: whoever has our user id and, if asked, our group id too.

    ``make`` makes the connection of a client; what it is given next must be called when the connection has ended.
    """

    def __init__(
        self,
        listener: socket.socket,
        name: str,
        make: Callable[[socket.socket, Callable[[C], None]], C],
        *,
        check_group: bool = False,
    ) -> None:
        self._name = name
        self._make = make
        self._check_group = check_group
        self._connections: set[C] = set()
        self._loop = asyncio.get_running_loop()
        self._listener = listener
        self._listener.setblocking(False)
        self._pause: asyncio.TimerHandle | None = None
        self._listen()

    def _listen(self) -> None:
        self._loop.add_reader(self._listener, self._on_client)

    def adopt(self, sock: socket.socket) -> C:
        """Serve a client whose connection was made in another way."""
        connection = self._make(sock, self._connections.discard)
        self._connections.add(connection)
        return connection

    def _on_client(self) -> None:
        try:
            sock, _ = self._listener.accept()
        except BlockingIOError:
            return
        except OSError as error:
            # Out of descriptors, most likely: the client stays in the queue, and trying at once would not help.
            log.warning("Cannot take a client of %s: %s", self._name, error.strerror)
            self._loop.remove_reader(self._listener)
            self._pause = self._loop.call_later(_ACCEPT_PAUSE, self._listen)
            return
        _, uid, gid = _credentials(sock)
        if uid != os.geteuid() or (self._check_group and gid != os.getegid()):
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
