"""Staying with a process in the foreground: its terminal is joined to the caller's, signals are passed on to it."""

from __future__ import annotations

import contextlib
import fcntl
import os
import select
import signal
import termios
import tty
from collections.abc import Iterator

from hako.runtime.console import Terminal
from hako.runtime.standin import StandIn

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

_CHUNK = 1 << 16
#: The caller's, not meant for the container.
_NOT_PASSED_ON: frozenset[int] = frozenset(
    {signal.SIGKILL, signal.SIGSTOP, signal.SIGCHLD, signal.SIGTSTP, signal.SIGCONT}
)
_NOT_PASSED_ON |= {signal.SIGSEGV, signal.SIGBUS, signal.SIGFPE, signal.SIGILL, signal.SIGPIPE, signal.SIGURG}


def wait(standin: StandIn, terminal: Terminal | None) -> int:
    """Stay until the process that ``standin`` stands for has ended; returns its exit status."""
    with _signals() as came, _raw(terminal):
        poll = select.poll()
        poll.register(standin, select.POLLIN)
        poll.register(came, select.POLLIN)
        if terminal is not None:
            copy_size(terminal)
            poll.register(terminal.master, select.POLLIN)
            poll.register(0, select.POLLIN)
        while not standin.has_ended:
            for fd, event in poll.poll():
                if terminal is not None and fd == terminal.master:
                    if not _copy(terminal.master, 1):
                        poll.unregister(terminal.master)
                elif terminal is not None and fd == 0:
                    if not event & select.POLLIN or not _copy(0, terminal.master):
                        poll.unregister(0)
                elif fd == came:
                    for caught in os.read(came, 256):
                        _on_signal(caught, standin, terminal)
                else:
                    return _end(standin, terminal)
        return _end(standin, terminal)


def _end(standin: StandIn, terminal: Terminal | None) -> int:
    if terminal is not None:
        _drain(terminal.master)
    return standin.wait()


def _on_signal(number: int, standin: StandIn, terminal: Terminal | None) -> None:
    if number == signal.SIGWINCH and terminal is not None:
        # Setting the size has the kernel tell the process that stands for the container.
        copy_size(terminal)
    else:
        with contextlib.suppress(ProcessLookupError):
            os.kill(standin.pid, number)


def copy_size(terminal: Terminal) -> None:
    """Give the container's terminal the size of the caller's."""
    with contextlib.suppress(OSError):
        size = fcntl.ioctl(0, termios.TIOCGWINSZ, bytes(8))
        fcntl.ioctl(terminal.master, termios.TIOCSWINSZ, size)


def _copy(source: int, target: int) -> bool:
    """Pass on what is there to read; False at its end."""
    try:
        data = os.read(source, _CHUNK)
        view = memoryview(data)
        while view:
            view = view[os.write(target, view) :]
    except OSError:
        return False
    return bool(data)


def _drain(master: int) -> None:
    os.set_blocking(master, False)
    while _copy(master, 1):
        pass


@contextlib.contextmanager
def _signals() -> Iterator[int]:
    """A descriptor from which the numbers of the signals can be read that come meanwhile."""
    read, write = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
    saved: dict[int, Any] = {}
    before = signal.set_wakeup_fd(write, warn_on_full_buffer=False)
    try:
        for number in (int(each) for each in signal.valid_signals() - _NOT_PASSED_ON):
            # One that is ignored stays so: nohup. Those of the C library cannot be had.
            if signal.getsignal(number) not in (signal.SIG_IGN, None):
                with contextlib.suppress(OSError, ValueError):
                    saved[number] = signal.signal(number, lambda *_: None)
        signal.pthread_sigmask(signal.SIG_SETMASK, ())
        yield read
    finally:
        for number, handler in saved.items():
            signal.signal(number, handler)
        signal.set_wakeup_fd(before)
        os.close(read)
        os.close(write)


@contextlib.contextmanager
def _raw(terminal: Terminal | None) -> Iterator[None]:
    """The caller's terminal passes every key on for the block."""
    if terminal is None or not os.isatty(0):
        yield
        return
    before = termios.tcgetattr(0)
    tty.setraw(0, termios.TCSANOW)
    try:
        yield
    finally:
        termios.tcsetattr(0, termios.TCSADRAIN, before)
