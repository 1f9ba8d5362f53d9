"""The console: hostile bytes are made harmless, and neither disk, memory nor processor is the guest's to fill."""

from __future__ import annotations

import asyncio
import os
import socket

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hako.hypervisor.console import BURST, LINE_CAP, RATE, TAIL_CAP, BoundedLog, SocketReader, printable


@pytest.mark.parametrize(
    ("data", "lines"),
    [
        (b"", []),
        (b"\n\r\n \t\n", []),
        (b"one\r\ntwo\n", ["one", "two"]),
        (b"10%\r100%\n", ["10%", "100%"]),
        (b"tab\there", ["tab    here"]),
        (b"\x1b[2J\x1b]0;title\x07x", ["\\x1b[2J\\x1b]0;title\\x07x"]),
        (b"a\x00b\x7f\x9b", ["a\\x00b\\x7f�"]),
        ("\u009b31m".encode(), ["\\x9b31m"]),
        ("left\u202eright".encode(), ["left\\u202eright"]),
        ("\u2028x".encode(), ["\\u2028x"]),
        ("日本 é".encode(), ["日本 é"]),
        (b"\xff\xfe ok", ["�� ok"]),
        (b"x" * (LINE_CAP + 1), ["x" * LINE_CAP + "…"]),
    ],
)
def test_printable(data: bytes, lines: list[str]) -> None:
    assert printable(data) == lines


@given(st.binary(max_size=2000))
def test_whatever_is_shown_is_printable(data: bytes) -> None:
    for line in printable(data):
        assert line.isprintable()


def test_the_tail_is_the_end() -> None:
    log = BoundedLog()
    for number in range(100):
        log.write(f"line {number}\n".encode())
    assert log.tail(2) == ["line 98", "line 99"]
    assert log.tail(0) == []


def test_memory_is_bounded() -> None:
    log = BoundedLog()
    for _ in range(50):
        log.write(b"x" * TAIL_CAP)
    assert len(log._tail) <= 2 * TAIL_CAP


@pytest.mark.parametrize("piece", [1, 7, 100, 999, 5000])
def test_the_files_keep_the_newest_and_stay_below_the_cap(tmp_path: os.PathLike[str], piece: int) -> None:
    path = os.path.join(tmp_path, "console.log")
    log = BoundedLog(path, cap=1000)
    data = bytes(number % 251 for number in range(10_000))
    for start in range(0, len(data), piece):
        log.write(data[start : start + piece])
        sizes = [os.path.getsize(name) for name in (path, path + ".1") if os.path.exists(name)]
        assert sum(sizes) <= 1000
    log.close()
    kept = b""
    for name in (path + ".1", path):
        with open(name, "rb") as file:
            kept += file.read()
    assert len(kept) >= 500
    assert data.endswith(kept)
    assert sorted(os.listdir(tmp_path)) == ["console.log", "console.log.1"]


def test_a_link_in_the_place_of_the_file_is_not_followed(tmp_path: os.PathLike[str]) -> None:
    target = os.path.join(tmp_path, "target")
    path = os.path.join(tmp_path, "console.log")
    os.symlink(target, path)
    log = BoundedLog(path)
    log.write(b"hello\n")
    log.close()
    assert not os.path.exists(target)
    assert log.tail(1) == ["hello"]


def test_a_full_disk_is_no_reason_to_fail() -> None:
    log = BoundedLog()
    log._path, log._fd = "/dev/full", os.open("/dev/full", os.O_WRONLY)
    log.write(b"one\n")
    log.write(b"two\n")
    assert log._fd == -1
    assert log.tail(2) == ["one", "two"]


def test_reading_is_limited_in_the_long_run() -> None:
    async def run() -> tuple[int, float]:
        ours, theirs = socket.socketpair()
        with ours, theirs:
            ours.setblocking(False)
            theirs.setblocking(False)
            loop = asyncio.get_running_loop()
            reader = SocketReader(ours, BoundedLog())
            sent, began = 0, loop.time()
            while sent < 4 * BURST and loop.time() - began < 1:
                try:
                    sent += theirs.send(b"x" * 65536)
                except BlockingIOError:
                    await asyncio.sleep(0.001)
            reader.stop()
            return sent, loop.time() - began

    sent, seconds = asyncio.run(run())
    in_the_socket, one_read = 1 << 20, 64 << 10
    assert BURST < sent <= BURST + RATE * seconds + in_the_socket + one_read


def test_draining_takes_what_is_there_and_ends() -> None:
    async def run() -> list[str]:
        ours, theirs = socket.socketpair()
        log = BoundedLog()
        with ours:
            ours.setblocking(False)
            reader = SocketReader(ours, log)
            theirs.sendall(b"last words\n")
            theirs.close()
            reader.drain()
            reader.drain()
            reader.stop()
        return log.tail(5)

    assert asyncio.run(run()) == ["last words"]


def test_after_the_end_the_descriptor_is_not_watched() -> None:
    async def watched() -> bool:
        ours, theirs = socket.socketpair()
        with ours:
            ours.setblocking(False)
            SocketReader(ours, BoundedLog())
            theirs.close()
            for _ in range(5):
                await asyncio.sleep(0)
            return asyncio.get_running_loop().remove_reader(ours)

    assert asyncio.run(watched()) is False
