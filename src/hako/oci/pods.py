"""What the annotations of a config.json say about pods: which container belongs to which, and how large a pod is.

Keys: containerd's internal/cri/annotations, CRI-O's internal/annotations, and dockershim's.
"""

from __future__ import annotations

from hako.wire import jsontext

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping
    from typing import Any

#: What a container is, and which sandbox it belongs to.
_MEMBERSHIP = (
    ("io.kubernetes.cri.container-type", "io.kubernetes.cri.sandbox-id"),
    ("io.kubernetes.cri-o.ContainerType", "io.kubernetes.cri-o.SandboxID"),
    ("io.kubernetes.docker.type", "io.kubernetes.sandbox.id"),
)
_SANDBOX_TYPES = ("sandbox", "podsandbox")
_MEMORY = "io.kubernetes.cri.sandbox-memory"
_QUOTA, _PERIOD = "io.kubernetes.cri.sandbox-cpu-quota", "io.kubernetes.cri.sandbox-cpu-period"
#: CRI-O's, JSON of the CRI's LinuxContainerResources; the second is the name that older versions use.
_CRIO_RESOURCES = ("pod-linux-resources.crio.io", "io.kubernetes.cri-o.PodLinuxResources")
_DEFAULT_PERIOD = 100_000
_MAX_JSON = 1 << 20


def sandbox_of(annotations: Mapping[str, str]) -> str:
    """The id of the pod's sandbox that a container with these annotations is to join; empty for none."""
    for kind, owner in _MEMBERSHIP:
        if annotations.get(kind) == "container" and annotations.get(owner):
            return annotations[owner]
    return ""


def is_sandbox(annotations: Mapping[str, str]) -> bool:
    """Whether the container stands for a pod, whose other containers join it."""
    return any(annotations.get(kind) in _SANDBOX_TYPES for kind, _ in _MEMBERSHIP)


def size(annotations: Mapping[str, str]) -> tuple[int, float]:
    """What all containers of a pod may use together: bytes of memory and processors, each 0 for no limit."""
    memory, quota = _number(annotations.get(_MEMORY)), _number(annotations.get(_QUOTA))
    period = _number(annotations.get(_PERIOD))
    for key in _CRIO_RESOURCES:
        if key in annotations:
            given = _object(annotations[key])
            memory, quota = _number(given.get("memory_limit_in_bytes")), _number(given.get("cpu_quota"))
            period = _number(given.get("cpu_period"))
            break
    return memory, quota / (period or _DEFAULT_PERIOD)


def _object(text: str) -> dict[str, Any]:
    try:
        value = jsontext.loads(text.encode()) if len(text) <= _MAX_JSON else {}
    except (ValueError, RecursionError):
        return {}
    return value if isinstance(value, dict) else {}


def _number(value: object) -> int:
    """``value``, a number or its text, if it is above 0; else 0."""
    if isinstance(value, str):
        value = int(value) if value.isascii() and value.isdigit() and len(value) < 19 else 0
    return value if type(value) is int and value > 0 else 0
