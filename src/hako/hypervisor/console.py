"""The guest's serial console on the host: a bounded file, the last lines in memory, and no more work than we choose.

What the guest prints is hostile: it may be endless, and it may contain control sequences for the terminal of whoever
reads it. The file holds the raw bytes; everything that is shown goes through ``printable``.
"""

from __future__ import annotations

import asyncio
import os
import socket

from hako import log

_log = log.get("hypervisor")

#: Bytes of console.log and its predecessor console.log.1 together.
LOG_CAP = 256 << 10

#: Bytes kept in memory for reports.
TAIL_CAP = 16 << 10

#: Longest line that is shown.
LINE_CAP = 500

# Bytes a second that are read in the long run, and at once. Beyond that the socket fills up, QEMU stops
# taking characters from the guest, and it is the guest that waits.
RATE = 128 << 10
BURST = 512 << 10

_CHUNK = 32 << 10


def printable(data: bytes) -> list[str]:
    """The lines in ``data`` with all that a terminal would act on written as escapes; blank lines are left out."""
    lines = []
    for raw in data.decode(errors="replace").replace("\r\n", "\n").replace("\r", "\n").split("\n"):
        line = raw.rstrip().replace("\t", "    ")
        if line:
            line = line if len(line) <= LINE_CAP else line[:LINE_CAP] + "…"
            lines.append("".join(char if char.isprintable() else _escaped(char) for char in line))
    return lines


def _escaped(char: str) -> str:
    return char.encode("unicode_escape").decode("ascii")


class BoundedLog:
    """The last bytes written to it: TAIL_CAP of them in memory and, given a path, at most ``cap`` in two files.

    The files are ``path`` and, once that holds half of ``cap``, ``path.1`` with what came before. When the disk
    refuses, the file stops growing and one warning is logged: a full disk must not end the VM.
    """

    def __init__(self, path: str | None = None, cap: int = LOG_CAP) -> None:
        self._path = path
        self._half = cap // 2
        self._tail = bytearray()
        self._fd = -1
        self._size = 0
        if path is not None:
            self._open(path)

    def write(self, data: bytes) -> None:
        """Append ``data``, dropping what is oldest."""
        self._tail += data
        if len(self._tail) > 2 * TAIL_CAP:
            del self._tail[:-TAIL_CAP]
        if self._fd >= 0 and self._path is not None:
            self._write_file(self._path, data)

    def tail(self, lines: int) -> list[str]:
        """The last ``lines`` lines, made printable."""
        kept = bytes(self._tail[-TAIL_CAP:])
        return printable(kept)[-lines:] if lines > 0 else []

    def close(self) -> None:
        """Close the file; what is in memory stays readable. Can be repeated."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    def _open(self, path: str) -> None:
        try:
            self._fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
            self._size = os.fstat(self._fd).st_size
        except OSError as error:
            self._give_up(error)

    def _write_file(self, path: str, data: bytes) -> None:
        view = memoryview(data)[-2 * self._half :]
        try:
            while view:
                if self._size >= self._half:
                    os.replace(path, path + ".1")
                    self.close()
                    self._open(path)
                    if self._fd < 0:
                        return
                written = os.write(self._fd, view[: self._half - self._size])
                self._size += written
                view = view[written:]
        except OSError as error:
            self._give_up(error)

    def _give_up(self, error: OSError) -> None:
        _log.warning("The console is no longer written to its file.", file=self._path, reason=error.strerror)
        self.close()


class SocketReader:
    """Moves what arrives on a non-blocking socket or pipe into a BoundedLog, no faster than RATE bytes a second.

    It does not own the descriptor: ``stop`` before closing that.
    """

    def __init__(self, source: socket.socket | int, target: BoundedLog) -> None:
        self._fd = source if isinstance(source, int) else source.fileno()
        self._target = target
        self._loop = asyncio.get_running_loop()
        self._budget = float(BURST)
        self._filled = self._loop.time()
        self._timer: asyncio.TimerHandle | None = None
        self._running = True
        self._loop.add_reader(self._fd, self._readable)

    def stop(self) -> None:
        """Stop reading. Can be repeated."""
        if self._running:
            self._running = False
            self._loop.remove_reader(self._fd)
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def drain(self) -> None:
        """Stop, after taking what is there already, at most BURST bytes: for when the writer is dead."""
        if not self._running:
            return  # the descriptor may be somebody else's by now
        self.stop()
        for _ in range(BURST // _CHUNK):
            if not self._read():
                return

    def _readable(self) -> None:
        size = self._read()
        if size == 0:
            self.stop()
            return
        now = self._loop.time()
        self._budget = min(float(BURST), self._budget + (now - self._filled) * RATE) - (size or 0)
        self._filled = now
        if self._budget < 0:
            self._loop.remove_reader(self._fd)
            # Negative budget is at most one chunk, so this is at most a quarter of a second.
            self._timer = self._loop.call_later(-self._budget / RATE, self._go_on)

    def _go_on(self) -> None:
        self._timer = None
        self._loop.add_reader(self._fd, self._readable)

    def _read(self) -> int | None:
        """Take one chunk: its size, 0 at the end, None when there is nothing now."""
        try:
            data = os.read(self._fd, _CHUNK)
        except (BlockingIOError, InterruptedError):
            return None
        except OSError:  # the other end was killed with data of ours unread
            return 0
        if data:
            self._target.write(data)
        return len(data)
