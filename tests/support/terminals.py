"""A program on a terminal of its own, driven as a person would."""

from __future__ import annotations

import contextlib
import fcntl
import os
import pty
import select
import signal
import struct
import termios
import time
from types import TracebackType


class OnTerminal:
    """Runs ``argv`` on a new terminal; a context manager that ends it."""

    def __init__(self, argv: list[str], *, rows: int = 24, columns: int = 80) -> None:
        self.pid, self.fd = pty.fork()
        if self.pid == 0:
            try:
                os.execv(argv[0], argv)
            finally:
                os._exit(127)
        self.resize(rows, columns)
        self._seen = b""
        self._status: int | None = None

    def __enter__(self) -> OnTerminal:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self._status is None:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.pid, signal.SIGHUP)
            self.wait()
        os.close(self.fd)

    def resize(self, rows: int, columns: int) -> None:
        """Change the size of the terminal, as a window does."""
        fcntl.ioctl(self.fd, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))

    def type(self, text: str) -> None:
        """Press keys."""
        os.write(self.fd, text.encode())

    def expect(self, text: str, timeout: float = 60) -> str:
        """Wait until ``text`` is shown; return what came before it. Raises AssertionError with what was shown."""
        wanted = text.encode()
        deadline = time.monotonic() + timeout
        while wanted not in self._seen:
            data = self._read(deadline - time.monotonic())
            assert data, f"{text!r} was not shown, but {self._seen!r}"
            self._seen += data
        before, _, self._seen = self._seen.partition(wanted)
        return before.decode(errors="replace")

    def _read(self, seconds: float) -> bytes:
        if seconds <= 0 or not select.select([self.fd], [], [], seconds)[0]:
            return b""
        try:
            return os.read(self.fd, 65536)
        except OSError:  # the program has ended
            return b""

    def is_raw(self) -> bool:
        """Whether the terminal passes keys on as they are."""
        return not termios.tcgetattr(self.fd)[3] & termios.ICANON

    def wait(self, timeout: float = 60) -> int:
        """The exit code, once the program has ended; what it still shows is read meanwhile."""
        deadline = time.monotonic() + timeout
        while self._status is None:
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            if pid:
                self._status = os.waitstatus_to_exitcode(status)
                break
            if time.monotonic() > deadline:
                os.kill(self.pid, signal.SIGKILL)
                deadline += 10
            self._seen += self._read(0.05)
        return self._status
