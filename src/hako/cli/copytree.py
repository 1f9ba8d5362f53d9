"""Reading and writing trees of files for ``hako cp`` so that nobody who changes them meanwhile can lead it astray.

Every step goes from a directory's descriptor to a name in it and follows no symbolic link: what a container does
to its files while they are copied can spoil the copy, but not reach anything outside of it.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Callable, Iterator
from typing import IO

from hako.errors import ConfigError, HakoError, StateError
from hako.named import NamedTuple

DIRECTORY, FILE, LINK = "directory", "file", "link"
_MAX_DEPTH = 300
_PIECE = 4 << 20
_OPEN = os.O_CLOEXEC | os.O_NOFOLLOW


class Entry(NamedTuple):
    """One member of a tree. ``path`` is relative to its top, whose own path is empty."""

    path: tuple[str, ...]
    kind: str
    mode: int
    uid: int
    gid: int
    mtime_ns: int
    size: int = 0
    link: str = ""  #: target of a symbolic link
    same_as: tuple[str, ...] | None = None  #: an earlier file that this is a hard link to
    data: IO[bytes] | None = None  #: content of a file; open only until the next entry is asked for


def read_tree(parent: int, name: str, skipped: Callable[[str], None]) -> Iterator[Entry]:
    """The file, link or directory ``name`` in ``parent`` with everything below, outer things first.

    ``skipped`` gets the path of what cannot be copied: sockets, pipes, devices. Raises OSError, StateError.
    """
    yield from _read(parent, name, (), {}, skipped)


def _read(
    parent: int,
    name: str,
    path: tuple[str, ...],
    seen: dict[tuple[int, int], tuple[str, ...]],
    skipped: Callable[[str], None],
) -> Iterator[Entry]:
    if len(path) > _MAX_DEPTH:
        raise StateError(f"{'/'.join(path[:3])}/… is nested more than {_MAX_DEPTH} directories deep.")
    status = os.stat(name, dir_fd=parent, follow_symlinks=False)
    if stat.S_ISLNK(status.st_mode):
        yield _entry(path, LINK, status)._replace(link=os.readlink(name, dir_fd=parent))
    elif stat.S_ISREG(status.st_mode):
        yield from _read_file(parent, name, path, seen)
    elif stat.S_ISDIR(status.st_mode):
        fd = os.open(name, os.O_RDONLY | os.O_DIRECTORY | _OPEN, dir_fd=parent)
        try:
            yield _entry(path, DIRECTORY, os.fstat(fd))
            for child in sorted(os.listdir(fd)):
                try:
                    yield from _read(fd, child, (*path, child), seen, skipped)
                except FileNotFoundError:
                    continue  # removed meanwhile
        finally:
            os.close(fd)
    else:
        skipped("/".join(path) or name)


def _read_file(
    parent: int, name: str, path: tuple[str, ...], seen: dict[tuple[int, int], tuple[str, ...]]
) -> Iterator[Entry]:
    # O_NONBLOCK: should it have become a pipe since, opening it must not wait for a writer.
    with os.fdopen(os.open(name, os.O_RDONLY | os.O_NONBLOCK | _OPEN, dir_fd=parent), "rb", buffering=0) as file:
        status = os.fstat(file.fileno())
        if not stat.S_ISREG(status.st_mode):
            raise StateError(f"{'/'.join(path) or name} was changed while it was being copied.")
        entry = _entry(path, FILE, status)._replace(size=status.st_size, data=file)
        if status.st_nlink > 1:
            first = seen.setdefault((status.st_dev, status.st_ino), path)
            entry = entry._replace(same_as=first if first != path else None)
        yield entry


def _entry(path: tuple[str, ...], kind: str, status: os.stat_result) -> Entry:
    return Entry(path, kind, stat.S_IMODE(status.st_mode), status.st_uid, status.st_gid, status.st_mtime_ns)


class TreeWriter:
    """Writes entries below ``parent``, the top one under ``name``. ``finish()`` sets what directories need last.

    ``top_file`` is an open regular file that takes the top entry's content if that is a file. Without
    ``special_bits`` files lose set-user-id and set-group-id: a container's must not become the host's.
    """

    def __init__(self, parent: int, name: str, *, top_file: int = -1, special_bits: bool = True) -> None:
        self._parent = parent
        self._name = name
        self._top_file = top_file
        self._mask = 0o7777 if special_bits else 0o1777
        self._own = os.geteuid() == 0
        self._made: list[Entry] = []

    def write(self, entry: Entry) -> None:
        """Write one entry. Raises ConfigError where a directory and something else meet, and OSError."""
        if entry.kind == FILE and not entry.path and self._top_file >= 0:
            self._fill(os.open(f"/proc/self/fd/{self._top_file}", os.O_WRONLY | os.O_TRUNC | os.O_CLOEXEC), entry)
            return
        parent = self._open_parent(entry.path)
        name = entry.path[-1] if entry.path else self._name
        try:
            _WRITERS[entry.kind](self, parent, name, entry)
        finally:
            os.close(parent)

    def _open_parent(self, path: tuple[str, ...]) -> int:
        """The directory in which ``path`` is; those that an archive does not name are made."""
        fd = os.dup(self._parent)
        for part in (self._name, *path[:-1]) if path else ():
            try:
                below = self._open_or_make(fd, part)
            except NotADirectoryError:
                shown = "/".join(path[:-1])
                raise ConfigError(f"{shown} is not a directory at the destination, or a link to one.") from None
            finally:
                os.close(fd)
            fd = below
        return fd

    def _open_or_make(self, fd: int, part: str) -> int:
        try:
            return os.open(part, os.O_RDONLY | os.O_DIRECTORY | _OPEN, dir_fd=fd)
        except FileNotFoundError:
            os.mkdir(part, 0o755, dir_fd=fd)
            return os.open(part, os.O_RDONLY | os.O_DIRECTORY | _OPEN, dir_fd=fd)

    def _directory(self, parent: int, name: str, entry: Entry) -> None:
        try:
            os.mkdir(name, 0o700, dir_fd=parent)
        except FileExistsError:
            if not stat.S_ISDIR(os.stat(name, dir_fd=parent, follow_symlinks=False).st_mode):
                raise ConfigError(f"{_shown(entry, name)} is a directory here and something else there.") from None
            return
        self._made.append(entry)

    def _link(self, parent: int, name: str, entry: Entry) -> None:
        _make_way(parent, name, entry)
        os.symlink(entry.link, name, dir_fd=parent)
        if self._own:
            os.chown(name, entry.uid, entry.gid, dir_fd=parent, follow_symlinks=False)
        os.utime(name, ns=(entry.mtime_ns, entry.mtime_ns), dir_fd=parent, follow_symlinks=False)

    def _file(self, parent: int, name: str, entry: Entry) -> None:
        if entry.same_as is not None and self._hard_link(parent, name, entry, entry.same_as):
            return
        flags = os.O_WRONLY | os.O_NONBLOCK | _OPEN
        try:
            fd = os.open(name, flags | os.O_CREAT | os.O_EXCL, 0o600, dir_fd=parent)
        except FileExistsError:
            if stat.S_ISREG(os.stat(name, dir_fd=parent, follow_symlinks=False).st_mode):
                # In place: who has it open, or mounted, sees the new content.
                fd = os.open(name, flags, dir_fd=parent)
            else:
                _make_way(parent, name, entry)
                fd = os.open(name, flags | os.O_CREAT | os.O_EXCL, 0o600, dir_fd=parent)
        if not stat.S_ISREG(os.fstat(fd).st_mode):
            os.close(fd)
            raise StateError(f"{_shown(entry, name)} was changed while it was being written.")
        self._fill(fd, entry)

    def _hard_link(self, parent: int, name: str, entry: Entry, first: tuple[str, ...]) -> bool:
        source = self._open_parent(first)
        try:
            _make_way(parent, name, entry)
            os.link(first[-1], name, src_dir_fd=source, dst_dir_fd=parent, follow_symlinks=False)
        except OSError:
            if entry.data is None:  # an archive brings the content but once
                raise
            return False
        finally:
            os.close(source)
        return True

    def _fill(self, fd: int, entry: Entry) -> None:
        try:
            os.ftruncate(fd, 0)
            while entry.data is not None and (piece := entry.data.read(_PIECE)):
                view = memoryview(piece)
                while view:
                    view = view[os.write(fd, view) :]
            self._finish(fd, entry)
        finally:
            os.close(fd)

    def _finish(self, fd: int, entry: Entry) -> None:
        # The owner first: changing it clears the set-user-id bit.
        if self._own:
            os.fchown(fd, entry.uid, entry.gid)
        os.fchmod(fd, entry.mode & (0o7777 if entry.kind == DIRECTORY else self._mask))
        os.utime(fd, ns=(entry.mtime_ns, entry.mtime_ns))

    def finish(self) -> None:
        """Give the directories that were made their owners, modes and times, inner ones first."""
        for entry in reversed(self._made):
            parent = self._open_parent(entry.path)
            name = entry.path[-1] if entry.path else self._name
            try:
                fd = os.open(name, os.O_RDONLY | os.O_DIRECTORY | _OPEN, dir_fd=parent)
            finally:
                os.close(parent)
            try:
                self._finish(fd, entry)
            finally:
                os.close(fd)
        self._made.clear()


_WRITERS = {DIRECTORY: TreeWriter._directory, FILE: TreeWriter._file, LINK: TreeWriter._link}


def _shown(entry: Entry, name: str) -> str:
    return "/".join(entry.path) or name


def _make_way(parent: int, name: str, entry: Entry) -> None:
    """Remove what is not a directory."""
    try:
        os.unlink(name, dir_fd=parent)
    except FileNotFoundError:
        pass
    except IsADirectoryError:
        raise ConfigError(f"{_shown(entry, name)} is a directory there and something else here.") from None


def copy(entries: Iterator[Entry], writer: TreeWriter, shown: str) -> None:
    """Write all of ``entries``. Raises HakoError with the path that could not be written, below ``shown``."""
    for entry in entries:
        try:
            writer.write(entry)
        except OSError as error:
            raise HakoError(f"Cannot copy to {'/'.join((shown, *entry.path))}: {error.strerror}.") from error
    writer.finish()
