"""``hako-runtime events``: what a container uses, again and again, and when its memory runs out; JSON, one a line."""

from __future__ import annotations

import os
import sys

from hako.errors import ConfigError, HakoError, StateError
from hako.runtime import containers

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from hako.runtime.verbs import Call

#: What runc writes for "no limit".
_UNLIMITED = (1 << 64) - 1


def main(call: Call) -> int:
    """Print events until the container ends, or what it uses now."""
    container = containers.find(call.root, call.args[0])
    interval = call.options["interval"]
    if interval <= 0:
        raise ConfigError("duration interval must be greater than 0")
    if containers.status(container) == "stopped":
        raise StateError(f"container with id {container.id} is not running")
    if call.options["stats"]:
        _print({"type": "stats", "id": container.id, "data": data(_read(container))})
    else:
        _follow(container, interval)
    return 0


def _follow(container: containers.Container, interval: float) -> None:
    seen = _oom_kills(_read(container))
    while not _ends_within(container, interval):
        try:
            stats = _read(container)
        except HakoError:
            if containers.status(container) != "stopped":
                raise
            break
        if _oom_kills(stats) > seen:
            _print({"type": "oom", "id": container.id})
        seen = _oom_kills(stats)
        _print({"type": "stats", "id": container.id, "data": data(stats)})
    if not seen and containers.record_of(container).get("oom"):
        _print({"type": "oom", "id": container.id})


def _ends_within(container: containers.Container, seconds: float) -> bool:
    """Whether the process that stands for the container ends within ``seconds``; that long is waited at most."""
    import select

    try:
        fd = os.pidfd_open(container.pid)
    except OSError:
        return True
    try:
        if not containers.is_its(container):  # another process has got the number
            return True
        poll = select.poll()
        poll.register(fd, select.POLLIN)
        return bool(poll.poll(seconds * 1000))
    finally:
        os.close(fd)


def _read(container: containers.Container) -> dict[str, Any]:
    return containers.call(container, "Stats", {})


def _oom_kills(stats: dict[str, Any]) -> int:
    return int(stats["memory"]["events"].get("oom_kill", 0))


def data(stats: dict[str, Any]) -> dict[str, Any]:
    """The sandbox's answer to Stats in the form of runc's statistics. Times are in nanoseconds, sizes in bytes."""
    cpu, memory = stats["cpu"], stats["memory"]
    usage = {
        "total": 1000 * cpu.get("usage_usec", 0),
        "kernel": 1000 * cpu.get("system_usec", 0),
        "user": 1000 * cpu.get("user_usec", 0),
    }
    throttling = {
        "periods": cpu.get("nr_periods", 0),
        "throttledPeriods": cpu.get("nr_throttled", 0),
        "throttledTime": 1000 * cpu.get("throttled_usec", 0),
    }
    return {
        "cpu": {"usage": usage, "throttling": _filled(throttling)},
        "cpuset": {},
        "memory": _memory(memory),
        "pids": _filled({"current": stats["pids"]["current"], "limit": stats["pids"]["limit"]}),
        "blkio": _blkio(stats["io"]),
        "hugetlb": {},
        "intel_rdt": {},
        "network_interfaces": None,
    }


def _memory(memory: dict[str, Any]) -> dict[str, Any]:
    used, limit = memory["usage"] or 0, memory["limit"]
    unknown = {"limit": 0, "failcnt": 0}
    usage = {"limit": _UNLIMITED if limit is None else limit, "usage": used, "max": memory["peak"]}
    swap = memory["swap"]
    return _filled(
        {
            "cache": memory["stat"].get("file", 0),
            "usage": _filled(usage) | {"failcnt": memory["events"].get("max", 0)},
            # As of old, memory and swap together; the guest does not tell its limit.
            "swap": unknown if swap is None else {**unknown, "usage": used + swap},
            "kernel": unknown | _filled({"usage": memory["stat"].get("kernel", 0)}),
            "kernelTCP": unknown | _filled({"usage": memory["stat"].get("sock", 0)}),
            "raw": memory["stat"],
        }
    )


def _blkio(io: dict[str, int]) -> dict[str, Any]:
    """Sums over all devices, which is what the guest tells."""

    def entries(read: int, written: int) -> list[dict[str, Any]]:
        return [{"op": "Read", "value": read}, {"op": "Write", "value": written}] if read or written else []

    return _filled(
        {
            "ioServiceBytesRecursive": entries(io["rbytes"], io["wbytes"]),
            "ioServicedRecursive": entries(io["rios"], io["wios"]),
        }
    )


def _filled(values: dict[str, Any]) -> dict[str, Any]:
    """``values`` without what is nothing: Go's encoder leaves that out."""
    return {name: value for name, value in values.items() if value}


def _print(event: dict[str, Any]) -> None:
    from hako.wire import jsontext

    sys.stdout.write(jsontext.dumps(event).decode() + "\n")
    sys.stdout.flush()
