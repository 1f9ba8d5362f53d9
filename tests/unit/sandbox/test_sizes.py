"""How large a VM has to be for its containers."""

from __future__ import annotations

from typing import Any

import pytest

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
