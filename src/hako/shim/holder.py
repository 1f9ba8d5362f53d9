"""The host's process that stands for a container: its pid is what containerd takes for the container's own.

It lives in the pod's network namespace, where people and hooks look by its pid, and in the VM's cgroup. It does
nothing. Whoever ends it ends the container, as with a process that has no VM around it.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
from collections.abc import Callable

from hako.errors import HostError
from hako.linux import syscalls
from hako.threads import in_thread_of_its_own

#: Reads what is never written, until the shim, which has the other end, is gone.
_ARGV = ("hako-container", "-c", "read -r _")
_SHELL = "/bin/sh"


class Lifeline:
    """What all holders of a shim live by: they end with it, however it ends. Close it at the end."""

    def __init__(self) -> None:
        self.read, self._write = os.pipe2(os.O_CLOEXEC)

    def close(self) -> None:
        """End all that hang on it."""
        for fd in (self.read, self._write):
            with contextlib.suppress(OSError):
                os.close(fd)


class Holder:
    """One such process, in the network namespace of the descriptor ``namespace``; belongs to the running loop."""

    def __init__(self, name: str, namespace: int, lifeline: Lifeline, on_killed: Callable[[], None]) -> None:
        """Blocks for some milliseconds. ``on_killed`` is called when somebody has ended it. Raises HostError."""

        def spawn() -> int:
            syscalls.setns(namespace, syscalls.CLONE_NEWNET)
            actions = [(os.POSIX_SPAWN_DUP2, lifeline.read, 0)]
            return os.posix_spawn(_SHELL, [*_ARGV, name], {}, file_actions=actions, setsid=True)

        try:
            self.pid = in_thread_of_its_own(spawn)
            self._pidfd = os.pidfd_open(self.pid)
        except OSError as error:
            raise HostError(f"Cannot start the process that stands for {name}: {error.strerror}.") from error
        self._on_killed = on_killed
        self._loop = asyncio.get_running_loop()
        self._loop.add_reader(self._pidfd, self._ended)

    def _ended(self) -> None:
        self._reap()
        self._on_killed()

    def close(self) -> None:
        """End it. Can be repeated."""
        if self._pidfd < 0:
            return
        with contextlib.suppress(ProcessLookupError):
            signal.pidfd_send_signal(self._pidfd, signal.SIGKILL)
        self._reap()

    def _reap(self) -> None:
        self._loop.remove_reader(self._pidfd)
        os.close(self._pidfd)
        self._pidfd = -1
        with contextlib.suppress(ChildProcessError):
            os.waitpid(self.pid, 0)
