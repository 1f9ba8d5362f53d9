"""A container's files as the container sees them, put together in a mount namespace of this process's own.

For a running container the namespace is a copy of the sandbox process's, for a stopped one its layers are mounted
anew; in both the volumes are mounted where they belong. All of it is gone with this process, however it ends.
"""

from __future__ import annotations

import os
from typing import Any

from hako import store
from hako.cli.containers import Target
from hako.cli.copying import Place
from hako.errors import ConfigError, HostError, StateError
from hako.linux import syscalls
from hako.sandbox import records
from hako.storage.tree import mount_overlay, private_mounts


class ContainerPlace(Place):
    """Paths inside the root of ``target``. Makes this process's mount namespace its own, for good."""

    special_bits = True

    def __init__(self, target: Target) -> None:
        self._target = target
        self._root_path = _enter_running(target) if _is_running(target) else _mount_stopped(target)
        self._root = os.open(self._root_path, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        #: Places of file systems that are in the VM only.
        self._hidden: dict[str, str] = {}
        for mount in target.record.get("mounts", []):
            self._add(mount)

    def _add(self, mount: dict[str, Any]) -> None:
        destination = os.path.normpath(str(mount["destination"]))
        if mount.get("type") != "bind":
            if _is_running(self._target):
                self._hidden[destination] = str(mount.get("type"))
            return
        try:
            point = syscalls.openat2(self._root, destination, os.O_PATH)
        except OSError:
            return  # the container has not been started, so nobody made the place
        try:
            syscalls.mount(str(mount["source"]), f"/proc/self/fd/{point}", "", syscalls.MS_BIND | syscalls.MS_REC)
        except OSError as error:
            raise HostError(f"Cannot look into {mount['source']}: {error.strerror}.") from error
        finally:
            os.close(point)
        if not {"ro", "rro"}.isdisjoint(mount.get("options") or []):
            self._make_readonly(destination)

    def _make_readonly(self, destination: str) -> None:
        point = syscalls.openat2(self._root, destination, os.O_PATH)
        try:
            flags = syscalls.MS_BIND | syscalls.MS_REMOUNT | syscalls.MS_RDONLY
            syscalls.mount("", f"/proc/self/fd/{point}", "", flags)
        finally:
            os.close(point)

    def open(self, path: str, flags: int) -> int:
        """Open ``path`` as the container would, from its root."""
        try:
            return syscalls.openat2(self._root, path, flags)
        except FileNotFoundError:
            self._refuse_hidden(os.path.normpath(path), path)
            raise

    def describe(self, path: str) -> str:
        """``path`` for an error message."""
        return f"{self._target.name or self._target.short_id}:{path}"

    def accept(self, fd: int, path: str) -> None:
        """Refuse what is in memory of the VM: below it the host sees an empty directory."""
        inside = os.path.relpath(os.readlink(f"/proc/self/fd/{fd}"), self._root_path)
        self._refuse_hidden(os.path.normpath(f"/{inside}"), path)

    def _refuse_hidden(self, inside: str, path: str) -> None:
        for place, kind in self._hidden.items():
            if inside == place or inside.startswith(f"{place}/"):
                raise ConfigError(
                    f"{self.describe(path)} is in a {kind} file system inside the VM, which the host cannot see; "
                    "copy it with hako exec and tar."
                )


def _is_running(target: Target) -> bool:
    return target.is_live and target.status != "stopped"


def _enter_running(target: Target) -> str:
    """Join the sandbox process's mounts, in a copy; return the path of the container's root."""
    pid = target.state["pid"]
    try:
        namespace = os.open(f"/proc/{pid}/ns/mnt", os.O_RDONLY | os.O_CLOEXEC)
        try:
            syscalls.setns(namespace, syscalls.CLONE_NEWNS)
        finally:
            os.close(namespace)
        private_mounts()
        # Slaves of the sandbox process's would still follow it.
        syscalls.mount("", "/", flags=syscalls.MS_PRIVATE | syscalls.MS_REC)
    except OSError as error:
        raise StateError(f"Cannot see the files of {target.name or target.short_id}: {error.strerror}.") from error
    return os.path.join(records.shared_dir(target.state), target.container_id, "rootfs")


def _mount_stopped(target: Target) -> str:
    """Mount the layers of a stopped container; return where."""
    layer = os.path.join(records.data_dir(target.sandbox_id), "containers", target.container_id)
    lower = str(target.record["lower"])
    # Two mounts of one upper layer would corrupt it. The lock ends with this process.
    lock = store.lock(os.path.join(layer, "cp.lock"), wait=True)
    assert lock is not None
    private_mounts()
    if not os.path.isdir(os.path.join(layer, "upper")):
        return lower  # the container's root was a directory of the user's, written to directly
    # Over its own directory: in this namespace alone, and nothing is left to be removed.
    mount_overlay(lower, layer, layer)
    return layer
