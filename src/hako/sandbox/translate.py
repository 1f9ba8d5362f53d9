"""Turning a config.json written for the host into one for the guest.

Nearly everything is passed on as it is, crun in the guest does the rest. What names things of the host is
changed: the root, bind mounts, cgroup path. What a VM cannot honour is refused with the reason; what is left out
because the host does it, or the VM replaces it, is in docs/conformance.md.
"""

from __future__ import annotations

import copy
import os
from collections.abc import Collection, Mapping
from typing import Any

from hako.errors import ConfigError
from hako.named import NamedTuple
from hako.oci import namespaces, seccomp_bpf
from hako.sandbox import guestdevices, guestresources, guestsysctl
from hako.sandbox.guestmounts import SHARE, Mounts, is_bind
from hako.sandbox.hostsockets import HostSockets
from hako.storage.block import Plan
from hako.storage.tree import SharedTree

__all__ = ["GuestSpec", "is_bind", "to_guest", "translate"]

#: What the guest's crun knows; later minor versions only add fields.
_OCI_VERSION = "1.0.2"
_PROPAGATIONS = frozenset(("private", "slave", "shared", "unbindable"))
_OTHER_SYSTEMS = ("windows", "solaris", "zos", "freebsd")
_DOMAINS = ("LINUX", "LINUX32")
_DEV = {
    "destination": "/dev",
    "type": "tmpfs",
    "source": "tmpfs",
    "options": ["nosuid", "strictatime", "mode=755", "size=65536k"],
}


class GuestSpec(NamedTuple):
    """A container for the guest."""

    spec: dict[str, Any]  #: its config.json
    prepare: dict[str, Any]  #: what the agent does before, the parameter ``prepare`` of its Create


def translate(
    spec: dict[str, Any],
    container_id: str,
    tree: SharedTree,
    *,
    joined: Mapping[str, str] | None = None,
    strict: bool = False,
    plan: Plan | None = None,
    root: str = "",
    sockets: HostSockets | None = None,
    shared: Collection[str] = (),
) -> GuestSpec:
    """The guest's version of ``spec``, its host mounts added to ``tree``. Raises ConfigError, HostError.

    ``spec`` must have passed hako.oci.check; it is not changed. ``joined`` gives for namespaces of the host, by path,
    the path in the guest of what stands for them there. ``strict`` is for an engine's config.json: a namespace that
    it leaves out is the host's, and is refused; hooks for the host are left to the caller, who runs them.
    Disks that it needs are added to ``plan``, without which it can have none; guestdevices.renumber() is due when they
    are attached. ``root`` is where the guest has the root file system; empty: in the share. ``sockets`` takes the UNIX
    sockets of the host that are among the mounts; without it they are refused. ``shared`` is as in Mounts.
    """
    _refuse_foreign(spec)
    guest = copy.deepcopy(spec)
    linux = guest.setdefault("linux", {})
    _hooks(guest, strict=strict)
    if strict:
        namespaces.refuse_hosts(spec, "")
    linux["namespaces"] = _namespaces(guest, joined or {})
    _linux(linux)
    readonly = guest.get("root", {}).get("readonly", False)
    guest["root"] = {"path": root or f"{SHARE}/{container_id}/rootfs", "readonly": readonly}
    if "process" in guest:
        guest["process"] = guestresources.process(guest["process"])
    rules = (linux.get("resources") or {}).get("devices") or []
    mounts = Mounts(container_id, tree, plan, rules, sockets, shared)
    guest["mounts"] = mounts.translate(guest.get("mounts", []))
    if not any(os.path.normpath(mount["destination"]) == "/dev" for mount in guest["mounts"]):
        # The container's files, shared with the host, cannot hold the device nodes that every container has.
        guest["mounts"].insert(0, copy.deepcopy(_DEV))
    modules = _devices(guest, plan, rules) | mounts.modules
    inside, whole = guestsysctl.split(linux.pop("sysctl", {}))
    if inside:
        linux["sysctl"] = inside
    if "resources" in linux:
        linux["resources"] = guestresources.resources(linux["resources"])
    guest["ociVersion"] = _OCI_VERSION
    prepare = {"modules": modules, "memory": mounts.memory, "sysctls": whole, "request": _requested(guest)}
    return GuestSpec(seccomp_bpf.precompile(guest), {name: value for name, value in prepare.items() if value})


def to_guest(
    spec: dict[str, Any],
    container_id: str,
    tree: SharedTree,
    *,
    joined: Mapping[str, str] | None = None,
    strict: bool = False,
) -> dict[str, Any]:
    """The config.json of translate(), for who has no agent to prepare anything. Raises ConfigError, HostError."""
    guest = translate(spec, container_id, tree, joined=joined, strict=strict)
    if guest.prepare:
        raise ConfigError(f"The container needs more of its VM than a config.json says: {', '.join(guest.prepare)}.")
    return guest.spec


def _refuse_foreign(spec: dict[str, Any]) -> None:
    """Another operating system, another major version of the specification, another VM."""
    version = str(spec.get("ociVersion") or _OCI_VERSION)
    if version.partition(".")[0] != "1":
        raise ConfigError(f"$.ociVersion: hako knows version 1 of the OCI runtime specification, not {version}.")
    for system in _OTHER_SYSTEMS:
        if system in spec and "linux" not in spec:
            raise ConfigError(f"$.{system}: the container is for {system}, and hako runs Linux containers.")
    if spec.get("vm"):
        raise ConfigError("$.vm: hako chooses the VM's kernel, image and hypervisor by its own settings; remove it.")


def _hooks(guest: dict[str, Any], *, strict: bool) -> None:
    for system in (*_OTHER_SYSTEMS, "vm"):
        guest.pop(system, None)
    given = {kind: found for kind, found in guest.pop("hooks", {}).items() if found}
    inside = given.pop("startContainer", [])
    if given and not strict:
        raise ConfigError(
            f"$.hooks.{next(iter(given))}: only hako-runtime runs hooks on the host; remove them from config.json."
        )
    if inside:
        guest["hooks"] = {"startContainer": inside}


def _namespaces(guest: dict[str, Any], joined: Mapping[str, str]) -> list[dict[str, Any]]:
    """All but the network: the VM is that boundary, and its containers share one network as a pod's do."""
    kept: dict[str, dict[str, Any]] = {}
    for index, namespace in enumerate(guest["linux"].get("namespaces", [])):
        kind, path = namespace["type"], namespace.get("path")
        where = f"$.linux.namespaces[{index}]"
        if kind not in namespaces.FILES:
            raise ConfigError(f"{where}.type: Linux has no {kind} namespaces.")
        if kind in kept:
            raise ConfigError(f"{where}: a container has one {kind} namespace, and this is the second one.")
        kept[kind] = namespace
        if path and kind != "network":
            kept[kind] = {"type": kind, "path": _joined(joined, kind, str(path), where)}
    if "mount" not in kept:
        raise ConfigError("$.linux.namespaces: a container needs a mount namespace of its own; add one.")
    if "uts" not in kept and (guest.get("hostname") or guest.get("domainname")):
        raise ConfigError("$.hostname: cannot be set without a uts namespace; add one, or remove the host name.")
    _time(guest["linux"], kept)
    kept.pop("network", None)
    if not namespaces.guest_namespaces(guest):
        # It would see its neighbours' in the VM; what it sees now is what runc shows with cgroup v1.
        kept.setdefault("cgroup", {"type": "cgroup"})
    return list(kept.values())


def _joined(joined: Mapping[str, str], kind: str, path: str, where: str) -> str:
    if path not in joined:
        raise ConfigError(
            f"{where}.path: the {kind} namespace {path} does not belong to a container of the same VM, "
            "and a container cannot join the host's or another VM's; put both containers into one pod."
        )
    return joined[path]


def _time(linux: dict[str, Any], kept: dict[str, dict[str, Any]]) -> None:
    """A time namespace without offsets shows the clocks that the VM has anyway."""
    found = kept.pop("time", {})
    offsets = linux.pop("timeOffsets", None) or {}
    moved = any(offset.get("secs") or offset.get("nanosecs") for offset in offsets.values())
    if moved or found.get("path"):
        raise ConfigError(
            "$.linux.timeOffsets: the guest's crun cannot give a container clocks of its own; remove them."
        )


def _linux(linux: dict[str, Any]) -> None:
    """Check and take out what a VM does not have."""
    linux.pop("cgroupsPath", None)
    linux.pop("mountLabel", None)
    if any((linux.pop("intelRdt", None) or {}).values()):
        raise ConfigError("$.linux.intelRdt: a VM cannot have a share of the host's processor caches; remove it.")
    for key in ("memoryPolicy", "netDevices"):
        if linux.get(key):
            raise ConfigError(
                f"$.linux.{key}: a VM does not have the host's memory nodes and network cards; remove it."
            )
    propagation = linux.get("rootfsPropagation") or "private"
    if propagation.removeprefix("r") not in _PROPAGATIONS:
        raise ConfigError(f"$.linux.rootfsPropagation: {propagation} is none of {', '.join(sorted(_PROPAGATIONS))}.")
    personality = linux.get("personality") or {}
    if personality and (personality.get("domain") not in _DOMAINS or personality.get("flags")):
        raise ConfigError(f"$.linux.personality: only the domains {' and '.join(_DOMAINS)}, without flags, exist.")
    seccomp = linux.get("seccomp") or {}
    actions = [seccomp.get("defaultAction"), *(rule.get("action") for rule in seccomp.get("syscalls") or [])]
    if seccomp.get("listenerPath") or "SCMP_ACT_NOTIFY" in actions:
        raise ConfigError(
            "$.linux.seccomp: a program of the host cannot decide over system calls of a VM (SCMP_ACT_NOTIFY, "
            "listenerPath); use another action."
        )


def _requested(guest: dict[str, Any]) -> list[str]:
    """Modules that the container may use, but whose absence the guest's kernel does not notice.

    iptables of before nf_tables has them loaded by a modprobe and files in /lib/modules, which no container has.
    """
    capabilities = guest.get("process", {}).get("capabilities") or {}
    return ["ip_tables", "ip6_tables"] if "CAP_NET_ADMIN" in capabilities.get("effective", ()) else []


def _devices(guest: dict[str, Any], plan: Plan | None, rules: list[dict[str, Any]]) -> dict[str, bool]:
    """Translate the devices; return the kernel modules for them."""
    linux = guest["linux"]
    privileged = guestdevices.allows_all(linux.get("resources") or {})
    found = guestdevices.to_guest(linux.pop("devices", []), privileged=privileged, plan=plan, rules=rules)
    if found.nodes:
        linux["devices"] = found.nodes
    if rules:
        linux["resources"]["devices"] = guestdevices.kept_rules(rules, plan)
    guest["mounts"] += found.mounts
    return found.modules
