"""Getting a kernel that QEMU can start directly: an uncompressed ELF file with an entry point for PVH boot.

Starting such a kernel skips the firmware's loader and the kernel's own decompression.
"""

from __future__ import annotations

import re
import struct

from hako.arch import current
from hako.errors import ImageError
from hako.guestimage.compression import decompress, kind_of
from hako.guestimage.elf import TYPE_EXECUTABLE, ElfFile
from hako.named import NamedTuple

_PVH_OWNER = "Xen"
_PVH_ENTRY = 18  # XEN_ELFNOTE_PHYS32_ENTRY
_BANNER = re.compile(rb"Linux version ([0-9][0-9A-Za-z.+~_-]{0,63}) ")

# Offsets in the header of a bzImage (the kernel's Documentation/arch/x86/boot.rst).
_SETUP_SECTORS = 0x1F1
_BOOT_MAGIC = 0x202
_BOOT_VERSION = 0x206
_PAYLOAD_OFFSET = 0x248
_HEADER_END = 0x250
_FIRST_WITH_PAYLOAD = 0x0208


class Kernel(NamedTuple):
    """A kernel ready to be started: its version (uname -r) and its ELF file."""

    version: str
    vmlinux: bytes


def load_kernel(path: str) -> Kernel:
    """Read the kernel file ``path``, a vmlinuz or a vmlinux. Raises ImageError when it is of no use."""
    try:
        with open(path, "rb") as file:
            data = file.read()
    except OSError as error:
        raise ImageError(f"Cannot read the kernel {path}: {error.strerror}.") from error
    return parse_kernel(data, path)


def parse_kernel(data: bytes, name: str) -> Kernel:
    """The kernel in ``data``; ``name`` is how errors call it."""
    vmlinux = _payload(data, name) if data[_BOOT_MAGIC : _BOOT_MAGIC + 4] == b"HdrS" else decompress(data, name)
    check_bootable(vmlinux, name)
    banner = _BANNER.search(vmlinux)
    if banner is None:
        raise ImageError(f"{name} is not a Linux kernel: it does not tell its version.")
    return Kernel(banner[1].decode(), vmlinux)


def check_bootable(vmlinux: bytes, name: str) -> None:
    """Raise ImageError unless ``vmlinux`` is an executable of this architecture with a PVH entry point."""
    elf = ElfFile(vmlinux, name)
    arch = current()
    if elf.type != TYPE_EXECUTABLE or elf.machine != arch.elf_machine:
        raise ImageError(f"{name} is not a kernel for {arch.name}.")
    if not any(note.owner == _PVH_OWNER and note.type == _PVH_ENTRY for note in elf.notes()):
        raise ImageError(f"The kernel {name} cannot be started directly: it was built without CONFIG_PVH.")


def _payload(data: bytes, name: str) -> bytes:
    """The vmlinux inside the bzImage ``data``."""
    if len(data) < _HEADER_END or struct.unpack_from("<H", data, _BOOT_VERSION)[0] < _FIRST_WITH_PAYLOAD:
        raise ImageError(f"{name} is not a kernel that hako can read: its boot header is too old or cut short.")
    setup = data[_SETUP_SECTORS] or 4
    offset, length = struct.unpack_from("<II", data, _PAYLOAD_OFFSET)
    start = (setup + 1) * 512 + offset
    if length < 8 or start + length > len(data):
        raise ImageError(f"{name} is damaged: its compressed kernel lies outside the file.")
    payload = data[start : start + length]
    kind = kind_of(payload)
    if kind is None:
        raise ImageError(f"{name} is not a kernel that hako can read: its compression is unknown.")
    # The last four bytes are the size of the unpacked kernel. gzip ends with that by itself; for the others
    # the kernel's build appends it, and the commands for zstd and lz4 would stumble over it.
    size = int.from_bytes(payload[-4:], "little")
    vmlinux = decompress(payload if kind == "gzip" else payload[:-4], name)
    if len(vmlinux) != size:
        raise ImageError(f"{name} is damaged: it unpacks to {len(vmlinux)} bytes instead of {size}.")
    return vmlinux
