"""Which program runs ``start``: what it says of itself does not tell which answers it understands.

containerd 2.0 to 2.2 understands version 3 of the Task service, and wants to be told so by JSON; 1.7 reads JSON too,
and refuses that version, as CRI-O does. All set the same variables (``MAX_SHIM_VERSION`` is 2 for each) and the same
flags. But who runs ``start`` is the parent, and Go has each program carry the path of its main package, which tells
containerd 2 from 1. The file is that of the running process, even where an upgrade has replaced it.

Facts: containerd core/runtime/v2/shim.go and pkg/shim/util.go of release/1.7 to release/2.3; cri-o
internal/oci/runtime_vm.go; Go src/debug/buildinfo and cmd/link/internal/ld/data.go.
"""

from __future__ import annotations

import os

#: Of the one major version of containerd that understands it, and does not say so itself.
_MAIN_PACKAGE = b"github.com/containerd/containerd/v2/cmd/containerd"
_ELF = b"\x7fELF\x02\x01"  # 64 bits, the lowest first, as on all that hako runs on
_SECTION = b".go.buildinfo"
_MAGIC = b"\xff Go buildinf:"
_INLINE = 2  # of the byte of flags: what the section says is in the section, since Go 1.18
_HEADER = 32
_SENTINEL = 16  # bytes before what the program was made of
#: What is read of sections' headers, their names, and the section.
_MAX_READ = 1 << 16


def knows_task_v3(pid: int | None = None) -> bool:
    """Whether the process ``pid``, by default the parent, is a containerd that understands a JSON answer with it.

    Who is not known does not.
    """
    return main_package(f"/proc/{os.getppid() if pid is None else pid}/exe") == _MAIN_PACKAGE


def main_package(path: str) -> bytes:
    """The path of the main package that a Go program was made of; empty for everything else."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    except OSError:
        return b""
    try:
        return _package(_section(fd))
    except (OSError, ValueError, OverflowError):
        return b""
    finally:
        os.close(fd)


def _section(fd: int) -> bytes:
    """The beginning of the section that Go writes. Raises OSError, and ValueError when there is none."""
    header = os.pread(fd, 64, 0)
    if not header.startswith(_ELF) or len(header) < 64:
        raise ValueError("not such a program")
    size, count, names = (_number(header, at, 2) for at in (0x3A, 0x3C, 0x3E))
    table = os.pread(fd, min(size * count, _MAX_READ), _number(header, 0x28, 8))
    if size < 64 or len(table) < size * count or names >= count:
        raise ValueError("no sections")
    sections = [table[at : at + size] for at in range(0, len(table), size)]
    texts = _content(fd, sections[names])
    for section in sections:
        if texts.startswith(_SECTION + b"\0", _number(section, 0, 4)):
            return _content(fd, section)
    raise ValueError("not made by Go")


def _content(fd: int, section: bytes) -> bytes:
    return os.pread(fd, min(_number(section, 0x20, 8), _MAX_READ), _number(section, 0x18, 8))


def _package(data: bytes) -> bytes:
    """What ``data`` says of the main package. Raises ValueError."""
    if not data.startswith(_MAGIC) or len(data) < _HEADER or not data[15] & _INLINE:
        raise ValueError("not what Go writes")
    _, rest = _text(data[_HEADER:])  # Go's own version
    made_of, _ = _text(rest)
    first = made_of[_SENTINEL:].split(b"\n", 1)[0]
    return first.removeprefix(b"path\t") if first.startswith(b"path\t") else b""


def _text(data: bytes) -> tuple[bytes, bytes]:
    """The text, of a length that stands before it, at the beginning of ``data``, and the rest. Raises ValueError."""
    length = 0
    for at, byte in enumerate(data[:5]):
        length |= (byte & 0x7F) << 7 * at
        if byte < 0x80:
            return data[at + 1 : at + 1 + length], data[at + 1 + length :]
    raise ValueError("no length")


def _number(data: bytes, at: int, size: int) -> int:
    return int.from_bytes(data[at : at + size], "little")
