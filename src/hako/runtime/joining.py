"""Which sandbox a new container belongs into: one of its own, or that of another container, as pods have it.

The containers of a pod name each other in two ways: by the annotations of Kubernetes' engines, and by the path of a
network namespace that is another container's. As hako's guests have one network each, that one decides.
"""

from __future__ import annotations

import os

from hako.errors import ConfigError, StateError
from hako.oci import pods
from hako.runtime import containers
from hako.runtime.containers import Container

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any


def sandbox_owner(root: str, spec: dict[str, Any]) -> Container | None:
    """The container whose sandbox the one with the config.json ``spec`` joins; None for a sandbox of its own.

    Raises StateError when it names one that is not there any more.
    """
    owner = pods.sandbox_of(spec.get("annotations") or {})
    if owner:
        found = containers.find(root, owner)
        if containers.status(found) == "stopped":
            raise StateError(f"The sandbox {found.id}, which the container is to join, has ended.")
        return found
    path = network_path(spec)
    return _by_network(root, path) if path else None


def network_path(spec: dict[str, Any]) -> str:
    """The network namespace that the config.json names; empty for a new one."""
    for namespace in spec.get("linux", {}).get("namespaces") or []:
        if namespace["type"] == "network":
            return str(namespace.get("path") or "")
    return ""


def identity(path: str) -> tuple[int, int]:
    """Device and inode of a namespace. Raises ConfigError when there is none at ``path``."""
    try:
        found = os.stat(path)
    except OSError as error:
        raise ConfigError(f"The network namespace {path} cannot be used: {error.strerror}.") from error
    return found.st_dev, found.st_ino


def _by_network(root: str, path: str) -> Container | None:
    wanted = identity(path)
    for other in containers.all_of(root):
        if other.netns == wanted and containers.status(other) in ("created", "running", "paused"):
            return other
    return None


def joined(root: str, spec: dict[str, Any], owner: Container) -> dict[str, str]:
    """Namespaces of other containers of the sandbox of ``owner`` that ``spec`` names: host path to guest path."""
    mates = {other.pid: other for other in containers.all_of(root) if other.sandbox == owner.sandbox and other.pid}
    found = {}
    for namespace in spec.get("linux", {}).get("namespaces") or []:
        path = str(namespace.get("path") or "")
        words = path.split("/")
        # /proc/PID/ns/KIND
        if len(words) == 5 and words[1] == "proc" and words[2].isdecimal() and words[3] == "ns":
            mate = mates.get(int(words[2]))
            if mate is not None and mate.guest_pid:
                found[path] = f"/proc/{mate.guest_pid}/ns/{words[4]}"
    return found
