"""Tells an OCI archive from a docker archive by content, and takes the compression off.

Only tar headers are read here, with a reader that keeps one block in memory whatever the file says.
"""

from __future__ import annotations

import os

from hako import paths, proc
from hako.errors import HakoError, HostError, ImageError
from hako.ociimage import tools
from hako.ociimage.reference import DOCKER_ARCHIVE, OCI_ARCHIVE

_BLOCK = 512
_MAX_ENTRIES = 1_000_000

# Magic number and the module of the standard library that decompresses, or none for zstd's program.
_COMPRESSIONS = ((b"\x1f\x8b", "gzip"), (b"BZh", "bz2"), (b"\xfd7zXZ\0", "lzma"), (b"\x28\xb5\x2f\xfd", ""))


def decompressed(path: str, staging: str) -> str:
    """``path`` itself when it is not compressed, else the name of a decompressed copy inside ``staging``.

    skopeo reads compressed archives itself, but Debian 12's fails on docker archives in gzip.
    Raises ImageError for damaged data and HostError when the program or the space is missing.
    """
    head = _head(path)
    for magic, module in _COMPRESSIONS:
        if head.startswith(magic):
            plain = os.path.join(staging, "archive.tar")
            try:
                if module:
                    _unpack_with(module, path, plain)
                else:
                    tools.run("zstd", ["-dqf", "-o", plain, path], package="zstd")
            except proc.CommandFailedError as error:
                raise _failure(path, error.stderr) from error
            return plain
    return path


def _unpack_with(module: str, path: str, plain: str) -> None:
    import importlib
    import shutil
    import zlib
    from lzma import LZMAError

    try:
        with importlib.import_module(module).open(path, "rb") as source, open(plain, "wb") as target:
            shutil.copyfileobj(source, target, 1 << 20)
    except (OSError, EOFError, zlib.error, LZMAError) as error:
        raise _failure(path, str(error)) from error


def _failure(path: str, reason: str) -> HakoError:
    if "No space left" in reason:
        return HostError(f"No disk space left while decompressing {path}; free some under {paths.data_root()}.")
    return ImageError(f"The archive {path} is damaged: it cannot be decompressed.")


def kind_of(path: str, shown: str) -> str:
    """OCI_ARCHIVE or DOCKER_ARCHIVE, by the names in the tar file ``path``; ``shown`` is its name in errors.

    Raises ImageError when it is neither.
    """
    names = set()
    with open(path, "rb") as file:
        size = os.fstat(file.fileno()).st_size
        position = 0
        for _ in range(_MAX_ENTRIES):
            header = os.pread(file.fileno(), _BLOCK, position)
            if len(header) < _BLOCK or not any(header):
                break
            name, length = _entry(header, position, shown)
            # An OCI archive has index.json, one written by docker has both; it is complete as either.
            if name == "index.json":
                return OCI_ARCHIVE
            names.add(name)
            position += _BLOCK + -(-length // _BLOCK) * _BLOCK
    if "manifest.json" in names:
        return DOCKER_ARCHIVE
    if position > size:
        raise ImageError(f"The archive {shown} is damaged: it ends too early.")
    raise ImageError(f"{shown} is not an image archive: it holds neither index.json (OCI) nor manifest.json (docker).")


def _entry(header: bytes, position: int, shown: str) -> tuple[str, int]:
    """Name and length of the entry that the tar header block describes."""
    stored = header[148:156].split(b"\0")[0].strip()
    blank = header[:148] + b" " * 8 + header[156:]
    try:
        if int(stored or b"0", 8) != sum(blank):
            raise ValueError
        field = header[124:136]
        # The top bit marks GNU's binary form, for files of 8 GiB and more.
        length = int.from_bytes(field[1:], "big") if field[0] & 0x80 else int(field.strip(b" \0") or b"0", 8)
    except ValueError:
        where = f"there is no tar header at byte {position}" if position else "it is not a tar file"
        raise ImageError(f"{shown} is not an image archive: {where}.") from None
    # Links and directories have no data whatever their size field says.
    if header[156:157] in b"123456":
        length = 0
    return header[:100].split(b"\0")[0].decode(errors="replace").removeprefix("./"), length


def _head(path: str) -> bytes:
    try:
        with open(path, "rb") as file:
            return file.read(8)
    except OSError as error:
        raise ImageError(f"Cannot read the image archive {path}: {error.strerror}.") from error
