"""Memory files: of a running VM, packed on disk, sealed for clones, copied for one clone.

A packed file holds what is not zero, so that it is small, and so that one digest covers all of it whatever copies or
restores it on the way (holes of a sparse file do not survive everything)::

    b"hakomem1" | u64 number of runs | runs: u64 offset, u64 length | data of the runs, in order     (little-endian)
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import mmap
import os
import struct
import sys
from collections.abc import Iterator

from hako.errors import HostError, ImageError
from hako.named import NamedTuple

PAGE = 4096

_MAGIC = b"hakomem1"
_HEAD = struct.Struct("<8sQ")
_RUN = struct.Struct("<QQ")

# include/uapi/linux/fcntl.h; Python 3.11 has names for all but the last.
_F_SEAL_ALL = fcntl.F_SEAL_SEAL | fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_WRITE

#: How long one thread may keep the others from running while memory is copied.
_SWITCH_SECONDS = 0.0001


class Packed(NamedTuple):
    """What is known of a packed file."""

    size: int  #: bytes of the memory it unpacks to
    used: int  #: bytes of it that are not zero
    sha256: str  #: of the packed file


def new(name: str, size: int) -> int:
    """A file in memory, empty and of ``size`` bytes, that can be sealed; returns its descriptor. Raises HostError."""
    try:
        fd = os.memfd_create(name, os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    except OSError as error:
        raise HostError(f"Cannot make a file in memory: {error.strerror}.") from error
    os.ftruncate(fd, size)
    return fd


def seal(fd: int) -> None:
    """From now on nobody can change the file, by whatever descriptor: not write it, map it for writing, punch holes."""
    fcntl.fcntl(fd, fcntl.F_ADD_SEALS, _F_SEAL_ALL)


def is_sealed(fd: int) -> bool:
    """Whether ``fd`` is a file that nobody can change."""
    try:
        return fcntl.fcntl(fd, fcntl.F_GET_SEALS) & _F_SEAL_ALL == _F_SEAL_ALL
    except OSError:
        return False


def extents(fd: int) -> Iterator[tuple[int, int]]:
    """Offset and length of each part of the file that is not a hole."""
    offset, size = 0, os.fstat(fd).st_size
    while offset < size:
        try:
            start = os.lseek(fd, offset, os.SEEK_DATA)
        except OSError as error:
            if error.errno == errno.ENXIO:
                return
            raise
        offset = os.lseek(fd, start, os.SEEK_HOLE)
        yield start, offset - start


def copy(source: int, target: int) -> None:
    """Copy what is in ``source`` to the empty file ``target``; holes stay holes. Raises HostError.

    For a thread of its own, which has to wait for the interpreter's lock between any two of hundreds of parts.
    """
    parts = list(extents(source))
    usual = sys.getswitchinterval()
    sys.setswitchinterval(_SWITCH_SECONDS)
    try:
        for offset, length in parts:
            end = offset + length
            while offset < end:
                offset += os.copy_file_range(source, target, end - offset, offset, offset)
    except OSError as error:
        raise HostError(f"Cannot copy a template's memory: {error.strerror}.") from error
    finally:
        sys.setswitchinterval(usual)


def pack(fd: int, path: str) -> Packed:
    """Write the memory file ``fd`` to ``path``, without its zero pages. Raises HostError, on a full disk too."""
    import hashlib

    size = os.fstat(fd).st_size
    with contextlib.ExitStack() as stack:
        view = stack.enter_context(mmap.mmap(fd, size, prot=mmap.PROT_READ))
        runs = list(_used_runs(view, fd))
        digest = hashlib.sha256()
        try:
            with open(path, "xb") as file:
                head = _HEAD.pack(_MAGIC, len(runs)) + b"".join(_RUN.pack(*run) for run in runs)
                for data in (head, *(view[offset : offset + length] for offset, length in runs)):
                    digest.update(data)
                    file.write(data)
        except OSError as error:
            raise HostError(f"Cannot write {path}: {error.strerror}.") from error
    return Packed(size, sum(length for _, length in runs), digest.hexdigest())


def _used_runs(view: mmap.mmap, fd: int) -> Iterator[tuple[int, int]]:
    """Offset and length of each run of pages that are not zero."""
    zero = bytes(PAGE)
    for offset, length in extents(fd):
        start = -1
        for page in range(offset, offset + length, PAGE):
            if view[page : page + PAGE] == zero:
                if start >= 0:
                    yield start, page - start
                start = -1
            elif start < 0:
                start = page
        if start >= 0:
            yield start, offset + length - start


def unpack(path: str, known: Packed, name: str) -> int:
    """The memory packed at ``path``, checked against its digest, in a sealed memory file; returns its descriptor.

    Raises ImageError when the file is missing, truncated or changed.
    """
    with contextlib.ExitStack() as stack:
        view = _open_packed(path, known.sha256, stack)
        fd = new(name, known.size)
        try:
            start = _HEAD.size + _RUN.size * _HEAD.unpack_from(view)[1]
            for offset, length in _RUN.iter_unpack(view[_HEAD.size : start]):
                with memoryview(view)[start : start + length] as data:
                    done = 0
                    while done < length:
                        done += os.pwrite(fd, data[done:], offset + done)
                start += length
            seal(fd)
        except BaseException:
            os.close(fd)
            raise
        return fd


def check(path: str, known: Packed) -> None:
    """Raise ImageError unless the packed file is what it was when it was written."""
    with contextlib.ExitStack() as stack:
        _open_packed(path, known.sha256, stack)


def _open_packed(path: str, sha256: str, stack: contextlib.ExitStack) -> mmap.mmap:
    import hashlib

    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        stack.callback(os.close, fd)
        view = stack.enter_context(mmap.mmap(fd, 0, prot=mmap.PROT_READ))
    except (OSError, ValueError) as error:
        raise ImageError(f"The template's memory {path} cannot be read: {error}.") from error
    # Whoever can write a file with the right digest wrote the rest of it too: its inside needs no checks of its own.
    if hashlib.sha256(view).hexdigest() != sha256:
        raise ImageError(f"The template's memory {path} is damaged: its checksum is another one.")
    return view
