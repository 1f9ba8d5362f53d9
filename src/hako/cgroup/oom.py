"""Making an out-of-memory event happen in a cgroup, for what happened in the guest's.

Engines learn of a container's OOM from the host's kernel alone: from an eventfd on version 1's memory.oom_control, or
from version 2's memory.events. The kernel raises it only when it kills in that very cgroup. So a child is put into the
cgroup that may be killed before all others, the limit is lowered to what is used, and the child uses more.

Whoever else is in the cgroup survives: the kernel chooses by oom_score_adj, and the child's is the highest there is.
When the child dies it gives back more than others could have taken meanwhile, and the limit is raised again.
"""

from __future__ import annotations

import contextlib
import mmap
import os
import select
import signal
import time
from collections.abc import Callable, Iterator

from hako.cgroup import files

_PAGE = mmap.PAGESIZE
#: What the child holds from the start, so that its death gives others room.
_HELD = 8 << 20
#: How much it uses at most.
_MOST = 64 << 20
#: How far the lowered limit is above what is used.
_ROOM = 4 << 20
_ATTEMPTS = 3
_SECONDS = 2.0


def report(directory: str, *, unified: bool) -> bool:
    """Have the kernel kill a child of this process in the memory cgroup ``directory``; tell whether it did.

    It takes some 50 ms, and never more than two seconds and 64 MiB. Best when the VM is gone already, for it is
    slowed down. Without a memory controller there is nobody who could listen, and nothing is done. Raises OSError.
    """
    if not files.exists(directory, "memory.max" if unified else "memory.limit_in_bytes"):
        return False
    deadline = time.monotonic() + _SECONDS
    for _ in range(_ATTEMPTS):
        if _attempt(directory, unified, deadline):
            return True
        if time.monotonic() > deadline:
            break
    return False


def _attempt(directory: str, unified: bool, deadline: float) -> bool:
    ready, ready_end = os.pipe()
    go_end, go = os.pipe()
    pid = os.fork()
    if pid == 0:
        _child(directory, ready_end, go_end, (ready, go))
    try:
        os.close(ready_end)
        os.close(go_end)
        if not _wait(ready, deadline) or not os.read(ready, 1):
            return False
        with _lowered_v2(directory) if unified else _lowered_v1(directory):
            os.write(go, b"!")
            return _was_killed(pid, deadline)
    finally:
        os.close(ready)
        os.close(go)
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
        with contextlib.suppress(ChildProcessError):
            os.waitpid(pid, 0)


def _child(directory: str, ready: int, go: int, others: tuple[int, int]) -> None:
    """The child's whole life."""
    try:
        for fd in others:
            os.close(fd)
        with open("/proc/self/oom_score_adj", "w", encoding="ascii") as file:
            file.write("1000")
        files.write(directory, "cgroup.procs", "0")  # itself
        memory = mmap.mmap(-1, _MOST)
        _touch(memory, 0, _HELD)
        os.write(ready, b"!")
        if os.read(go, 1):
            _touch(memory, _HELD, _MOST)
    finally:
        os._exit(0)


def _touch(memory: mmap.mmap, start: int, end: int) -> None:
    for offset in range(start, end, _PAGE):
        memory[offset] = 1


def _wait(fd: int, deadline: float) -> bool:
    """Wait until ``fd`` can be read."""
    poll = select.poll()
    poll.register(fd, select.POLLIN)
    return bool(poll.poll(max(deadline - time.monotonic(), 0) * 1000))


def _was_killed(pid: int, deadline: float) -> bool:
    """Whether the child ends before ``deadline`` and did not do so by itself."""
    fd = os.pidfd_open(pid)
    try:
        if not _wait(fd, deadline):
            return False
        ended = os.waitid(os.P_PIDFD, fd, os.WEXITED | os.WNOWAIT)
        return ended is not None and ended.si_code == os.CLD_KILLED
    finally:
        os.close(fd)


@contextlib.contextmanager
def _lowered_v1(directory: str) -> Iterator[None]:
    """Hold the limit where the next few megabytes are too much.

    Version 1 refuses a limit that it cannot reach by giving up caches, so that one is looked for.
    """
    limit, both = "memory.limit_in_bytes", "memory.memsw.limit_in_bytes"
    with contextlib.ExitStack() as stack:
        # Restored in the reverse order: the limit of memory and swap is raised first, as the kernel wants it.
        _keep(stack, directory, "memory.swappiness")
        _keep(stack, directory, limit)
        _keep(stack, directory, both)
        if files.exists(directory, "memory.swappiness"):
            files.write(directory, "memory.swappiness", "0")  # nothing is to be saved by writing it to swap
        used = files.number(directory, "memory.usage_in_bytes") or 0
        counts = files.table(directory, "memory.stat")
        cache = counts.get("total_inactive_file", 0) + counts.get("total_active_file", 0)
        _lower(directory, limit, max(used - cache, 0), lambda: files.number(directory, "memory.usage_in_bytes") or 0)
        if files.exists(directory, both):
            most = files.number(directory, limit) or 0
            used_both = files.number(directory, "memory.memsw.usage_in_bytes") or 0
            _lower(directory, both, max(most, used_both) - _ROOM, lambda: max(most, used_both))
        yield


def _lower(directory: str, name: str, target: int, usage: Callable[[], int]) -> None:
    """Lower a limit of version 1 to ``target`` and a little, or to what is used if it cannot be reached."""
    for value in (target, usage(), usage() + _ROOM):
        with contextlib.suppress(OSError):
            files.write(directory, name, str(value + _ROOM))
            return


@contextlib.contextmanager
def _lowered_v2(directory: str) -> Iterator[None]:
    """Hold the limit where the next few megabytes are too much.

    Version 2 kills at once to reach a limit, so caches are given up first, by memory.high, which never kills.
    """
    with contextlib.ExitStack() as stack:
        for name, value in (
            ("memory.oom.group", "0"),
            ("memory.swap.max", "0"),
            ("memory.max", ""),
            ("memory.high", ""),
        ):
            _keep(stack, directory, name)
            if value and files.exists(directory, name):
                files.write(directory, name, value)
        counts = files.table(directory, "memory.stat")
        cache = counts.get("inactive_file", 0) + counts.get("active_file", 0)
        used = files.number(directory, "memory.current") or 0
        files.write(directory, "memory.high", str(max(used - cache, 0) + _ROOM))
        files.write(directory, "memory.high", "max")  # or its processes would be slowed down, the child among them
        used = files.number(directory, "memory.current") or 0
        most = files.number(directory, "memory.max")
        files.write(directory, "memory.max", str(min(used + _ROOM, most or used + _ROOM)))
        yield


def _keep(stack: contextlib.ExitStack, directory: str, name: str) -> None:
    """Have ``stack`` restore a file, when there is one."""
    value = files.read(directory, name)
    if not value:
        return

    def restore() -> None:
        with contextlib.suppress(OSError):  # the cgroup may have been removed
            files.write(directory, name, value)

    stack.callback(restore)
