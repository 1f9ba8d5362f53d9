"""Reading and writing descriptors that other processes handed over, without changing them for their owners.

O_NONBLOCK belongs to the open file description, which a passed descriptor shares with the shell or engine
it came from; setting it there would break them. Pipes and terminals are therefore opened anew through
/proc/self/fd, sockets are asked per call, and regular files never make anybody wait for long.

Two terminal devices cannot be opened anew, because what they mean depends on who opens them: /dev/tty, behind
which the real terminal is looked up, and the master side of a terminal, where /dev/ptmx would make a new one.
That one is waited for before each call, which is then a small one.
"""

from __future__ import annotations

import asyncio
import errno
import fcntl
import logging
import os
import socket
import stat
import struct

log = logging.getLogger(__name__)

_CHUNK = 64 << 10
#: Whoever took the output has gone, which is for him to know.
_NOBODY = (errno.EPIPE, errno.ECONNRESET, errno.EIO, errno.EBADF)
#: What a terminal that says it is writable takes without making us wait.
_SMALL = 256
_TTY, _PTMX = os.makedev(5, 0), os.makedev(5, 2)
_TIOCGDEV = 0x80045432  # include/uapi/asm-generic/ioctls.h


def _reopen(fd: int, flags: int) -> int:
    """A descriptor of our own for the same pipe or terminal; closes ``fd``. -1 if nobody is at its other end."""
    try:
        path = _terminal(fd) if os.fstat(fd).st_rdev == _TTY else f"/proc/self/fd/{fd}"
        return os.open(path, flags | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC)
    except OSError:
        return -1
    finally:
        os.close(fd)


def _terminal(fd: int) -> str:
    """The device behind ``fd``, which was opened as /dev/tty. Raises OSError."""
    (device,) = struct.unpack("I", fcntl.ioctl(fd, _TIOCGDEV, bytes(4)))
    names = (f"/dev/pts/{os.minor(device)}", f"/dev/tty{os.minor(device)}", f"/dev/ttyS{os.minor(device) - 64}")
    for name in names:
        if os.path.exists(name) and os.stat(name).st_rdev == device:
            return name
    raise FileNotFoundError(f"no name for terminal {device:#x}")


def _can_wait(mode: int, fd: int) -> bool:
    return stat.S_ISFIFO(mode) or (stat.S_ISCHR(mode) and os.isatty(fd))


class _Endpoint:
    """Shared by both directions: owns the descriptor."""

    def __init__(self, fd: int, flags: int) -> None:
        status = os.fstat(fd)
        self._socket: socket.socket | None = None
        #: Blocks when it is used before it is ready.
        self._blocks = stat.S_ISCHR(status.st_mode) and status.st_rdev == _PTMX
        if stat.S_ISSOCK(status.st_mode):
            self._socket = socket.socket(fileno=fd)
        elif _can_wait(status.st_mode, fd) and not self._blocks:
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
            if self._blocks and self._fd >= 0:
                await self._wait(write=False)
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
            if self._blocks and self._fd >= 0:
                await self._wait(write=True)
            try:
                if self._socket is not None:
                    count = self._socket.send(view, socket.MSG_DONTWAIT | socket.MSG_NOSIGNAL)
                else:
                    count = os.write(self._fd, view[:_SMALL] if self._blocks else view)
            except BlockingIOError:
                await self._wait(write=True)
                continue
            except OSError as error:
                if error.errno not in _NOBODY:
                    log.error("The output of a process cannot be written any more: %s.", error.strerror)
                return False
            view = view[count:]
        return True
