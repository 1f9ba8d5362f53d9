"""How large a VM has to be for its containers."""

from __future__ import annotations

import os
from typing import Any

import pytest

from hako.hypervisor.base import MemoryDevice, VmSpec
from hako.sandbox import sizes
from hako.sandbox.requests import OVERHEAD
from hako.sandbox.spec import SandboxSpec

_SPEC = SandboxSpec("pod1", "", 512 << 20, 2)
_M = 1 << 20


def limit(memory: object = None, quota: object = None, period: object = None) -> dict[str, Any]:
    """OCI resources."""
    return {"memory": {"limit": memory}, "cpu": {"quota": quota, "period": period}}


@pytest.mark.parametrize(
    ("limits", "expected"),
    [
        ([], 512 * _M),
        ([limit(64 * _M)], 512 * _M),
        ([limit(384 * _M)], 512 * _M),
        ([limit(400 * _M)], 400 * _M + OVERHEAD),
        ([limit(400 * _M), limit(600 * _M)], 1000 * _M + OVERHEAD),
        ([limit(400 * _M), limit(-1), limit(0), {}], 400 * _M + OVERHEAD),
        ([limit(1 << 62)], (1 << 62) + OVERHEAD),
        ([{"memory": None}, {"memory": 5}, {"memory": {}}, limit("1g"), limit(1.5e9), limit(True)], 512 * _M),
    ],
)
def test_memory(limits: list[dict[str, Any]], expected: int) -> None:
    assert sizes.memory(_SPEC, limits) == expected


@pytest.mark.parametrize(
    ("limits", "expected"),
    [
        ([], 2),
        ([limit(quota=50_000, period=100_000)], 2),
        ([limit(quota=200_000, period=100_000)], 2),
        ([limit(quota=200_001, period=100_000)], 3),
        ([limit(quota=150_000, period=100_000)] * 3, 5),
        ([limit(quota=40_000, period=10_000)], 4),
        # The kernel's default period.
        ([limit(quota=400_000)], 4),
        ([limit(quota=-1, period=100_000), limit(quota=0), limit(quota=300_000, period=0)], 3),
        ([limit(quota=300_000, period=-5)], 2),
        ([{"cpu": None}, {"cpu": 3}, {}, limit(quota="x", period=1), limit(quota=True, period=1)], 2),
    ],
)
def test_vcpus(limits: list[dict[str, Any]], expected: int) -> None:
    assert sizes.vcpus(_SPEC, limits) == expected


def test_a_pod_has_room_for_its_limits() -> None:
    assert sizes.for_pod(_SPEC, 0, 0) == _SPEC
    assert sizes.for_pod(_SPEC, 100 * _M, 0.5) == _SPEC
    assert sizes.for_pod(_SPEC, 700 * _M, 0).memory == 700 * _M + OVERHEAD


def test_limits_of_a_pod_may_exceed_what_the_host_has() -> None:
    processors, memory = os.cpu_count() or 1, os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    found = sizes.for_pod(_SPEC, 1 << 50, 1000.5)
    assert found.vcpus == max(processors, 2)
    assert memory - _M < found.memory < memory + 128 * _M


def test_no_more_than_a_vm_can_have() -> None:
    vm = VmSpec("vm1", "/k", "/i", "", 512 * _M, 1, max_vcpus=4, devices=(MemoryDevice(1024 * _M),))
    assert sizes.possible(vm, 600 * _M, 3) == (600 * _M, 3)
    assert sizes.possible(vm, 1 << 50, 9) == (1536 * _M, 4)
    assert sizes.possible(vm._replace(max_vcpus=0, devices=()), 1 << 50, 9) == (512 * _M, 1)
