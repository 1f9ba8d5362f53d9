"""A container's log: what is written is read, across turn-overs and while it goes on."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from hako.sandbox import logs
from hako.sandbox.logs import STDERR, STDOUT, LogReader, LogWriter

PIECE = b"x" * 1000


def data(entries: object) -> list[bytes]:
    """The content of ``entries``."""
    return [entry.data for entry in entries]  # type: ignore[attr-defined]


@pytest.fixture
def path(tmp_path: Path) -> str:
    """A log that does not exist yet."""
    return str(tmp_path / "log")


def test_what_is_written_is_read(path: str) -> None:
    writer = LogWriter(path, 1 << 20)
    wanted = [(STDOUT, b"a\n"), (STDERR, b"\x00\xff"), (STDOUT, b""), (STDOUT, b"b" * 100_000)]
    for stream, piece in wanted:
        writer.write(stream, piece)
    writer.close()
    entries = list(logs.read(path))
    assert [(entry.stream, entry.data) for entry in entries] == wanted
    assert [entry.time_ns for entry in entries] == sorted(entry.time_ns for entry in entries)


def test_a_log_that_is_not_there_is_empty(path: str) -> None:
    assert list(logs.read(path)) == []


def test_the_newest_is_kept_within_the_limit(path: str) -> None:
    writer = LogWriter(path, 20_000)
    for number in range(100):
        writer.write(STDOUT, b"%03d" % number + PIECE)
    writer.close()
    assert os.stat(path).st_size + os.stat(path + ".1").st_size <= 20_000
    numbers = [int(piece[:3]) for piece in data(logs.read(path))]
    assert numbers == list(range(numbers[0], 100))
    assert len(numbers) >= 9


def test_a_reader_goes_on_where_it_was(path: str) -> None:
    writer = LogWriter(path, 1 << 20)
    with LogReader(path) as reader:
        assert data(reader.entries()) == []
        writer.write(STDOUT, b"one")
        assert data(reader.entries()) == [b"one"]
        assert data(reader.entries()) == []
        writer.write(STDOUT, b"two")
        writer.write(STDERR, b"three")
        assert data(reader.entries()) == [b"two", b"three"]
    writer.close()


@pytest.mark.parametrize("between", [1, 3, 9, 10, 11, 17])
def test_a_reader_follows_across_turn_overs(path: str, between: int) -> None:
    # At most two turn-overs between two looks: what is older is gone from the disk.
    writer = LogWriter(path, 20_000)
    seen: list[bytes] = []
    with LogReader(path) as reader:
        for number in range(120):
            writer.write(STDOUT, b"%03d" % number + PIECE)
            if number % between == 0:
                seen += data(reader.entries())
        seen += data(reader.entries())
    writer.close()
    assert [int(piece[:3]) for piece in seen] == list(range(120))


def test_a_late_reader_loses_only_what_is_gone(path: str) -> None:
    writer = LogWriter(path, 20_000)
    with LogReader(path) as reader:
        writer.write(STDOUT, b"000" + PIECE)
        assert len(data(reader.entries())) == 1
        for number in range(1, 100):
            writer.write(STDOUT, b"%03d" % number + PIECE)
        numbers = [int(piece[:3]) for piece in data(reader.entries())]
    writer.close()
    assert numbers[-1] == 99
    assert numbers == sorted(set(numbers))
    assert len(numbers) >= 9


def test_an_entry_in_the_making_is_read_when_it_is_whole(path: str) -> None:
    writer = LogWriter(path, 1 << 20)
    writer.write(STDOUT, b"whole")
    writer.write(STDOUT, b"in parts")
    writer.close()
    with open(path, "rb") as file:
        content = file.read()
    for cut in range(len(content)):
        with open(path, "wb") as file:
            file.write(content[:cut])
        with LogReader(path) as reader:
            first = data(reader.entries())
            with open(path, "ab") as file:
                file.write(content[cut:])
            assert first + data(reader.entries()) == [b"whole", b"in parts"]


def test_damage_ends_the_reading(path: str) -> None:
    writer = LogWriter(path, 1 << 20)
    writer.write(STDOUT, b"good")
    writer.close()
    with open(path, "ab") as file:
        file.write(b"\xff" * 100)
    assert data(logs.read(path)) == [b"good"]


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs /dev/full")
def test_a_full_disk_stops_the_log_only(path: str) -> None:
    os.symlink("/dev/full", path)
    writer = LogWriter(path, 1 << 20)
    writer.write(STDOUT, b"lost")
    assert writer.failed
    writer.write(STDOUT, b"lost too")
    writer.close()


def test_half_an_entry_is_taken_back(path: str, monkeypatch: pytest.MonkeyPatch) -> None:
    writer = LogWriter(path, 1 << 20)
    writer.write(STDOUT, b"whole")
    real = os.write
    monkeypatch.setattr(os, "write", lambda fd, content: real(fd, content[:7]))
    writer.write(STDOUT, b"cut off by a full disk")
    monkeypatch.undo()
    writer.close()
    assert writer.failed
    assert data(logs.read(path)) == [b"whole"]
