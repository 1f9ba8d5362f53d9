"""What a runtime has to offer to take part.

To add one (``ctr``, ``crun``): derive a class from ``Target`` in a module beside this one, give ``pieces`` the names
of the pieces it can take part in, implement what these call, and put it into TARGETS in targets/__init__.py. Rows,
ratios, plots and clean-up follow from that.
"""

from __future__ import annotations

import contextlib
import itertools
import os
from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

from bench import commands, procs
from bench.model import BenchError

#: All containers of all runs are named PREFIX-<pid of the benchmark>-<number>.
PREFIX = "hako-bench"
#: What an idle container runs.
IDLE = ("sleep", "100000")
#: What a container runs that is to be stopped: process 1 of a container ignores signals it has no handler for.
STOPPABLE = ("sh", "-c", "trap 'exit 0' TERM; : >/dev/shm/ready; while :; do sleep 1000 & wait; done")
#: Returns when STOPPABLE heeds the signal.
WAIT_STOPPABLE = ("sh", "-c", "until [ -e /dev/shm/ready ]; do sleep 0.02; done")

_numbers = itertools.count(1)


class Volume(NamedTuple):
    """A directory of the host and where a container sees it, read-only."""

    source: str
    target: str


class Target(ABC):
    """A runtime. Containers are known by the names that ``start`` returns."""

    name: str
    #: The pieces it takes part in; None for all.
    pieces: frozenset[str] | None = None
    env: Mapping[str, str] | None = None

    def __init__(self) -> None:
        #: Names that may be in use; a name is here before the command that uses it is given.
        self.names: set[str] = set()

    def new_name(self) -> str:
        """A name nobody has."""
        name = f"{PREFIX}-{os.getpid()}-{next(_numbers)}"
        self.names.add(name)
        return name

    # --- the runtime ---

    @abstractmethod
    def missing(self) -> str:
        """Why it cannot be used here, with a remedy; empty when it can."""

    @abstractmethod
    def versions(self) -> dict[str, str]:
        """Names and versions of what it consists of."""

    @abstractmethod
    def version_argv(self) -> list[str]:
        """The command that prints the version: the least any command of it costs."""

    def prepare(self) -> None:  # noqa: B027 (most have nothing to prepare)
        """Called once before anything is measured. May raise BenchError."""

    @abstractmethod
    def sweep(self) -> None:
        """Remove what runs of the benchmark have left that were killed."""

    def close(self) -> None:
        """Remove all containers, and whatever else was made. Must not fail because something is gone already."""
        for name in sorted(self.names):
            with contextlib.suppress(BenchError):
                self.remove(name)

    # --- containers ---

    @abstractmethod
    def run_argv(self, name: str, command: Sequence[str]) -> list[str]:
        """A command that runs ``command`` in a new container in the foreground and leaves nothing."""

    @abstractmethod
    def start_argv(self, name: str, command: Sequence[str], volumes: Iterable[Volume] = ()) -> list[str]:
        """A command that starts a container in the background."""

    @abstractmethod
    def exec_argv(self, name: str, command: Sequence[str], *, stdin: bool = False) -> list[str]:
        """A command that runs one more process in a container."""

    @abstractmethod
    def state_argv(self, name: str) -> list[str]:
        """A command that prints the state of a container."""

    @abstractmethod
    def stop(self, name: str) -> float:
        """Ask the container to end; seconds until it has."""

    @abstractmethod
    def delete_argv(self, name: str) -> list[str]:
        """A command that removes a container that has ended."""

    @abstractmethod
    def remove(self, name: str) -> None:
        """Remove a container whatever its state; one that does not exist is fine."""

    @abstractmethod
    def pids(self, name: str) -> set[int]:
        """The host's processes that are there because of the container, its own included where the host sees it."""

    @abstractmethod
    def rootfs(self, name: str) -> str:
        """A path by which the host can write into the running container's root."""

    # --- made of these ---

    def start(self, command: Sequence[str] = IDLE, volumes: Iterable[Volume] = ()) -> str:
        """Start a container in the background; returns its name."""
        name = self.new_name()
        # Its output goes nowhere: what it leaves running would hold a pipe open.
        commands.run(self.start_argv(name, command, volumes), env=self.env, output=False)
        return name

    def run(self, command: Sequence[str]) -> commands.Done:
        """Run a container in the foreground."""
        name = self.new_name()
        done = commands.run(self.run_argv(name, command), env=self.env)
        self.names.discard(name)
        return done

    def time(self, argv: Sequence[str]) -> float:
        """Seconds that a command of this runtime takes."""
        return commands.run(argv, env=self.env).total

    def end(self, name: str) -> None:
        """Remove a container and forget its name."""
        self.remove(name)
        self.names.discard(name)


def is_leftover(name: str) -> bool:
    """Whether ``name`` was given by a run of the benchmark that is no more."""
    prefix, _, rest = name.partition(f"{PREFIX}-")
    pid = rest.partition("-")[0]
    return not prefix and pid.isdigit() and not procs.is_running(int(pid))
