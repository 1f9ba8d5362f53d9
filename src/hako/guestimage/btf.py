"""Leaving out BTF, the kernel's description of its own types.

It is for programs that trace the kernel. In a guest it would be 5 MB of memory in each VM. The kernel insists on having
some that is valid (kernel/bpf/btf.c, btf_parse_vmlinux), so what is left describes one type.
"""

from __future__ import annotations

import struct

from hako.guestimage.elf import ElfFile

_NAME = ".BTF"
# struct btf_header of include/uapi/linux/btf.h: magic, version, flags, header's length; offsets and lengths of the
# types and of the strings, counted from the header's end. The two have to fill the section.
_HEADER = struct.Struct("<HBBIIIII")
_MAGIC, _VERSION = 0xEB9F, 1
# A struct btf_type: offset of its name, kind (1: integer) in bits 24 to 28, size in bytes; then signedness and bits.
_INT = struct.pack("<IIII", 1, 1 << 24, 4, 1 << 24 | 32)
_STRINGS = b"\0int\0"


def without_kernel_types(vmlinux: bytes, name: str) -> bytes:
    """``vmlinux`` with as little BTF as its kernel accepts; as it is when it has none or less."""
    section = next((found for found in ElfFile(vmlinux, name).sections() if found.name == _NAME), None)
    least = _HEADER.size + len(_INT) + len(_STRINGS)
    if section is None or section.size <= least:
        return vmlinux
    rest = section.size - _HEADER.size - len(_INT)
    header = _HEADER.pack(_MAGIC, _VERSION, 0, _HEADER.size, 0, len(_INT), len(_INT), rest)
    content = (header + _INT + _STRINGS).ljust(section.size, b"\0")
    return vmlinux[: section.offset] + content + vmlinux[section.offset + section.size :]


def without_module_types(module: bytes, name: str) -> bytes:
    """``module`` with an empty BTF section, which its kernel takes for none; as it is when it has none."""
    at = ElfFile(module, name).section_header(_NAME)
    if at is None:
        return module
    edited = bytearray(module)
    # struct Elf64_Shdr: sh_flags is at 8, sh_size at 32.
    edited[at + 8 : at + 16] = bytes(8)
    edited[at + 32 : at + 40] = bytes(8)
    return bytes(edited)
