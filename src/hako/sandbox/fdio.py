"""Reading and writing descriptors that other processes handed over, without changing them for their owners.

O_NONBLOCK belongs to the open file description, which a passed descriptor shares with the shell or engine
it came from; setting it there would break them. Pipes and terminals are therefore opened anew through
/proc/self/fd, sockets are asked per call, and regular files never make anybody wait for long.
"""

from __future__ import annotations

import asyncio
import os
import socket
import stat

_CHUNK = 64 << 10


def _reopen(fd: int, flags: int) -> int:
    """A descriptor of our own for the same pipe or terminal; closes ``fd``. -1 if nobody is at its other end."""
    try:
        return os.open(f"/proc/self/fd/{fd}", flags | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC)
    except OSError:
        return -1
    finally:
        os.close(fd)


def _can_wait(mode: int, fd: int) -> bool:
    return stat.S_ISFIFO(mode) or (stat.S_ISCHR(mode) and os.isatty(fd))


class _Endpoint:
    """Shared by both directions: owns the descriptor."""

    def __init__(self, fd: int, flags: int) -> None:
        mode = os.fstat(fd).st_mode
        self._socket: socket.socket | None = None
        if stat.S_ISSOCK(mode):
            self._socket = socket.socket(fileno=fd)
        elif _can_wait(mode, fd):
            fd = _reopen(fd, flags)
        self._fd = fd
        self._ready: asyncio.Future[None] | None = None

    async def _wait(self, *, write: bool) -> None:
        loop = asyncio.get_running_loop()
        fd = self._fd
        self._ready = ready = loop.create_future()
        add, remove = (loop.add_writer, loop.remove_writer) if write else (loop.add_reader, loop.remove_reader)

        def on_ready() -> None:
            if not ready.done():
                ready.set_result(None)

        add(fd, on_ready)
        try:
            await ready
        finally:
            self._ready = None
            if fd == self._fd:
                remove(fd)

    def close(self) -> None:
        """Give the descriptor back; whoever waits for it finds that it cannot be used any more."""
        if self._ready is not None:
            loop = asyncio.get_running_loop()
            loop.remove_reader(self._fd)
            loop.remove_writer(self._fd)
            if not self._ready.done():
                self._ready.set_result(None)
        if self._socket is not None:
            self._socket.close()
        elif self._fd >= 0:
            os.close(self._fd)
        self._socket = None
        self._fd = -1


class FdReader(_Endpoint):
    """The reading side of a descriptor, which it owns from now on."""

    def __init__(self, fd: int) -> None:
        super().__init__(fd, os.O_RDONLY)

    async def read(self) -> bytes:
        """Some bytes; empty at the end, and when the descriptor cannot be read any more."""
        while True:
            try:
                if self._socket is not None:
                    return self._socket.recv(_CHUNK, socket.MSG_DONTWAIT)
                return os.read(self._fd, _CHUNK)
            except BlockingIOError:
                await self._wait(write=False)
            except OSError:
                return b""


class FdWriter(_Endpoint):
    """The writing side of a descriptor, which it owns from now on."""

    def __init__(self, fd: int) -> None:
        super().__init__(fd, os.O_WRONLY)

    async def write(self, data: bytes) -> bool:
        """Write all of ``data``; False when nobody can take it any more."""
        view = memoryview(data)
        while view:
            try:
                if self._socket is not None:
                    count = self._socket.send(view, socket.MSG_DONTWAIT | socket.MSG_NOSIGNAL)
                else:
                    count = os.write(self._fd, view)
            except BlockingIOError:
                await self._wait(write=True)
                continue
            except OSError:
                return False
            view = view[count:]
        return True
