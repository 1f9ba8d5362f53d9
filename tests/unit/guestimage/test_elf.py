"""The ELF reader: right answers for right files, ImageError and nothing else for all others."""

from __future__ import annotations

import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hako.errors import ImageError
from hako.guestimage.elf import ElfFile, modinfo
from support import elf as make

MODULE = make.module(name="foo", depends="bar,baz", alias=["pci:1", "pci:2"])
LIBRARY = make.library(["libc.so.6", "libm.so.6"], "libfoo.so.1")
KERNEL = make.kernel()


def test_modinfo_keeps_all_values() -> None:
    assert modinfo(MODULE, "foo.ko") == {"name": ["foo"], "depends": ["bar,baz"], "alias": ["pci:1", "pci:2"]}


def test_modinfo_of_a_file_that_is_no_module() -> None:
    with pytest.raises(ImageError, match=r"^lib\.so is not a kernel module"):
        modinfo(LIBRARY, "lib.so")


def test_libraries() -> None:
    elf = ElfFile(LIBRARY, "x")
    assert elf.needed() == ["libc.so.6", "libm.so.6"]
    assert elf.soname() == "libfoo.so.1"


def test_a_file_without_dynamic_section_needs_nothing() -> None:
    elf = ElfFile(KERNEL, "x")
    assert elf.needed() == []
    assert elf.soname() is None
    assert elf.sections() == []
    assert elf.section(".modinfo") is None


def test_notes_of_odd_sizes() -> None:
    block = make.note("Xen", 18, b"12345") + make.note("GNU", 3, b"") + make.note("", 7, b"1234")
    notes = ElfFile(make.elf(segments=[(4, 0, block)]), "x").notes()
    assert [tuple(note) for note in notes] == [("Xen", 18, b"12345"), ("GNU", 3, b""), ("", 7, b"1234")]


def test_a_real_program() -> None:
    with open(sys.executable, "rb") as file:
        elf = ElfFile(file.read(), sys.executable)
    assert "libc.so.6" in elf.needed()
    names = [section.name for section in elf.sections()]
    assert ".text" in names
    assert ".dynamic" in names


@pytest.mark.parametrize(
    ("data", "says"),
    [
        (b"", "is not an ELF file"),
        (b"#!/bin/sh\n", "is not an ELF file"),
        (b"\x7fELF\x01\x01" + bytes(60), "is not a 64-bit little-endian"),
        (b"\x7fELF\x02\x02" + bytes(60), "is not a 64-bit little-endian"),
        (b"\x7fELF\x02\x01", "is cut short|damaged"),
        (LIBRARY[:100], "damaged: it is cut short"),
    ],
)
def test_what_is_refused(data: bytes, says: str) -> None:
    with pytest.raises(ImageError, match=f"^file .*({says})"):
        ElfFile(data, "file")


def test_a_note_that_runs_past_its_segment() -> None:
    data = make.elf(segments=[(4, 0, make.note("Xen", 18, b"1234")[:-2])])
    with pytest.raises(ImageError, match="a note runs past its segment"):
        ElfFile(data, "x").notes()


def read_everything(data: bytes) -> None:
    try:
        elf = ElfFile(data, "x")
    except ImageError:
        return
    for question in (elf.sections, elf.notes, elf.needed, elf.soname, lambda: modinfo(data, "x")):
        try:
            question()
        except ImageError as error:
            assert str(error).startswith("x ")  # noqa: PT017 - every other exception fails the test


@given(st.binary(max_size=400))
def test_any_bytes_give_an_answer_or_an_image_error(tail: bytes) -> None:
    read_everything(tail)
    read_everything(b"\x7fELF\x02\x01" + tail)


@given(
    st.sampled_from([MODULE, LIBRARY, KERNEL]),
    st.lists(st.tuples(st.integers(4, 700), st.integers(0, 255)), max_size=8),
    st.integers(0, 700),
)
def test_damaged_files_give_an_answer_or_an_image_error(
    whole: bytes, changes: list[tuple[int, int]], length: int
) -> None:
    data = bytearray(whole)
    for at, value in changes:
        data[at % len(data)] = value
    read_everything(bytes(data))
    read_everything(bytes(data[:length]))
