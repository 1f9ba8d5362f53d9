"""Annotations of pods, as each engine writes them."""

from __future__ import annotations

import json

import pytest

from hako.oci import pods

_CRI = "io.kubernetes.cri."
_CRIO = "io.kubernetes.cri-o."


@pytest.mark.parametrize(
    ("annotations", "sandbox", "is_sandbox"),
    [
        ({}, "", False),
        ({f"{_CRI}container-type": "container", f"{_CRI}sandbox-id": "p"}, "p", False),
        ({f"{_CRI}container-type": "sandbox", f"{_CRI}sandbox-id": "p"}, "", True),
        ({f"{_CRIO}ContainerType": "container", f"{_CRIO}SandboxID": "p"}, "p", False),
        ({f"{_CRIO}ContainerType": "sandbox", f"{_CRIO}SandboxID": "p"}, "", True),
        ({"io.kubernetes.docker.type": "container", "io.kubernetes.sandbox.id": "p"}, "p", False),
        ({"io.kubernetes.docker.type": "podsandbox"}, "", True),
        ({f"{_CRI}container-type": "container"}, "", False),
    ],
)
def test_membership(annotations: dict[str, str], sandbox: str, is_sandbox: bool) -> None:
    assert pods.sandbox_of(annotations) == sandbox
    assert pods.is_sandbox(annotations) is is_sandbox


def cri(**values: str) -> dict[str, str]:
    return {f"{_CRI}sandbox-{name.replace('_', '-')}": value for name, value in values.items()}


@pytest.mark.parametrize(
    ("annotations", "memory", "cpus"),
    [
        ({}, 0, 0.0),
        (cri(memory="1073741824", cpu_quota="150000", cpu_period="100000"), 1 << 30, 1.5),
        (cri(memory="0", cpu_quota="-1"), 0, 0.0),
        (cri(cpu_quota="50000"), 0, 0.5),
        (cri(memory="much"), 0, 0.0),
        (cri(memory="9" * 40), 0, 0.0),
        ({"pod-linux-resources.crio.io": json.dumps({"memory_limit_in_bytes": 5, "cpu_quota": 100000})}, 5, 1.0),
        ({f"{_CRIO}PodLinuxResources": json.dumps({"memory_limit_in_bytes": 7})}, 7, 0.0),
        ({"pod-linux-resources.crio.io": "{"}, 0, 0.0),
        ({"pod-linux-resources.crio.io": "[]"}, 0, 0.0),
    ],
)
def test_size(annotations: dict[str, str], memory: int, cpus: float) -> None:
    assert pods.size(annotations) == (memory, cpus)
