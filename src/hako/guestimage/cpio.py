"""The file tree of an initrd, kept in memory and written as a cpio archive in the form the kernel reads ("newc").

The archive depends on nothing but the tree's content: entries are sorted, owners are root, times are zero.
"""

from __future__ import annotations

import stat

from hako.errors import ImageError
from hako.named import NamedTuple

_MAGIC = b"070701"
_TRAILER = "TRAILER!!!"
_MAX_FILE = 0xFFFFFFFF


class Entry(NamedTuple):
    """One file: its full mode (type and permission bits), its content or link target, its device number."""

    mode: int
    data: bytes = b""
    device: tuple[int, int] = (0, 0)


class Tree:
    """Files by path (relative, ``/`` between the parts). Parent directories come by themselves."""

    def __init__(self) -> None:
        self._entries: dict[str, Entry] = {}

    def add_file(self, path: str, data: bytes, *, executable: bool = False) -> None:
        """Add a regular file with mode 0755 when ``executable``, else 0644."""
        self._add(path, Entry(stat.S_IFREG | (0o755 if executable else 0o644), data))

    def add_directory(self, path: str, mode: int = 0o755) -> None:
        """Add a directory; adding it twice is fine, the later mode counts."""
        parent = path.rpartition("/")[0]
        if parent and parent not in self._entries:
            self.add_directory(parent)
        self._check(path, directory=True)
        self._entries[path] = Entry(stat.S_IFDIR | mode)

    def add_link(self, path: str, target: str) -> None:
        """Add a symbolic link to ``target``."""
        self._add(path, Entry(stat.S_IFLNK | 0o777, target.encode()))

    def add_character_device(self, path: str, major: int, minor: int, mode: int) -> None:
        """Add a character device node; no privilege is needed, it is only a record in the archive."""
        self._add(path, Entry(stat.S_IFCHR | mode, device=(major, minor)))

    def paths(self) -> list[str]:
        """Every path, parents before what they hold."""
        return sorted(self._entries)

    def size(self) -> int:
        """Bytes that the contents take once unpacked in the guest, each file rounded up to whole 4 KiB pages."""
        return sum(len(entry.data) + 4095 & ~4095 for entry in self._entries.values() if stat.S_ISREG(entry.mode))

    def to_cpio(self) -> bytes:
        """The whole tree as a cpio archive."""
        parts: list[bytes] = []
        for number, path in enumerate(self.paths(), 1):
            parts += _record(number, path, self._entries[path])
        parts += _record(0, _TRAILER, Entry(0))
        return b"".join(parts)

    def _add(self, path: str, entry: Entry) -> None:
        if len(entry.data) > _MAX_FILE:
            raise ImageError(f"{path} is too large for an initrd: a file in it can have 4 GiB at most.")
        parent = path.rpartition("/")[0]
        if parent and parent not in self._entries:
            self.add_directory(parent)
        self._check(path, directory=False)
        self._entries[path] = entry

    def _check(self, path: str, *, directory: bool) -> None:
        parts = path.split("/")
        if "" in parts or "." in parts or ".." in parts or "\0" in path or path == _TRAILER:
            raise ImageError(f"{path!r} cannot be the path of a file in an initrd.")
        parent = self._entries.get(path.rpartition("/")[0])
        if parent is not None and not stat.S_ISDIR(parent.mode):
            raise ImageError(f"{path} cannot be in the initrd: its parent is there, but it is no directory.")
        existing = self._entries.get(path)
        if existing is not None and not (directory and stat.S_ISDIR(existing.mode)):
            raise ImageError(f"{path} is in the initrd already.")


def _record(number: int, path: str, entry: Entry) -> list[bytes]:
    """One archive member: header, name and content, the last two padded to four bytes."""
    name = path.encode() + b"\0"
    links = 2 if stat.S_ISDIR(entry.mode) else 1
    fields = (number, entry.mode, 0, 0, links, 0, len(entry.data), 0, 0, *entry.device, len(name), 0)
    head = _MAGIC + b"".join(b"%08X" % value for value in fields) + name
    return [head, bytes(-len(head) % 4), entry.data, bytes(-len(entry.data) % 4)]
