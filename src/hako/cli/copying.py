"""What ``hako cp`` means by its two paths: docker's rules, on paths of the host or inside a container's root."""

from __future__ import annotations

import os
import stat

from hako.cli.copytree import TreeWriter, copy, read_tree
from hako.errors import ConfigError, NotFoundError
from hako.named import NamedTuple

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

_FIND = os.O_PATH | os.O_CLOEXEC
_FIND_DIRECTORY = _FIND | os.O_DIRECTORY


class Place:
    """Where paths are resolved: the host's file system. containerfs.ContainerPlace is the other one."""

    #: Whether files written here may keep set-user-id bits.
    special_bits = False

    def open(self, path: str, flags: int) -> int:
        """Open ``path``; links are followed. Raises OSError."""
        return os.open(path, flags)

    def describe(self, path: str) -> str:
        """``path`` for an error message."""
        return path

    def accept(self, fd: int, path: str) -> None:
        """Refuse what cannot be copied from or to. Raises ConfigError."""


class Source(NamedTuple):
    """What to copy: ``name`` in the directory ``parent``; ``contents`` is for ``DIRECTORY/.``."""

    parent: int
    name: str
    base: str  #: what the copy is called if the destination does not say
    is_directory: bool
    contents: bool


def find_source(place: Place, path: str, *, follow: bool = False) -> Source:
    """Resolve the source ``path``; a link is copied itself unless ``follow``. Raises NotFoundError, ConfigError."""
    stripped = path.rstrip("/")
    last = os.path.basename(stripped)
    contents = last in (".", "..", "")
    try:
        # Through a link with a slash behind it there is a directory, not the link.
        if contents or path.endswith("/") or follow:
            fd = place.open(path, _FIND)
            place.accept(fd, path)
            if stat.S_ISDIR(os.fstat(fd).st_mode):
                return Source(fd, ".", last, True, contents)
            real = os.readlink(f"/proc/self/fd/{fd}")
            os.close(fd)
            if path.endswith("/"):
                raise ConfigError(f"{place.describe(path)} is not a directory.")
            return Source(os.open(os.path.dirname(real), _FIND_DIRECTORY), os.path.basename(real), last, False, False)
        parent = place.open(os.path.dirname(stripped) or ".", _FIND_DIRECTORY)
        place.accept(parent, os.path.dirname(path))
        status = os.stat(last, dir_fd=parent, follow_symlinks=False)
        if stat.S_ISDIR(status.st_mode):
            # A mount point is seen from above only.
            fd = place.open(stripped, _FIND)
            place.accept(fd, path)
            return Source(fd, ".", last, True, False)
    except OSError as error:
        raise NotFoundError(f"Cannot copy {place.describe(path)}: {error.strerror}.") from error
    return Source(parent, last, last, False, False)


class Destination(NamedTuple):
    """Where to copy to: an existing directory (``name`` is empty), an existing file, or a new ``name``."""

    parent: int
    name: str
    file: int = -1  #: an existing regular file, opened with O_PATH
    wants_directory: bool = False  #: written with a slash at the end


def find_destination(place: Place, path: str) -> Destination:
    """Resolve the destination ``path``. Raises NotFoundError when its directory is missing, ConfigError."""
    slash = path.endswith(("/", "/."))
    stripped = path.rstrip("/") or "/"
    try:
        fd = place.open(path, _FIND)
    except FileNotFoundError:
        return _find_new(place, stripped, wants_directory=slash)
    except OSError as error:
        raise NotFoundError(f"Cannot copy to {place.describe(path)}: {error.strerror}.") from error
    place.accept(fd, path)
    mode = os.fstat(fd).st_mode
    if stat.S_ISDIR(mode):
        return Destination(fd, "")
    if not stat.S_ISREG(mode):
        raise ConfigError(f"Cannot copy to {place.describe(path)}: it is neither a file nor a directory.")
    new = _find_new(place, stripped, wants_directory=False)
    return new._replace(file=fd)


def _find_new(place: Place, path: str, *, wants_directory: bool) -> Destination:
    directory = os.path.dirname(path) or "."
    try:
        parent = place.open(directory, _FIND_DIRECTORY)
    except OSError as error:
        raise NotFoundError(
            f"Cannot copy to {place.describe(path)}: {place.describe(directory)}: {error.strerror}."
        ) from error
    place.accept(parent, path)
    return Destination(parent, os.path.basename(path), wants_directory=wants_directory)


def writer_for(source: Source, to: Destination, place: Place, shown: str) -> TreeWriter:
    """Where the top of ``source`` goes, by docker's rules. Raises ConfigError."""
    if not to.name:
        if source.contents:
            return TreeWriter(to.parent, ".", special_bits=place.special_bits)
        return TreeWriter(to.parent, source.base, special_bits=place.special_bits)
    if source.is_directory and to.file >= 0:
        raise ConfigError(f"Cannot copy a directory to {shown}, which is a file.")
    if to.wants_directory and not source.is_directory:
        raise ConfigError(f"Cannot copy to {shown}: there is no such directory.")
    return TreeWriter(to.parent, to.name, top_file=to.file, special_bits=place.special_bits)


def copy_path(
    source: Source, destination: Destination, place: Place, shown: str, skipped: Callable[[str], None]
) -> None:
    """Copy ``source`` to ``destination`` in ``place``."""
    copy(read_tree(source.parent, source.name, skipped), writer_for(source, destination, place, shown), shown)
