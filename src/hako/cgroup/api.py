"""The cgroup of a container on the host: QEMU, the sandbox process and all else that serves its VM live in it.

    path = path_for(cgroups_path, container_id, systemd=False)
    group = Cgroup.create(path, resources, Overhead.for_guest(guest_memory))
    group.add(pid)
    record = group.to_json()                 # for a later process:
    Cgroup.open(record).delete()

Limits are the container's own and an overhead; docs/cgroups.md says which apply. Every call waits for the kernel only,
for less than a millisecond each unless it says otherwise.
"""

from __future__ import annotations

import errno
import os
import signal
import time
from collections.abc import Callable, Mapping

from hako.cgroup import files, hierarchy, systemd, v1, v2
from hako.cgroup.hierarchy import UNIFIED, Host
from hako.cgroup.limits import Limits, Overhead, parse
from hako.cgroup.path import CgroupPath, path_for
from hako.errors import HostError, NotFoundError, StateError, TimedOutError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

__all__ = ["Cgroup", "CgroupPath", "Overhead", "path_for"]

_SYSTEMD_V1 = "name=systemd"
_KILL_SECONDS = 10.0
_DELETE_SECONDS = 2.0
#: A process that has only just been made cannot be moved for a moment.
_ADD_SECONDS = 0.2


class Cgroup:
    """A container's cgroup in all hierarchies of the host. Make one by create() or open()."""

    def __init__(
        self,
        directories: Mapping[str, str],
        overhead: Overhead,
        scope: tuple[str, str] | None,
        pending: dict[str, Any] | None,
    ) -> None:
        #: By controller; "" is version 2's hierarchy.
        self.directories = dict(directories)
        self.overhead = overhead
        self._scope = scope  # systemd's names of the scope and its slice
        self._pending = pending  # resources of a scope that systemd has yet to make

    @classmethod
    def create(
        cls,
        path: CgroupPath,
        resources: Mapping[str, Any],
        overhead: Overhead,
        *,
        host: Host | None = None,
        announce: Callable[[dict[str, Any]], None] | None = None,
    ) -> Cgroup:
        """Make the cgroup with the limits of a config.json's ``linux.resources``; one that exists is used as it is.

        With systemd it is made when the first process is added, for systemd makes no empty one. ``host`` is for tests,
        ``announce`` is told the record before anything is there.
        Raises ConfigError, and HostError for a limit that the host cannot keep; nothing stays then.
        """
        limits = parse(resources)
        host = host or hierarchy.read()
        by_systemd = bool(path.unit) and systemd.is_running()
        scope = (path.unit, path.slice) if by_systemd else None
        group = cls(host.directories(path), overhead, scope, dict(resources) if by_systemd else None)
        if announce is not None:
            announce(group.to_json())
        if not by_systemd:
            group._make(host, limits)
        return group

    @classmethod
    def open(cls, record: Mapping[str, Any]) -> Cgroup:
        """The cgroup that to_json() has described."""
        unit = record.get("unit")
        scope = (str(unit[0]), str(unit[1])) if unit else None
        return cls(record["directories"], Overhead(**record["overhead"]), scope, record.get("pending"))

    def to_json(self) -> dict[str, Any]:
        """What open() needs; it changes when systemd has made the scope, which is with the first add()."""
        return {
            "directories": dict(self.directories),
            "overhead": self.overhead._asdict(),
            "unit": list(self._scope) if self._scope else None,
            "pending": self._pending,
        }

    @property
    def is_unified(self) -> bool:
        """Whether the host has cgroup version 2 alone."""
        return list(self.directories) == [UNIFIED]

    def _make(self, host: Host, limits: Limits) -> None:
        made: list[list[str]] = []
        try:
            for controller, directory in self.directories.items():
                made.append(hierarchy.make(host.hierarchies[controller].mount, directory))
            self._apply(limits)
        except BaseException:
            for directories in made:
                hierarchy.remove(directories)
            raise

    def _apply(self, limits: Limits) -> None:
        if self.is_unified:
            v2.apply(self.directories[UNIFIED], limits, self.overhead)
        else:
            v1.apply(self.directories, limits, self.overhead)

    def add(self, pid: int) -> None:
        """Move a process with all its threads into the cgroup; its later children are born there.

        What memory it has stays on the account of where it was. Raises NotFoundError when there is no such process,
        and HostError. With systemd the first call takes some 20 ms.
        """
        if self._pending is not None:
            self._start_scope(pid, self._pending)
        for directory in dict.fromkeys(self.directories.values()):
            _move(pid, directory)

    def _start_scope(self, pid: int, resources: dict[str, Any]) -> None:
        assert self._scope is not None
        systemd.start_scope(*self._scope, pid, self._tracked())
        self._pending = None
        self._make(hierarchy.read(), parse(resources))
        systemd.tell_limits(self._scope[0], self.directories)

    def _tracked(self) -> str:
        """The directory in the hierarchy by which systemd follows processes."""
        return self.directories.get(_SYSTEMD_V1) or self.directories[UNIFIED]

    def update(self, resources: Mapping[str, Any]) -> None:
        """Apply limits anew; what ``resources`` does not give stays as it is.

        A limit of memory that the VM already exceeds is set to what it uses and a little. Raises ConfigError,
        HostError, and NotFoundError when the cgroup is gone.
        """
        limits = parse(resources)
        if self._pending is not None:
            self._pending = {**self._pending, **resources}
            return
        if not any(os.path.isdir(directory) for directory in self.directories.values()):
            raise NotFoundError(f"The cgroup {self._name()} does not exist any more.")
        self._apply(limits)
        if self._scope is not None and systemd.is_running():
            systemd.tell_limits(self._scope[0], self.directories)

    def pids(self) -> list[int]:
        """The processes in the cgroup and in those below it, in any hierarchy, ascending; none when it is gone."""
        found: set[int] = set()
        for directory in self.directories.values():
            found |= files.processes(directory)
        return sorted(found)

    def kill(self) -> None:
        """SIGKILL for every process in the cgroup but the calling one, until none is left.

        Raises TimedOutError when some are still there after ten seconds.
        """
        if (freezer := self.directories.get("freezer")) and files.read(freezer, "freezer.state") not in ("", "THAWED"):
            files.write(freezer, "freezer.state", "THAWED")  # what is frozen does not die
        deadline = time.monotonic() + _KILL_SECONDS
        while left := [pid for pid in self.pids() if pid != os.getpid()]:
            if time.monotonic() > deadline:
                raise TimedOutError(f"The processes {_listed(left)} of {self._name()} are still there after SIGKILL.")
            for pid in left:
                try:
                    os.kill(pid, signal.SIGKILL)
                except ProcessLookupError:
                    continue
            time.sleep(0.002)

    def delete(self) -> None:
        """Remove the cgroup and those below it; those above stay, as with runc. A second call does nothing.

        A process that is just ending is waited for, for two seconds at most. Raises StateError when others are in it.
        """
        deadline = time.monotonic() + _DELETE_SECONDS
        if self._scope is not None and self._pending is None and systemd.is_running():
            while (inside := self.pids()) and time.monotonic() < deadline:
                time.sleep(0.01)
            if not inside:  # or systemd would end them
                systemd.stop_scope(self._scope[0])
        for directory in dict.fromkeys(self.directories.values()):
            _remove(directory, deadline)

    def report_oom(self) -> bool:
        """Make the host's kernel report that memory ran out in this cgroup; return whether it did.

        For engines, which watch the host's cgroup, after the guest's kernel has killed in the container. See oom.py
        for how; other processes in the cgroup survive. It forks, and takes some 50 ms, two seconds at most. Raises
        HostError.
        """
        from hako.cgroup import oom

        directory = self.directories.get(UNIFIED if self.is_unified else "memory")
        if directory is None:
            return False
        try:
            return oom.report(directory, unified=self.is_unified)
        except OSError as error:
            raise HostError(f"Cannot report the lack of memory in {directory}: {error.strerror}.") from error

    def _name(self) -> str:
        return next(iter(self.directories.values()))


def _move(pid: int, directory: str) -> None:
    deadline = time.monotonic() + _ADD_SECONDS
    while True:
        try:
            files.write(directory, "cgroup.procs", str(pid))
            return
        except OSError as error:
            if error.errno == errno.ESRCH:
                raise NotFoundError(f"Process {pid} does not exist, so it cannot be put into {directory}.") from error
            if error.errno != errno.EINVAL or time.monotonic() > deadline:
                raise HostError(f"Cannot put process {pid} into the cgroup {directory}: {error.strerror}.") from error
        time.sleep(0.005)


def _remove(directory: str, deadline: float) -> None:
    pause = 0.002
    while True:
        try:
            for folder in files.below(directory):
                os.rmdir(folder)
            return
        except FileNotFoundError:
            continue  # somebody else removes it too
        except OSError as error:
            if error.errno != errno.EBUSY:
                raise HostError(f"Cannot remove the cgroup {directory}: {error.strerror}.") from error
            if time.monotonic() > deadline:
                inside = sorted(files.processes(directory))
                why = f"the processes {_listed(inside)} are in it" if inside else "the kernel says that it is in use"
                raise StateError(f"The cgroup {directory} cannot be removed: {why}.") from error
        time.sleep(pause)
        pause = min(2 * pause, 0.1)


def _listed(pids: list[int]) -> str:
    shown = ", ".join(str(pid) for pid in pids[:8])
    return f"{shown} and {len(pids) - 8} more" if len(pids) > 8 else shown
