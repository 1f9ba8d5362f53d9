"""Who a container's process runs as: names looked up in the container's own /etc/passwd and /etc/group.

Those files are the image's, so they are opened as a process chrooted there would open them, only when they are
ordinary files, and read up to a limit.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator

from hako.errors import ConfigError, ImageError
from hako.named import NamedTuple

MAX_FILE = 1 << 20
MAX_ID = (1 << 31) - 1


class User(NamedTuple):
    """A user as the kernel and the environment know it."""

    uid: int
    gid: int
    groups: tuple[int, ...]  #: further groups; the primary one is among them
    home: str

    def to_oci(self) -> dict[str, object]:
        """The OCI user object."""
        return {"uid": self.uid, "gid": self.gid, "additionalGids": list(self.groups)}


class _Entry(NamedTuple):
    name: str
    uid: int
    gid: int
    home: str


def resolve(user: str, rootfs: str) -> User:
    """The user that ``NAME|UID[:GROUP|GID]`` means below ``rootfs``; an empty text is root.

    As docker does: a number needs no entry in /etc/passwd, a name does; a group that is named replaces the
    user's own and the further ones. With an empty ``rootfs`` only numbers can be resolved.
    Raises ConfigError for an unknown name, ImageError for files that cannot be used.
    """
    who, colon, group = user.partition(":")
    if colon and (not group or ":" in group):
        raise ConfigError(f"The user {user!r} is not valid: write NAME or UID, then :GROUP or :GID if need be.")
    entry = _find_user(who or "0", rootfs)
    if group:
        gid = _find_group(group, rootfs)
        return User(entry.uid, gid, (gid,), entry.home or "/")
    groups = {entry.gid}
    if entry.name:
        groups |= {gid for _, gid, members in _groups(rootfs) if entry.name in members}
    return User(entry.uid, entry.gid, tuple(sorted(groups)), entry.home or "/")


def _find_user(who: str, rootfs: str) -> _Entry:
    number = _number(who)
    by_number = None
    for entry in _users(rootfs):
        if entry.name == who:
            return entry
        if by_number is None and entry.uid == number:
            by_number = entry
    if by_number is not None:
        return by_number
    if number is None:
        raise ConfigError(f"There is no user {who} in the container's /etc/passwd: use one of its users, or a number.")
    return _Entry("", number, 0, "")


def _find_group(who: str, rootfs: str) -> int:
    for name, gid, _ in _groups(rootfs):
        if name == who:
            return gid
    number = _number(who)
    if number is None:
        raise ConfigError(f"There is no group {who} in the container's /etc/group: use one of its groups, or a number.")
    return number


def _number(text: str) -> int | None:
    """The id that ``text`` is, or None when it is a name. Raises ConfigError for one out of range."""
    if not (text.isascii() and text.isdigit()):
        return None
    if len(text) > 10 or int(text) > MAX_ID:
        raise ConfigError(f"The id {text[:20]} is too large: user and group ids go up to {MAX_ID}.")
    return int(text)


def _users(rootfs: str) -> Iterator[_Entry]:
    for fields in _lines(rootfs, "/etc/passwd"):
        uid, gid = (_stored(text) for text in [*fields, "", "", ""][2:4])
        if uid is not None and gid is not None:
            home = fields[5] if len(fields) > 5 else ""
            yield _Entry(fields[0], uid, gid, home if home.startswith("/") and "\0" not in home else "")


def _groups(rootfs: str) -> Iterator[tuple[str, int, list[str]]]:
    for fields in _lines(rootfs, "/etc/group"):
        gid = _stored([*fields, "", ""][2])
        if gid is not None:
            members = fields[3].split(",") if len(fields) > 3 else []
            yield fields[0], gid, [member.strip() for member in members]


def _stored(text: str) -> int | None:
    """An id in a file; what is no id makes its line one that is passed over, as libc does."""
    return int(text) if text.isascii() and text.isdigit() and len(text) <= 10 and int(text) <= MAX_ID else None


def _lines(rootfs: str, path: str) -> Iterator[list[str]]:
    for line in _read(rootfs, path).split("\n"):
        if line and not line.startswith("#"):
            yield line.rstrip("\r").split(":")


def _read(rootfs: str, path: str) -> str:
    """The text of ``path`` below ``rootfs``, empty when there is no such file. Raises ImageError."""
    if not rootfs:
        return ""
    from hako.linux import syscalls

    try:
        # A path descriptor does not touch the file: an image may have put a device or a FIFO there.
        place = syscalls.open_in_root(rootfs, path, os.O_PATH | os.O_CLOEXEC)
        try:
            if not stat.S_ISREG(os.fstat(place).st_mode):
                raise ImageError(f"The container's {path} is not an ordinary file, so its names cannot be looked up.")
            with open(f"/proc/self/fd/{place}", "rb") as file:
                data = file.read(MAX_FILE + 1)
        finally:
            os.close(place)
    except (FileNotFoundError, NotADirectoryError):
        return ""
    except OSError as error:
        raise ImageError(f"The container's {path} cannot be read: {error.strerror}.") from error
    if len(data) > MAX_FILE:
        raise ImageError(f"The container's {path} is larger than {MAX_FILE >> 20} MiB, so it is not used.")
    return data.decode(errors="replace")
