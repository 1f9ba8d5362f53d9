"""The state of a container as JSON, and the hooks that are told it."""

from __future__ import annotations

import os

from hako.runtime import containers
from hako.runtime.texts import timestamp

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

    from hako.runtime.containers import Container

#: What ``state`` prints when config.json does not say.
_OCI_VERSION = "1.0.2"


def state(container: Container, status: str) -> dict[str, Any]:
    """The state as the runtime specification has it, and what runc adds. A stopped container has no process."""
    return {
        "ociVersion": container.oci_version or _OCI_VERSION,
        "id": container.id,
        "pid": container.pid if status != "stopped" else 0,
        "status": status,
        "bundle": container.bundle,
        "rootfs": container.rootfs,
        "created": timestamp(container.created_ns),
        "owner": "" if container.owner == "root" else container.owner,
        **({"annotations": container.annotations} if container.annotations else {}),
    }


def run(
    container: Container,
    name: str,
    entries: list[dict[str, Any]],
    status: str,
    warn: Callable[[str], None] | None = None,
) -> None:
    """Run the hooks ``name`` on the host, in order. Raises HostError when one fails that must not.

    ``warn`` is told of one that may fail.
    """
    from hako.oci import hooks

    enter = (lambda: _enter_network(container)) if name == "createContainer" else None
    hooks.run(entries, state(container, status), where=name, cwd=container.bundle, enter=enter, warn=warn)


def _enter_network(container: Container) -> None:
    """Move the calling thread into the container's network namespace; the others are in the guest."""
    from hako.linux import syscalls

    fd = os.open(f"/proc/{container.pid}/ns/net", os.O_RDONLY | os.O_CLOEXEC)
    try:
        syscalls.setns(fd, syscalls.CLONE_NEWNET)
    finally:
        os.close(fd)


def run_kept(container: Container, name: str, warn: Callable[[str], None]) -> None:
    """Run those of the hooks ``name`` that the container was made with. ``warn`` is told of each that fails."""
    if container.hooks.get(name):
        status = containers.status(container) if name == "poststart" else "stopped"
        run(container, name, container.hooks[name], status, warn)
