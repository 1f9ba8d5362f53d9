"""Device nodes of a container: which numbers mean in the guest's kernel what they mean in the host's.

A VM has a kernel of its own, so a number that belongs to hardware of the host belongs to something else there, or to
nothing. A block device of the host becomes a disk of the VM, whose number there is known when it has been attached.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

from hako.errors import ConfigError
from hako.named import NamedTuple
from hako.storage.block import Plan, Wanted
from hako.storage.sources import device_name

_FIRST_CONSOLE, _LAST_CONSOLE = 0, 63
_MEMORY, _CONSOLES, _LOOP = 1, 4, 7
_MODE_BITS = 0o7777  # some engines pass the type of the file along


class Known(NamedTuple):
    """A device that every Linux kernel has under the same number."""

    node: str  #: where the guest has it
    module: str = ""  #: the kernel module that brings it


_CHARACTER = {
    (1, 1): Known("/dev/mem"),
    (1, 3): Known("/dev/null"),
    (1, 4): Known("/dev/port"),
    (1, 5): Known("/dev/zero"),
    (1, 7): Known("/dev/full"),
    (1, 8): Known("/dev/random"),
    (1, 9): Known("/dev/urandom"),
    (1, 11): Known("/dev/kmsg"),
    (5, 0): Known("/dev/tty"),
    (5, 1): Known("/dev/console"),
    (5, 2): Known("/dev/ptmx"),
    (10, 200): Known("/dev/net/tun", "tun"),
    (10, 229): Known("/dev/fuse"),
    (10, 237): Known("/dev/loop-control", "loop"),
}


def known(kind: str, major: int, minor: int) -> Known | None:
    """The device of the guest that is meant by a number of the host, None when there is none.

    ``kind`` is ``c`` or ``b``.
    """
    if kind == "b":
        return Known(f"/dev/loop{minor}", "loop") if major == _LOOP else None
    if major == _CONSOLES and _FIRST_CONSOLE <= minor <= _LAST_CONSOLE:
        return Known(f"/dev/tty{minor}")
    return _CHARACTER.get((major, minor))


def allows_all(resources: dict[str, Any]) -> bool:
    """Whether the device rules allow everything: the container is privileged, and is given all that the host has."""
    return any(
        rule.get("allow") is True
        and rule.get("type") in (None, "", "a")
        and rule.get("major") in (None, -1)
        and rule.get("minor") in (None, -1)
        and set("rwm") <= set(rule.get("access") or "rwm")
        for rule in resources.get("devices") or []
    )


class Devices(NamedTuple):
    """The devices of a container in the guest."""

    nodes: list[dict[str, Any]]  #: linux.devices
    mounts: list[dict[str, Any]]  #: what crun cannot make a node for, bound from the guest's own /dev
    modules: dict[str, bool]  #: kernel modules, and whether the container is of no use without


class Node(NamedTuple):
    """A disk in the guest."""

    path: str
    major: int
    minor: int


def as_disk(number: tuple[int, int], plan: Plan | None, rules: list[dict[str, Any]]) -> bool:
    """Plan the host's block device ``number`` as a disk, if it can be one; the device ``rules`` tell how it is used.

    A loop device without a file is not one: the guest has such, too.
    """
    if plan is None or not plan.devices or not device_name(*number):
        return False
    plan.add_disk(Wanted("", "w" not in _access(number, rules), number))
    return True


def marker(number: tuple[int, int]) -> str:
    """What stands for the node of a disk until its place in the guest is known."""
    return f"/dev/block/{number[0]}:{number[1]}"


def renumber(spec: dict[str, Any], nodes: Mapping[tuple[int, int], Node]) -> None:
    """Change ``spec``, which has numbers of the host's block devices, to where the guest has them."""
    linux = spec.get("linux", {})
    rules = (linux.get("resources") or {}).get("devices") or []
    for entry in [*linux.get("devices", []), *rules]:
        node = nodes.get((entry.get("major"), entry.get("minor"))) if entry.get("type") == "b" else None
        if node is not None:
            entry |= {"major": node.major, "minor": node.minor}
    for mount in spec.get("mounts", []):
        node = next((node for number, node in nodes.items() if mount.get("source") == marker(number)), None)
        if node is not None:
            mount["source"] = node.path


def kept_rules(rules: list[dict[str, Any]], plan: Plan | None) -> list[dict[str, Any]]:
    """Device rules without those that let a container at disks of other containers in its VM.

    A number of the host's means nothing in the guest, unless it is of a disk of its own, or of a loop device.
    """
    own = [wanted.device for wanted in plan.disks] if plan is not None else []
    return [
        rule
        for rule in rules
        if rule.get("allow") is not True
        or rule.get("type") != "b"
        or rule.get("major") in (None, -1, _LOOP)
        or (rule.get("major"), rule.get("minor")) in own
    ]


def _access(number: tuple[int, int], rules: list[dict[str, Any]]) -> set[str]:
    """What ``rules`` let a container do with a block device, as letters of rwm; each rule overrules those before."""
    allowed = set("rwm")
    for rule in rules:
        if rule.get("type") in (None, "", "a", "b") and all(
            rule.get(key) in (None, -1, wanted) for key, wanted in zip(("major", "minor"), number, strict=True)
        ):
            access = set(rule.get("access") or "rwm")
            allowed = allowed | access if rule.get("allow") is True else allowed - access
    return allowed


def to_guest(
    devices: list[dict[str, Any]],
    *,
    privileged: bool,
    plan: Plan | None = None,
    rules: list[dict[str, Any]] | None = None,
) -> Devices:
    """What becomes of ``linux.devices``. Raises ConfigError for a device of the host that a VM does not have.

    Of a ``privileged`` container, which is given every device of the host, those are left out. For another one, block
    devices are planned as disks; ``rules`` are the container's device rules.
    """
    found = Devices([], [], {})
    for index, device in enumerate(devices):
        kind = "c" if device["type"] == "u" else device["type"]
        if kind == "p":
            found.nodes.append(device)
            continue
        if kind not in ("c", "b"):
            raise ConfigError(f"$.linux.devices[{index}].type: must be c, b, u or p, not {kind!r}.")
        numbers = (device.get("major", 0), device.get("minor", 0))
        # Under another name than the host's it is there because somebody has asked for it.
        asked_for = not privileged or f"/dev/{device_name(*numbers)}" != os.path.normpath(device["path"])
        if kind == "b" and asked_for and as_disk(numbers, plan, rules or []):
            _place(device, Known(marker(numbers)), found, index)
            continue
        meant = known(kind, *numbers)
        if meant is None and (privileged or _is_the_hosts(kind, *numbers)):
            if privileged:
                continue
            raise refused(f"$.linux.devices[{index}]", str(device["path"]))
        if meant is not None and meant.module:
            found.modules[meant.module] = not privileged
        _place(device, meant, found, index)
    return found


def refused(where: str, path: str) -> ConfigError:
    """The error for the host's device ``path``."""
    return ConfigError(
        f"{where}: {path} is a device of the host, which the container's VM does not have; "
        "run the container without it, or with another runtime."
    )


def _place(device: dict[str, Any], meant: Known | None, found: Devices, index: int) -> None:
    path = os.path.normpath(device["path"])
    if "fileMode" in device:
        device = {**device, "fileMode": device["fileMode"] & _MODE_BITS}
    if path.startswith("/dev/"):
        found.nodes.append(device)
    elif meant is not None:
        # Files shared with the host cannot be device nodes.
        found.mounts.append({"destination": path, "type": "bind", "source": meant.node, "options": ["bind"]})
    else:
        raise ConfigError(
            f"$.linux.devices[{index}].path: {path} is not below /dev, and the container's files, which it shares with "
            "the host, cannot hold device nodes."
        )


def _is_the_hosts(kind: str, major: int, minor: int) -> bool:
    """Whether the host has something behind the number; a node that leads nowhere may do so in the guest, too."""
    return os.path.exists(f"/sys/dev/{'block' if kind == 'b' else 'char'}/{major}:{minor}")
