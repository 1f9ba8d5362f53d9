"""Mounts as containerd's snapshotters describe a container's root: type, source and options as of mount(8).

They are made in the sandbox process's own mount namespace, so nothing of them is left on the host when that ends,
however it does. Facts: containerd's core/mount.
"""

from __future__ import annotations

import os
from collections.abc import Sequence

from hako.errors import ConfigError, HostError
from hako.linux import syscalls
from hako.named import NamedTuple
from hako.threads import in_thread_of_its_own

#: mount(2) takes no more than a page of options.
_PAGE = 4096
_MAX_MOUNTS = 64
_MAX_OPTIONS = 1024
# include/uapi/linux/mount.h
_SYNCHRONOUS, _NOATIME, _NODIRATIME, _RELATIME, _STRICTATIME = 1 << 4, 1 << 10, 1 << 11, 1 << 21, 1 << 24
_SET = {
    "ro": syscalls.MS_RDONLY,
    "nosuid": syscalls.MS_NOSUID,
    "nodev": syscalls.MS_NODEV,
    "noexec": syscalls.MS_NOEXEC,
    "sync": _SYNCHRONOUS,
    "noatime": _NOATIME,
    "nodiratime": _NODIRATIME,
    "relatime": _RELATIME,
    "strictatime": _STRICTATIME,
    "bind": syscalls.MS_BIND,
    "rbind": syscalls.MS_BIND | syscalls.MS_REC,
}
_CLEAR = {
    "rw": syscalls.MS_RDONLY,
    "suid": syscalls.MS_NOSUID,
    "dev": syscalls.MS_NODEV,
    "exec": syscalls.MS_NOEXEC,
    "async": _SYNCHRONOUS,
    "atime": _NOATIME,
    "diratime": _NODIRATIME,
}
_IGNORED = frozenset(("defaults", "loop", "auto", "noauto", "user", "nouser", "private", "rprivate", "_netdev"))


class Mount(NamedTuple):
    """One mount. ``target`` is a path below the root, empty for the root itself."""

    type: str
    source: str
    options: list[str] = []
    target: str = ""

    @property
    def is_bind(self) -> bool:
        """Whether it shows a directory that exists."""
        return self.type == "bind" or not {"bind", "rbind"}.isdisjoint(self.options)

    def flags(self) -> int:
        """The options that mount(2) takes as flags."""
        flags = 0
        for option in self.options:
            flags = (flags | _SET.get(option, 0)) & ~_CLEAR.get(option, 0)
        return flags

    def data(self) -> list[str]:
        """The options that are left for the file system."""
        return [option for option in self.options if option not in _SET.keys() | _CLEAR.keys() | _IGNORED]


def parse(value: object, where: str = "$.rootfs") -> list[Mount]:
    """The mounts that the JSON ``value`` lists. Raises ConfigError."""
    if not isinstance(value, list) or len(value) > _MAX_MOUNTS:
        raise ConfigError(f"{where}: not a list of at most {_MAX_MOUNTS} mounts.")
    return [_parse(entry, f"{where}[{index}]") for index, entry in enumerate(value)]


def _parse(entry: object, where: str) -> Mount:
    if not isinstance(entry, dict):
        raise ConfigError(f"{where}: not an object.")
    texts = [entry.get("type") or "", entry.get("source") or "", entry.get("target") or ""]
    options = entry.get("options") or []
    if not all(isinstance(text, str) and "\0" not in text for text in texts):
        raise ConfigError(f"{where}: type, source and target must be texts.")
    valid = isinstance(options, list) and len(options) <= _MAX_OPTIONS
    if not valid or not all(isinstance(option, str) and "\0" not in option for option in options):
        raise ConfigError(f"{where}.options: not a list of texts.")
    return Mount(texts[0], texts[1], list(options), texts[2])


def mount(wanted: Mount, point: str) -> None:
    """Mount what is not a bind at ``point``. Raises HostError."""
    data, flags = wanted.data(), wanted.flags()
    text = ",".join(data)
    try:
        if len(text.encode(errors="surrogateescape")) < _PAGE:
            syscalls.mount(wanted.source, point, wanted.type, flags, text)
        else:
            _mount_long(wanted, data, flags, point)
    except OSError as error:
        raise HostError(
            f"Cannot mount the container's root ({wanted.type} {wanted.source}): {error.strerror}."
        ) from error


def _mount_long(wanted: Mount, data: Sequence[str], flags: int, point: str) -> None:
    """With many layers, whose common directory is not repeated: a thread works in it, and names them from there."""
    lower = next((option for option in data if option.startswith("lowerdir=")), "")
    layers = lower.removeprefix("lowerdir=").split(":")
    base = os.path.commonpath(layers) if all(layer.startswith("/") for layer in layers) else ""
    short = [os.path.relpath(layer, base) for layer in layers] if base else layers
    text = ",".join("lowerdir=" + ":".join(short) if option == lower else option for option in data)
    if len(text.encode(errors="surrogateescape")) >= _PAGE:
        raise HostError(f"The container's root has too many layers ({len(layers)}) for one overlay mount.")

    def work() -> None:
        syscalls.unshare(syscalls.CLONE_FS)
        os.chdir(base)
        syscalls.mount(wanted.source, point, wanted.type, flags, text)

    in_thread_of_its_own(work)
