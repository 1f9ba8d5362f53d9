"""What is read from /proc, of processes that the test makes."""

from __future__ import annotations

import mmap
import os
import subprocess
from collections.abc import Iterator

import pytest

from bench import procs


@pytest.fixture
def family() -> Iterator[tuple[int, int]]:
    """A shell and its child, which has a session of its own as a guardian has."""
    with subprocess.Popen(["sh", "-c", "setsid sleep 1000 & echo $!; wait"], stdout=subprocess.PIPE) as shell:
        assert shell.stdout is not None
        child = int(shell.stdout.readline())
        yield shell.pid, child
        os.kill(child, 9)


def test_descendants_are_found_whatever_their_session(family: tuple[int, int]) -> None:
    shell, child = family
    assert {shell, child} <= procs.descendants([os.getpid()])
    assert procs.descendants([shell]) == {shell, child}
    assert procs.descendants([child]) == {child}
    assert procs.descendants([]) == set()


def test_what_has_ended_is_nobody() -> None:
    ended = subprocess.Popen(["true"])
    ended.wait()
    assert procs.descendants([ended.pid]) == set()
    assert procs.pss(ended.pid) == 0
    assert procs.resident(ended.pid) == 0
    assert procs.cpu_ns(ended.pid) == {}
    assert procs.name(ended.pid) == ""
    assert procs.mapped(ended.pid, {1}) == 0
    assert procs.memory_files(ended.pid) == {}


def test_memory_grows_by_what_is_touched() -> None:
    before = procs.pss(os.getpid())
    with mmap.mmap(-1, 32 << 20) as area:
        area.write(b"x" * (32 << 20))
        assert procs.pss(os.getpid()) - before > 30 << 20
        assert procs.resident(os.getpid()) > 30 << 20


def test_files_in_memory_are_found_and_what_is_mapped_of_them() -> None:
    fd = os.memfd_create("bench-test")
    try:
        os.ftruncate(fd, 8 << 20)
        os.pwrite(fd, b"x" * (2 << 20), 1 << 20)
        inode = os.fstat(fd).st_ino
        assert procs.memory_files(os.getpid())[inode] == 2 << 20
        with mmap.mmap(fd, 4 << 20, flags=mmap.MAP_PRIVATE, prot=mmap.PROT_READ | mmap.PROT_WRITE) as area:
            assert procs.mapped(os.getpid(), {inode}) == 0, "nothing of it has been looked at"
            assert area[1 << 20 : 3 << 20] == b"x" * (2 << 20)
            whole = procs.mapped(os.getpid(), {inode})
            assert whole >= 2 << 20
            area[1 << 20 : 2 << 20] = b"y" * (1 << 20)
            assert whole - procs.mapped(os.getpid(), {inode}) == 1 << 20, "the copies are not the file's"
        assert procs.mapped(os.getpid(), {inode}) == 0
    finally:
        os.close(fd)


def test_mappings_of_other_files_do_not_count() -> None:
    head = "7f0000000000-7f0000100000 rw-p 00000000 00:01 {} {}\nPss: 100 kB\nAnonymous: 30 kB\nVmFlags: rd wr\n"
    text = head.format(7, "/memfd:hako-template-x (deleted)") + head.format(8, "/memfd:other (deleted)")
    text += head.format(7, "/usr/bin/qemu") + head.format(0, "")
    assert procs.parse_mapped(text, {7}) == 70 << 10
    assert procs.parse_mapped(text, set()) == 0


def test_processor_time_counts_threads_that_began_meanwhile() -> None:
    assert procs.cpu_used({1: 100, 2: 50, 3: 7}, {1: 150, 2: 50, 4: 10}) == 60


def test_processor_time_grows_with_work() -> None:
    before = procs.cpu_ns(os.getpid())
    sum(range(3_000_000))
    assert procs.cpu_used(before, procs.cpu_ns(os.getpid())) > 1_000_000


def test_available_memory() -> None:
    assert 1 << 20 < procs.available_memory() < 1 << 50
