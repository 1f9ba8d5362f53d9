"""The same trees as tar archives on standard input and output, for ``hako cp`` with ``-``."""

from __future__ import annotations

import io
import tarfile
from collections.abc import Iterable, Iterator
from typing import IO

from hako.cli.copytree import DIRECTORY, FILE, LINK, Entry
from hako.errors import ConfigError, HakoError


def read_tar(stream: IO[bytes], skipped: list[str]) -> Iterator[Entry]:
    """The members of the archive in ``stream``, compressed or not; ``skipped`` gets the names of devices and pipes.

    Raises ConfigError when it is damaged or a name in it leads out of it.
    """
    try:
        with tarfile.open(fileobj=stream, mode="r|*") as archive:
            for member in archive:
                entry = _from_member(member, archive)
                if entry is None:
                    skipped.append(member.name)
                elif entry.path or entry.kind == DIRECTORY:
                    yield entry
    except (tarfile.TarError, EOFError, OSError) as error:
        raise ConfigError(f"Standard input is not a usable tar archive: {error}.") from error


def _from_member(member: tarfile.TarInfo, archive: tarfile.TarFile) -> Entry | None:
    common = (member.mode & 0o7777, member.uid, member.gid, int(member.mtime * 1e9))
    path = _path(member.name)
    if member.isdir():
        return Entry(path, DIRECTORY, *common)
    if member.issym():
        return Entry(path, LINK, *common, link=member.linkname)
    if member.islnk():
        return Entry(path, FILE, *common, same_as=_path(member.linkname))
    if member.isreg():
        return Entry(path, FILE, *common, size=member.size, data=archive.extractfile(member))
    return None


def _path(name: str) -> tuple[str, ...]:
    parts = tuple(part for part in name.split("/") if part not in ("", "."))
    if ".." in parts or "\0" in name:
        raise ConfigError(f"The archive names {name!r}, which leads out of it.")
    return parts


def write_tar(entries: Iterable[Entry], stream: IO[bytes], top: str) -> None:
    """Write ``entries`` to ``stream`` as an archive; ``top`` is the name of the top entry. Raises HakoError."""
    with tarfile.open(fileobj=stream, mode="w|", format=tarfile.PAX_FORMAT) as archive:
        for entry in entries:
            member = _to_member(entry, top)
            try:
                archive.addfile(member, _Exactly(entry.data, member.size) if member.isreg() else None)
            except BrokenPipeError:
                raise
            except OSError as error:
                raise HakoError(f"Cannot copy {member.name}: {error.strerror}.") from error


def _to_member(entry: Entry, top: str) -> tarfile.TarInfo:
    member = tarfile.TarInfo("/".join((top, *entry.path)))
    member.mode, member.uid, member.gid, member.mtime = entry.mode, entry.uid, entry.gid, entry.mtime_ns // 10**9
    if entry.kind == DIRECTORY:
        member.type = tarfile.DIRTYPE
    elif entry.kind == LINK:
        member.type, member.linkname = tarfile.SYMTYPE, entry.link
    elif entry.same_as is not None:
        member.type, member.linkname = tarfile.LNKTYPE, "/".join((top, *entry.same_as))
    else:
        member.size = entry.size
    return member


class _Exactly(io.RawIOBase):
    """A file that is as long as it was said to be, whatever happens to it meanwhile: cut off, or filled with zeros."""

    def __init__(self, file: IO[bytes] | None, size: int) -> None:
        self._file = file
        self._left = size

    def read(self, size: int = -1) -> bytes:
        """Exactly ``size`` bytes, less only at the end."""
        wanted = self._left if size < 0 else min(size, self._left)
        data = bytearray()
        while len(data) < wanted:
            piece = self._file.read(wanted - len(data)) if self._file is not None else b""
            if not piece:
                piece = bytes(wanted - len(data))
            data += piece
        self._left -= wanted
        return bytes(data)
