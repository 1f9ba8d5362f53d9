"""Reading and writing containers' control groups (version 2) in the guest."""

from __future__ import annotations

import os

from hako.wire.calls import MAX_DEVICES, MAX_PROCESSES

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

MOUNT = "/sys/fs/cgroup"
#: Of one command line, and of all in one list, no more than so many bytes: an answer has a size limit.
_MAX_COMMAND = 4096
_MAX_COMMANDS = 128 << 10
_MAX_READ = 1 << 20

_IO = ("rbytes", "wbytes", "rios", "wios")
_PRESSURE = ("avg10", "avg60", "avg300", "total")
_NETWORK = tuple(f"{way}_{what}" for way in ("rx", "tx") for what in ("bytes", "packets", "errors", "dropped"))


def directory(container_id: str) -> str:
    """The cgroup directory of a container."""
    return f"{MOUNT}/hako/{container_id}"


def make(container_id: str) -> None:
    """Make the cgroup of a container, with every controller that there is. Raises OSError."""
    path = directory(container_id)
    os.makedirs(path, exist_ok=True)
    for base in (MOUNT, os.path.dirname(path)):
        for controller in read(base + "/cgroup.controllers").split():
            with open(base + "/cgroup.subtree_control", "w", encoding="ascii") as file:
                file.write(f"+{controller}")


def remove(container_id: str) -> None:
    """Remove a cgroup that no process is in, if it is there."""
    try:
        os.rmdir(directory(container_id))
    except OSError:
        pass  # it goes with the VM


def read(path: str) -> str:
    """The text of one cgroup file, empty when it is not there."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return ""
    data = b""
    try:
        while len(data) < _MAX_READ and (more := os.read(fd, 64 << 10)):
            data += more
    except OSError:
        pass  # the cgroup or process has just gone
    finally:
        os.close(fd)
    return data.decode(errors="replace")


def table(text: str) -> dict[str, int]:
    """``name value`` lines as a dictionary."""
    values: dict[str, int] = {}
    for line in text.splitlines():
        name, _, value = line.partition(" ")
        if value.isdigit():
            values[name] = int(value)
    return values


def _number(text: str) -> int | None:
    """One value; None for ``max`` and for a file that is not there."""
    text = text.strip()
    return int(text) if text.isdigit() else None


def freeze(container_id: str, *, frozen: bool) -> None:
    """Freeze or thaw all processes of a container. Raises OSError."""
    with open(directory(container_id) + "/cgroup.freeze", "w", encoding="ascii") as file:
        file.write("1" if frozen else "0")


def is_frozen(container_id: str) -> bool:
    """Whether all processes of a container stand still; freezing takes them a moment."""
    return table(read(directory(container_id) + "/cgroup.events")).get("frozen") == 1


def kill(container_id: str) -> None:
    """SIGKILL for every process of a container, in one step. Raises OSError."""
    with open(directory(container_id) + "/cgroup.kill", "w", encoding="ascii") as file:
        file.write("1")


def oom_kills(container_id: str) -> int:
    """How often the kernel killed in the container because its memory limit was reached."""
    return table(read(directory(container_id) + "/memory.events")).get("oom_kill", 0)


def pids(container_id: str) -> list[int]:
    """Processes of the container and of the cgroups below it, ascending, at most MAX_PROCESSES."""
    found: list[int] = []
    for base, _, _ in os.walk(directory(container_id)):
        found += [int(word) for word in read(base + "/cgroup.procs").split()]
        if len(found) >= MAX_PROCESSES:
            break
    return sorted(found)[:MAX_PROCESSES]


def stats(container_id: str) -> dict[str, Any]:
    """Usage of a container: cpu (microseconds), memory and io (bytes), pids; None stands for no limit.

    ``network`` is the whole VM's, which its containers share.
    """
    base = directory(container_id)
    devices = _devices(read(base + "/io.stat"))
    return {
        "cpu": table(read(base + "/cpu.stat")),
        "memory": {
            # Before the sum of its parts, or a container that grows would have more in a part than in all.
            "stat": table(read(base + "/memory.stat")),
            "usage": _number(read(base + "/memory.current")) or 0,
            "limit": _number(read(base + "/memory.max")),
            "peak": _number(read(base + "/memory.peak")),
            "swap": _number(read(base + "/memory.swap.current")),
            "swap_limit": _number(read(base + "/memory.swap.max")),
            "swap_peak": _number(read(base + "/memory.swap.peak")),
            "events": table(read(base + "/memory.events")),
        },
        "pids": {
            "current": _number(read(base + "/pids.current")) or 0,
            "limit": _number(read(base + "/pids.max")),
        },
        "io": {name: sum(device[name] for device in devices) for name in _IO} | {"devices": devices},
        "hugetlb": _huge_pages(base),
        "pressure": {name: _pressure(read(f"{base}/{name}.pressure")) for name in ("cpu", "memory", "io")},
        "network": _interfaces(read("/proc/net/dev")),
    }


def _devices(text: str) -> list[dict[str, int]]:
    """The block devices of io.stat, MAX_DEVICES at most."""
    found = []
    for line in text.splitlines()[:MAX_DEVICES]:
        number, *words = line.split()
        major, _, minor = number.partition(":")
        values = dict.fromkeys(_IO, 0)
        for word in words:
            name, _, value = word.partition("=")
            if name in values and value.isdigit():
                values[name] = int(value)
        if major.isdigit() and minor.isdigit():
            found.append({"major": int(major), "minor": int(minor), **values})
    return found


def _huge_pages(base: str) -> list[dict[str, Any]]:
    """One entry for each size of huge pages; ``page`` is as in the files' names, such as ``2MB``."""
    try:
        names = os.listdir(base)
    except OSError:
        return []
    found = []
    for name in sorted(names):
        start, _, rest = name.partition(".")
        page, _, what = rest.partition(".")
        if start == "hugetlb" and what == "current":
            file = f"{base}/hugetlb.{page}"
            events = table(read(file + ".events"))
            current, limit = _number(read(file + ".current")) or 0, _number(read(file + ".max"))
            found.append({"page": page, "current": current, "limit": limit, "failures": events.get("max", 0)})
    return found[:MAX_DEVICES]


def _pressure(text: str) -> dict[str, dict[str, int]]:
    """``some`` and ``full`` of a pressure file: averages in hundredths of a percent, ``total`` in microseconds."""
    found = {}
    for line in text.splitlines():
        kind, *words = line.split()
        if kind in ("some", "full"):
            values = dict.fromkeys(_PRESSURE, 0)
            for word in words:
                name, _, value = word.partition("=")
                digits = value.replace(".", "")
                if name in values and digits.isdigit():
                    values[name] = int(digits)
            found[kind] = values
    return found


def _interfaces(text: str) -> list[dict[str, Any]]:
    """The counters of /proc/net/dev, without the loopback's; MAX_DEVICES at most."""
    found: list[dict[str, Any]] = []
    for line in text.splitlines()[2:]:
        name, _, rest = line.partition(":")
        values = rest.split()
        if name.strip() != "lo" and len(values) >= 16 and len(found) < MAX_DEVICES:
            # Of each direction the first four: bytes, packets, errors, dropped ones.
            counters = [int(value) for value in (*values[:4], *values[8:12])]
            found.append({"name": name.strip(), **dict(zip(_NETWORK, counters, strict=True))})
    return found


def processes(container_id: str) -> list[dict[str, Any]]:
    """One entry per process: pid, ppid, uid, state, cpu ticks, memory (bytes) and command line."""
    page = os.sysconf("SC_PAGE_SIZE")
    entries = []
    room = _MAX_COMMANDS
    for pid in pids(container_id):
        stat = read(f"/proc/{pid}/stat")
        if not stat:
            continue
        name = stat[stat.find("(") + 1 : stat.rfind(")")]
        fields = stat[stat.rfind(")") + 2 :].split()
        status = read(f"/proc/{pid}/status")
        uid = next((line.split()[1] for line in status.splitlines() if line.startswith("Uid:")), "0")
        inner = next((line.split()[-1] for line in status.splitlines() if line.startswith("NSpid:")), str(pid))
        command = read(f"/proc/{pid}/cmdline")[: min(_MAX_COMMAND, room)].replace("\0", " ").strip()
        room -= len(command)
        entries.append(
            {
                "pid": pid,
                "container_pid": int(inner),
                "ppid": int(fields[1]),
                "uid": int(uid),
                "state": fields[0],
                "ticks": int(fields[11]) + int(fields[12]),
                "rss": int(fields[21]) * page,
                "command": command or f"[{name}]",
            }
        )
    return entries
