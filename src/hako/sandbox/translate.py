"""Turning a config.json written for the host into one for the guest.

Nearly everything is passed on as it is, crun in the guest does the rest. What names things of the host is
changed: the root, bind mounts, cgroup path. What a VM cannot honour is refused, never dropped in silence.
"""

from __future__ import annotations

import copy
from typing import Any

from hako.errors import ConfigError
from hako.oci import seccomp_bpf
from hako.storage.base import NAME
from hako.storage.tree import SharedTree

_GUEST_SHARE = f"/run/hako/shares/{NAME}"
_BIND_OPTIONS = frozenset({"bind", "rbind"})


def to_guest(spec: dict[str, Any], container_id: str, tree: SharedTree) -> dict[str, Any]:
    """The guest's version of ``spec``, its host mounts added to ``tree``. Raises ConfigError.

    ``spec`` must have passed hako.oci.check; it is not changed.
    """
    guest = copy.deepcopy(spec)
    readonly = guest.get("root", {}).get("readonly", False)
    guest["root"] = {"path": f"{_GUEST_SHARE}/{container_id}/rootfs", "readonly": readonly}
    if guest.pop("hooks", None):
        raise ConfigError("$.hooks: hako does not run hooks yet; remove them from config.json.")
    guest["mounts"] = [_mount(mount, container_id, tree) for mount in guest.get("mounts", [])]
    linux = guest.setdefault("linux", {})
    linux.pop("cgroupsPath", None)
    linux["namespaces"] = _namespaces(linux.get("namespaces", []))
    return seccomp_bpf.precompile(guest)


def is_bind(mount: dict[str, Any]) -> bool:
    """Whether ``mount`` shows something of the host's."""
    return mount.get("type") == "bind" or not _BIND_OPTIONS.isdisjoint(mount.get("options") or [])


def _mount(mount: dict[str, Any], container_id: str, tree: SharedTree) -> dict[str, Any]:
    if not is_bind(mount):
        return mount
    readonly = "ro" in (mount.get("options") or [])
    path = tree.add_volume(container_id, str(mount["source"]), readonly=readonly)
    return {**mount, "type": "bind", "source": f"{_GUEST_SHARE}/{path}"}


def _namespaces(namespaces: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """All but the network: the VM is that boundary, and its containers share one network as a pod's do."""
    kept = []
    for index, namespace in enumerate(namespaces):
        if namespace.get("type") == "network":
            continue
        if namespace.get("path"):
            raise ConfigError(
                f"$.linux.namespaces[{index}].path: a container in a VM cannot join the host's "
                f"{namespace.get('type')} namespace {namespace['path']}; remove the path."
            )
        kept.append(namespace)
    return kept
