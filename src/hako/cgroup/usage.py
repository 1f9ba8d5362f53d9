"""What all processes in a cgroup of the host use together."""

from __future__ import annotations

from collections.abc import Mapping

from hako.cgroup import files
from hako.cgroup.hierarchy import UNIFIED
from hako.named import NamedTuple


class Usage(NamedTuple):
    """Processor time in microseconds; memory in bytes, with the part of it that the kernel could drop at once."""

    cpu_usec: int
    memory: int
    inactive_file: int


def read(directories: Mapping[str, str]) -> Usage:
    """Of the cgroup that is in ``directories``, by controller as in a Cgroup; 0 for what is not accounted."""
    if "memory" in directories or "cpuacct" in directories:
        nanoseconds = files.number(directories.get("cpuacct", ""), "cpuacct.usage") or 0
        memory = directories.get("memory", "")
        table = files.table(memory, "memory.stat")
        used = files.number(memory, "memory.usage_in_bytes") or 0
        return Usage(nanoseconds // 1000, used, table.get("total_inactive_file", 0))
    unified = directories.get(UNIFIED, "")
    cpu, table = files.table(unified, "cpu.stat"), files.table(unified, "memory.stat")
    used = files.number(unified, "memory.current") or 0
    return Usage(cpu.get("usage_usec", 0), used, table.get("inactive_file", 0))
