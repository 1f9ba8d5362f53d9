"""The initrd archive: its exact bytes, and that a reader gets back what was put in."""

from __future__ import annotations

import stat

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hako.errors import ImageError
from hako.guestimage.cpio import Tree


def read(archive: bytes) -> dict[str, tuple[int, bytes, tuple[int, int]]]:
    """A small reader: path → (mode, content, device). Fails on what the kernel would refuse."""
    found: dict[str, tuple[int, bytes, tuple[int, int]]] = {}
    numbers = set()
    at = 0
    while True:
        assert at % 4 == 0
        assert archive[at : at + 6] == b"070701"
        fields = [int(archive[at + 6 + 8 * i : at + 14 + 8 * i], 16) for i in range(13)]
        name_at = at + 110
        assert archive[name_at + fields[11] - 1] == 0
        name = archive[name_at : name_at + fields[11] - 1].decode()
        data_at = name_at + fields[11] + 3 & ~3
        at = data_at + fields[6] + 3 & ~3
        if name == "TRAILER!!!":
            assert at == len(archive)
            return found
        assert name not in found
        assert fields[0] not in numbers
        numbers.add(fields[0])
        parent = name.rpartition("/")[0]
        assert not parent or stat.S_ISDIR(found[parent][0]), "a parent comes after what it holds"
        assert fields[2:4] == [0, 0], "owner"
        assert fields[5] == 0, "time"
        found[name] = (fields[1], archive[data_at : data_at + fields[6]], (fields[9], fields[10]))


def test_golden_bytes() -> None:
    tree = Tree()
    tree.add_file("a", b"hello")
    head = b"07070100000001000081A40000000000000000000000010000000000000005"
    head += b"000000000000000000000000000000000000000200000000"
    end = b"070701" + b"00000000" * 4 + b"00000001" + b"00000000" * 6 + b"0000000B" + b"00000000"
    assert tree.to_cpio() == head + b"a\0" + b"hello\0\0\0" + end + b"TRAILER!!!\0" + b"\0\0\0"


def test_every_kind_of_file() -> None:
    tree = Tree()
    tree.add_link("bin", "usr/bin")
    tree.add_file("usr/bin/tool", b"#!", executable=True)
    tree.add_character_device("dev/console", 5, 1, 0o600)
    tree.add_directory("tmp", 0o1777)
    tree.add_directory("usr", 0o700)
    assert read(tree.to_cpio()) == {
        "bin": (0o120777, b"usr/bin", (0, 0)),
        "dev": (0o40755, b"", (0, 0)),
        "dev/console": (0o20600, b"", (5, 1)),
        "tmp": (0o41777, b"", (0, 0)),
        "usr": (0o40700, b"", (0, 0)),
        "usr/bin": (0o40755, b"", (0, 0)),
        "usr/bin/tool": (0o100755, b"#!", (0, 0)),
    }


NAMES = st.text("abc-.é", min_size=1, max_size=4).filter(lambda name: name not in (".", ".."))


@given(st.dictionaries(st.lists(NAMES, min_size=1, max_size=3).map("/".join), st.binary(max_size=9), max_size=12))
def test_round_trip_whatever_the_order(files: dict[str, bytes]) -> None:
    usable = {p: d for p, d in files.items() if not any(other.startswith(f"{p}/") for other in files)}
    one, other = Tree(), Tree()
    for path in usable:
        one.add_file(path, usable[path])
    for path in reversed(usable):
        other.add_file(path, usable[path])
    assert one.to_cpio() == other.to_cpio()
    found = read(one.to_cpio())
    assert {path: data for path, (mode, data, _) in found.items() if stat.S_ISREG(mode)} == usable


@pytest.mark.parametrize("path", ["", "/etc", "etc/", "a//b", "../x", "a/../b", "a/.", "a\0b", "TRAILER!!!"])
def test_paths_that_are_refused(path: str) -> None:
    with pytest.raises(ImageError, match="cannot be the path of a file"):
        Tree().add_file(path, b"")


def test_clashes_are_refused() -> None:
    tree = Tree()
    tree.add_file("a", b"")
    tree.add_directory("d")
    for clash in (lambda: tree.add_file("a", b"x"), lambda: tree.add_link("a", "b"), lambda: tree.add_file("d", b"")):
        with pytest.raises(ImageError, match="is in the initrd already"):
            clash()
    with pytest.raises(ImageError, match="its parent is there, but it is no directory"):
        tree.add_file("a/b", b"")


@pytest.mark.parametrize(("sizes", "total"), [([], 0), ([0], 0), ([1], 4096), ([4096, 4097], 12288)])
def test_size_counts_whole_pages(sizes: list[int], total: int) -> None:
    tree = Tree()
    for number, size in enumerate(sizes):
        tree.add_file(f"f{number}", bytes(size))
    assert tree.size() == total
