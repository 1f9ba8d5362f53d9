"""The container's cgroup on the host: what stands for it, and its VM, are in it."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable

from hako.cgroup.api import Cgroup, Overhead, path_for
from hako.errors import HakoError, NotFoundError
from hako.sandbox.requests import OVERHEAD

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any


def create(
    container_id: str, spec: dict[str, Any], *, memory: int, systemd: bool, announce: Callable[[dict[str, Any]], None]
) -> Cgroup:
    """Make the cgroup that config.json asks for. ``memory`` is what a VM has without limits.

    ``announce`` is told its record before anything is made. Raises HakoError.
    """
    linux = spec.get("linux") or {}
    resources = linux.get("resources") or {}
    limit = (resources.get("memory") or {}).get("limit")
    guest = max(memory, limit + OVERHEAD) if type(limit) is int and limit > 0 else memory
    path = path_for(str(linux.get("cgroupsPath") or ""), container_id, systemd=systemd)
    return Cgroup.create(path, resources, Overhead.for_guest(guest), announce=announce)


def join(record: dict[str, Any]) -> None:
    """Move the calling process into the cgroup. Raises HostError."""
    if record:
        Cgroup.open(record).add(os.getpid())


def update(record: dict[str, Any], resources: dict[str, Any]) -> None:
    """Apply limits anew. Raises HakoError."""
    if record:
        with contextlib.suppress(NotFoundError):
            Cgroup.open(record).update(resources)


def delete(record: dict[str, Any]) -> None:
    """Remove the cgroup, and end what is left in it. Raises HakoError."""
    if not record:
        return
    group = Cgroup.open(record)
    try:
        group.delete()
    except HakoError:
        group.kill()
        group.delete()
