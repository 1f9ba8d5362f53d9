"""The user's terminal while it is joined to a container's: raw mode, size, bytes both ways, the keys that detach.

The sandbox process gets pipes, not the terminal itself, so that nothing of the container reaches the terminal
any more once this process has let go of it.
"""

from __future__ import annotations

import contextlib
import os
import select
import termios
import time
import tty

_CHUNK = 64 << 10
#: ctrl-p ctrl-q
DETACH_KEYS = b"\x10\x11"


class DetachKeys:
    """Finds the keys that detach in what is typed; the first of them is held back until the next key is known."""

    def __init__(self, keys: bytes = DETACH_KEYS) -> None:
        self._keys = keys
        self._matched = 0

    def feed(self, typed: bytes) -> tuple[bytes, bool]:
        """What of ``typed`` goes to the container, and whether the user detaches."""
        passed = bytearray()
        for key in typed:
            if key == self._keys[self._matched]:
                self._matched += 1
                if self._matched == len(self._keys):
                    self._matched = 0
                    return bytes(passed), True
                continue
            passed += self._keys[: self._matched]
            self._matched = 0
            if key == self._keys[0]:
                self._matched = 1
            else:
                passed.append(key)
        return bytes(passed), False


class RawMode:
    """A terminal in raw mode for a block; it gets its own settings back in any case. No terminal is fine."""

    def __init__(self, fd: int) -> None:
        self._fd = fd
        self._saved: list[object] | None = None

    def __enter__(self) -> RawMode:
        if os.isatty(self._fd):
            self._saved = termios.tcgetattr(self._fd)
            self.set()
        return self

    def set(self) -> None:
        """Set raw mode (again, after somebody else has used the terminal)."""
        if self._saved is not None:
            # TCSANOW keeps what was typed while the VM started.
            tty.setraw(self._fd, termios.TCSANOW)

    def __exit__(self, *_: object) -> None:
        if self._saved is not None:
            # The terminal may be gone: its window was closed.
            with contextlib.suppress(termios.error):
                termios.tcsetattr(self._fd, termios.TCSADRAIN, self._saved)  # type: ignore[arg-type]


class Bridge:
    """Pipes between this process's streams and a container's terminal. A context manager that owns the pipes.

    ``stdin`` is -1 when nothing is to be passed on.
    """

    def __init__(self, stdin: int, stdout: int) -> None:
        self._stdin = stdin
        self._stdout = stdout
        self._keys = DetachKeys()
        self._pending = b""
        self._output, self._output_far = os.pipe()
        self._input_far, self._input = os.pipe() if stdin >= 0 else (-1, -1)
        if self._input >= 0:
            os.set_blocking(self._input, False)
        self._registered: list[int] = []
        self.detached = False

    def __enter__(self) -> Bridge:
        return self

    def __exit__(self, *_: object) -> None:
        for name in ("_output", "_output_far", "_input", "_input_far"):
            self._drop(name)

    def _drop(self, name: str) -> None:
        fd = getattr(self, name)
        setattr(self, name, -1)
        if fd >= 0:
            os.close(fd)

    def far_ends(self) -> dict[str, int]:
        """The container's ends, by the name of the stream."""
        ends = {"stdin": self._input_far, "stdout": self._output_far}
        return {name: fd for name, fd in ends.items() if fd >= 0}

    def started(self) -> None:
        """The container's ends have been handed over: without ours, the end of the other side shows."""
        self._drop("_output_far")
        self._drop("_input_far")

    def register(self, poll: select.poll) -> None:
        """Add what is being waited for to ``poll``, in place of what was."""
        for fd in self._registered:
            poll.unregister(fd)
        wanted = {}
        if self._output >= 0:
            wanted[self._output] = select.POLLIN
        if self._pending:
            wanted[self._input] = select.POLLOUT
        elif self._stdin >= 0 and self._input >= 0:
            wanted[self._stdin] = select.POLLIN
        for fd, events in wanted.items():
            poll.register(fd, events)
        self._registered = list(wanted)

    def handle(self, fd: int) -> None:
        """``fd`` is ready."""
        if fd == self._output:
            self._forward_output()
        elif fd == self._input:
            self._flush()
        elif fd == self._stdin:
            self._read_input()

    def _forward_output(self) -> bool:
        data = os.read(self._output, _CHUNK)
        if not data:
            self._drop("_output")
            return False
        write_all(self._stdout, data)
        return True

    def _read_input(self) -> None:
        try:
            typed = os.read(self._stdin, _CHUNK)
        except OSError:  # the terminal is gone
            typed = b""
        if not typed:
            self._stdin = -1
        passed, self.detached = self._keys.feed(typed)
        self._pending += passed
        self._flush()

    def _flush(self) -> None:
        try:
            while self._pending:
                self._pending = self._pending[os.write(self._input, self._pending) :]
        except BlockingIOError:
            return
        except BrokenPipeError:
            self._pending = b""
            self._stdin = -1
        if self._stdin < 0:
            self._drop("_input")

    def finish(self, seconds: float = 3.0) -> None:
        """Write out what is still under way, for at most ``seconds``."""
        deadline = time.monotonic() + seconds
        poll = select.poll()
        poll.register(self._output, select.POLLIN) if self._output >= 0 else None
        while self._output >= 0 and (left := deadline - time.monotonic()) > 0:
            if poll.poll(left * 1000) and not self._forward_output():
                return


def size(stdin: int, stdout: int) -> tuple[int, int] | None:
    """Columns and rows of the user's terminal, None when there is none."""
    for fd in (stdout, stdin):
        try:
            columns, rows = os.get_terminal_size(fd)
        except OSError:
            continue
        return columns, rows
    return None


def write_all(fd: int, data: bytes) -> None:
    """Write all of ``data`` to ``fd``, which may have been made non-blocking by somebody else."""
    view = memoryview(data)
    while view:
        try:
            view = view[os.write(fd, view) :]
        except BlockingIOError:
            poll = select.poll()
            poll.register(fd, select.POLLOUT)
            poll.poll()
