"""What processes use, from /proc: memory by PSS, processor time, and who belongs to whom."""

from __future__ import annotations

import os
from collections.abc import Collection, Iterable


def pids() -> list[int]:
    """All processes."""
    return [int(name) for name in os.listdir("/proc") if name.isdigit()]


def descendants(roots: Iterable[int]) -> set[int]:
    """The processes ``roots`` that exist, and all that descend from them."""
    children: dict[int, list[int]] = {}
    alive = set()
    for pid in pids():
        parent = _parent(pid)
        if parent is not None:
            alive.add(pid)
            children.setdefault(parent, []).append(pid)
    found: set[int] = set()
    left = [pid for pid in roots if pid in alive]
    while left:
        pid = left.pop()
        if pid not in found:
            found.add(pid)
            left += children.get(pid, [])
    return found


def is_running(pid: int) -> bool:
    """Whether there is such a process, and not only its exit status that nobody has asked for yet."""
    return _parent(pid) is not None


def _parent(pid: int) -> int | None:
    fields = _stat_fields(pid)
    return int(fields[1]) if fields and fields[0] not in "ZX" else None


def _stat_fields(pid: int) -> list[str]:
    """The fields of /proc/PID/stat from the state on; the name before them may hold anything."""
    try:
        with open(f"/proc/{pid}/stat", encoding="utf-8", errors="replace") as file:
            return file.read().rpartition(")")[2].split()
    except OSError:
        return []


def name(pid: int) -> str:
    """What the process calls itself, for people; empty when it is gone."""
    try:
        with open(f"/proc/{pid}/comm", encoding="utf-8", errors="replace") as file:
            return file.read().strip()
    except OSError:
        return ""


def pss(pid: int) -> int:
    """Bytes of memory of a process: its own pages, and its part of those it shares; 0 when it is gone."""
    try:
        with open(f"/proc/{pid}/smaps_rollup", encoding="ascii", errors="replace") as file:
            return next((int(line.split()[1]) << 10 for line in file if line.startswith("Pss:")), 0)
    except OSError:
        return 0


def resident(pid: int) -> int:
    """Bytes of memory that a process has mapped and that are there, shared or not; 0 when it is gone."""
    try:
        with open(f"/proc/{pid}/status", encoding="utf-8", errors="replace") as file:
            return next((int(line.split()[1]) << 10 for line in file if line.startswith("VmRSS:")), 0)
    except OSError:
        return 0


def memory_files(pid: int) -> dict[int, int]:
    """The files in memory (memfd) that a process has open: inode, and bytes they take."""
    found = {}
    try:
        for name in os.listdir(f"/proc/{pid}/fd"):
            path = f"/proc/{pid}/fd/{name}"
            if os.readlink(path).startswith("/memfd:"):
                status = os.stat(path)
                found[status.st_ino] = status.st_blocks * 512
    except OSError:
        return found
    return found


def parse_mapped(text: str, inodes: Collection[int]) -> int:
    """Bytes of PSS that files in memory with these inodes have in ``text``, which is /proc/PID/smaps.

    Pages that a private mapping has replaced by copies of its own are not the file's any more, and do not count.
    """
    total, wanted = 0, False
    for line in text.splitlines():
        fields = line.split()
        if fields and not fields[0].endswith(":"):
            wanted = len(fields) > 5 and fields[5].startswith("/memfd:") and int(fields[4]) in inodes
        elif wanted and fields[0] == "Pss:":
            total += int(fields[1]) << 10
        elif wanted and fields[0] == "Anonymous:":
            total -= int(fields[1]) << 10
    return total


def mapped(pid: int, inodes: Collection[int]) -> int:
    """parse_mapped() of a process; 0 when it is gone."""
    try:
        with open(f"/proc/{pid}/smaps", encoding="utf-8", errors="replace") as file:
            return parse_mapped(file.read(), inodes)
    except OSError:
        return 0


def cpu_ns(pid: int) -> dict[int, int]:
    """Nanoseconds that each thread of a process has run; empty when it is gone."""
    found = {}
    try:
        threads = os.listdir(f"/proc/{pid}/task")
    except OSError:
        return {}
    for thread in threads:
        try:
            with open(f"/proc/{pid}/task/{thread}/schedstat", encoding="ascii") as file:
                found[int(thread)] = int(file.read().split()[0])
        except (OSError, IndexError):
            continue
    return found


def cpu_used(before: dict[int, int], after: dict[int, int]) -> int:
    """Nanoseconds that threads ran between two looks; one that began meanwhile counts whole, one that ended not."""
    return sum(ran - before.get(thread, 0) for thread, ran in after.items())


def available_memory() -> int:
    """Bytes that the kernel could give to programs now."""
    with open("/proc/meminfo", encoding="ascii") as file:
        return next(int(line.split()[1]) << 10 for line in file if line.startswith("MemAvailable:"))
