"""Applying limits to cgroups of version 1: one directory for each controller."""

from __future__ import annotations

import errno
import os
from collections.abc import Mapping

from hako.cgroup import files
from hako.cgroup.limits import DEFAULT_PERIOD, Limits, Overhead, host_quota, plus

#: By how much a limit that the VM has passed already exceeds what it uses.
SLACK = 16 << 20

_LIMIT = "memory.limit_in_bytes"
_BOTH = "memory.memsw.limit_in_bytes"
_QUOTA = "cpu.cfs_quota_us"
_PERIOD = "cpu.cfs_period_us"
_THROTTLE_FILES = {
    "rbps": "blkio.throttle.read_bps_device",
    "wbps": "blkio.throttle.write_bps_device",
    "riops": "blkio.throttle.read_iops_device",
    "wiops": "blkio.throttle.write_iops_device",
}


def apply(directories: Mapping[str, str], limits: Limits, overhead: Overhead) -> None:
    """Apply what ``limits`` gives and leave the rest as it is; ``directories`` are by controller. Raises HostError."""
    _memory(directories.get("memory"), limits, overhead)
    _quota(directories.get("cpu"), limits, overhead)
    for name, value, origin in _plain(limits, overhead):
        files.put(directories.get(name.partition(".")[0]), (name,), value, origin)
    _block(directories.get("blkio"), limits)


def _plain(limits: Limits, overhead: Overhead) -> list[tuple[str, str, str]]:
    """File, value and field of config.json of the limits that are simply written."""
    found = []
    if limits.reservation:
        value = plus(limits.reservation, overhead.memory)
        found.append(("memory.soft_limit_in_bytes", str(value), "memory.reservation"))
    if limits.swappiness is not None:
        found.append(("memory.swappiness", str(limits.swappiness), "memory.swappiness"))
    if limits.shares:
        found.append(("cpu.shares", str(limits.shares), "cpu.shares"))
    if limits.cpus:
        found.append(("cpuset.cpus", limits.cpus, "cpu.cpus"))
    if limits.mems:
        found.append(("cpuset.mems", limits.mems, "cpu.mems"))
    if limits.pids:
        value = plus(limits.pids, overhead.pids)
        found.append(("pids.max", str(value) if value > 0 else "max", "pids.limit"))
    if limits.class_id:
        found.append(("net_cls.classid", str(limits.class_id), "network.classID"))
    for name, priority in limits.priorities:
        found.append(("net_prio.ifpriomap", f"{name} {priority}", "network.priorities"))
    for value_text, place in limits.rdma:
        found.append(("rdma.max", value_text, place))
    return found


def _memory(directory: str | None, limits: Limits, overhead: Overhead) -> None:
    """Limits of memory, and of memory and swap together. At no time may the first be greater than the second."""
    limit = plus(limits.memory, overhead.memory) if limits.memory else None
    both = plus(limits.swap, overhead.memory) if limits.swap else None
    if limit is None and both is None:
        return
    if directory is None:
        raise files.missing("memory", "memory.limit" if limit is not None else "memory.swap")
    current = files.number(directory, _BOTH)
    if both is None and files.exists(directory, _BOTH):
        if limit == -1:
            both = -1  # as runc does: without a limit of memory there is none of swap
        elif current is not None and limit is not None and limit > current:
            both = limit
    grows = both == -1 or (both is not None and current is not None and both > current)
    steps = [(_LIMIT, limit, "memory.limit"), (_BOTH, both, "memory.swap")]
    for name, value, origin in reversed(steps) if grows else steps:
        if value is not None:
            if name == _BOTH and value > 0:  # the first may have had to stay higher than it was asked to be
                value = max(value, files.number(directory, _LIMIT) or 0)
            _bytes(directory, name, value, origin)


def _room(directory: str, name: str, value: int) -> int:
    """The least limit that is not below ``value`` and that the kernel takes as things are."""
    usage = files.number(directory, name.replace("limit", "usage")) or 0
    value = max(value, usage + SLACK)
    if name == _LIMIT:
        return min(value, files.number(directory, _BOTH) or value)
    return max(value, files.number(directory, _LIMIT) or 0)


def _bytes(directory: str, name: str, value: int, origin: str) -> None:
    """Write a limit of bytes. A VM that uses more already keeps what it has: its guest gives back in its own time."""
    for attempt in (0, 1, 2):
        try:
            files.write(directory, name, str(value))
        except OSError as error:
            if error.errno != errno.EBUSY or attempt == 2:
                raise files.refused(directory, name, str(value), origin, error) from error
            value = _room(directory, name, value)
        else:
            return


def _quota(directory: str | None, limits: Limits, overhead: Overhead) -> None:
    if not limits.quota and not limits.period:
        return
    origin = "cpu.quota" if limits.quota else "cpu.period"
    if directory is None:
        raise files.missing("cpu", origin)
    period = limits.period or files.number(directory, _PERIOD) or DEFAULT_PERIOD
    if limits.quota:
        quota = host_quota(limits.quota, period, overhead.cpus)
    else:
        quota = files.number(directory, _QUOTA) or -1
    # A quota that stays for a moment while the period changes could be more than the cgroup above has.
    files.put(directory, (_QUOTA,), "-1", origin)
    if limits.period:
        files.put(directory, (_PERIOD,), str(period), "cpu.period")
    if quota < 0:
        return
    try:
        files.write(directory, _QUOTA, str(quota))
    except OSError as error:
        allowed = _quota_above(directory, period)
        if error.errno != errno.EINVAL or allowed is None:
            raise files.refused(directory, _QUOTA, str(quota), origin, error) from error
        files.put(directory, (_QUOTA,), str(min(quota, allowed)), origin)


def _quota_above(directory: str, period: int) -> int | None:
    """The quota that the cgroups above leave: a pod's has none for the overhead of its VM."""
    found = None
    while files.exists(directory := os.path.dirname(directory), _QUOTA):
        quota, length = files.number(directory, _QUOTA), files.number(directory, _PERIOD)
        if quota and length:
            allowed = quota * period // length
            found = allowed if found is None else min(found, allowed)
    return found


def _block(directory: str | None, limits: Limits) -> None:
    for device, weight, leaf, origin in limits.weights:
        suffix = "_device" if device else ""
        for value, stem in ((weight, "weight"), (leaf, "leaf_weight")):
            if value:
                names = (f"blkio.bfq.{stem}{suffix}", f"blkio.{stem}{suffix}")
                files.put(directory, names, f"{device} {value}".strip(), origin)
    for kind, device, rate, origin in limits.throttles:
        files.put(directory, (_THROTTLE_FILES[kind],), f"{device} {rate}", origin)
