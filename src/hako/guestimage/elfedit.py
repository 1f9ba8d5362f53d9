"""Taking a shared library away from a program that can do without it.

A program that links a library but does not use it pays for it at each start, as the dynamic loader maps it and all
that it needs in turn. Here the program's own dynamic section is edited: the library is not asked for any more, and
what was expected of it becomes weak, so that the loader gives it the address 0. Calling it would be fatal.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator

from hako.guestimage.elf import MACHINE_X86_64, ElfFile

_DYN = struct.Struct("<qQ")
_SYM = struct.Struct("<IBBHQQ")
_RELA = struct.Struct("<QIIq")  # r_info is the type, then the symbol
_VERNEED = struct.Struct("<HHIII")
_VERNAUX = struct.Struct("<IHHII")

_DT_NULL, _DT_NEEDED, _DT_PLTRELSZ, _DT_SYMTAB, _DT_RELA, _DT_RELASZ, _DT_PLTREL, _DT_JMPREL = 0, 1, 2, 6, 7, 8, 20, 23
_DT_VERSYM, _DT_VERNEED, _DT_VERNEEDNUM = 0x6FFFFFF0, 0x6FFFFFFE, 0x6FFFFFFF
#: R_X86_64_64, GLOB_DAT and JUMP_SLOT: those that a weak symbol without definition makes 0. A copied variable, for
#: one, has no such meaning.
_POINTERS = (1, 6, 7)
_VERSION_GLOBAL = 1
_GLOBAL, _WEAK = 1, 2


class _OddLayoutError(Exception):
    """The file is not laid out as this module knows it."""


def without_library(data: bytes, name: str, soname: str) -> bytes | None:
    """The program ``data`` without the library ``soname``; None where that cannot be done.

    It can be done for x86-64 when every symbol of the library is versioned, which is how one tells that it is the
    library's, and is a function or a pointer. A program that does not ask for the library is returned as it is.
    Raises ImageError when ``data`` is no ELF file or a damaged one; ``name`` is how errors call it.
    """
    elf = ElfFile(data, name)
    if soname not in elf.needed():
        return data
    if elf.machine != MACHINE_X86_64:
        return None
    try:
        return _Editor(data, elf).remove(soname)
    except (_OddLayoutError, struct.error):
        return None


class _Editor:
    """One program while it is edited."""

    def __init__(self, data: bytes, elf: ElfFile) -> None:
        self._data = bytearray(data)
        self._elf = elf
        self._entries = elf.dynamic()
        self._tags = dict(self._entries)

    def remove(self, soname: str) -> bytes:
        versions = self._unlink_versions(soname)
        for index in self._symbols(versions):
            self._weaken(index)
        self._write_dynamic(soname)
        return bytes(self._data)

    def _unlink_versions(self, soname: str) -> set[int]:
        """Take the record of the versions wanted of ``soname`` out of the chain; return the versions' numbers."""
        address = self._tags.get(_DT_VERNEED)
        count = self._tags.get(_DT_VERNEEDNUM, 0)
        # Another one must stay: without any, the loader would not read the symbols' versions at all.
        if address is None or not 2 <= count <= 1 << 10:
            raise _OddLayoutError
        before = None
        for _ in range(count):
            at = self._offset(address)
            _, aux_count, file, aux, following = _VERNEED.unpack_from(self._data, at)
            if self._elf.dynamic_string(file) == soname:
                break
            before, address = at, address + following
        else:
            raise _OddLayoutError
        if before is None:
            self._tags[_DT_VERNEED] = address + following
        else:
            step = _VERNEED.unpack_from(self._data, before)[4] + following if following else 0
            struct.pack_into("<I", self._data, before + 12, step)
        self._tags[_DT_VERNEEDNUM] = count - 1
        versions: set[int] = set()
        address += aux
        for _ in range(aux_count):
            _, _, number, _, following = _VERNAUX.unpack_from(self._data, self._offset(address))
            versions.add(number)
            address += following
        return versions

    def _symbols(self, versions: set[int]) -> set[int]:
        """The numbers of the symbols that have one of these versions and are asked for."""
        found: set[int] = set()
        for kind, symbol in self._relocations():
            if self._version(symbol) in versions:
                if kind not in _POINTERS:
                    raise _OddLayoutError
                found.add(symbol)
        if not found:
            # A library without symbols in use may be there for what it does when it is loaded.
            raise _OddLayoutError
        return found

    def _relocations(self) -> Iterator[tuple[int, int]]:
        """Type and symbol of each relocation."""
        if self._tags.get(_DT_PLTREL, _DT_RELA) != _DT_RELA:
            raise _OddLayoutError
        for table, size in ((_DT_RELA, _DT_RELASZ), (_DT_JMPREL, _DT_PLTRELSZ)):
            if table in self._tags:
                start = self._offset(self._tags[table])
                for at in range(start, start + self._tags.get(size, 0), _RELA.size):
                    _, kind, symbol, _ = _RELA.unpack_from(self._data, at)
                    if symbol:
                        yield kind, symbol

    def _version_at(self, symbol: int) -> int:
        if _DT_VERSYM not in self._tags:
            raise _OddLayoutError
        return self._offset(self._tags[_DT_VERSYM]) + 2 * symbol

    def _version(self, symbol: int) -> int:
        (version,) = struct.unpack_from("<H", self._data, self._version_at(symbol))
        return int(version) & 0x7FFF

    def _weaken(self, symbol: int) -> None:
        if _DT_SYMTAB not in self._tags:
            raise _OddLayoutError
        at = self._offset(self._tags[_DT_SYMTAB]) + _SYM.size * symbol
        _, info, _, section, _, _ = _SYM.unpack_from(self._data, at)
        if info >> 4 not in (_GLOBAL, _WEAK) or section != 0:
            raise _OddLayoutError
        self._data[at + 4] = _WEAK << 4 | info & 0xF
        struct.pack_into("<H", self._data, self._version_at(symbol), _VERSION_GLOBAL)

    def _write_dynamic(self, soname: str) -> None:
        """Write the dynamic section anew; the entries behind the one that goes move up."""
        kept: list[tuple[int, int]] = []
        for tag, value in self._entries:
            if tag == _DT_NEEDED:
                if self._elf.dynamic_string(value) != soname:
                    kept.append((tag, value))
            else:
                kept.append((tag, self._tags[tag] if tag in (_DT_VERNEED, _DT_VERNEEDNUM) else value))
        kept += [(_DT_NULL, 0)] * (len(self._entries) - len(kept))
        block = b"".join(_DYN.pack(*entry) for entry in kept)
        at = self._elf.dynamic_offset()
        self._data[at : at + len(block)] = block

    def _offset(self, address: int) -> int:
        """Where the byte that is loaded to ``address`` is in the file."""
        offset = self._elf.offset_of(address)
        if offset is None:
            raise _OddLayoutError
        return offset
