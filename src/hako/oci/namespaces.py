"""The host's own namespaces that a config.json asks for. A container in a VM cannot be in them.

A namespace that config.json leaves out is the runtime's own, and so is one whose path leads there: that is how
engines say ``--network host`` and ``--pid host``.
"""

from __future__ import annotations

import os

from hako.errors import ConfigError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

#: With this annotation set to ``true`` a left-out pid, ipc or uts namespace is the VM's instead of the host's.
ANNOTATION = "dev.hako.guest-namespaces"

#: Type in config.json → name in /proc/PID/ns.
FILES = {
    "network": "net",
    "pid": "pid",
    "ipc": "ipc",
    "uts": "uts",
    "mount": "mnt",
    "cgroup": "cgroup",
    "user": "user",
    "time": "time",
}
_HOSTS = ("network", "pid", "ipc", "uts")


def refuse_hosts(spec: dict[str, Any], own: str = "/proc/self/ns") -> None:
    """Raise ConfigError when the container is to be in a network, pid, ipc or uts namespace of the host.

    ``own`` is where the namespaces of the engine's host are found; empty: paths are not compared with them.
    """
    entries = (spec.get("linux") or {}).get("namespaces") or []
    paths = {str(entry.get("type")): str(entry.get("path") or "") for entry in entries}
    shared = guest_namespaces(spec)
    for kind in _HOSTS:
        if kind in paths and not (own and _is_own(paths[kind], f"{own}/{FILES[kind]}")):
            continue
        if kind == "network":
            raise ConfigError(
                "$.linux.namespaces: the container is to use the host's network, but a VM has a network of its own; "
                "give it another network (not --network host, not hostNetwork)."
            )
        if not shared:
            raise ConfigError(
                f"$.linux.namespaces: the container is to share the host's {kind} namespace, but its VM has a kernel "
                f"of its own; leave that away (--{kind} host, host{kind.upper()}), or set the annotation {ANNOTATION} "
                f'to "true" for the VM\'s own {kind} namespace.'
            )


def guest_namespaces(spec: dict[str, Any]) -> bool:
    """Whether the VM's own namespaces stand in for the host's."""
    return bool((spec.get("annotations") or {}).get(ANNOTATION) == "true")


def _is_own(path: str, own: str) -> bool:
    try:
        return bool(path) and os.path.samefile(path, own)
    except OSError:
        return False
