"""Which files of a container come as disks of its VM, and what the guest does with them: decisions, nothing is opened.

A file system in a file or block device of the host (ext4, erofs, …) is not mounted on the host, whose kernel would
have to trust it: the VM gets it as a disk. A root file system may be several of these with an overlay on top, written
as containerd's snapshotters do: ``{{ mount 0 }}`` stands for where the first mount of the list is (containerd,
docs/mounts.md).
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from hako.errors import ConfigError
from hako.linux import syscalls
from hako.named import NamedTuple

#: Where the agent mounts what is on a container's disks: below this, by the container's id and the mount's number.
MOUNTS = "/run/hako/disks"

#: MS_… by option; those that an option takes away have a minus.
_FLAGS = {
    "ro": syscalls.MS_RDONLY,
    "rw": -syscalls.MS_RDONLY,
    "nosuid": syscalls.MS_NOSUID,
    "suid": -syscalls.MS_NOSUID,
    "nodev": syscalls.MS_NODEV,
    "dev": -syscalls.MS_NODEV,
    "noexec": syscalls.MS_NOEXEC,
    "exec": -syscalls.MS_NOEXEC,
    "sync": syscalls.MS_SYNCHRONOUS,
    "async": -syscalls.MS_SYNCHRONOUS,
    "dirsync": syscalls.MS_DIRSYNC,
    "noatime": syscalls.MS_NOATIME,
    "atime": -syscalls.MS_NOATIME,
    "nodiratime": syscalls.MS_NODIRATIME,
    "diratime": -syscalls.MS_NODIRATIME,
    "relatime": syscalls.MS_RELATIME,
    "norelatime": -syscalls.MS_RELATIME,
    "strictatime": syscalls.MS_STRICTATIME,
    "lazytime": syscalls.MS_LAZYTIME,
}
#: A disk is one without a loop device.
_WITHOUT_MEANING = frozenset(("loop", "defaults"))

_EXT = frozenset(
    ("data", "errors", "commit", "discard", "nodiscard", "noload", "norecovery", "barrier", "nobarrier", "acl", "noacl")
) | {"user_xattr", "nouser_xattr", "delalloc", "nodelalloc", "journal_checksum", "nojournal_checksum", "stripe"}


class _FileSystem(NamedTuple):
    module: str  #: of the guest's kernel
    options: frozenset[str]  #: of its own, without their values
    readonly: bool = False  #: by its nature


_FILE_SYSTEMS = {
    "ext2": _FileSystem("ext4", _EXT),
    "ext3": _FileSystem("ext4", _EXT),
    "ext4": _FileSystem("ext4", _EXT),
    "erofs": _FileSystem(
        "erofs", frozenset(("user_xattr", "nouser_xattr", "acl", "noacl", "cache_strategy", "device")), readonly=True
    ),
    "xfs": _FileSystem(
        "xfs", frozenset(("nouuid", "norecovery", "discard", "nodiscard", "inode32", "inode64", "allocsize", "noquota"))
    ),
    "btrfs": _FileSystem(
        "btrfs", frozenset(("subvol", "subvolid", "compress", "compress-force", "discard", "nodiscard", "ssd"))
    ),
    "squashfs": _FileSystem("squashfs", frozenset(("errors",)), readonly=True),
}
_OVERLAY = frozenset(("index", "metacopy", "redirect_dir", "userxattr", "xino", "volatile", "nfs_export"))
_OVERLAY_DIRECTORIES = ("lowerdir", "upperdir", "workdir")
_BINDS = frozenset(("bind", "rbind"))

_TEMPLATE = re.compile(r"\{\{\s*(mount|overlay)\s+(\d+)(?:\s+(\d+))?\s*\}\}")
_MKDIR = "X-containerd.mkdir.path="
_MOST_MOUNTS = 200


class Wanted(NamedTuple):
    """A disk that a container needs."""

    path: str  #: of a file or block device on the host; empty for a device that is known by its number
    readonly: bool
    device: tuple[int, int] | None = None  #: major and minor number on the host of what the container has as a device


class Directory(NamedTuple):
    """A directory that the guest makes on a disk, if there is none."""

    path: str  #: relative, like those of the mount that it is for
    mode: int = 0o755
    uid: int = 0
    gid: int = 0


class GuestMount(NamedTuple):
    """One mount in the guest. Paths are relative to where the container's mounts are."""

    fstype: str
    flags: int
    data: str
    disk: int | None = None  #: which of the disks it is of
    source: str = ""  #: of a bind
    devices: tuple[int, ...] = ()  #: more disks of the same file system
    make: tuple[Directory, ...] = ()
    inside: tuple[str, ...] = ()  #: paths that it uses

    def params(self, serials: Sequence[str]) -> dict[str, Any]:
        """As the agent's AttachDisks has it."""
        call: dict[str, Any] = {"type": self.fstype, "source": self.source, "flags": self.flags, "data": self.data}
        call |= {} if self.disk is None else {"disk": serials[self.disk]}
        call |= {"devices": [serials[disk] for disk in self.devices]} if self.devices else {}
        call |= {"make": [directory._asdict() for directory in self.make]} if self.make else {}
        return call | ({"inside": list(self.inside)} if self.inside else {})


class Plan:
    """What one container needs of disks: collected, then attached by hako.sandbox.disks.

    ``devices`` says whether block devices of the host may be given to the container as devices.
    """

    def __init__(self, container_id: str, *, devices: bool = True) -> None:
        self.container_id = container_id
        self.devices = devices
        self.disks: list[Wanted] = []
        self.mounts: list[GuestMount] = []
        self.modules: dict[str, None] = {}

    def add_disk(self, wanted: Wanted) -> int:
        """The number of the disk ``wanted``."""
        if wanted not in self.disks:
            self.disks.append(wanted)
        return self.disks.index(wanted)

    def add_rootfs(self, mounts: object) -> str:
        """Plan a root file system that is made of ``mounts``; return its path in the guest. Raises ConfigError."""
        given = _checked(mounts)
        first = len(self.mounts)
        for index, mount in enumerate(given):
            self._add(mount, f"$.rootfs[{index}]", first, index)
        return self._path(len(self.mounts) - 1)

    def add_mount(self, mount: Mapping[str, Any], where: str) -> str:
        """Plan one mount of a file system on a disk; return its path in the guest. Raises ConfigError."""
        self._add(mount, where, len(self.mounts), 0)
        return self._path(len(self.mounts) - 1)

    def _path(self, number: int) -> str:
        return f"{MOUNTS}/{self.container_id}/{number}"

    def _add(self, mount: Mapping[str, Any], where: str, first: int, index: int) -> None:
        """Plan mount ``index`` of a list whose first one has the number ``first``."""
        fstype, transforms = _type(mount, where)
        source, options = str(mount.get("source") or ""), _options(mount)
        if mount.get("target"):
            raise ConfigError(f"{where}.target: a root file system on disks cannot have parts that are mounted in it.")
        if "format" in transforms:
            source, *options = (_fill_in(text, where, first, index) for text in (source, *options))
        make = [option for option in options if option.startswith(_MKDIR)] if "mkdir" in transforms else []
        options = [option for option in options if option not in make]
        directories = tuple(_directory(option, where) for option in make)
        if fstype in _FILE_SYSTEMS:
            self._add_file_system(fstype, source, options, where)
        elif fstype == "overlay":
            self.mounts.append(_overlay(options, directories, where))
        elif fstype in _BINDS or not _BINDS.isdisjoint(options):
            self.mounts.append(_bind(source, options, directories, where))
        else:
            raise ConfigError(f"{where}.type: a VM's disk cannot be mounted as {fstype or 'nothing'}.")

    def _add_file_system(self, fstype: str, source: str, options: list[str], where: str) -> None:
        kind = _FILE_SYSTEMS[fstype]
        flags, own = _split(options, kind.options, where)
        if kind.readonly:
            flags |= syscalls.MS_RDONLY
        readonly = bool(flags & syscalls.MS_RDONLY)
        more = [option.partition("=")[2] for option in own if option.startswith("device=")]
        own = [option for option in own if not option.startswith("device=")]
        for path in (source, *more):
            if not os.path.isabs(path):
                raise ConfigError(f"{where}.source: {path!r} is not the absolute path of a file or block device.")
        self.modules[kind.module] = None
        disk, *devices = (self.add_disk(Wanted(path, readonly)) for path in (source, *more))
        self.mounts.append(GuestMount(fstype, flags, ",".join(own), disk, devices=tuple(devices)))


def for_guest(mounts: object) -> bool:
    """Whether a root file system made of ``mounts`` is one on disks, for the guest to mount. Raises ConfigError.

    False when any of it is a directory of the host's, or is for the host to mount.
    """
    mounts = _checked(mounts)
    return any(is_block(mount) for mount in mounts) and all(is_block(mount) or _only_inside(mount) for mount in mounts)


def is_block(mount: Mapping[str, Any]) -> bool:
    """Whether ``mount`` is of a file system in a file or block device, which a guest can mount."""
    fstype, options = str(mount.get("type") or ""), _options(mount)
    return fstype.rpartition("/")[2] in _FILE_SYSTEMS and _BINDS.isdisjoint(options)


def _only_inside(mount: Mapping[str, Any]) -> bool:
    fstype, options = str(mount.get("type") or ""), _options(mount)
    name = fstype.rpartition("/")[2]
    if name == "overlay":
        values = [option.partition("=")[2] for option in options if option.startswith(_OVERLAY_DIRECTORIES)]
    else:
        values = [str(mount.get("source") or "")] if name in _BINDS or not _BINDS.isdisjoint(options) else []
    return bool(values) and all(_TEMPLATE.match(value) for value in values)


def _checked(mounts: object) -> list[dict[str, Any]]:
    if not isinstance(mounts, list) or not 0 < len(mounts) <= _MOST_MOUNTS:
        raise ConfigError(f"$.rootfs: not an array of 1 to {_MOST_MOUNTS} mounts.")
    for index, mount in enumerate(mounts):
        if not isinstance(mount, dict):
            raise ConfigError(f"$.rootfs[{index}]: not an object.")
    return mounts


def _type(mount: Mapping[str, Any], where: str) -> tuple[str, list[str]]:
    """The type of a mount and what is to be done to its description before."""
    *transforms, fstype = str(mount.get("type") or "").split("/")
    for transform in transforms:
        if transform not in ("format", "mkdir"):
            raise ConfigError(f"{where}.type: hako does not know what {transform}/ is to do to a mount.")
    return fstype, transforms


def _options(mount: Mapping[str, Any]) -> list[str]:
    """All options, one each: some programs write several in one text."""
    return [option for text in mount.get("options") or [] for option in _separate(str(text))]


def _separate(text: str) -> Iterable[str]:
    return [text] if text.startswith("X-") else filter(None, text.split(","))


def _fill_in(text: str, where: str, first: int, index: int) -> str:
    """``text`` with the places of earlier mounts of the list, relative to where the container's are."""

    def place(match: re.Match[str]) -> str:
        kind, *numbers = match.groups()
        begin, end = int(numbers[0]), int(numbers[1] or numbers[0])
        if max(begin, end) >= index or (kind == "mount") != (numbers[1] is None):
            raise ConfigError(f"{where}: {match[0]} names no earlier mount.")
        step = 1 if begin <= end else -1
        return ":".join(str(first + number) for number in range(begin, end + step, step))

    filled = _TEMPLATE.sub(place, text)
    if "{{" in filled:
        raise ConfigError(f"{where}: hako does not know what {text} means.")
    return filled


def _directory(option: str, where: str) -> Directory:
    """``X-containerd.mkdir.path=PATH:MODE:UID:GID``, of which the path alone must be there."""
    path, *numbers = option.removeprefix(_MKDIR).split(":")
    _refuse_outside(path, where)
    texts = (*numbers, *("755", "0", "0")[len(numbers) :])
    try:
        mode, uid, gid = (int(text, base) for text, base in zip(texts, (8, 10, 10), strict=True))
    except ValueError:
        raise ConfigError(f"{where}: {option} is not a path with a mode and an owner.") from None
    return Directory(path, mode, uid, gid)


def _overlay(options: list[str], make: tuple[Directory, ...], where: str) -> GuestMount:
    flags, own = _split(options, _OVERLAY.union(_OVERLAY_DIRECTORIES), where)
    inside: list[str] = []
    for option in own:
        name, _, value = option.partition("=")
        if name in _OVERLAY_DIRECTORIES:
            inside += value.split(":") if name == "lowerdir" else [value]
    for path in inside:
        _refuse_outside(path, where)
    if not any(option.startswith("lowerdir=") for option in own):
        raise ConfigError(f"{where}.options: an overlay needs a lowerdir.")
    return GuestMount("overlay", flags, ",".join(own), source="overlay", make=make, inside=tuple(inside))


def _bind(source: str, options: list[str], make: tuple[Directory, ...], where: str) -> GuestMount:
    _refuse_outside(source, where)
    flags, _ = _split(options, _BINDS, where)
    return GuestMount("", flags | syscalls.MS_BIND | syscalls.MS_REC, "", source=source, make=make, inside=(source,))


def _refuse_outside(path: str, where: str) -> None:
    """Raises ConfigError for what is not on a mount of the same list, which a relative path stands for here."""
    parts = path.split("/")
    if not parts[0].isdigit() or any(part in ("", ".", "..") for part in parts):
        raise ConfigError(f"{where}: {path!r} is not on one of the mounts before, and the guest has no other files.")


def _split(options: Iterable[str], known: frozenset[str], where: str) -> tuple[int, list[str]]:
    """Flags, and options of the file system's own, each of which must be ``known``."""
    flags, own = 0, []
    for option in options:
        flag = _FLAGS.get(option)
        if flag is not None:
            flags = flags | flag if flag > 0 else flags & ~-flag
        elif option.partition("=")[0] in known:
            own.append(option)
        elif option not in _WITHOUT_MEANING:
            raise ConfigError(f"{where}.options: {option} is not known for this type of mount.")
    return flags, own
