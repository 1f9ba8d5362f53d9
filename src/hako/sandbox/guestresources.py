"""Limits of a container and settings of its processes: what of them the guest's kernel is to have.

The guest has cgroup v2, its own numbering of processors and devices, no swap and no security modules. What is of the
host (processors, throttles of its devices) is for the VM's cgroup on the host; docs/conformance.md has the list.
"""

from __future__ import annotations

from typing import Any

from hako.errors import ConfigError

#: AppArmor profiles that engines give to a container whose user asked for none.
_DEFAULT_PROFILES = ("docker-default", "cri-containerd.apparmor.d", "crio-default", "nerdctl-default")
_DEFAULT_PREFIXES = ("containers-default-", "crio-default-")

_OF_HOST = ("network", "rdma")
_MEMORY_OF_V1 = ("kernel", "kernelTCP", "swappiness", "useHierarchy", "disableOOMKiller")
_CPU_OF_HOST = ("cpus", "mems")
_UNIFIED_OF_HOST = ("io.max", "io.latency")
_CONTROLLERS_OF_HOST = ("cpuset", "rdma", "misc")
_BLOCK_IO = ("weight",)


def resources(given: dict[str, Any]) -> dict[str, Any]:
    """The guest's version of a ``linux.resources`` object, as config.json and updates have it. Raises ConfigError."""
    where = "$.linux.resources"
    found = dict(given)
    if "memory" in given:
        found["memory"] = _memory(given["memory"], f"{where}.memory")
    if "cpu" in given:
        found["cpu"] = _cpu(given["cpu"], f"{where}.cpu")
    if "blockIO" in given:
        found["blockIO"] = {key: given["blockIO"][key] for key in _BLOCK_IO if given["blockIO"].get(key)}
    if "unified" in given:
        found["unified"] = _unified(given["unified"], f"{where}.unified")
    return {key: value for key, value in found.items() if value != {} and key not in _OF_HOST}


def _memory(given: dict[str, Any], where: str) -> dict[str, Any]:
    if given.get("disableOOMKiller"):
        raise ConfigError(
            f"{where}.disableOOMKiller: the guest has cgroup v2, where the OOM killer cannot be disabled; "
            "leave --oom-kill-disable away."
        )
    return {key: value for key, value in given.items() if key not in _MEMORY_OF_V1}


def _cpu(given: dict[str, Any], where: str) -> dict[str, Any]:
    for key in ("realtimeRuntime", "realtimePeriod"):
        if given.get(key):
            raise ConfigError(f"{where}.{key}: the guest's kernel has no real-time group scheduling; remove it.")
    dropped = (*_CPU_OF_HOST, "realtimeRuntime", "realtimePeriod")
    return {key: value for key, value in given.items() if key not in dropped}


def _unified(given: dict[str, str], where: str) -> dict[str, str]:
    for key in given:
        if "/" in key or "." not in key:
            raise ConfigError(f"{where}[{key!r}]: is no name of a cgroup's file, such as memory.high.")
    return {
        key: value
        for key, value in given.items()
        if key not in _UNIFIED_OF_HOST and key.partition(".")[0] not in _CONTROLLERS_OF_HOST
    }


def process(given: dict[str, Any]) -> dict[str, Any]:
    """The guest's version of a ``process`` object, as config.json and `exec --process` have it. Raises ConfigError."""
    profile = given.get("apparmorProfile") or "unconfined"
    if profile != "unconfined" and profile not in _DEFAULT_PROFILES and not profile.startswith(_DEFAULT_PREFIXES):
        raise ConfigError(
            f"$.process.apparmorProfile: the guest's kernel has no AppArmor, so {profile} cannot be applied; "
            "leave the profile away: the VM is the container's confinement."
        )
    for key, option in (("scheduler", "scheduling policy"), ("ioPriority", "I/O priority")):
        if given.get(key):
            raise ConfigError(f"$.process.{key}: the guest's crun cannot set a {option}; remove it.")
    if given.get("execCPUAffinity"):
        raise ConfigError("$.process.execCPUAffinity: a VM does not have the host's processors; remove it.")
    return {key: value for key, value in given.items() if key not in ("apparmorProfile", "selinuxLabel")}
