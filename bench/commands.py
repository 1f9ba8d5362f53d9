"""Running the commands that are measured, by the host's clock, and ending every one of them on every way out."""

from __future__ import annotations

import contextlib
import os
import select
import shlex
import subprocess
import tempfile
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import IO, NamedTuple

from bench import interrupts
from bench.model import BenchError

DEFAULT_TIMEOUT = 120.0
_CHUNK = 1 << 16
_KILL_SECONDS = 5.0


class Done(NamedTuple):
    """The end of a command. Times are seconds after it was given; ``first`` is its first output, None for none."""

    total: float
    first: float | None
    output: bytes
    status: int
    error: str  #: the last line of its standard error


#: Those that nobody has ended yet.
_running: set[Command] = set()


def end_all(commands: Iterable[Command] = _running) -> None:
    """End commands, by default all whose own end was cut short by a signal."""
    ours = list(commands)
    for command in ours:
        command.terminate()  # all of them before one is waited for
    for command in ours:
        command.end()


class Command:
    """A command that runs. A context manager: a command that is still running at its end is killed."""

    def __init__(
        self, argv: Sequence[str], *, env: Mapping[str, str] | None = None, stdin: int = subprocess.DEVNULL,
        stdout: int = subprocess.PIPE, cwd: str | None = None,
    ) -> None:  # fmt: skip
        self.argv = list(argv)
        self._errors: IO[bytes] = tempfile.TemporaryFile()  # noqa: SIM115 (closed by __exit__)
        with interrupts.held():  # until somebody is there who ends it
            self.started = time.monotonic()
            try:
                # A group of its own: Ctrl-C is for the benchmark, which ends its commands in its own order.
                self.process = subprocess.Popen(
                    self.argv, stdin=stdin, stdout=stdout, stderr=self._errors, cwd=cwd, process_group=0, bufsize=0,
                    env=None if env is None else {**os.environ, **env},
                )  # fmt: skip
            except OSError as error:
                self._errors.close()
                raise BenchError(f"Cannot run {self.argv[0]}: {error.strerror}.") from error
            self.pidfd = os.pidfd_open(self.process.pid)
            _running.add(self)

    def __enter__(self) -> Command:
        return self

    def __exit__(self, *_: object) -> None:
        self.end()

    def terminate(self) -> None:
        """Ask it to end, which lets it give back what it has."""
        if self.process.poll() is None:
            self.process.terminate()

    def end(self) -> None:
        """End it, if it runs still, and forget it."""
        self.terminate()
        if self.process.returncode is None and not self.ended(_KILL_SECONDS):
            self.process.kill()
        self.process.wait()
        for pipe in (self.process.stdin, self.process.stdout):
            if pipe is not None:
                with contextlib.suppress(OSError):
                    pipe.close()
        with interrupts.held():
            if self in _running:
                _running.remove(self)
                os.close(self.pidfd)
                self._errors.close()

    def ended(self, timeout: float) -> bool:
        """Wait for the end at most ``timeout`` seconds. By pidfd: Popen.wait() with a timeout looks every 50 ms."""
        poll = select.poll()
        poll.register(self.pidfd, select.POLLIN)
        return bool(poll.poll(max(timeout, 0.0) * 1000))

    def finish(self, timeout: float = DEFAULT_TIMEOUT) -> Done:
        """Read all its output and wait for its end. Raises BenchError when that takes longer."""
        deadline = self.started + timeout
        first, chunks = None, []
        if self.process.stdout is not None:
            while data := self.read(deadline):
                first = time.monotonic() - self.started if first is None else first
                chunks.append(data)
        if not self.ended(deadline - time.monotonic()):
            raise BenchError(f"{self.text()} did not end within {timeout:g} s.")
        total = time.monotonic() - self.started
        return Done(total, first, b"".join(chunks), self.process.wait(), self.error())

    def read(self, deadline: float) -> bytes:
        """Some output, empty at its end. Raises BenchError when none comes until ``deadline`` (monotonic seconds)."""
        assert self.process.stdout is not None
        fd = self.process.stdout.fileno()
        if not select.select([fd], [], [], max(deadline - time.monotonic(), 0.0))[0]:
            raise BenchError(f"{self.text()} gave no answer in time. {self.error()}".rstrip())
        return os.read(fd, _CHUNK)

    def error(self) -> str:
        """The last line it wrote to standard error."""
        size = self._errors.seek(0, os.SEEK_END)
        self._errors.seek(max(0, size - 4096))
        lines = self._errors.read().decode(errors="replace").strip().splitlines()
        return lines[-1].strip() if lines else ""

    def text(self) -> str:
        """The command for people."""
        return shlex.join(word if len(word) <= 60 else word[:20] + "..." for word in self.argv)


def run(
    argv: Sequence[str], *, env: Mapping[str, str] | None = None, timeout: float = DEFAULT_TIMEOUT,
    output: bool = True, check: bool = True, cwd: str | None = None,
) -> Done:  # fmt: skip
    """Run a command to its end. Raises BenchError when it fails, unless ``check`` is false, or takes too long.

    Without ``output`` its standard output goes nowhere, which a command needs that leaves processes behind.
    """
    stdout = subprocess.PIPE if output else subprocess.DEVNULL
    with Command(argv, env=env, stdout=stdout, cwd=cwd) as command:
        done = command.finish(timeout)
        if check and done.status != 0:
            raise BenchError(f"{command.text()} failed with {done.status}: {done.error or 'it said nothing'}")
    return done


def run_at_once(
    commands: Sequence[Sequence[str]], *, env: Mapping[str, str] | None = None, timeout: float = DEFAULT_TIMEOUT
) -> list[Done | BenchError]:
    """Start all commands at once and wait for all; what failed is among the results, not raised."""
    results: list[Done | BenchError] = []
    running: list[Command] = []
    try:
        for argv in commands:
            running.append(Command(argv, env=env, stdout=subprocess.DEVNULL))  # noqa: PERF401 (it may be interrupted)
        ends: dict[int, float] = {}
        poll = select.poll()
        for command in running:
            poll.register(command.pidfd, select.POLLIN)
        deadline = time.monotonic() + timeout
        while len(ends) < len(running) and (left := deadline - time.monotonic()) > 0:
            for fd, _ in poll.poll(left * 1000):
                ends[fd] = time.monotonic()
                poll.unregister(fd)
        for command in running:
            if command.pidfd not in ends:
                results.append(BenchError(f"{command.text()} did not end within {timeout:g} s."))
                continue
            total = ends[command.pidfd] - command.started
            results.append(Done(total, None, b"", command.process.wait(), command.error()))
    finally:
        end_all(running)
    return results


class Session:
    """A process inside a container that reads lines and answers; ``ask`` is timed by the host's clock."""

    def __init__(self, command: Command) -> None:
        self.command = command
        self._rest = b""

    def send(self, line: str) -> None:
        """Write a line."""
        self.write(line.encode() + b"\n")

    def write(self, data: bytes, timeout: float = DEFAULT_TIMEOUT) -> None:
        """Write bytes. Raises BenchError when the other side does not take them in time."""
        deadline = time.monotonic() + timeout
        view = memoryview(data)
        while view:
            self._ready(deadline, reading=False, writing=True)
            view = view[self._send(view) :]

    def echo(self, data: bytes, times: int, timeout: float = DEFAULT_TIMEOUT) -> None:
        """Write ``data`` as often as that and read it back meanwhile. Raises BenchError when something else comes."""
        deadline = time.monotonic() + timeout
        whole, sent, got = len(data) * times, 0, 0
        view, expected = memoryview(data), data + data
        while got < whole:
            readable, writable = self._ready(deadline, reading=True, writing=sent < whole)
            if writable:
                sent += self._send(view[sent % len(data) :])
            if readable:
                some = self._some(_CHUNK, deadline)
                at = got % len(data)
                if some != expected[at : at + len(some)]:
                    raise BenchError(f"{self.command.text()}: the bytes that came back are not those that went in.")
                got += len(some)

    def _ready(self, deadline: float, *, reading: bool, writing: bool) -> tuple[bool, bool]:
        """Wait until there is something to read, or room to write. Raises BenchError when neither comes in time."""
        source, sink = self.command.process.stdout, self.command.process.stdin
        assert source is not None
        assert sink is not None
        left = max(deadline - time.monotonic(), 0.0)
        readable, writable, _ = select.select([source] if reading else [], [sink] if writing else [], [], left)
        if not readable and not writable:
            raise BenchError(f"{self.command.text()} did nothing in time. {self.command.error()}".rstrip())
        return bool(readable), bool(writable)

    def _send(self, view: memoryview) -> int:
        """Write what there is room for; returns how much that was."""
        assert self.command.process.stdin is not None
        sink = self.command.process.stdin.fileno()
        os.set_blocking(sink, False)
        try:
            return os.write(sink, view)
        except BlockingIOError:
            return 0
        except BrokenPipeError:
            raise BenchError(f"{self.command.text()} has ended: {self.command.error()}") from None

    def close_input(self) -> None:
        """The end of what the process reads."""
        assert self.command.process.stdin is not None
        with contextlib.suppress(BrokenPipeError):
            self.command.process.stdin.close()

    def line(self, timeout: float = DEFAULT_TIMEOUT) -> str:
        """Read a line."""
        deadline = time.monotonic() + timeout
        while b"\n" not in self._rest:
            data = self.command.read(deadline)
            if not data:
                raise BenchError(f"{self.command.text()} has ended: {self.command.error()}")
            self._rest += data
        line, _, self._rest = self._rest.partition(b"\n")
        return line.decode(errors="replace")

    def ask(self, line: str, answer: str, timeout: float = DEFAULT_TIMEOUT) -> float:
        """Seconds from sending ``line`` to having got the line ``answer``. Raises BenchError for another answer."""
        started = time.monotonic()
        self.send(line)
        got = self.line(timeout)
        seconds = time.monotonic() - started
        if got != answer:
            raise BenchError(f"{line!r} in a container was answered with: {got[:200]}")
        return seconds

    def count(self, size: int, timeout: float = DEFAULT_TIMEOUT) -> None:
        """Read ``size`` bytes, whatever they are."""
        deadline = time.monotonic() + timeout
        while size > 0:
            size -= len(self._some(size, deadline))

    def _some(self, most: int, deadline: float) -> bytes:
        """At least one byte. Raises BenchError at the end."""
        data = self._rest or self.command.read(deadline)
        if not data:
            raise BenchError(f"{self.command.text()} has ended too early: {self.command.error()}")
        self._rest = data[most:]
        return data[:most]


@contextlib.contextmanager
def session(argv: Sequence[str], env: Mapping[str, str] | None = None) -> Iterator[Session]:
    """A session with the command ``argv``, ended with the block."""
    with Command(argv, env=env, stdin=subprocess.PIPE) as command:
        found = Session(command)
        yield found
        found.close_input()
        command.ended(_KILL_SECONDS)
