"""Memory files: what is packed comes back, what is damaged is noticed, what is sealed stays as it is."""

from __future__ import annotations

import contextlib
import ctypes
import errno
import hashlib
import mmap
import os
import resource
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hako.errors import HostError, ImageError
from hako.template import memory
from hako.template.memory import PAGE, Packed

_PUNCH_HOLE = 0x02 | 0x01  # FALLOC_FL_PUNCH_HOLE, FALLOC_FL_KEEP_SIZE
_LIBC = ctypes.CDLL(None, use_errno=True)
_LIBC.fallocate.argtypes = (ctypes.c_int, ctypes.c_int, ctypes.c_int64, ctypes.c_int64)

#: A page: a hole, written with zeros, or with something that is not zero only at one place.
_PAGES = st.lists(st.one_of(st.none(), st.just(-1), st.integers(0, PAGE - 1)), min_size=1, max_size=24)


@pytest.fixture
def opened() -> Iterator[Callable[[int], int]]:
    """Takes descriptors, which are closed after the test."""
    with contextlib.ExitStack() as stack:

        def take(fd: int) -> int:
            stack.callback(os.close, fd)
            return fd

        yield take


def filled(pages: list[int | None]) -> int:
    """A memory file with these pages."""
    fd = memory.new("test", len(pages) * PAGE)
    for number, place in enumerate(pages):
        if place is not None:
            page = bytearray(PAGE)
            if place >= 0:
                page[place] = number % 255 + 1
            os.pwrite(fd, page, number * PAGE)
    return fd


def content(fd: int) -> bytes:
    return os.pread(fd, os.fstat(fd).st_size + 1, 0)


@settings(deadline=None, max_examples=50)
@given(_PAGES)
def test_what_was_packed_comes_back(pages: list[int | None]) -> None:
    with tempfile.TemporaryDirectory() as directory, contextlib.ExitStack() as stack:
        fd = filled(pages)
        stack.callback(os.close, fd)
        path = os.path.join(directory, "memory")
        packed = memory.pack(fd, path)
        assert packed.size == len(pages) * PAGE
        assert packed.used == PAGE * sum(place is not None and place >= 0 for place in pages)
        assert packed.used <= os.path.getsize(path) <= packed.used + 16 * (len(pages) + 2)
        with open(path, "rb") as file:
            assert hashlib.sha256(file.read()).hexdigest() == packed.sha256
        memory.check(path, packed)
        again = memory.unpack(path, packed, "again")
        stack.callback(os.close, again)
        assert content(again) == content(fd)
        assert memory.is_sealed(again)
        assert os.fstat(again).st_blocks * 512 <= packed.used


@settings(deadline=None, max_examples=50)
@given(_PAGES)
def test_a_copy_is_the_same_and_holes_stay_holes(pages: list[int | None]) -> None:
    with contextlib.ExitStack() as stack:
        fd, target = filled(pages), memory.new("target", len(pages) * PAGE)
        stack.callback(os.close, fd)
        stack.callback(os.close, target)
        os.lseek(fd, 7, os.SEEK_SET)
        memory.copy(fd, target)
        assert content(target) == content(fd)
        assert os.fstat(target).st_blocks == os.fstat(fd).st_blocks
        assert [length for _, length in memory.extents(target)] == [length for _, length in memory.extents(fd)]


@pytest.fixture(scope="module")
def packed(tmp_path_factory: pytest.TempPathFactory) -> tuple[bytes, Packed]:
    """A packed file and what is known of it."""
    path = tmp_path_factory.mktemp("packed") / "memory"
    fd = filled([None, 3, 4, None, -1, 100])
    try:
        known = memory.pack(fd, str(path))
    finally:
        os.close(fd)
    return path.read_bytes(), known


def refused(data: bytes, known: Packed) -> None:
    """``data`` is not taken for the packed file, and nothing stays open."""
    before = set(os.listdir("/proc/self/fd"))
    with tempfile.TemporaryDirectory() as directory:
        path = os.path.join(directory, "memory")
        with open(path, "wb") as file:
            file.write(data)
        for read in (lambda: memory.check(path, known), lambda: memory.unpack(path, known, "x")):
            with pytest.raises(ImageError) as caught:
                read()
            assert path in str(caught.value)
    assert set(os.listdir("/proc/self/fd")) == before


@settings(deadline=None, max_examples=50)
@given(st.data())
def test_a_damaged_file_is_noticed(packed: tuple[bytes, Packed], data: st.DataObject) -> None:
    whole, known = packed
    place, bits = data.draw(st.integers(0, len(whole) - 1)), data.draw(st.integers(1, 255))
    flipped = bytearray(whole)
    flipped[place] ^= bits
    refused(whole[:place], known)
    refused(bytes(flipped), known)


def test_something_behind_the_end_is_damage(packed: tuple[bytes, Packed]) -> None:
    refused(packed[0] + b"\0", packed[1])


def test_a_missing_file_is_damage(tmp_path: Path, packed: tuple[bytes, Packed]) -> None:
    for path in (tmp_path / "none", tmp_path):
        with pytest.raises(ImageError, match="cannot be read"):
            memory.unpack(str(path), packed[1], "x")


def test_packing_does_not_replace_a_file(tmp_path: Path, opened: Callable[[int], int]) -> None:
    path = tmp_path / "memory"
    path.write_bytes(b"mine")
    with pytest.raises(HostError, match="Cannot write"):
        memory.pack(opened(filled([1])), str(path))
    assert path.read_bytes() == b"mine"


def test_a_full_disk_is_a_sentence(tmp_path: Path, opened: Callable[[int], int]) -> None:
    fd = opened(filled([1] * 16))
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (8 * PAGE, before[1]))
    try:
        with pytest.raises(HostError, match=r"Cannot write .*memory: File too large"):
            memory.pack(fd, str(tmp_path / "memory"))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_pages_of_any_place_are_copied_in_one_go(opened: Callable[[int], int]) -> None:
    # Larger than what the kernel passes on at once.
    size = 3 << 20
    source, target = opened(memory.new("a", size)), opened(memory.new("b", size))
    data = os.urandom(size)
    os.pwrite(source, data, 0)
    memory.copy(source, target)
    assert content(target) == data


def punch(fd: int, offset: int, length: int) -> None:
    """Make a hole."""
    if _LIBC.fallocate(fd, _PUNCH_HOLE, offset, length) != 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))


def _map_shared(fd: int) -> None:
    mmap.mmap(fd, PAGE, mmap.MAP_SHARED, mmap.PROT_READ | mmap.PROT_WRITE).close()


_CHANGES: dict[str, Callable[[int], object]] = {
    "write": lambda fd: os.pwrite(fd, b"x", 0),
    "punch": lambda fd: punch(fd, 0, PAGE),
    "grow": lambda fd: os.ftruncate(fd, 16 * PAGE),
    "shrink": lambda fd: os.ftruncate(fd, PAGE),
    "allocate": lambda fd: os.posix_fallocate(fd, 0, 32 * PAGE),
    "map": _map_shared,
    "unseal": lambda fd: memory.fcntl.fcntl(fd, memory.fcntl.F_ADD_SEALS, 0),
}


@pytest.mark.parametrize("change", _CHANGES)
def test_nobody_can_change_a_sealed_file(change: str, opened: Callable[[int], int]) -> None:
    fd = opened(filled([1, None, 2, 3]))
    before = content(fd)
    # Each change works before, so that what is refused is refused for the seal.
    unsealed = opened(filled([1, None, 2, 3]))
    if change != "unseal":
        _CHANGES[change](unsealed)
    memory.seal(fd)
    for flags in (os.O_RDWR, os.O_RDWR | os.O_APPEND):
        again = opened(os.open(f"/proc/self/fd/{fd}", flags | os.O_CLOEXEC))
        for one in (fd, again):
            with pytest.raises(OSError) as caught:
                _CHANGES[change](one)
            assert caught.value.errno == errno.EPERM
    assert content(fd) == before


def test_a_private_view_is_a_view_of_ones_own(opened: Callable[[int], int]) -> None:
    fd = opened(filled([1, 2]))
    memory.seal(fd)
    before = content(fd)
    with mmap.mmap(fd, 2 * PAGE, mmap.MAP_PRIVATE, mmap.PROT_READ | mmap.PROT_WRITE) as view:
        view[:] = b"z" * (2 * PAGE)
        view.madvise(mmap.MADV_DONTNEED)
        with pytest.raises(OSError):
            view.madvise(mmap.MADV_REMOVE)
        assert content(fd) == before


def test_what_is_sealed_can_be_told(opened: Callable[[int], int], tmp_path: Path) -> None:
    fd = opened(filled([1]))
    assert not memory.is_sealed(fd)
    memory.seal(fd)
    assert memory.is_sealed(fd)
    for path in (tmp_path, "/dev/null"):
        assert not memory.is_sealed(opened(os.open(path, os.O_RDONLY)))


@settings(deadline=None, max_examples=30)
@given(st.binary(max_size=200))
def test_any_file_is_refused(packed: tuple[bytes, Packed], data: bytes) -> None:
    refused(data, packed[1])
