"""What containers use, in the form in which containerd expects the host's cgroups to tell it.

The guest measures with cgroups v2. A host that has v1, alone or beside v2, is told the same figures in v1's form, as
far as it has names for them. What is not limited is said as containerd's own shim says it. Facts: containerd/cgroups,
cgroup1/*.go and cgroup2/manager.go; kernel Documentation/admin-guide/cgroup-v1/memory.rst and cgroup-v2.rst.
"""

from __future__ import annotations

import functools
import mmap
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

from hako.cgroup import hierarchy
from hako.shim import metrics_v1_messages as v1
from hako.shim import metrics_v2_messages as v2

if TYPE_CHECKING:
    from hako.cgroup.usage import Usage

_MAX = (1 << 64) - 1
#: v1 counts memory in pages, by signed numbers.
_UNLIMITED_V1 = ((1 << 63) - 1) // mmap.PAGESIZE * mmap.PAGESIZE
_IO = ("rbytes", "wbytes", "rios", "wios")
_COUNTERS = tuple(field.name for field in v2.NetworkStat.FIELDS if field.name != "name")
#: v1's names for lines of v2's memory.stat. It has each twice, the second time with the cgroups below; v2 once, with.
_MEMORY_V1 = {
    "cache": "file",
    "rss": "anon",
    "rss_huge": "anon_thp",
    "mapped_file": "file_mapped",
    "dirty": "file_dirty",
    "writeback": "file_writeback",
    "pg_fault": "pgfault",
    "pg_maj_fault": "pgmajfault",
    "inactive_anon": "inactive_anon",
    "active_anon": "active_anon",
    "inactive_file": "inactive_file",
    "active_file": "active_file",
    "unevictable": "unevictable",
}


@functools.cache
def _is_unified() -> bool:
    return hierarchy.read().is_unified


def of_container(stats: Mapping[str, Any], *, unified: bool | None = None) -> v1.Metrics | v2.Metrics:
    """The sandbox's answer to Stats as a message. ``unified`` says whether the host has cgroups v2 alone."""
    return _v2(stats) if (_is_unified() if unified is None else unified) else _v1(stats)


def of_sandbox(
    stats: Iterable[Mapping[str, Any]], host: Usage | None = None, *, unified: bool | None = None
) -> v1.Metrics | v2.Metrics:
    """What all containers of a VM use together, out of their answers to Stats.

    ``host`` is what the VM uses on the host, and counts for processor time and memory where it is more: its guest's
    kernel, and devices, are no container's.
    """
    return of_container(total(list(stats), host), unified=unified)


def total(stats: list[Mapping[str, Any]], host: Usage | None) -> dict[str, Any]:
    """The sum of answers to Stats, in their form. What one of them does not limit is not limited."""
    memory: dict[str, Any] = {
        name: _sum_or_none(one["memory"][name] for one in stats) for name in ("limit", "swap_limit")
    }
    memory |= {name: sum(one["memory"][name] or 0 for one in stats) for name in ("usage", "peak", "swap", "swap_peak")}
    memory |= {name: _tables(one["memory"][name] for one in stats) for name in ("stat", "events")}
    found: dict[str, Any] = {
        "cpu": _tables(one["cpu"] for one in stats),
        "memory": memory,
        "pids": {
            "current": sum(one["pids"]["current"] or 0 for one in stats),
            "limit": _sum_or_none(one["pids"]["limit"] for one in stats),
        },
        "io": {name: sum(one["io"][name] for one in stats) for name in _IO} | {"devices": _devices(stats)},
        "hugetlb": _huge_pages(stats),
        "pressure": {"cpu": {}, "memory": {}, "io": {}},  # percentages, which have no sum
        "network": stats[0]["network"] if stats else [],  # the whole VM's
    }
    if host is not None:
        cpu = found["cpu"]
        more = max(0, host.cpu_usec - cpu.get("usage_usec", 0))
        for name in ("usage_usec", "system_usec"):
            cpu[name] = cpu.get(name, 0) + more
        if host.memory > memory["usage"]:
            memory["stat"] |= {"inactive_file": host.inactive_file}
            memory["stat"]["anon"] = memory["stat"].get("anon", 0) + host.memory - memory["usage"]
            memory["usage"] = host.memory
        memory["peak"] = max(memory["peak"], memory["usage"])
    return found


def _sum_or_none(values: Iterable[int | None]) -> int | None:
    found = list(values)
    return None if not found or None in found else sum(value for value in found if value is not None)


def _tables(tables: Iterable[Mapping[str, int]]) -> dict[str, int]:
    found: dict[str, int] = {}
    for table in tables:
        for name, value in table.items():
            found[name] = found.get(name, 0) + value
    return found


def _devices(stats: list[Mapping[str, Any]]) -> list[dict[str, int]]:
    found: dict[tuple[int, int], dict[str, int]] = {}
    for one in stats:
        for device in one["io"]["devices"]:
            key = (device["major"], device["minor"])
            device_sum = found.setdefault(key, {"major": key[0], "minor": key[1], **dict.fromkeys(_IO, 0)})
            for name in _IO:
                device_sum[name] += device[name]
    return list(found.values())


def _huge_pages(stats: list[Mapping[str, Any]]) -> list[dict[str, Any]]:
    found: dict[str, list[Mapping[str, Any]]] = {}
    for one in stats:
        for entry in one["hugetlb"]:
            found.setdefault(entry["page"], []).append(entry)
    return [
        {
            "page": page,
            "current": sum(entry["current"] or 0 for entry in entries),
            "limit": _sum_or_none(entry["limit"] for entry in entries),
            "failures": sum(entry["failures"] or 0 for entry in entries),
        }
        for page, entries in found.items()
    ]


def _u64(value: int | None, none: int = 0) -> int:
    """``value`` as far as there is room for it. The guest, or a sum, may say anything."""
    return none if value is None else min(value, _MAX)


# --- version 2 ---


def _v2(stats: Mapping[str, Any]) -> v2.Metrics:
    cpu, memory, pids, pressure = (stats[name] for name in ("cpu", "memory", "pids", "pressure"))
    return v2.Metrics(
        pids=v2.PidsStat(current=_u64(pids["current"]), limit=_u64(pids["limit"], _MAX)),
        cpu=v2.CPUStat(**_named(v2.CPUStat, cpu) | {"psi": _psi(pressure["cpu"])}),
        memory=_memory_v2(memory, pressure["memory"]),
        io=v2.IOStat(
            usage=[v2.IOEntry(**_named(v2.IOEntry, device)) for device in stats["io"]["devices"]],
            psi=_psi(pressure["io"]),
        ),
        hugetlb=[
            v2.HugeTlbStat(
                current=_u64(entry["current"]),
                max=_u64(entry["limit"], _MAX),
                pagesize=entry["page"],
                failcnt=_u64(entry["failures"]),
            )
            for entry in stats["hugetlb"]
        ],
        memory_events=v2.MemoryEvents(**_named(v2.MemoryEvents, memory["events"])),
        network=[v2.NetworkStat(name=entry["name"], **_counters(entry)) for entry in stats["network"]],
    )


def _memory_v2(memory: Mapping[str, Any], pressure: Mapping[str, Any]) -> v2.MemoryStat:
    own = {
        "usage": _u64(memory["usage"]),
        "usage_limit": _u64(memory["limit"], _MAX),
        "max_usage": _u64(memory["peak"]),
        "swap_usage": _u64(memory["swap"]),
        # Without swap accounting there is no such file, which is not the same as no limit.
        "swap_limit": _u64(memory["swap_limit"], 0 if memory["swap"] is None else _MAX),
        "swap_max_usage": _u64(memory["swap_peak"]),
        "psi": _psi(pressure),
    }
    return v2.MemoryStat(**_named(v2.MemoryStat, memory["stat"]) | own)


def _named(kind: type[v2.CPUStat | v2.MemoryStat | v2.IOEntry | v2.MemoryEvents], table: Mapping[str, int]) -> Any:
    """The fields of ``kind`` that have the same names as the kernel's."""
    return {field.name: _u64(table[field.name]) for field in kind.FIELDS if field.name in table}


def _counters(entry: Mapping[str, Any]) -> Any:
    return {name: _u64(entry[name]) for name in _COUNTERS}


def _psi(pressure: Mapping[str, Mapping[str, int]]) -> v2.PSIStats | None:
    if not pressure:
        return None
    return v2.PSIStats(**{kind: _psi_data(values) for kind, values in pressure.items()})


def _psi_data(values: Mapping[str, int]) -> v2.PSIData:
    averages = {name: values[name] / 100 for name in ("avg10", "avg60", "avg300")}
    return v2.PSIData(**averages, total=_u64(values["total"]))


# --- version 1 ---


def _v1(stats: Mapping[str, Any]) -> v1.Metrics:
    cpu, pids = stats["cpu"], stats["pids"]
    return v1.Metrics(
        hugetlb=[
            v1.HugetlbStat(
                usage=_u64(entry["current"]),
                max=_u64(entry["current"]),  # the most at a time; v2 does not keep it
                failcnt=_u64(entry["failures"]),
                pagesize=entry["page"],
            )
            for entry in stats["hugetlb"]
        ],
        pids=v1.PidsStat(current=_u64(pids["current"]), limit=_u64(pids["limit"])),  # 0: no limit
        cpu=v1.CPUStat(
            usage=v1.CPUUsage(
                total=_nanoseconds(cpu, "usage_usec"),
                kernel=_nanoseconds(cpu, "system_usec"),
                user=_nanoseconds(cpu, "user_usec"),
            ),
            throttling=v1.Throttle(
                periods=_u64(cpu.get("nr_periods")),
                throttled_periods=_u64(cpu.get("nr_throttled")),
                throttled_time=_nanoseconds(cpu, "throttled_usec"),
            ),
        ),
        memory=_memory_v1(stats["memory"]),
        blkio=v1.BlkIOStat(
            io_service_bytes_recursive=_blkio(stats["io"]["devices"], "rbytes", "wbytes"),
            io_serviced_recursive=_blkio(stats["io"]["devices"], "rios", "wios"),
        ),
        network=[v1.NetworkStat(name=entry["name"], **_counters(entry)) for entry in stats["network"]],
        memory_oom_control=v1.MemoryOomControl(oom_kill=_u64(stats["memory"]["events"].get("oom_kill"))),
    )


def _nanoseconds(cpu: Mapping[str, int], name: str) -> int:
    return _u64(1000 * cpu.get(name, 0))


def _memory_v1(memory: Mapping[str, Any]) -> v1.MemoryStat:
    stat = {name: _u64(memory["stat"].get(line)) for name, line in _MEMORY_V1.items()}
    stat |= {f"total_{name}": value for name, value in stat.items()}
    usage, peak, limit = memory["usage"] or 0, memory["peak"] or 0, memory["limit"]
    swap = v1.MemoryEntry()
    if memory["swap"] is not None:
        # Memory and swap together.
        both = None if limit is None or memory["swap_limit"] is None else limit + memory["swap_limit"]
        most = max(peak + (memory["swap_peak"] or 0), usage + memory["swap"])
        swap = _entry(usage + memory["swap"], both, most)
    return v1.MemoryStat(
        **stat,
        hierarchical_memory_limit=_limit_v1(limit),
        hierarchical_swap_limit=swap.limit,
        usage=_entry(usage, limit, peak, memory["events"].get("max", 0)),
        swap=swap,
        kernel=_entry(memory["stat"].get("kernel", 0)),
        kernel_tcp=_entry(memory["stat"].get("sock", 0)),
    )


def _entry(usage: int, limit: int | None = None, most: int = 0, failures: int = 0) -> v1.MemoryEntry:
    return v1.MemoryEntry(limit=_limit_v1(limit), usage=_u64(usage), max=_u64(most), failcnt=_u64(failures))


def _limit_v1(limit: int | None) -> int:
    return _UNLIMITED_V1 if limit is None else min(limit, _UNLIMITED_V1)


def _blkio(devices: list[dict[str, int]], read: str, written: str) -> list[v1.BlkIOEntry]:
    return [
        v1.BlkIOEntry(op=op, major=_u64(device["major"]), minor=_u64(device["minor"]), value=_u64(device[name]))
        for device in devices
        for op, name in (("Read", read), ("Write", written))
    ]
