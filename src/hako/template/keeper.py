"""Keeping a template's memory at hand between starts, in sealed memory files that nobody can change.

QEMU opens a memory file for writing even when it maps it privately, and has been seen to punch holes into it when a
guest reports free pages. A file in memory can be sealed against that for good, but lives only as long as a process
has it open. That process is the keeper: a shell that sleeps. It ends a while after the template was used last, or when
its record is removed.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import signal
import time

from hako import paths, store
from hako.cgroup import home
from hako.errors import HostError
from hako.linux.processes import started
from hako.named import NamedTuple
from hako.template import memory

_MEMORY_FD, _STATE_FD, _NAMESPACE_FD = 3, 4, 5
#: Goes into the cgroups whose directories follow; then looks every $2 seconds whether the record ($0) is still there
#: and was touched in the last $1 minutes. What it runs meanwhile does not get the files: they are to be gone with it.
_SCRIPT = (
    'exec 5<&-; for d; do [ -d "$d" ] && echo 0 >"$d/cgroup.procs"; done 2>/dev/null; '
    'while (exec 3<&- 4<&-; exec sleep "$2"); do '
    '[ -n "$(exec 3<&- 4<&-; exec find "$0" -mmin "-$1" 2>/dev/null)" ] || exit 0; done'
)
_PERIOD = 60.0


class Held(NamedTuple):
    """An open template; close() gives the descriptors back."""

    memory: int
    state: int  #: an open file of its own, read from the beginning

    def close(self) -> None:
        """Close both files."""
        os.close(self.memory)
        os.close(self.state)


def directory() -> str:
    """Where keepers are recorded."""
    return os.path.join(paths.state_root(), "templates")


def _record(key: str) -> str:
    return os.path.join(directory(), f"{key}.json")


def start(key: str, held: Held, idle: float, namespace: int | None = None) -> None:
    """Have a keeper hold ``held`` until it was not used for ``idle`` seconds. Hold the template's lock.

    ``namespace`` is an open mount namespace for it: a keeper in a sandbox's own would keep that one's mounts alive.
    Raises HostError.
    """
    stop(key)
    store.ensure_dir(directory(), 0o700)
    # Copies out of the way of the numbers that they are to become.
    sources = [held.memory, held.state, *([] if namespace is None else [namespace])]
    high = [fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, 10) for fd in sources]
    try:
        times = [str(max(1, round(idle / 60))), f"{_PERIOD:g}"]
        # It is not part of the container whose start has loaded the template.
        argv = ["/bin/sh", "-c", _SCRIPT, _record(key), *times, *home.directories()]
        if namespace is not None:
            argv = ["/usr/bin/nsenter", f"--mount=/proc/self/fd/{_NAMESPACE_FD}", "--", *argv]
        pid = os.posix_spawn(
            argv[0],
            argv,
            {"PATH": "/usr/bin:/bin"},
            file_actions=[
                (os.POSIX_SPAWN_OPEN, 0, "/dev/null", os.O_RDWR, 0),
                (os.POSIX_SPAWN_OPEN, 1, "/dev/null", os.O_RDWR, 0),
                (os.POSIX_SPAWN_OPEN, 2, "/dev/null", os.O_RDWR, 0),
                (os.POSIX_SPAWN_DUP2, high[0], _MEMORY_FD),
                (os.POSIX_SPAWN_DUP2, high[1], _STATE_FD),
                *([] if namespace is None else [(os.POSIX_SPAWN_DUP2, high[2], _NAMESPACE_FD)]),
            ],
            setsid=True,
            setsigdef=[signal.SIGINT, signal.SIGHUP, signal.SIGPIPE],
        )
    except OSError as error:
        raise HostError(f"Cannot start {argv[0]} to keep a template in memory: {error.strerror}.") from error
    finally:
        for fd in high:
            os.close(fd)
    store.write_json(_record(key), {"pid": pid, "started": started(pid)})


def find(key: str) -> Held | None:
    """The template that a keeper holds, None when none does. It counts as used now."""
    pid = _alive(key)
    if pid is None:
        return None
    with contextlib.ExitStack() as stack:
        try:
            fds = []
            for number, name in ((_MEMORY_FD, f"hako-template-{key}"), (_STATE_FD, "hako-state")):
                path = f"/proc/{pid}/fd/{number}"
                if not os.readlink(path).startswith(f"/memfd:{name} "):
                    return None
                fds.append(os.open(path, os.O_RDONLY | os.O_CLOEXEC))
                stack.callback(os.close, fds[-1])
            os.utime(_record(key))
        except OSError:
            return None
        if not all(memory.is_sealed(fd) for fd in fds):
            return None
        stack.pop_all()
    return Held(*fds)


def stop(key: str) -> None:
    """End the keeper of ``key``, if there is one. VMs that run go on."""
    pid = _alive(key)
    if pid is not None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(pid, signal.SIGKILL)  # it leads a group of its own, in which it sleeps
        _wait_gone(pid)
    with contextlib.suppress(FileNotFoundError):
        os.unlink(_record(key))


def stop_all() -> None:
    """End all keepers."""
    with contextlib.suppress(FileNotFoundError):
        for name in os.listdir(directory()):
            if name.endswith(".json"):
                stop(name.removesuffix(".json"))


def pid_of(key: str) -> int | None:
    """The process that holds the template's memory, None when none does."""
    return _alive(key)


def _alive(key: str) -> int | None:
    record = store.read_json(_record(key))
    pid = record.get("pid") if record is not None else None
    if record is None or type(pid) is not int or pid <= 0:
        return None
    when = started(pid)
    return pid if when and when == record.get("started") else None


def _wait_gone(pid: int) -> None:
    """Wait for the end of a process that was killed; it is reaped here if it is a child."""
    deadline = time.monotonic() + 5
    while time.monotonic() < deadline:
        with contextlib.suppress(ChildProcessError):
            if os.waitpid(pid, os.WNOHANG)[0] == pid:
                return
        if not started(pid):
            return
        time.sleep(0.005)
