"""How large a sandbox's VM has to be for its containers."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from hako.sandbox.requests import OVERHEAD
from hako.sandbox.spec import SandboxSpec


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


def _number(resources: Mapping[str, Any], group: str, key: str) -> int:
    """``resources[group][key]``, 0 when it is not given."""
    inner = resources.get(group)
    value = inner.get(key) if isinstance(inner, Mapping) else None
    return value if type(value) is int else 0
