"""A program that takes what a process writes, as containerd's ``binary://`` and ``binary-v2://`` name one.

It has standard output at its descriptor 3 and standard error at 4, and says at 5 that it is ready: by closing it, or
of ``binary-v2`` by writing a byte first. It ends by itself when both have ended; one that does not is asked to, then
killed. Facts: containerd docs/runtime-v2.md "Logging", core/runtime/v2/logging, cmd/containerd-shim-runc-v2/process.
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import os
import signal
from collections.abc import Mapping, Sequence

from hako.errors import HostError
from hako.linux import syscalls
from hako.threads import in_thread_of_its_own

#: Seconds that it has to end by itself, and after SIGTERM; together as long as containerd gives it.
_END_SECONDS = 2.0
_TERM_SECONDS = 10.0
#: Above the descriptors that it gets.
_HIGH = 10
_STDOUT, _STDERR, _READY = 3, 4, 5


class LogHelper:
    """A running helper; start() makes one, close() ends it.

    ``writers`` are the ends to write to, by stream; whoever takes them out owns them. ``readers`` are this process's
    copies of the helper's ends: they tell when nobody writes any more, and are closed when the helper has ended, after
    which writing fails as it would without them.
    """

    def __init__(self, program: str) -> None:
        self.program = program
        self.writers: dict[str, int] = {}
        self.readers: list[int] = []
        self.ended: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._pidfd = -1

    @classmethod
    async def start(
        cls,
        program: str,
        arguments: Sequence[str],
        environment: Mapping[str, str],
        *,
        strict: bool,
        directory: str = "/",
        mounts: int | None = None,
    ) -> LogHelper:
        """Start ``program`` in ``directory``, and wait until it is ready; ``strict``: until it has said so.

        ``mounts`` is the mount namespace it is to be in, which is this process's otherwise. The environment is all that
        it gets. Raises HostError; takes as long as the program does.
        """
        helper = cls(program)
        ready, theirs = os.pipe2(os.O_CLOEXEC)
        try:
            try:
                for name in ("stdout", "stderr"):
                    reader, helper.writers[name] = os.pipe2(os.O_CLOEXEC)
                    helper.readers.append(reader)
                helper._spawn([program, *arguments], environment, theirs, directory, mounts)
            finally:
                os.close(theirs)
            if not await _first_byte(ready) and strict:
                raise HostError(f"The log helper {program} did not say that it is ready: it may have failed.")
        except BaseException:
            await helper._give_up()
            raise
        finally:
            os.close(ready)
        return helper

    def _spawn(
        self, argv: list[str], environment: Mapping[str, str], ready: int, directory: str, mounts: int | None
    ) -> None:
        # Copies out of the way of the numbers that they are to become.
        high = [fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, _HIGH) for fd in (*self.readers, ready)]

        def spawn() -> int:
            syscalls.unshare(syscalls.CLONE_FS)
            if mounts is not None:
                syscalls.setns(mounts, syscalls.CLONE_NEWNS)
            os.chdir(directory)
            nowhere = [(os.POSIX_SPAWN_OPEN, number, "/dev/null", os.O_RDWR, 0) for number in range(3)]
            numbers = zip(high, (_STDOUT, _STDERR, _READY), strict=True)
            return os.posix_spawn(
                argv[0],
                argv,
                environment,
                file_actions=[*nowhere, *((os.POSIX_SPAWN_DUP2, fd, number) for fd, number in numbers)],
                setsigmask=(),
                setsigdef=(signal.SIGINT, signal.SIGHUP, signal.SIGPIPE, signal.SIGXFSZ),
            )

        try:
            pid = in_thread_of_its_own(spawn)
        except OSError as error:
            raise HostError(f"Cannot start the log helper {argv[0]}: {error.strerror}.") from error
        finally:
            for fd in high:
                os.close(fd)
        self._pidfd = os.pidfd_open(pid)
        asyncio.get_running_loop().add_reader(self._pidfd, self._on_end)

    def _on_end(self) -> None:
        asyncio.get_running_loop().remove_reader(self._pidfd)
        os.waitid(os.P_PIDFD, self._pidfd, os.WEXITED)
        os.close(self._pidfd)
        self._pidfd = -1
        _close_all(self.readers)
        self.ended.set_result(None)

    async def _give_up(self) -> None:
        """Leave nothing of it."""
        self._close_writers()
        if self._pidfd >= 0:
            self.kill()
            await self.ended
        _close_all(self.readers)

    def _close_writers(self) -> None:
        _close_all(list(self.writers.values()))
        self.writers.clear()

    def _signal(self, number: int) -> None:
        if self._pidfd >= 0:
            with contextlib.suppress(ProcessLookupError):
                signal.pidfd_send_signal(self._pidfd, number)

    def kill(self) -> None:
        """End it at once."""
        self._signal(signal.SIGKILL)

    async def close(self) -> None:
        """Wait for its end when nothing is written any more; one that stays is ended. Takes 12 s at most."""
        self._close_writers()
        try:
            for number, seconds in ((signal.SIGTERM, _END_SECONDS), (signal.SIGKILL, _TERM_SECONDS)):
                await asyncio.wait({self.ended}, timeout=seconds)
                if self.ended.done():
                    return
                self._signal(number)
            await self.ended
        except BaseException:
            self.kill()
            raise


def _close_all(fds: list[int]) -> None:
    while fds:
        os.close(fds.pop())


async def _first_byte(fd: int) -> bytes:
    """The byte that is written to the pipe ``fd``; empty when all its writers have closed it."""
    loop = asyncio.get_running_loop()
    readable = asyncio.Event()
    loop.add_reader(fd, readable.set)
    try:
        await readable.wait()
    finally:
        loop.remove_reader(fd)
    return os.read(fd, 1)
