"""What a process has from whoever started it and passes on to its children: two with the same can stand in for each
other.

Facts: fork(2), execve(2), proc_pid_status(5).
"""

from __future__ import annotations

import os

#: Of /proc/self/status.
_STATUS = (
    b"Umask", b"Uid", b"Gid", b"Groups", b"CapInh", b"CapPrm", b"CapEff", b"CapBnd", b"CapAmb", b"NoNewPrivs",
    b"Seccomp", b"Cpus_allowed", b"Mems_allowed",
)  # fmt: skip
_FILES = ("cgroup", "limits", "oom_score_adj", "attr/current", "personality", "timerslack_ns")
_NAMESPACES = ("cgroup", "ipc", "mnt", "net", "pid", "pid_for_children", "time_for_children", "user", "uts")
_MAX_READ = 64 << 10


def describe() -> bytes:
    """Rights, limits, namespaces, root directory, cgroup and priority of the calling process, as a text.

    The environment and open files are not in it. Takes a third of a millisecond.
    """
    status = [line for line in _read("status").split(b"\n") if line.partition(b":")[0] in _STATUS]
    namespaces = [_link(f"ns/{name}").encode() for name in _NAMESPACES]
    root = os.stat("/")
    numbers = (root.st_dev, root.st_ino, os.getpriority(os.PRIO_PROCESS, 0), os.sched_getscheduler(0))
    return b"\n".join([*status, *map(_read, _FILES), *namespaces, repr(numbers).encode()])


def _read(name: str) -> bytes:
    """A file of /proc/self; empty where the kernel has no such file."""
    try:
        fd = os.open(f"/proc/self/{name}", os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return b""
    try:
        return os.read(fd, _MAX_READ)
    except OSError:
        return b""
    finally:
        os.close(fd)


def _link(name: str) -> str:
    try:
        return os.readlink(f"/proc/self/{name}")
    except OSError:
        return ""
