"""The resources of a config.json as far as the host applies them, checked, and the overhead that they get.

The guest applies all of them exactly. On the host the same limits stand around the whole VM, each with an overhead,
so that a guest that has broken out of its container still gets no more.
"""

from __future__ import annotations

from collections.abc import Mapping

from hako.errors import ConfigError
from hako.named import NamedTuple

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

#: Bytes: the guest's kernel and agent (128 MiB at most), translated code (256 MiB at most), QEMU's tables and heap,
#: the sandbox process, the file server.
DEFAULT_MEMORY = 512 << 20
#: Of the guest's memory, for page tables and what the kernel keeps about each page.
_MEMORY_SHARE = 32
DEFAULT_PIDS = 128
#: Processors: the VM's device threads and file server run beside its vCPUs, and a start must not be slowed down.
DEFAULT_CPUS = 1.0
#: Microseconds; the kernel's own default.
DEFAULT_PERIOD = 100_000

_MAX = (1 << 63) - 1
_THROTTLES = {
    "throttleReadBpsDevice": "rbps",
    "throttleWriteBpsDevice": "wbps",
    "throttleReadIOPSDevice": "riops",
    "throttleWriteIOPSDevice": "wiops",
}


class Overhead(NamedTuple):
    """What a VM may use on the host beyond the limits of its container."""

    memory: int = DEFAULT_MEMORY  #: bytes
    pids: int = DEFAULT_PIDS  #: processes and threads
    cpus: float = DEFAULT_CPUS  #: added to a quota, in processors

    @classmethod
    def for_guest(cls, memory: int) -> Overhead:
        """The default for a guest of ``memory`` bytes."""
        return cls(DEFAULT_MEMORY + memory // _MEMORY_SHARE)


class Throttle(NamedTuple):
    """A limit on what is read from or written to one device."""

    kind: str  #: version 2's name: rbps, wbps, riops, wiops
    device: str  #: ``major:minor``
    rate: int  #: per second; 0 is no limit
    origin: str


class Weight(NamedTuple):
    """The weight of one device, or of all others."""

    device: str  #: ``major:minor``, or empty
    weight: int
    leaf: int
    origin: str


class Limits(NamedTuple):
    """Limits as config.json has them: without overhead, -1 for no limit, and None or 0 for what is not given."""

    memory: int | None = None
    swap: int | None = None  #: memory and swap together
    reservation: int | None = None
    swappiness: int | None = None
    shares: int | None = None
    quota: int | None = None  #: microseconds in each period
    period: int | None = None  #: microseconds
    cpus: str = ""
    mems: str = ""
    pids: int | None = None
    weights: tuple[Weight, ...] = ()
    throttles: tuple[Throttle, ...] = ()
    class_id: int | None = None
    priorities: tuple[tuple[str, int], ...] = ()
    rdma: tuple[tuple[str, str], ...] = ()
    unified: tuple[tuple[str, str], ...] = ()


def parse(resources: Mapping[str, Any]) -> Limits:
    """The limits in a config.json's ``linux.resources``. Raises ConfigError.

    Not among them, because the host must not or need not apply them: devices (QEMU needs some that the container may
    not have), huge pages and kernel memory (the guest's own), realtime scheduling (QEMU has none) and disableOOMKiller
    (a VM that stands still instead of being killed helps nobody).
    """
    memory, cpu = _object(resources, "memory"), _object(resources, "cpu")
    network = _object(resources, "network")
    limits = Limits(
        memory=_whole(memory, "limit", "memory.limit"),
        swap=_whole(memory, "swap", "memory.swap"),
        reservation=_whole(memory, "reservation", "memory.reservation"),
        swappiness=_whole(memory, "swappiness", "memory.swappiness"),
        shares=_whole(cpu, "shares", "cpu.shares"),
        quota=_whole(cpu, "quota", "cpu.quota"),
        period=_whole(cpu, "period", "cpu.period"),
        cpus=_text(cpu, "cpus", "cpu.cpus"),
        mems=_text(cpu, "mems", "cpu.mems"),
        pids=_whole(_object(resources, "pids"), "limit", "pids.limit"),
        weights=tuple(_weights(_object(resources, "blockIO"))),
        throttles=tuple(_throttles(_object(resources, "blockIO"))),
        class_id=_whole(network, "classID", "network.classID"),
        priorities=tuple(_priorities(network)),
        rdma=tuple(_rdma(_object(resources, "rdma"))),
        unified=tuple(_unified(_object(resources, "unified"))),
    )
    if limits.swappiness is not None and not 0 <= limits.swappiness <= 100:
        raise _wrong("memory.swappiness", f"must be between 0 and 100, not {limits.swappiness}")
    if (limits.memory or 0) > 0 and 0 < (limits.swap or 0) < (limits.memory or 0):
        raise _wrong("memory.swap", "is memory and swap together, so it must not be less than memory.limit")
    return limits


def plus(value: int, overhead: int) -> int:
    """A limit with its overhead; no limit stays none."""
    return min(value + overhead, _MAX) if value > 0 else -1


def host_quota(quota: int, period: int, cpus: float) -> int:
    """The host's quota for a container's ``quota`` microseconds, -1 for none."""
    return quota + int(cpus * period) if quota > 0 else -1


def _weights(block: Mapping[str, Any]) -> list[Weight]:
    found = []
    weight, leaf = (_whole(block, key, f"blockIO.{key}") or 0 for key in ("weight", "leafWeight"))
    if weight or leaf:
        found.append(Weight("", weight, leaf, "blockIO.weight" if weight else "blockIO.leafWeight"))
    for place, entry in _entries(block, "weightDevice", "blockIO.weightDevice"):
        weight, leaf = (_whole(entry, key, f"{place}.{key}") or 0 for key in ("weight", "leafWeight"))
        found.append(Weight(_device(entry, place), weight, leaf, place))
    return found


def _throttles(block: Mapping[str, Any]) -> list[Throttle]:
    return [
        Throttle(kind, _device(entry, place), max(_whole(entry, "rate", f"{place}.rate") or 0, 0), place)
        for key, kind in _THROTTLES.items()
        for place, entry in _entries(block, key, f"blockIO.{key}")
    ]


def _priorities(network: Mapping[str, Any]) -> list[tuple[str, int]]:
    return [
        (_word(_text(entry, "name", f"{place}.name"), f"{place}.name"), _whole(entry, "priority", place) or 0)
        for place, entry in _entries(network, "priorities", "network.priorities")
    ]


def _rdma(devices: Mapping[str, Any]) -> list[tuple[str, str]]:
    found = []
    for name in devices:
        place = f"rdma[{name!r}]"
        entry = _object(devices, name, "rdma")
        words = [_word(name, place)]
        for key, field in (("hcaHandles", "hca_handle"), ("hcaObjects", "hca_object")):
            if (value := _whole(entry, key, f"{place}.{key}")) is not None:
                words.append(f"{field}={value}")
        found.append((" ".join(words), place))
    return found


def _unified(unified: Mapping[str, Any]) -> list[tuple[str, str]]:
    for name in unified:
        if "/" in name or "\0" in name or "." not in name:
            raise _wrong(f"unified[{name!r}]", "must be named as a file of cgroup version 2, such as 'memory.high'")
    return [(name, _text(unified, name, f"unified[{name!r}]").strip()) for name in unified]


def _device(entry: Mapping[str, Any], place: str) -> str:
    return ":".join(str(_whole(entry, key, f"{place}.{key}") or 0) for key in ("major", "minor"))


def _object(value: Mapping[str, Any], key: str, parent: str = "") -> Mapping[str, Any]:
    inner = value.get(key)
    if inner is None:
        return {}
    if not isinstance(inner, Mapping):
        raise _wrong(f"{parent}.{key}".lstrip("."), "must be an object")
    return inner


def _entries(value: Mapping[str, Any], key: str, place: str) -> list[tuple[str, Mapping[str, Any]]]:
    entries = value.get(key)
    if entries is None:
        return []
    if not isinstance(entries, list) or not all(isinstance(entry, Mapping) for entry in entries):
        raise _wrong(place, "must be a list of objects")
    return [(f"{place}[{index}]", entry) for index, entry in enumerate(entries)]


def _whole(value: Mapping[str, Any], key: str, place: str) -> int | None:
    number = value.get(key)
    if number is None:
        return None
    if type(number) is not int:
        raise _wrong(place, "must be a whole number")
    # What does not fit into 64 bits with a sign is how some programs write "no limit".
    return number if -1 <= number <= _MAX else -1


def _text(value: Mapping[str, Any], key: str, place: str) -> str:
    text = value.get(key)
    if text is None:
        return ""
    if not isinstance(text, str) or "\0" in text:
        raise _wrong(place, "must be a text")
    return text


def _word(text: str, place: str) -> str:
    if not text or text.split() != [text]:
        raise _wrong(place, "must be a name without blanks")
    return text


def _wrong(place: str, why: str) -> ConfigError:
    return ConfigError(f"$.linux.resources.{place}: {why}.")
