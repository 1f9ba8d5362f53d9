"""A small reader of ELF files: what the guest image builder must know about kernels, modules and libraries.

It reads 64-bit little-endian files only and tells which sections are there, which notes, what the dynamic section
says, above all which shared libraries are needed, and what a kernel module says about itself. Files come from
packages or from a user, so every offset is checked: any bytes at all give an answer or an ImageError, never another
exception.
"""

from __future__ import annotations

import struct

from hako.errors import ImageError
from hako.named import NamedTuple

MACHINE_X86_64 = 62
TYPE_EXECUTABLE = 2

_EHDR = struct.Struct("<16xHHIQQQIHHHHHH")
_PHDR = struct.Struct("<IIQQQQQQ")
_SHDR = struct.Struct("<IIQQQQIIQQ")
_DYN = struct.Struct("<qQ")
_NHDR = struct.Struct("<III")

_PT_LOAD, _PT_DYNAMIC, _PT_NOTE = 1, 2, 4
_DT_NULL, _DT_NEEDED, _DT_STRTAB, _DT_STRSZ, _DT_SONAME = 0, 1, 5, 10, 14
_SHT_NOBITS = 8
_SHN_XINDEX = 0xFFFF


class Section(NamedTuple):
    """One section: its name and where its bytes are in the file (size 0 when it has none)."""

    name: str
    offset: int
    size: int


class Segment(NamedTuple):
    """One program header."""

    type: int
    offset: int
    address: int
    size: int


class Note(NamedTuple):
    """One ELF note."""

    owner: str
    type: int
    data: bytes


class ElfFile:
    """An ELF file in memory. ``name`` is how error messages call it. Raises ImageError unless it is ELF64."""

    def __init__(self, data: bytes, name: str) -> None:
        self._data = data
        self._name = name
        if data[:4] != b"\x7fELF":
            raise ImageError(f"{name} is not an ELF file.")
        if data[4:6] != b"\x02\x01":
            raise ImageError(f"{name} is not a 64-bit little-endian ELF file.")
        header = self._unpack(_EHDR, 0)
        self.type, self.machine = header[0], header[1]
        self._phoff, self._shoff = header[4], header[5]
        self._phentsize, self._phnum = header[8], header[9]
        self._shentsize, self._shnum, self._shstrndx = header[10], header[11], header[12]
        self.segments = self._read_segments()

    def sections(self) -> list[Section]:
        """All sections in file order; empty when the file has no section table."""
        if self._shnum == 0 or self._shoff == 0:
            return []
        if self._shentsize != _SHDR.size or self._shstrndx >= self._shnum or self._shstrndx == _SHN_XINDEX:
            raise self._damaged("its section table is not valid")
        raw = [self._unpack(_SHDR, self._shoff + i * _SHDR.size) for i in range(self._shnum)]
        names = self._slice(raw[self._shstrndx][4], raw[self._shstrndx][5])
        return [Section(self._string(names, h[0]), h[4], 0 if h[1] == _SHT_NOBITS else h[5]) for h in raw]

    def section(self, name: str) -> bytes | None:
        """The content of the first section called ``name``, or None when there is no such section."""
        for section in self.sections():
            if section.name == name:
                return self._slice(section.offset, section.size)
        return None

    def section_header(self, name: str) -> int | None:
        """Where in the file the header (struct Elf64_Shdr) of the first section called ``name`` is, if there is one."""
        names = [section.name for section in self.sections()]
        return self._shoff + names.index(name) * _SHDR.size if name in names else None

    def notes(self) -> list[Note]:
        """The notes in the file's note segments."""
        found: list[Note] = []
        for segment in self.segments:
            if segment.type == _PT_NOTE:
                found += self._read_notes(self._slice(segment.offset, segment.size))
        return found

    def needed(self) -> list[str]:
        """Sonames of the shared libraries that this file is linked with, in its own order."""
        return [self.dynamic_string(value) for tag, value in self.dynamic() if tag == _DT_NEEDED]

    def soname(self) -> str | None:
        """The name that this shared library gives itself."""
        return next((self.dynamic_string(value) for tag, value in self.dynamic() if tag == _DT_SONAME), None)

    def _read_segments(self) -> list[Segment]:
        if self._phnum == 0:
            return []
        if self._phentsize != _PHDR.size:
            raise self._damaged("its program headers have an unknown size")
        raw = (self._unpack(_PHDR, self._phoff + i * _PHDR.size) for i in range(self._phnum))
        return [Segment(type=h[0], offset=h[2], address=h[3], size=h[5]) for h in raw]

    def _read_notes(self, block: bytes) -> list[Note]:
        found: list[Note] = []
        at = 0
        while at + _NHDR.size <= len(block):
            name_size, data_size, kind = _NHDR.unpack_from(block, at)
            name_at = at + _NHDR.size
            data_at = name_at + (name_size + 3 & ~3)
            at = data_at + (data_size + 3 & ~3)
            if data_at + data_size > len(block):
                raise self._damaged("a note runs past its segment")
            owner = block[name_at : name_at + name_size].rstrip(b"\0").decode("latin-1")
            found.append(Note(owner, kind, block[data_at : data_at + data_size]))
        return found

    def dynamic_offset(self) -> int:
        """Where the dynamic section begins in the file, 0 when there is none."""
        return next((segment.offset for segment in self.segments if segment.type == _PT_DYNAMIC), 0)

    def dynamic(self) -> list[tuple[int, int]]:
        """Tag and value of the dynamic section's entries, without the one that ends it."""
        entries: list[tuple[int, int]] = []
        for segment in self.segments:
            if segment.type == _PT_DYNAMIC:
                block = self._slice(segment.offset, segment.size)
                for tag, value in _DYN.iter_unpack(block[: len(block) // _DYN.size * _DYN.size]):
                    if tag == _DT_NULL:
                        break
                    entries.append((tag, value))
                break
        return entries

    def dynamic_string(self, at: int) -> str:
        """The string at ``at`` in the dynamic section's string table."""
        tags = dict(self.dynamic())
        address, size = tags.get(_DT_STRTAB), tags.get(_DT_STRSZ)
        if address is None or size is None:
            raise self._damaged("it has no dynamic string table")
        offset = self.offset_of(address)
        if offset is None:
            raise self._damaged("its dynamic string table is not in any segment")
        return self._string(self._slice(offset, size), at)

    def offset_of(self, address: int) -> int | None:
        """Where the byte that is loaded to ``address`` is in the file, None when it comes from nowhere in it."""
        for segment in self.segments:
            if segment.type == _PT_LOAD and segment.address <= address < segment.address + segment.size:
                return address - segment.address + segment.offset
        return None

    def _string(self, table: bytes, at: int) -> str:
        end = table.find(b"\0", at)
        if at >= len(table) or end < 0:
            raise self._damaged("a name lies outside its string table")
        return table[at:end].decode("latin-1")

    def _slice(self, offset: int, size: int) -> bytes:
        if offset + size > len(self._data):
            raise self._damaged("it is cut short")
        return self._data[offset : offset + size]

    def _unpack(self, layout: struct.Struct, offset: int) -> tuple[int, ...]:
        if offset + layout.size > len(self._data):
            raise self._damaged("it is cut short")
        return layout.unpack_from(self._data, offset)

    def _damaged(self, why: str) -> ImageError:
        return ImageError(f"{self._name} is damaged: {why}.")


def modinfo(data: bytes, name: str) -> dict[str, list[str]]:
    """What the kernel module ``data`` says about itself: each key of its .modinfo with all its values.

    Raises ImageError when the file is no kernel module.
    """
    block = ElfFile(data, name).section(".modinfo")
    if block is None:
        raise ImageError(f"{name} is not a kernel module: it has no .modinfo section.")
    info: dict[str, list[str]] = {}
    for line in block.decode("latin-1").split("\0"):
        key, separator, value = line.partition("=")
        if separator:
            info.setdefault(key, []).append(value)
    return info
