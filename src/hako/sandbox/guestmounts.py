"""Mounts of a container: file systems of the guest's kernel are passed on, the host's files are shared.

Kernel file systems of the host (/proc, /sys, /dev, cgroups) would show the host's kernel, and are refused or replaced
by the guest's own.
"""

from __future__ import annotations

import os
from collections.abc import Collection
from typing import Any

from hako import digests
from hako.errors import ConfigError
from hako.sandbox import guestdevices
from hako.sandbox.hostsockets import HostSockets
from hako.storage import block
from hako.storage.base import NAME
from hako.storage.sources import Source
from hako.storage.tree import SharedTree

#: Where the guest has the tree.
SHARE = f"/run/hako/shares/{NAME}"
#: Where the agent mounts memory file systems that containers share.
MEMORY = "/run/hako/memory"

#: What the guest's kernel mounts without anything of the host's.
_TYPES = frozenset(
    ("proc", "sysfs", "tmpfs", "ramfs", "devpts", "mqueue", "cgroup", "cgroup2", "hugetlbfs", "bpf", "debugfs")
) | {"tracefs", "securityfs", "fusectl"}
_BIND_OPTIONS = frozenset(("bind", "rbind"))
_READ_ONLY = frozenset(("ro", "rro"))
_WRITABLE = frozenset(("rw", "rrw"))
_KERNELS = frozenset(
    ("proc", "sysfs", "devtmpfs", "devpts", "mqueue", "debugfs", "tracefs", "securityfs", "configfs", "bpf", "pstore")
) | {"efivarfs", "selinuxfs", "nsfs", "binfmt_misc", "hugetlbfs", "fusectl", "rpc_pipefs"}
_CGROUPS = "/sys/fs/cgroup"
_SHM = "/dev/shm"
#: In the path of a pod's emptyDir volume; one of ``medium: Memory`` is a tmpfs that a kubelet has made.
_EMPTY_DIR = "/kubernetes.io~empty-dir/"


class Mounts:
    """Translates the mounts of one container; what the agent has to make ready collects in ``memory``.

    Disks are added to ``plan``, sockets of the host to ``sockets``; where these are None there can be none. ``rules``
    are the container's device rules. A tmpfs at one of the ``shared`` destinations is one file system for all
    containers of the VM that have it there.
    """

    def __init__(
        self,
        container_id: str,
        tree: SharedTree,
        plan: block.Plan | None = None,
        rules: list[dict[str, Any]] | None = None,
        sockets: HostSockets | None = None,
        shared: Collection[str] = (),
    ) -> None:
        self._container_id = container_id
        self._tree = tree
        self._plan = plan
        self._rules = rules or []
        self._sockets = sockets
        self._shared = shared
        self.memory: dict[str, str] = {}  #: memory file systems by name, with their mount options
        self.modules: dict[str, bool] = {}  #: kernel modules that bound devices need

    def translate(self, mounts: list[dict[str, Any]]) -> list[dict[str, Any]]:
        """The guest's version of ``mounts``, in the same order. Raises ConfigError, HostError."""
        found: list[dict[str, Any]] = []
        for index, mount in enumerate(mounts):
            where = f"$.mounts[{index}]"
            mount = {**mount, "destination": os.path.join("/", mount["destination"])}
            _refuse_mappings(mount, where)
            if is_bind(mount):
                self._bind(mount, where, found)
            elif mount.get("type") == "tmpfs" and os.path.normpath(mount["destination"]) in self._shared:
                found.append(self._common(mount))
            elif mount.get("type", "") in _TYPES:
                found.append(mount)
            elif self._plan is not None and block.is_block(mount):
                source = self._plan.add_mount(mount, where)
                found.append({**mount, "type": "bind", "source": source, "options": ["rbind"]})
            else:
                raise ConfigError(
                    f"{where}.type: a container in a VM cannot have {mount.get('type') or 'a mount without a type'} at "
                    f"{mount['destination']}; mount it on the host and bind it instead."
                )
        return found

    def _bind(self, mount: dict[str, Any], where: str, found: list[dict[str, Any]]) -> None:
        source = self._tree.look(str(mount["source"]))
        destination = os.path.normpath(mount["destination"])
        if source.filesystem in ("cgroup", "cgroup2") or _is_below(source.path, _CGROUPS):
            _cgroups(mount, where, found)
        elif source.kind in ("c", "b"):
            found.append(self._device(mount, source, where))
        elif source.kind == "socket" and self._sockets is not None:
            path = self._sockets.add(self._container_id, where, str(mount["source"]), source, self._tree)
            found.append({**mount, "type": "bind", "source": path})
        elif source.filesystem in _KERNELS:
            raise ConfigError(
                f"{where}: {mount['source']} shows the host's kernel ({source.filesystem}), and a container in a VM "
                "has another one; leave it away, or mount the guest's own."
            )
        elif source.kind in ("socket", "fifo"):
            raise ConfigError(
                f"{where}: {mount['source']} is a {source.kind}, which joins processes of one kernel; "
                "a container in a VM cannot reach the host's."
            )
        elif _is_memory(source) and (destination == _SHM or _EMPTY_DIR in source.path):
            found.append(self._shm(mount, source))
        else:
            found.append(self._share(mount))

    def _share(self, mount: dict[str, Any]) -> dict[str, Any]:
        options = [str(option) for option in mount.get("options") or []]
        source = str(mount["source"])
        readonly, recursive, deep = is_readonly(mount), "rbind" in options, "rro" in options
        path = self._tree.add_volume(self._container_id, source, readonly=readonly, recursive=recursive, deep=deep)
        # The guest sees one file system, which it can have read-only as a whole only; the host's mount may be in part.
        if readonly and recursive and not deep and self._tree.has_mounts_below(source):
            mount = {**mount, "options": [option for option in options if option not in _READ_ONLY]}
        elif deep:
            mount = {**mount, "options": ["ro" if option == "rro" else option for option in options]}
        return {**mount, "type": "bind", "source": f"{SHARE}/{path}"}

    def _shm(self, mount: dict[str, Any], source: Source) -> dict[str, Any]:
        """Shared memory is the guest's: one file system for all containers that are given the same one of the host."""
        name = digests.of(f"{source.origin} {source.path}".encode(errors="surrogateescape"))[:16]
        size = f",size={source.capacity}" if source.capacity else ""
        user, group = source.owner
        self.memory[name] = f"mode={source.mode & 0o7777:o},uid={user},gid={group}{size}"
        return {**mount, "type": "bind", "source": f"{MEMORY}/{name}"}

    def _common(self, mount: dict[str, Any]) -> dict[str, Any]:
        """A tmpfs that others have too. What has a value is said to the file system, the rest to the mount."""
        options = [str(option) for option in mount.get("options") or []]
        name = digests.of(os.path.normpath(mount["destination"]).encode(errors="surrogateescape"))[:16]
        self.memory[name] = ",".join(option for option in options if "=" in option)
        flags = [option for option in options if "=" not in option]
        return {**mount, "type": "bind", "source": f"{MEMORY}/{name}", "options": ["bind", *flags]}

    def _device(self, mount: dict[str, Any], source: Source, where: str) -> dict[str, Any]:
        if source.kind == "b" and guestdevices.as_disk(source.device, self._plan, self._rules):
            return {**mount, "type": "bind", "source": guestdevices.marker(source.device)}
        meant = guestdevices.known(source.kind, *source.device)
        if meant is None:
            raise guestdevices.refused(where, str(mount["source"]))
        if meant.module:
            self.modules[meant.module] = True
        return {**mount, "type": "bind", "source": meant.node}


def is_bind(mount: dict[str, Any]) -> bool:
    """Whether ``mount`` shows something of the host's."""
    return mount.get("type") == "bind" or not _BIND_OPTIONS.isdisjoint(mount.get("options") or [])


def _is_memory(source: Source) -> bool:
    """Whether it is a directory that is in the host's memory alone."""
    return source.filesystem == "tmpfs" and source.kind == "directory"


def is_readonly(mount: dict[str, Any]) -> bool:
    """Whether ``mount`` is read-only: the last option that says so counts."""
    given = [option for option in mount.get("options") or [] if option in _READ_ONLY | _WRITABLE]
    return bool(given) and given[-1] in _READ_ONLY


def _refuse_mappings(mount: dict[str, Any], where: str) -> None:
    options = [str(option).partition("=")[0] for option in mount.get("options") or []]
    if mount.get("uidMappings") or mount.get("gidMappings") or not {"idmap", "ridmap"}.isdisjoint(options):
        raise ConfigError(
            f"{where}: the mount at {mount['destination']} maps owners of files (idmap), which the file system that "
            "the VM shares with the host does not support; change the files' owners instead."
        )


def _cgroups(mount: dict[str, Any], where: str, found: list[dict[str, Any]]) -> None:
    """The host's cgroups, as engines bind them for systemd: the guest's own take their place."""
    if not _is_below(os.path.normpath(mount["destination"]), _CGROUPS):
        raise ConfigError(
            f"{where}: {mount['source']} shows the host's cgroups, and a container in a VM has only those of its own "
            f"kernel; mount them at {_CGROUPS}, or leave them away."
        )
    own = next((other for other in found if os.path.normpath(other["destination"]) == _CGROUPS), None)
    if own is None:
        own = {"destination": _CGROUPS, "type": "cgroup", "source": "cgroup"}
        own["options"] = ["nosuid", "noexec", "nodev", "ro"]
        found.append(own)
    if not is_readonly(mount):
        own["options"] = [option for option in own.get("options") or [] if option not in _READ_ONLY]


def _is_below(path: str, directory: str) -> bool:
    return path == directory or path.startswith(directory + "/")
