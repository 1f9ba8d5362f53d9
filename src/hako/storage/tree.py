"""The directory of the host that a VM sees, made of mounts in the sandbox process's own mount namespace.

    <shared>/<container>/rootfs   overlay or bind mount
    <shared>/.volumes/N           bind mount of a host directory or file
    <shared>/.modules             bind mount of the guest image's kernel modules, read-only

Containers that are given the same directory in the same way have one mount of it in common. By two paths the guest's
kernel may see two files where there is one, between which neither locks nor mappings work.

The guest may write below these mounts, but not between them: the directories that lead to them are seen
through a read-only mount of <shared>.points, where they are made. Otherwise a guest that has been taken over
could put a symbolic link in their place and have the next mount, or the next clean-up, happen elsewhere.

The mounts belong to the namespace: when the sandbox process and QEMU are gone, however they ended, so are
the mounts.
"""

from __future__ import annotations

import contextlib
import errno
import os
import stat
from collections.abc import Callable, Iterator
from typing import TypeVar

from hako import store
from hako.errors import ConfigError, HostError
from hako.linux import syscalls
from hako.named import NamedTuple
from hako.storage import mountlist
from hako.storage.mountlist import Mount
from hako.storage.sources import OpenDisk, Source, has_mounts_below, look, open_device, open_disk
from hako.threads import in_thread_of_its_own

T = TypeVar("T")

#: The overlay's upper layer keeps its special attributes in user.*-like names only root sees; no index, so
#: that one lower layer can serve many containers at once.
_OVERLAY_OPTIONS = "index=off,metacopy=off,redirect_dir=on"


def private_mounts() -> int:
    """Give the calling process a mount namespace of its own; mounts made on the host still appear in it.

    Returns a descriptor of the namespace it was in. Raises HostError where that is not possible.
    """
    before = os.open("/proc/self/ns/mnt", os.O_RDONLY | os.O_CLOEXEC)
    try:
        syscalls.unshare(syscalls.CLONE_NEWNS)
        syscalls.mount("", "/", flags=syscalls.MS_SLAVE | syscalls.MS_REC)
    except OSError as error:
        os.close(before)
        hint = " Here / is not a mount point, as in a chroot; bind-mount the directory to itself first."
        hint = hint if error.errno == errno.EINVAL else " hako must run as root."
        raise HostError(f"Cannot make a mount namespace for the sandbox: {error.strerror}.{hint}") from error
    return before


def mount_overlay(lower: str, layer: str, target: str) -> None:
    """Mount a writable view of the directory ``lower`` at ``target``; changes go to ``layer``/upper.

    Use it after private_mounts(). Raises HostError.
    """
    for part in (lower, layer):
        if any(char in part for char in ',:\\"'):
            raise HostError(f"Cannot use {part!r} for a container's layers: its name contains , : \\ or \".")
    upper, work = (store.ensure_dir(os.path.join(layer, name), 0o755) for name in ("upper", "work"))
    # The container sees the mode and owner of its root directory from the upper layer.
    status = os.stat(lower)
    os.chmod(upper, stat.S_IMODE(status.st_mode))
    os.chown(upper, status.st_uid, status.st_gid)
    _mount("overlay", target, "overlay", 0, f"lowerdir={lower},upperdir={upper},workdir={work},{_OVERLAY_OPTIONS}")


#: No container's id begins with a dot.
_VOLUMES = ".volumes"
_MODULES = ".modules"


class _Volume(NamedTuple):
    """One mount of a directory or file of the host, for as long as any container uses it."""

    #: the source by name and by number, whether it is read-only, whether with what is mounted below it, and whether
    #: that is read-only too
    key: tuple[str, int, int, bool, bool, bool]
    relative: str  #: its place below the share
    users: set[str]


class SharedTree:
    """Owns the directory ``path`` and the mounts in it. Use it after private_mounts()."""

    def __init__(self, path: str) -> None:
        # Whoever leads here keeps the host's users out; a container's own users in the guest must get through.
        self.path = store.ensure_dir(path, 0o711)
        self._points = store.ensure_dir(path + ".points", 0o711)
        self._volumes: list[_Volume] = []
        self._next = 0
        self._modules = ""
        self._origin: int | None = None
        _mount(self._points, path, "", syscalls.MS_BIND)
        readonly = syscalls.MS_BIND | syscalls.MS_REMOUNT | syscalls.MS_RDONLY
        _mount("", path, "", readonly | syscalls.MS_NOSUID | syscalls.MS_NODEV)
        # A helper that shut itself into the tree in a namespace of its own gets what is mounted here later.
        _mount("", path, "", syscalls.MS_SHARED)

    @contextlib.contextmanager
    def seen_from(self, namespace: int | None) -> Iterator[None]:
        """For the block, look sources up in the mount namespace of this descriptor; it is closed at the end.

        An engine may have mounted a container's files after the sandbox process got mounts of its own.
        """
        self._origin = namespace
        try:
            yield
        finally:
            self._origin = None
            if namespace is not None:
                os.close(namespace)

    def _at_origin(self, work: Callable[[], T]) -> T:
        origin = self._origin
        if origin is None:
            return work()

        def enter_and_work() -> T:
            syscalls.unshare(syscalls.CLONE_FS)
            syscalls.setns(origin, syscalls.CLONE_NEWNS)
            return work()

        return in_thread_of_its_own(enter_and_work)

    def look(self, source: str) -> Source:
        """What ``source`` is. Raises ConfigError."""
        return self._at_origin(lambda: look(source))

    def open_disk(self, path: str, *, readonly: bool, device: tuple[int, int] | None = None) -> OpenDisk:
        """Open ``path``, or the block device with the numbers ``device``, as a disk of the VM. Raises ConfigError."""
        if device is not None:
            return self._at_origin(lambda: open_device(*device, readonly=readonly))
        return self._at_origin(lambda: open_disk(path, readonly=readonly))

    def open_path(self, source: str) -> int:
        """A descriptor that stands for what is at ``source``, without opening it (O_PATH). Raises ConfigError."""
        try:
            return self._at_origin(lambda: os.open(source, os.O_PATH | os.O_CLOEXEC))
        except OSError as error:
            raise ConfigError(f"Cannot mount {source} into the container: {error.strerror}.") from error

    def _bind(self, source: str, target: str, *, recursive: bool = True) -> None:
        """Show ``source`` at ``target``, ``recursive``: with what is mounted below it. Raises HostError."""
        try:
            tree = self._at_origin(lambda: syscalls.clone_mount(source, recursive=recursive))
            try:
                syscalls.attach_mount(tree, target)
            finally:
                os.close(tree)
        except OSError as error:
            raise HostError(f"Cannot mount {source} for the container: {error.strerror}.") from error

    def add_overlay(self, container_id: str, lower: str, layer: str) -> None:
        """Mount a writable view of the directory ``lower``; changes go to ``layer``/upper."""
        mount_overlay(lower, layer, self._make_point(os.path.join(container_id, "rootfs")))

    def add_mounts(self, container_id: str, mounts: list[Mount]) -> None:
        """Mount the container's root as a snapshotter describes it, one mount on the other. Raises HostError."""
        root = self._make_point(os.path.join(container_id, "rootfs"))
        for mount in mounts:
            if mount.target.strip("/"):
                raise ConfigError(f"The container's root has a mount at {mount.target}, which hako does not know.")
            if not mount.is_bind:
                mountlist.mount(mount, root)
                continue
            self._bind(mount.source, root, recursive="rbind" in mount.options)
            if mount.flags() & syscalls.MS_RDONLY:
                _make_readonly(root)

    def add_rootfs(self, container_id: str, path: str) -> None:
        """Bind the directory ``path``, with what is mounted below it, as the container's root."""
        if not self._at_origin(lambda: os.path.isdir(path)):
            raise ConfigError(f"The root file system {path} is not a directory.")
        self._bind(path, self._make_point(os.path.join(container_id, "rootfs")))

    def add_volume(
        self, container_id: str, source: str, *, readonly: bool, recursive: bool = True, deep: bool = False
    ) -> str:
        """Bind the host's file or directory ``source``; return its path below the share. Raises ConfigError, HostError.

        ``recursive``: with what is mounted below it, which with ``deep`` is ``readonly`` too.
        """
        if not os.path.isabs(source):
            raise ConfigError(f"Cannot mount {source!r} into the container: its path is not absolute.")
        try:
            status, real = self._at_origin(lambda: (os.stat(source), os.path.realpath(source)))
            mode = status.st_mode
        except OSError as error:
            raise ConfigError(f"Cannot mount {source} into the container: {error.strerror}.") from error
        if not (stat.S_ISDIR(mode) or stat.S_ISREG(mode)):
            raise ConfigError(f"Cannot mount {source} into the container: it is neither a directory nor a file.")
        key = (real, status.st_dev, status.st_ino, readonly, recursive, deep)
        volume = next((volume for volume in self._volumes if volume.key == key), None)
        if volume is None:
            volume = _Volume(key, os.path.join(_VOLUMES, str(self._next)), set())
            self._next += 1
            self._volumes.append(volume)
            self._mount_volume(volume, source, directory=stat.S_ISDIR(mode))
        volume.users.add(container_id)
        return volume.relative

    def has_mounts_below(self, source: str) -> bool:
        """Whether anything is mounted below the directory ``source``."""
        return self._at_origin(lambda: has_mounts_below(os.path.realpath(source)))

    def _mount_volume(self, volume: _Volume, source: str, *, directory: bool) -> None:
        *_, readonly, recursive, deep = volume.key
        try:
            self._show(source, volume.relative, directory=directory, readonly=readonly, recursive=recursive, deep=deep)
        except BaseException:
            self._remove_volume(volume)
            raise

    def _show(
        self, source: str, relative: str, *, directory: bool, readonly: bool, recursive: bool, deep: bool = True
    ) -> None:
        """Bind ``source`` at ``relative``; ``deep``: what is mounted below it is read-only where it is."""
        target = self._make_point(relative, directory=directory)
        # Made ready aside: nobody sees a read-only volume writable, and what a mount may is not passed on later.
        aside = os.path.join(self._points, relative)
        try:
            self._bind(source, aside, recursive=recursive)
            if readonly:
                _make_readonly(aside, recursive=deep)
            _mount(aside, target, "", syscalls.MS_MOVE)
        except BaseException:
            _unmount(aside)
            raise

    def show_modules(self, directory: str) -> None:
        """Show the guest the kernel modules in ``directory``, read-only; empty: none. Raises HostError."""
        if directory == self._modules:
            return
        if self._modules:
            self._remove_point(_MODULES)
            self._modules = ""
        if directory:
            try:
                self._show(directory, _MODULES, directory=True, readonly=True, recursive=False)
            except BaseException:
                self._remove_point(_MODULES)
                raise
            self._modules = directory

    def moved(self, path: str) -> None:
        """A directory above has got another name: this one is called ``path`` now."""
        self.path, self._points = path, path + ".points"

    def rootfs(self, container_id: str) -> str:
        """Where the container's root is on the host, inside this mount namespace."""
        return os.path.join(self.path, container_id, "rootfs")

    def remove(self, container_id: str) -> None:
        """Unmount and remove what ``container_id`` has. Never deletes anything below a mount."""
        for volume in list(self._volumes):
            volume.users.discard(container_id)
            if not volume.users:
                self._remove_volume(volume)
        self._remove_point(os.path.join(container_id, "rootfs"))
        base = os.path.join(self._points, container_id)
        if os.path.isdir(base):
            os.rmdir(base)

    def _remove_volume(self, volume: _Volume) -> None:
        self._remove_point(volume.relative)
        self._volumes.remove(volume)

    def _remove_point(self, relative: str) -> None:
        point = os.path.join(self._points, relative)
        if os.path.lexists(point):
            _unmount(os.path.join(self.path, relative))
            # Seen from here nothing is, or ever was, mounted at this place.
            os.rmdir(point) if os.path.isdir(point) else os.unlink(point)

    def close(self) -> None:
        """Remove everything."""
        for volume in list(self._volumes):
            self._remove_volume(volume)
        self.show_modules("")
        for name in _names(self._points):
            if name != _VOLUMES:
                self.remove(name)
        if os.path.isdir(os.path.join(self._points, _VOLUMES)):
            os.rmdir(os.path.join(self._points, _VOLUMES))
        _unmount(self.path)
        os.rmdir(self.path)
        os.rmdir(self._points)

    def _make_point(self, relative: str, *, directory: bool = True) -> str:
        """Make a place to mount something at; return its path below the read-only mount."""
        point = os.path.join(self._points, relative)
        store.ensure_dir(os.path.dirname(point), 0o755)
        if directory:
            store.ensure_dir(point, 0o755)
        else:
            os.close(os.open(point, os.O_CREAT | os.O_WRONLY | os.O_CLOEXEC, 0o600))
        return os.path.join(self.path, relative)


def _mount(source: str, target: str, fstype: str, flags: int, data: str = "") -> None:
    try:
        syscalls.mount(source, target, fstype, flags, data)
    except OSError as error:
        raise HostError(f"Cannot mount {source or target} for the container: {error.strerror}.") from error


def _make_readonly(target: str, *, recursive: bool = True) -> None:
    """Make what is mounted at ``target``, ``recursive``: and below it, read-only."""
    try:
        syscalls.make_readonly(target, recursive=recursive)
    except OSError as error:
        raise HostError(f"Cannot make the mount {target} read-only: {error.strerror}.") from error


def _names(directory: str) -> list[str]:
    return sorted(os.listdir(directory)) if os.path.isdir(directory) else []


def _unmount(point: str) -> None:
    """Take all mounts off ``point``: a bind of a tree may have several."""
    while True:
        try:
            syscalls.umount(point, syscalls.MNT_DETACH)
        except OSError:
            return
