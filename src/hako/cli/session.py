"""Waiting for a container's process in the foreground: its answer, the user's signals and terminal, all at once."""

from __future__ import annotations

import contextlib
import os
import select
import signal
import time
from typing import Any

from hako.cli import terminal
from hako.errors import HakoError, NotFoundError
from hako.sandbox import client, records, requests

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

_FORWARDED = tuple(signal.Signals[f"SIG{name}"] for name in ("HUP", "INT", "QUIT", "TERM", "USR1", "USR2", "ALRM"))
_WATCHED = (*_FORWARDED, signal.SIGWINCH, signal.SIGCONT)
#: So many interrupts within so many seconds kill a container that does not heed them.
_IMPATIENT = (3, 3.0)
#: How long a sandbox process that has closed its socket may need to be gone.
_END_SECONDS = 5.0


class Interrupted(HakoError):
    """The user ended the wait with a signal. Nothing went wrong, so there is nothing to say."""

    def __init__(self, number: int) -> None:
        super().__init__("")
        self.exit_code = 128 + number


class LostError(HakoError):
    """The sandbox went away with the container in it."""

    exit_code = records.DIED


class Signals:
    """Collects signals for the block instead of letting them act."""

    def __init__(self) -> None:
        self._read, self._write = -1, -1
        self._saved: dict[int, Any] = {}
        self._saved_wakeup = -1

    def __enter__(self) -> Signals:
        self._read, self._write = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
        self._saved_wakeup = signal.set_wakeup_fd(self._write, warn_on_full_buffer=False)
        for number in _WATCHED:
            # One that is ignored stays so: nohup.
            if signal.getsignal(number) is not signal.SIG_IGN:
                self._saved[number] = signal.signal(number, lambda *_: None)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._saved.items():
            signal.signal(number, handler)
        signal.set_wakeup_fd(self._saved_wakeup)
        os.close(self._read)
        os.close(self._write)

    def fileno(self) -> int:
        """Readable when a signal has come."""
        return self._read

    def take(self) -> list[int]:
        """The signals that have come since the last call."""
        with contextlib.suppress(BlockingIOError):
            return [number for number in os.read(self._read, 256) if number in self._saved]
        return []


class Session:
    """A process of a container and the user in front of it. A context manager for the time the user is there.

    ``bridge`` joins the terminal, if the process has one. Signals are passed on to a process without.
    """

    def __init__(self, sandbox_id: str, container_id: str, exec_id: str = "", *, stdin: bool, tty: bool) -> None:
        self._sandbox_id = sandbox_id
        self._target = requests.target(container_id, exec_id)
        self._signals = Signals()
        self._stack = contextlib.ExitStack()
        self._interrupts: list[float] = []
        self._raw = terminal.RawMode(0)
        self._raw_stack = contextlib.ExitStack()
        self._stdin = 0 if stdin else -1
        self.bridge = terminal.Bridge(self._stdin, 1) if tty else None
        self.proxy = True

    def __enter__(self) -> Session:
        if self.bridge is not None:
            self._stack.enter_context(self.bridge)
        self._stack.enter_context(self._signals)
        self._stack.enter_context(self._raw_stack)
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def leave(self) -> None:
        """The terminal is the user's again; signals are still kept off."""
        self._raw_stack.close()

    def stdio(self) -> dict[str, int]:
        """The descriptors for the process, by the name of the stream."""
        if self.bridge is not None:
            return self.bridge.far_ends()
        return {"stdin": 0, "stdout": 1, "stderr": 2} if self._stdin >= 0 else {"stdout": 1, "stderr": 2}

    def size(self) -> tuple[int, int] | None:
        """The size of the user's terminal, when the process has one."""
        return terminal.size(0, 1) if self.bridge is not None else None

    def start(self, call: client.PendingCall) -> dict[str, Any]:
        """Wait for the call that makes or joins the process; a signal gives up (Interrupted)."""

        def give_up(number: int) -> None:
            if number in _FORWARDED:
                raise Interrupted(number)

        result = self._wait(call, give_up, None)
        assert result is not None
        return result

    def join(self) -> None:
        """The process runs and has its streams: from now on the terminal is its."""
        if self.bridge is not None:
            self.bridge.started()
            if self._stdin >= 0:
                self._raw_stack.enter_context(self._raw)

    def wait(self, call: client.PendingCall) -> dict[str, Any] | None:
        """Wait for the answer that brings the end of the process; None when the user has detached."""
        end = self._wait(call, self._on_signal, self.bridge)
        if self.bridge is not None and end is not None:
            self.bridge.finish()
        return end

    def _wait(
        self, call: client.PendingCall, on_signal: Callable[[int], None], bridge: terminal.Bridge | None
    ) -> dict[str, Any] | None:
        poll = select.poll()
        poll.register(call, select.POLLIN)
        poll.register(self._signals, select.POLLIN)
        while True:
            if bridge is not None:
                bridge.register(poll)
            for fd, _ in poll.poll():
                if fd == call.fileno():
                    result = call.advance()
                    if result is not None:
                        return result
                elif fd == self._signals.fileno():
                    for number in self._signals.take():
                        on_signal(number)
                elif bridge is not None:
                    bridge.handle(fd)
                    if bridge.detached:
                        return None

    def _on_signal(self, number: int) -> None:
        if number == signal.SIGWINCH:
            self.resize()
        elif number == signal.SIGCONT:
            self._raw.set()
        elif self.bridge is not None or not self.proxy:
            # With a terminal the user's keys reach the container as bytes; a signal is meant for this process.
            raise Interrupted(number)
        else:
            self._call("Kill", signal=self._patience(number))

    def _patience(self, number: int) -> int:
        """The signal to pass on; the last of several quick interrupts becomes SIGKILL."""
        if number != signal.SIGINT:
            return number
        count, seconds = _IMPATIENT
        now = time.monotonic()
        self._interrupts = [*(then for then in self._interrupts if now - then < seconds), now]
        return int(signal.SIGKILL) if len(self._interrupts) >= count else number

    def resize(self) -> None:
        """Tell the process the size of the user's terminal."""
        found = self.size()
        if found is not None:
            self._call("Resize", **requests.terminal_size(found))

    def _call(self, method: str, **params: Any) -> None:
        # The process may have ended just now.
        with contextlib.suppress(HakoError):
            client.call(self._sandbox_id, method, {**self._target, **params})


def exit_code(end: Mapping[str, Any], complain: Callable[[str], None]) -> int:
    """The exit code for the user; says why when the process was lost."""
    result = requests.result(end)
    if result.error:
        complain(result.error)
        return records.DIED
    return result.exit_status


@contextlib.contextmanager
def with_reason(sandbox_id: str) -> Iterator[None]:
    """When the sandbox process is gone before it has answered, clean up after it and raise LostError saying why."""
    try:
        yield
    except client.GoneError as error:
        raise LostError(_why_gone(sandbox_id)) from error


def _why_gone(sandbox_id: str) -> str:
    # The process may be on its way out still, removing what it had: wait for its lock.
    deadline = time.monotonic() + _END_SECONDS
    while records.is_alive(sandbox_id) and time.monotonic() < deadline:
        time.sleep(0.02)
    killed = records.reap(sandbox_id)
    error = ""
    with contextlib.suppress(NotFoundError):
        error = str(records.read(sandbox_id)["error"])
    if error:
        return error[:1].upper() + error[1:].rstrip(".") + "."
    return "The sandbox process was killed." if killed else "The sandbox has been stopped."
