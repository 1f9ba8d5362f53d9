"""Undoing the compressions that kernels and kernel modules come in.

gzip, xz, lzma and bzip2 are undone by Python itself; zstd and lz4 by the command of the same name, which only
a user's own kernel needs (Debian's kernel uses xz, and its modules are not compressed).
"""

from __future__ import annotations

from hako.errors import ImageError

#: No kernel and no module is larger than this; what unpacks to more is an attack or an accident.
MAX_SIZE = 512 << 20

_MAGICS = (
    (b"\x1f\x8b\x08", "gzip"),
    (b"\xfd7zXZ\x00", "xz"),
    (b"BZh", "bzip2"),
    (b"\x28\xb5\x2f\xfd", "zstd"),
    (b"\x02\x21\x4c\x18", "lz4"),
    (b"\x04\x22\x4d\x18", "lz4"),
    (b"\x89LZO\x00", "lzo"),
    (b"\x5d\x00\x00", "lzma"),
)


def kind_of(data: bytes) -> str | None:
    """The name of the compression that ``data`` begins with, or None."""
    return next((name for magic, name in _MAGICS if data.startswith(magic)), None)


def decompress(data: bytes, name: str) -> bytes:
    """``data`` decompressed, or as it is when it is not compressed. ``name`` is how errors call it.

    Raises ImageError for damaged data, for an unknown compression and for more than MAX_SIZE bytes, HostError
    when the command that is needed is not installed.
    """
    kind = kind_of(data)
    if kind is None:
        return data
    result = _by_command(kind, data, name) if kind in ("zstd", "lz4") else _by_python(kind, data, name)
    if len(result) > MAX_SIZE:
        raise ImageError(f"{name} unpacks to more than {MAX_SIZE >> 20} MiB, which no kernel does.")
    return result


def _by_python(kind: str, data: bytes, name: str) -> bytes:
    import bz2
    import lzma
    import zlib

    limit = MAX_SIZE + 1
    try:
        # What follows the compressed stream (a bzImage appends the size) is left alone by all of these.
        if kind == "gzip":
            stream = zlib.decompressobj(31)
            result, complete = stream.decompress(data, limit), stream.eof
        elif kind in ("xz", "lzma"):
            unpacker = lzma.LZMADecompressor()
            result, complete = unpacker.decompress(data, limit), unpacker.eof
        elif kind == "bzip2":
            unzipper = bz2.BZ2Decompressor()
            result, complete = unzipper.decompress(data, limit), unzipper.eof
        else:
            raise ImageError(f"{name} is compressed with {kind}, which hako cannot read; use gzip, xz, zstd or lz4.")
    except (lzma.LZMAError, zlib.error, OSError, ValueError, EOFError) as error:
        raise ImageError(f"{name} is damaged: its {kind} data cannot be read ({error}).") from error
    if not complete and len(result) <= MAX_SIZE:
        raise ImageError(f"{name} is damaged: its {kind} data is cut short.")
    return result


def _by_command(kind: str, data: bytes, name: str) -> bytes:
    from hako.proc import CommandFailedError, run

    remedy = f"{name} is compressed with {kind}; install the package {kind} and try again."
    try:
        return run([kind, "-dcq"], input=data, missing=remedy, timeout=120).stdout
    except CommandFailedError as error:
        raise ImageError(f"{name} is damaged: its {kind} data cannot be read.") from error
