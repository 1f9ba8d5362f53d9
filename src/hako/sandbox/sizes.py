"""How large a sandbox's VM has to be for its containers."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping

from hako.sandbox.requests import OVERHEAD, whole_mebibytes
from hako.sandbox.spec import SandboxSpec

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from hako.hypervisor.base import VmSpec


def memory(spec: SandboxSpec, limits: Iterable[Mapping[str, Any]]) -> int:
    """Bytes for containers with these OCI resources: the sum of their limits, and no less than the sandbox asks for."""
    total = 0
    for resources in limits:
        limit = _number(resources, "memory", "limit")
        total += limit if limit > 0 else 0
    return max(spec.memory, total + OVERHEAD if total else 0)


def vcpus(spec: SandboxSpec, limits: Iterable[Mapping[str, Any]]) -> int:
    """vCPUs for containers with these OCI resources: the sum of their quotas, rounded up."""
    total = 0.0
    for resources in limits:
        quota, period = _number(resources, "cpu", "quota"), _number(resources, "cpu", "period") or 100_000
        if quota > 0 and period > 0:
            total += quota / period
    return max(spec.vcpus, -int(-total // 1))


def for_pod(spec: SandboxSpec, limit: int, cpus: float) -> SandboxSpec:
    """``spec`` with room for a pod whose containers may use ``limit`` bytes and ``cpus`` processors, 0 for no limit.

    Kubernetes lets limits exceed what a node has; the VM gets all of that then.
    """
    memory, processors = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"), os.cpu_count() or 1
    wanted = whole_mebibytes(min(limit + OVERHEAD, memory)) if limit else 0
    return spec._replace(memory=max(spec.memory, wanted), vcpus=max(spec.vcpus, min(-int(-cpus // 1), processors)))


def possible(vm: VmSpec, size: int, vcpus: int) -> tuple[int, int]:
    """``size`` and ``vcpus``, or as much as the VM can have."""
    from hako.hypervisor.base import MemoryDevice

    device = vm.find(MemoryDevice)
    most = vm.memory + (device.size if device is not None else 0)
    return min(size, most), min(vcpus, max(vm.vcpus, vm.max_vcpus))


def _number(resources: Mapping[str, Any], group: str, key: str) -> int:
    """``resources[group][key]``, 0 when it is not given."""
    inner = resources.get(group)
    value = inner.get(key) if isinstance(inner, Mapping) else None
    return value if type(value) is int else 0
