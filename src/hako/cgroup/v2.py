"""Applying limits to a cgroup of version 2: one directory for all controllers."""

from __future__ import annotations

from hako.cgroup import files
from hako.cgroup.limits import DEFAULT_PERIOD, Limits, Overhead, host_quota, plus
from hako.cgroup.v1 import SLACK

#: Keys of ``unified`` that mean the same on the host; those with an overhead are in _unified().
_AS_THEY_ARE = frozenset(
    {
        *("cpu.idle", "cpu.weight", "cpu.weight.nice", "cpuset.cpus", "cpuset.mems"),
        *("io.bfq.weight", "io.latency", "io.max", "io.prio.class", "io.weight", "memory.swap.max", "rdma.max"),
    }
)


def apply(directory: str, limits: Limits, overhead: Overhead) -> None:
    """Apply what ``limits`` gives and leave the rest as it is. Raises HostError.

    ``network`` has no counterpart in version 2 and is left to the guest.
    """
    for name, value, origin in (*_memory(directory, limits, overhead), *_plain(directory, limits, overhead)):
        files.put(directory, (name,), value, origin)
    _block(directory, limits)
    for name, value, origin in _unified(directory, limits, overhead):
        for line in value.splitlines():  # io.max and its like take one device at a time
            files.put(directory, (name,), line, origin)


def cpu_weight(shares: int) -> int:
    """Version 2's weight, 1 to 10000, for shares of 2 to 262144."""
    return 1 + (min(max(shares, 2), 262_144) - 2) * 9_999 // 262_142


def io_weight(weight: int) -> int:
    """The weight of io.weight, 1 to 10000, for one of 10 to 1000."""
    return 1 + (min(max(weight, 10), 1_000) - 10) * 9_999 // 990


def _text(value: int) -> str:
    return "max" if value < 0 else str(value)


def _memory(directory: str, limits: Limits, overhead: Overhead) -> list[tuple[str, str, str]]:
    found = []
    if limits.memory:
        found.append(("memory.max", _no_less(directory, plus(limits.memory, overhead.memory)), "memory.limit"))
    swap = _swap_alone(directory, limits, overhead)
    if swap is not None:
        found.append(("memory.swap.max", _text(swap), "memory.swap"))
    if limits.reservation:
        found.append(("memory.low", _text(plus(limits.reservation, overhead.memory)), "memory.reservation"))
    return found


def _no_less(directory: str, value: int) -> str:
    """A limit that is not below what is used: the kernel would kill the VM at once to keep it."""
    if value < 0:
        return "max"
    usage = files.number(directory, "memory.current") or 0
    return str(max(value, usage + SLACK) if usage > value - SLACK else value)


def _swap_alone(directory: str, limits: Limits, overhead: Overhead) -> int | None:
    """Bytes of swap, which version 2 counts apart from memory; -1 for no limit, None for what was not asked for."""
    if limits.memory == -1 and not limits.swap:
        return -1  # as runc does: without a limit of memory there is none of swap
    if not limits.swap or limits.swap < 0:
        return limits.swap or None
    if limits.memory and limits.memory > 0:
        return limits.swap - limits.memory
    limit = files.number(directory, "memory.max")
    return None if limit is None else max(limits.swap + overhead.memory - limit, 0)


def _plain(directory: str, limits: Limits, overhead: Overhead) -> list[tuple[str, str, str]]:
    found = []
    if limits.shares:
        found.append(("cpu.weight", str(cpu_weight(limits.shares)), "cpu.shares"))
    if limits.quota or limits.period:
        origin = "cpu.quota" if limits.quota else "cpu.period"
        found.append(("cpu.max", _cpu_max(directory, limits.quota, limits.period, overhead), origin))
    if limits.cpus:
        found.append(("cpuset.cpus", limits.cpus, "cpu.cpus"))
    if limits.mems:
        found.append(("cpuset.mems", limits.mems, "cpu.mems"))
    if limits.pids:
        found.append(("pids.max", _text(plus(limits.pids, overhead.pids)), "pids.limit"))
    return found + [("rdma.max", value, place) for value, place in limits.rdma]


def _cpu_max(directory: str, quota: int | None, period: int | None, overhead: Overhead) -> str:
    current = files.read(directory, "cpu.max").split()
    length = period or (int(current[1]) if len(current) == 2 and current[1].isdigit() else DEFAULT_PERIOD)
    if quota:
        return f"{_text(host_quota(quota, length, overhead.cpus))} {length}"
    return f"{current[0] if current else 'max'} {length}"


def _block(directory: str, limits: Limits) -> None:
    for device, weight, _, origin in limits.weights:
        if weight and files.exists(directory, "io.bfq.weight"):
            files.put(directory, ("io.bfq.weight",), f"{device} {weight}".strip(), origin)
        elif weight:
            files.put(directory, ("io.weight",), f"{device or 'default'} {io_weight(weight)}", origin)
    for kind, device, rate, origin in limits.throttles:
        files.put(directory, ("io.max",), f"{device} {kind}={rate or 'max'}", origin)


def _unified(directory: str, limits: Limits, overhead: Overhead) -> list[tuple[str, str, str]]:
    """What the host applies of ``unified``; the guest applies all of it."""
    found = []
    for (
        name,
        value,
    ) in limits.unified:
        origin = f"unified[{name!r}]"
        words = value.split()
        if name in _AS_THEY_ARE:
            found.append((name, value, origin))
        elif name in ("memory.max", "memory.high") and value.isdigit():
            found.append((name, _no_less(directory, int(value) + overhead.memory), origin))
        elif name == "pids.max" and value.isdigit():
            found.append((name, str(int(value) + overhead.pids), origin))
        elif name == "cpu.max" and words and words[0].isdigit():
            period = int(words[1]) if len(words) == 2 and words[1].isdigit() else None
            found.append((name, _cpu_max(directory, int(words[0]), period, overhead), origin))
        elif name in ("memory.max", "memory.high", "pids.max", "cpu.max"):
            found.append((name, value, origin))
    return found
