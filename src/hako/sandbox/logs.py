"""A container's log: what its processes wrote, with times, bounded in size.

Format, little endian, any bytes: u64 nanoseconds since 1970, u8 stream (1 stdout, 2 stderr), u32 length,
data. The file is turned over to ``<path>.1`` when it reaches half the allowed size.
"""

from __future__ import annotations

import contextlib
import errno
import os
import struct
import time
from collections.abc import Iterator

from hako.named import NamedTuple

_HEADER = struct.Struct("<QBI")
#: Longer entries are not ours: the file is damaged from there on.
_MAX_ENTRY = 1 << 20
_CHUNK = 1 << 18

STDOUT = 1
STDERR = 2


class Entry(NamedTuple):
    """One piece of output."""

    time_ns: int
    stream: int
    data: bytes


class LogWriter:
    """Appends to the log at ``path``; keeps the newest ``max_size`` bytes at most, half of it at least."""

    def __init__(self, path: str, max_size: int) -> None:
        self._path = path
        self._half = max(max_size // 2, 4096)
        self._fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
        self._size = os.fstat(self._fd).st_size
        self.failed = False

    def write(self, stream: int, data: bytes) -> None:
        """Append ``data``. A full disk stops the log, not the container."""
        if self.failed:
            return
        if self._size + len(data) > self._half and self._size:
            self._turn_over()
        entry = _HEADER.pack(time.time_ns(), stream, len(data)) + data
        try:
            if os.write(self._fd, entry) < len(entry):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), self._path)
        except OSError:
            self.failed = True
            with contextlib.suppress(OSError):
                os.ftruncate(self._fd, self._size)  # half an entry would read as damage
            return
        self._size += len(entry)

    def _turn_over(self) -> None:
        os.replace(self._path, self._path + ".1")
        os.close(self._fd)
        self._fd = os.open(self._path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
        self._size = 0

    def close(self) -> None:
        """Give the file back."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1


def read(path: str) -> Iterator[Entry]:
    """All entries of the log at ``path``, oldest first; stops at a damaged or unfinished one."""
    with LogReader(path) as reader:
        yield from reader.entries()


class LogReader:
    """Reads the log at ``path`` from its oldest entry on, and later what was added. A context manager.

    Memory: what it holds is the unfinished entry at the end and one piece of the file.
    """

    def __init__(self, path: str) -> None:
        self._path = path
        self._buffer = bytearray()
        self._damaged = False
        self._fd = -1
        #: Which file is open: device and inode. A turned over log is another file under the same name.
        self._identity: tuple[int, int] | None = None

    def __enter__(self) -> LogReader:
        return self

    def __exit__(self, *_: object) -> None:
        self._drop()

    def entries(self) -> Iterator[Entry]:
        """The entries that nobody has asked for yet. Call it again for those that have come since."""
        if self._fd < 0 and not (self._open(self._path + ".1") or self._open(self._path)):
            return
        while True:
            # Asked before reading: what was written to this file before it was turned over is read below.
            successor = self._successor()
            yield from self._read()
            if successor is None or not self._open(successor):
                return

    def _successor(self) -> str | None:
        """The file that follows the open one, None when the open one is still written to."""
        older, current = _identity(self._path + ".1"), _identity(self._path)
        if current is None or current == self._identity:
            return None
        # Turned over twice: what was between is the older one now.
        return self._path if older in (None, self._identity) else self._path + ".1"

    def _open(self, name: str) -> bool:
        try:
            fd = os.open(name, os.O_RDONLY | os.O_CLOEXEC)
        except FileNotFoundError:
            return False
        self._drop()
        status = os.fstat(fd)
        self._fd, self._identity = fd, (status.st_dev, status.st_ino)
        return True

    def _drop(self) -> None:
        if self._fd >= 0:
            os.close(self._fd)
        self._fd, self._damaged = -1, False
        self._buffer.clear()

    def _read(self) -> Iterator[Entry]:
        while not self._damaged:
            entry, used = _parse(self._buffer)
            if entry is not None:
                del self._buffer[:used]
                yield entry
                continue
            self._damaged = used < 0
            more = os.read(self._fd, _CHUNK) if not self._damaged else b""
            if not more:
                return
            self._buffer += more


def _identity(name: str) -> tuple[int, int] | None:
    try:
        status = os.stat(name)
    except FileNotFoundError:
        return None
    return status.st_dev, status.st_ino


def _parse(buffer: bytearray) -> tuple[Entry | None, int]:
    """The first entry in ``buffer`` and its size; (None, 0) when it is incomplete, (None, -1) when damaged."""
    if len(buffer) < _HEADER.size:
        return None, 0
    time_ns, stream, length = _HEADER.unpack_from(buffer)
    if stream not in (STDOUT, STDERR) or length > _MAX_ENTRY:
        return None, -1
    end = _HEADER.size + length
    if len(buffer) < end:
        return None, 0
    return Entry(time_ns, stream, bytes(buffer[_HEADER.size : end])), end
