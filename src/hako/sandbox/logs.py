"""A container's log: what its processes wrote, with times, bounded in size.

Format, little endian, any bytes: u64 nanoseconds since 1970, u8 stream (1 stdout, 2 stderr), u32 length,
data. The file is turned over to ``<path>.1`` when it reaches half the allowed size.
"""

from __future__ import annotations

import os
import struct
import time
from collections.abc import Iterator
from typing import NamedTuple

_HEADER = struct.Struct("<QBI")
#: Longer entries are not ours: the file is damaged from there on.
_MAX_ENTRY = 1 << 20

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
            os.write(self._fd, entry)
        except OSError:
            self.failed = True
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
    for name in (path + ".1", path):
        try:
            file = open(name, "rb")
        except FileNotFoundError:
            continue
        with file:
            yield from _read_file(file.fileno())


def _read_file(fd: int) -> Iterator[Entry]:
    buffer = b""
    while True:
        entry, used = _parse(buffer)
        if entry is not None:
            buffer = buffer[used:]
            yield entry
            continue
        more = os.read(fd, 1 << 20) if used >= 0 else b""
        if not more:
            return
        buffer += more


def _parse(buffer: bytes) -> tuple[Entry | None, int]:
    """The first entry in ``buffer`` and its size; (None, 0) when it is incomplete, (None, -1) when damaged."""
    if len(buffer) < _HEADER.size:
        return None, 0
    time_ns, stream, length = _HEADER.unpack_from(buffer)
    if stream not in (STDOUT, STDERR) or length > _MAX_ENTRY:
        return None, -1
    end = _HEADER.size + length
    if len(buffer) < end:
        return None, 0
    return Entry(time_ns, stream, buffer[_HEADER.size : end]), end


def follow(path: str, alive: Iterator[bool]) -> Iterator[Entry]:
    """Entries as they come: like read(), then whatever is added while ``alive`` keeps giving True.

    ``alive`` is asked between looks and sets the pace (it sleeps).
    """
    seen = 0
    while True:
        going_on = next(alive, False)
        entries = list(read(path))
        # Turned over in between: the older half has moved to .1 and what was there is gone.
        for entry in entries:
            if entry.time_ns > seen:
                seen = entry.time_ns
                yield entry
        if not going_on:
            return
