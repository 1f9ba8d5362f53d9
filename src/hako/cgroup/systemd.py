"""Having systemd make a scope, so that it does not take the cgroup for its own.

Without a running systemd a scope's cgroup is made like any other, at the place where systemd would have it.
"""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Mapping

from hako.cgroup import files
from hako.cgroup.hierarchy import UNIFIED
from hako.errors import HostError, TimedOutError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from hako.cgroup.dbus import Property

_RUNNING = "/run/systemd/system"
_SECONDS = 30.0
_INFINITY = (1 << 64) - 1

#: Controller, file and systemd's name of the limits that it knows.
_KNOWN_V1 = (
    ("memory", "memory.limit_in_bytes", "MemoryLimit"),
    ("cpu", "cpu.shares", "CPUShares"),
    ("pids", "pids.max", "TasksMax"),
    ("blkio", "blkio.weight", "BlockIOWeight"),
    ("blkio", "blkio.bfq.weight", "BlockIOWeight"),
)
_KNOWN_V2 = (
    (UNIFIED, "memory.max", "MemoryMax"),
    (UNIFIED, "memory.high", "MemoryHigh"),
    (UNIFIED, "memory.low", "MemoryLow"),
    (UNIFIED, "memory.swap.max", "MemorySwapMax"),
    (UNIFIED, "pids.max", "TasksMax"),
    (UNIFIED, "cpu.weight", "CPUWeight"),
    (UNIFIED, "io.weight", "IOWeight"),
)


def is_running() -> bool:
    """Whether systemd is the host's service manager."""
    return os.path.isdir(_RUNNING)


def start_scope(unit: str, slice_name: str, pid: int, directory: str) -> None:
    """Have systemd make the scope ``unit`` with the process ``pid`` in it, at the cgroup ``directory``.

    Returns when the process is there. Raises HostError and TimedOutError.
    """
    from hako.cgroup import dbus  # socket is slow to import, and only hosts with systemd need it

    accounting = [(f"{name}Accounting", "b", True) for name in ("CPU", "Memory", "IO", "Tasks")]
    fixed: list[Property] = [
        ("Description", "s", f"hako container {unit.removesuffix('.scope')}"),
        ("Slice", "s", slice_name),
        ("PIDs", "au", [pid]),
        ("Delegate", "b", True),
        ("DefaultDependencies", "b", False),
        # One whose processes were killed is forgotten too, so that its name can be used again.
        ("CollectMode", "s", "inactive-or-failed"),
    ]
    body = dbus.Writer()
    body.text(unit)
    body.text("fail")
    body.properties([*fixed, *accounting])
    body.properties([])  # no other units
    dbus.call("StartTransientUnit", "ssa(sv)a(sa(sv))", body, seconds=_SECONDS)
    deadline = time.monotonic() + _SECONDS
    while pid not in files.processes(directory):
        if not os.path.exists(f"/proc/{pid}"):
            raise HostError(f"Process {pid} ended before systemd had moved it into {unit}.")
        if time.monotonic() > deadline:
            raise TimedOutError(f"systemd has not moved process {pid} into {unit} within {_SECONDS:g} s.")
        time.sleep(0.002)


def tell_limits(unit: str, directories: Mapping[str, str]) -> None:
    """Tell systemd the limits of a scope as they are now. Raises HostError."""
    from hako.cgroup import dbus

    if limits := properties(directories):
        body = dbus.Writer()
        body.text(unit)
        body.integer("I", 1)
        body.properties(limits)
        dbus.call("SetUnitProperties", "sba(sv)", body, seconds=_SECONDS)


def stop_scope(unit: str) -> None:
    """Have systemd forget a scope that is empty, which it else finds out only some time after the cgroup is gone."""
    from hako.cgroup import dbus

    body = dbus.Writer()
    body.text(unit)
    body.text("replace")
    with contextlib.suppress(HostError):  # mostly because it knows already; the cgroup's directory goes in any case
        dbus.call("StopUnit", "ss", body, seconds=_SECONDS)


def properties(directories: Mapping[str, str]) -> list[Property]:
    """The limits that stand in a cgroup's files, as systemd knows them.

    systemd writes its own again whenever it looks after its units, so it must have the same ones; those that it does
    not know it leaves alone.
    """
    found: list[Property] = []
    for controller, name, own in _KNOWN_V2 if UNIFIED in directories and len(directories) == 1 else _KNOWN_V1:
        # io.weight says "default 100", and devices in further lines.
        words = files.read(directories.get(controller, ""), name).removeprefix("default ").split()
        if words and (words[0].isdigit() or words[0] in ("max", "-1")):
            found.append((own, "t", int(words[0]) if words[0].isdigit() else _INFINITY))
    return found + _quota(directories)


def _quota(directories: Mapping[str, str]) -> list[Property]:
    if directory := directories.get("cpu"):
        words = [files.read(directory, name) for name in ("cpu.cfs_quota_us", "cpu.cfs_period_us")]
    else:
        words = files.read(directories.get(UNIFIED, ""), "cpu.max").split()
    if len(words) != 2 or not words[1].isdigit():
        return []
    # It is kept in hundredths of a processor; upwards, for the exact value is in the file already.
    share = -(-int(words[0]) * 1_000_000 // int(words[1]) // 10_000) * 10_000 if words[0].isdigit() else _INFINITY
    return [("CPUQuotaPerSecUSec", "t", share), ("CPUQuotaPeriodUSec", "t", int(words[1]))]
