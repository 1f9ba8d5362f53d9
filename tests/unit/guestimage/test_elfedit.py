"""Taking a library from a program: a real one still works, and what cannot be edited safely is left alone."""

from __future__ import annotations

import struct
import subprocess
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hako.errors import ImageError
from hako.guestimage.elf import ElfFile
from hako.guestimage.elfedit import without_library
from support import elf as make

#: On every Debian: each symbol that it takes from these two is versioned.
TAR = "/bin/tar"
UNUSED = ("libacl.so.1", "libselinux.so.1")

STRINGS = b"\0liba.so.1\0libb.so.1\0A_1\0B_1\0a_call\0b_call\0"
BASE = 0x1000


def at(text: bytes) -> int:
    return STRINGS.index(b"\0" + text + b"\0") + 1


def program(
    *,
    machine: int = 62,
    relocation: int = 7,
    binding: int = 1,
    section: int = 0,
    version: int = 2,
    records: tuple[bytes, ...] = (b"liba.so.1", b"libb.so.1"),
    plt: int = 7,
) -> bytes:
    """A program with the libraries liba and libb that calls a_call (version A_1, number 2) and b_call (B_1, 3)."""
    symbols = bytes(24)
    for name, kind in ((b"a_call", binding), (b"b_call", 1)):
        symbols += struct.pack("<IBBHQQ", at(name), kind << 4 | 2, 0, section if name == b"a_call" else 0, 0, 0)
    versions = struct.pack("<HHHxx", 0, version, 3)
    needs = b""
    for number, file in enumerate(records):
        letter = file[3:4].upper()
        follows = 32 if number + 1 < len(records) else 0
        needs += struct.pack("<HHIII", 1, 1, at(file), 16, follows)
        needs += struct.pack("<IHHII", 0, 0, {b"A": 2, b"B": 3}[letter], at(letter + b"_1"), 0)
    calls = b"".join(struct.pack("<QIIq", 0x9000 + 8 * n, relocation if n == 1 else 7, n, 0) for n in (1, 2))
    content, places = b"", []
    for part in (STRINGS, symbols, versions, needs, calls):
        places.append(BASE + len(content))
        content += part + bytes(-len(part) % 8)
    entries = [(1, at(b"liba.so.1")), (1, at(b"libb.so.1")), (5, places[0]), (10, len(STRINGS)), (6, places[1])]
    entries += [(0x6FFFFFF0, places[2]), (0x6FFFFFFE, places[3]), (0x6FFFFFFF, len(records))]
    entries += [(23, places[4]), (2, len(calls)), (20, plt), (0, 0)]
    dynamic = b"".join(struct.pack("<qQ", *entry) for entry in entries)
    return make.elf(kind=3, machine=machine, segments=[(1, BASE, content), (2, 0x3000, dynamic)])


def test_a_real_program_works_without(tmp_path: Path) -> None:
    with open(TAR, "rb") as file:
        data = file.read()
    for number, soname in enumerate(UNUSED, 1):
        changed = without_library(data, TAR, soname)
        assert changed is not None
        data = changed
        needed = ElfFile(data, TAR).needed()
        assert needed == [*UNUSED[number:], "libc.so.6"]
        tar = tmp_path / "tar"
        tar.write_bytes(data)
        tar.chmod(0o755)
        # With every symbol looked up at the start.
        done = subprocess.run(
            [tar, "-cf", "-", "-C", "/etc", "passwd"], env={"LD_BIND_NOW": "1"}, capture_output=True, check=True
        )
        assert b"root:" in done.stdout
        tar.unlink()


def test_the_libraries_traces_are_gone() -> None:
    for soname, kept in (("liba.so.1", "libb.so.1"), ("libb.so.1", "liba.so.1")):
        changed = without_library(program(), "x", soname)
        assert changed is not None
        assert ElfFile(changed, "x").needed() == [kept]
        assert without_library(changed, "x", soname) is changed
        # One record of versions is left, and the last one is never taken.
        assert without_library(changed, "x", kept) is None
        before, after = ElfFile(program(), "x"), ElfFile(changed, "x")
        assert len(after.dynamic()) == len(before.dynamic()) - 1
        assert dict(after.dynamic())[0x6FFFFFFF] == 1
        symbols = before.offset_of(dict(before.dynamic())[6])
        assert symbols is not None
        weak = [changed[symbols + 24 * n + 4] >> 4 == 2 for n in (1, 2)]
        assert weak == [soname == "liba.so.1", soname == "libb.so.1"]


@pytest.mark.parametrize("soname", ["libz.so.1", "", "liba.so"])
def test_a_library_that_is_not_asked_for(soname: str) -> None:
    data = program()
    assert without_library(data, "x", soname) is data


@pytest.mark.parametrize(
    "data",
    [
        program(machine=183),
        program(relocation=5),
        program(binding=0),
        program(section=4),
        program(version=1),
        program(records=(b"liba.so.1",)),
        program(records=(b"libb.so.1", b"libb.so.1")),
        program(plt=17),
        make.library(["liba.so.1", "libb.so.1"]),
    ],
    ids=[
        "another processor", "a copied variable", "a local symbol", "a symbol of its own", "unversioned symbols",
        "no other record", "no record", "relocations of another form", "no versions at all",
    ],
)  # fmt: skip
def test_what_is_left_alone(data: bytes) -> None:
    assert without_library(data, "x", "liba.so.1") is None


def test_what_is_no_program_is_refused() -> None:
    with pytest.raises(ImageError, match="not an ELF file"):
        without_library(b"#!/bin/sh\n", "x", "liba.so.1")


@given(st.lists(st.tuples(st.integers(4, 900), st.integers(0, 255)), max_size=6), st.integers(0, 900))
def test_damaged_programs_give_an_answer_or_an_image_error(changes: list[tuple[int, int]], length: int) -> None:
    data = bytearray(program())
    for place, value in changes:
        data[place % len(data)] = value
    for whole in (bytes(data), bytes(data[:length])):
        try:
            result = without_library(whole, "x", "liba.so.1")
        except ImageError as error:
            assert str(error).startswith("x ")  # noqa: PT017 - every other exception fails the test
        else:
            assert result is None or len(result) == len(whole)
