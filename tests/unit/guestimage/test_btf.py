"""What is left of the kernel's description of its own types."""

from __future__ import annotations

import struct

import pytest

from hako.errors import ImageError
from hako.guestimage import btf
from hako.guestimage.elf import ElfFile
from support.elf import elf

BTF = struct.pack("<HBBIIIII", 0xEB9F, 1, 0, 24, 0, 400, 400, 1624) + b"t" * 400 + b"s" * 1624


def test_the_kernel_keeps_one_type_in_a_section_of_the_same_size() -> None:
    before = elf(sections={".text": b"code", ".BTF": BTF, ".data": b"data"})
    after = btf.without_kernel_types(before, "vmlinux")
    assert len(after) == len(before)
    file = ElfFile(after, "vmlinux")
    assert (file.section(".text"), file.section(".data")) == (b"code", b"data")
    content = file.section(".BTF")
    assert content is not None
    assert len(content) == len(BTF)
    magic, version, flags, header, type_at, types, string_at, strings = struct.unpack_from("<HBBIIIII", content)
    assert (magic, version, flags, header) == (0xEB9F, 1, 0, 24)
    # The kernel refuses gaps, overlaps and whatever is in neither.
    assert (type_at, type_at + types, header + string_at + strings) == (0, string_at, len(content))
    name, info, size, encoding = struct.unpack_from("<IIII", content, header)
    assert (info >> 24, size, encoding) == (1, 4, 1 << 24 | 32)
    table = content[header + string_at :]
    assert table[name : table.index(b"\0", name)] == b"int"
    assert (table[0], table[-1]) == (0, 0)
    assert table.strip(b"\0") == b"int"


def test_a_modules_section_becomes_empty() -> None:
    before = elf(kind=1, sections={".text": b"code", ".BTF": BTF, ".modinfo": b"name=x"})
    after = btf.without_module_types(before, "x.ko")
    file = ElfFile(after, "x.ko")
    assert [(section.name, section.size) for section in file.sections()] == [
        (section.name, 0 if section.name == ".BTF" else section.size) for section in ElfFile(before, "x.ko").sections()
    ]
    assert (file.section(".text"), file.section(".modinfo")) == (b"code", b"name=x")


@pytest.mark.parametrize("sections", [{}, {".text": b"code"}, {".BTF": b""}, {".BTF": BTF[:40]}])
def test_nothing_to_leave_out(sections: dict[str, bytes]) -> None:
    data = elf(sections=sections)
    assert btf.without_kernel_types(data, "vmlinux") == data


def test_a_module_without_types_stays_as_it_is() -> None:
    data = elf(kind=1, sections={".text": b"code"})
    assert btf.without_module_types(data, "x.ko") == data


@pytest.mark.parametrize("strip", [btf.without_kernel_types, btf.without_module_types])
def test_not_an_elf_file(strip: object) -> None:
    with pytest.raises(ImageError, match="x is not an ELF file"):
        strip(b"nonsense", "x")  # type: ignore[operator]
