"""The standard streams of a process, where containerd has them: fifos, files, or a program that takes its output.

    stdio = await open_stdio(stdin, stdout, stderr, terminal=False, container_id="c1", namespace="k8s.io")
    engine.create(..., fds=stdio.take())        # by the names stdin, stdout and stderr
    stdio.close_stdin()                         # CloseIO
    await stdio.close()                         # when the process is deleted

What is not obvious is as in containerd's own shim:

- Both ends of each fifo are held here, so containerd may end and start again: what is written meanwhile waits in the
  fifo, and so does the process once that is full; nothing fails because nobody reads, and nothing is taken for the end
  because nobody writes. The ends are closed by the engine, which has the others: an output's when the process has ended
  and all it wrote is in the fifo, so that whoever reads sees the end then.
- The input ends when close_stdin() has been called *and* nobody else has it open for writing.
- Whoever reads an output has 30 s to open it: what is written to a fifo that no reader has opened yet can be lost.

Facts: containerd cmd/containerd-shim-runc-v2/process/io.go and runc/platform.go, containerd/fifo, pkg/cio.
"""

from __future__ import annotations

import asyncio
import errno
import os
import select
import stat
import time
from collections.abc import Callable
from typing import TypeVar

from hako.errors import ConfigError, HostError, TimedOutError
from hako.linux import syscalls
from hako.named import NamedTuple
from hako.shim.log_helper import LogHelper
from hako.threads import in_thread_of_its_own

T = TypeVar("T")

#: Seconds for readers to open their fifos, and for a log helper to get ready.
_OPEN_SECONDS = 30.0
#: Pauses between looks, seconds.
_FIRST_PAUSE, _LONGEST_PAUSE = 0.002, 0.1
#: Seconds that output, of a process that has ended, may wait for somebody to take it.
_DRAIN_SECONDS = 10.0
_FIFO, _FILE, _BINARY, _STRICT_BINARY = "fifo", "file", "binary", "binary-v2"
_OUR = os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC


class Place(NamedTuple):
    """Where a stream is: ``scheme`` as in its URI, and the program's ``arguments`` if it is one."""

    scheme: str
    path: str
    arguments: tuple[str, ...] = ()

    @property
    def is_program(self) -> bool:
        """Whether it is a log helper."""
        return self.scheme in (_BINARY, _STRICT_BINARY)


def parse(name: str, text: str) -> Place:
    """The place that containerd calls ``text``: a path, or a URI. ``name`` is the stream's. Raises ConfigError."""
    scheme, is_uri, _ = text.partition("://")
    if not is_uri:
        found = Place(_FIFO, text)
    elif scheme in (_FIFO, _FILE, _BINARY, _STRICT_BINARY):
        from urllib.parse import parse_qsl, unquote, urlsplit

        try:
            parts = urlsplit(text)
        except ValueError as error:
            raise ConfigError(f"{name} is {text}: {error}.") from error
        query: dict[str, str] = {}
        for key, value in parse_qsl(parts.query, keep_blank_values=True):
            query.setdefault(key, value)
        found = Place(scheme, unquote(parts.path), tuple(word for pair in query.items() for word in pair))
    else:
        raise ConfigError(f"{name} is {text}: only fifo, file, binary and binary-v2 can stand before the ://.")
    if not os.path.isabs(found.path) or "\0" in found.path:
        raise ConfigError(f"{name} is {text}, which has no absolute path.")
    return found


class Stdio:
    """The streams of one process; open_stdio() makes them, close() gives them back."""

    def __init__(self) -> None:
        #: For the engine, which owns them from take() on.
        self.fds: dict[str, int] = {}
        self._stdin_writer = -1
        self._readers: list[int] = []
        self._helper: LogHelper | None = None

    def take(self) -> dict[str, int]:
        """The descriptors by the streams' names; whoever takes them owns them."""
        taken, self.fds = self.fds, {}
        return taken

    def close_stdin(self) -> None:
        """The input ends as soon as nobody else has it open. Can be repeated."""
        if self._stdin_writer >= 0:
            os.close(self._stdin_writer)
            self._stdin_writer = -1

    async def close(self) -> None:
        """Give everything back, once the engine has closed its ends. Can be repeated.

        Output that nobody takes is given up after 10 s; a log helper has up to 12 s more to end.
        """
        for fd in self.take().values():
            os.close(fd)
        self.close_stdin()
        readers, self._readers = self._readers, []
        helper, self._helper = self._helper, None
        try:
            await _until_unwritten(readers, helper)
        except BaseException:
            if helper is not None:
                helper.kill()
            raise
        finally:
            for fd in readers:
                os.close(fd)
        if helper is not None:
            await helper.close()

    async def written(self) -> None:
        """Wait until the engine has closed its ends, or close() is called: all output has found its place."""
        pause = _FIRST_PAUSE
        while not all(map(_is_unwritten, [*self._readers, *(self._helper.readers if self._helper else [])])):
            await asyncio.sleep(pause)
            pause = min(2 * pause, _LONGEST_PAUSE)

    def add_stdin(self, path: str, mounts: int | None) -> None:
        """Read the input from the fifo ``path``. Raises ConfigError, HostError."""
        fd = _open("stdin", path, os.O_RDONLY, mounts)
        if not stat.S_ISFIFO(os.fstat(fd).st_mode):
            os.close(fd)
            raise ConfigError(f"stdin is {path}, which is not a fifo.")
        self.fds["stdin"] = fd
        # Before anybody reads: a fifo that nobody has open for writing reads as one that has ended.
        self._stdin_writer = _reopen(fd, os.O_WRONLY)

    async def add_output(self, name: str, place: Place, mounts: int | None) -> None:
        """Write the output ``name`` to a fifo or file. Raises ConfigError, HostError."""
        if place.is_program:
            raise ConfigError(f"{name} is {place.scheme}://{place.path}, but only stdout names the program for both.")
        if place.scheme == _FILE:
            fd = _in(mounts, lambda: _open_file(name, place.path))
        else:
            fd = await _open_writer(name, place.path, mounts)
        self.fds[name] = fd
        if stat.S_ISFIFO(os.fstat(fd).st_mode):
            self._readers.append(_reopen(fd, os.O_RDONLY))

    def add_helper(self, helper: LogHelper, *, terminal: bool) -> None:
        """Write the output to a log helper."""
        self._helper = helper
        self.fds |= helper.writers
        helper.writers.clear()
        if terminal:
            os.close(self.fds.pop("stderr"))


async def open_stdio(
    stdin: str,
    stdout: str,
    stderr: str,
    *,
    terminal: bool,
    container_id: str,
    namespace: str,
    directory: str = "/",
    mounts: int | None = None,
) -> Stdio:
    """Open the streams of a process; empty names mean none. With a terminal ``stderr`` is not looked at.

    A log helper is told ``container_id``, an exec's own id instead, and containerd's ``namespace``; it runs in
    ``directory``. ``mounts`` is the mount namespace in which all paths mean what they say, if it is not this process's.
    Raises ConfigError, HostError, and TimedOutError when nobody opens the other end of an output within 30 s.
    """
    opened = Stdio()
    try:
        if stdin:
            place = parse("stdin", stdin)
            if place.scheme != _FIFO:
                raise ConfigError(f"stdin is {stdin}; only a fifo can be read from.")
            opened.add_stdin(place.path, mounts)
        outputs = {"stdout": stdout} if terminal else {"stdout": stdout, "stderr": stderr}
        places = {name: parse(name, text) for name, text in outputs.items() if text}
        async with asyncio.timeout(_OPEN_SECONDS):
            if "stdout" in places and places["stdout"].is_program:
                environment = {"CONTAINER_ID": container_id, "CONTAINER_NAMESPACE": namespace}
                helper = await _start_helper(places["stdout"], environment, directory, mounts)
                opened.add_helper(helper, terminal=terminal)
            else:
                for name, place in places.items():
                    await opened.add_output(name, place, mounts)
        if terminal and "stdout" not in opened.fds:
            # Nobody wants to see it, but a terminal that nobody reads holds its processes up.
            opened.fds["stdout"] = os.open("/dev/null", os.O_WRONLY | os.O_CLOEXEC)
    except TimeoutError:
        await opened.close()
        raise TimedOutError(
            f"Nobody has opened {stdout or stderr} at its other end within {_OPEN_SECONDS:g} s."
        ) from None
    except BaseException:
        await opened.close()
        raise
    return opened


async def _start_helper(place: Place, environment: dict[str, str], directory: str, mounts: int | None) -> LogHelper:
    strict = place.scheme == _STRICT_BINARY
    return await LogHelper.start(
        place.path, place.arguments, environment, strict=strict, directory=directory, mounts=mounts
    )


def _in(mounts: int | None, work: Callable[[], T]) -> T:
    """``work``, where paths are those of the mount namespace ``mounts``."""
    if mounts is None:
        return work()

    def enter_and_work() -> T:
        syscalls.unshare(syscalls.CLONE_FS)
        syscalls.setns(mounts, syscalls.CLONE_NEWNS)
        return work()

    return in_thread_of_its_own(enter_and_work)


def _open(name: str, path: str, flags: int, mounts: int | None) -> int:
    """Open ``path``, which never waits. Raises HostError."""
    try:
        return _in(mounts, lambda: os.open(path, flags | _OUR, 0o644))
    except OSError as error:
        raise HostError(f"Cannot open {path} as {name}: {error.strerror}.") from error


def _reopen(fd: int, flags: int) -> int:
    """The other end of the fifo ``fd``."""
    return os.open(f"/proc/self/fd/{fd}", flags | _OUR)


def _open_file(name: str, path: str) -> int:
    """Open a file to append to, which is made if need be, as are the directories above. Raises HostError."""
    try:
        os.makedirs(os.path.dirname(path), 0o755, exist_ok=True)
    except OSError as error:
        raise HostError(f"Cannot make the directory of {path} for {name}: {error.strerror}.") from error
    return _open(name, path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, None)


async def _open_writer(name: str, path: str, mounts: int | None) -> int:
    """Open ``path`` for writing, if it is a fifo as soon as somebody reads it. Raises HostError."""
    pause = _FIRST_PAUSE
    while True:
        try:
            return _open(name, path, os.O_WRONLY | os.O_APPEND, mounts)
        except HostError as error:
            cause = error.__cause__
            if not isinstance(cause, OSError) or cause.errno != errno.ENXIO or not _is_fifo(path, mounts):
                raise
        await asyncio.sleep(pause)
        pause = min(2 * pause, _LONGEST_PAUSE)


def _is_fifo(path: str, mounts: int | None) -> bool:
    try:
        return stat.S_ISFIFO(_in(mounts, lambda: os.stat(path)).st_mode)
    except OSError:
        return False


async def _until_unwritten(readers: list[int], helper: LogHelper | None) -> None:
    """Wait until nobody can write any more to what ``readers``, and the helper if it lives, read; at most 10 s."""
    deadline = time.monotonic() + _DRAIN_SECONDS
    pause = _FIRST_PAUSE
    while not all(map(_is_unwritten, [*readers, *(helper.readers if helper else [])])) and time.monotonic() < deadline:
        await asyncio.sleep(pause)
        pause = min(2 * pause, _LONGEST_PAUSE)


def _is_unwritten(reader: int) -> bool:
    """Whether nobody has the pipe open for writing."""
    poll = select.poll()
    poll.register(reader, 0)
    return any(events & select.POLLHUP for _, events in poll.poll(0))
