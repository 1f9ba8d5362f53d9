"""``hako logs``: lines, times, and which of them are shown."""

from __future__ import annotations

import os
import re
import time
from collections.abc import Callable, Sequence

import pytest

from hako.cli import logs
from hako.cli.logs import Printer
from hako.errors import ConfigError
from hako.sandbox.logs import STDERR, STDOUT, Entry

Show = Callable[..., tuple[bytes, bytes]]


@pytest.fixture
def show(capfdbinary: pytest.CaptureFixture[bytes]) -> Show:
    """Print entries, ``(stream, data)`` each, and return what came out on both streams."""

    def show(
        pieces: Sequence[tuple[int, bytes]], *, tail: int | None = None, times: bool = False
    ) -> tuple[bytes, bytes]:
        printer = Printer(timestamps=times)
        entries = [Entry(number * 10**9, stream, piece) for number, (stream, piece) in enumerate(pieces, 1)]
        if tail is None:
            printer.all(entries)
        else:
            printer.tail(entries, tail)
        out, err = capfdbinary.readouterr()
        return out, err

    return show


def test_streams_stay_apart_and_bytes_as_they_are(show: Show) -> None:
    binary = bytes(range(256)) * 300
    assert show([(STDOUT, binary), (STDERR, b"e\r\n"), (STDOUT, b"end")]) == (binary + b"end", b"e\r\n")


@pytest.mark.parametrize(
    ("pieces", "tail", "out", "err"),
    [
        ([(STDOUT, b"1\n2\n3\n")], 2, b"2\n3\n", b""),
        ([(STDOUT, b"1\n2\n3")], 2, b"2\n3", b""),
        ([(STDOUT, b"1\n2\n3\n")], 0, b"", b""),
        ([(STDOUT, b"1\n2\n3\n")], 9, b"1\n2\n3\n", b""),
        ([(STDOUT, b"1\n"), (STDERR, b"2\n"), (STDOUT, b"3\n")], 2, b"3\n", b"2\n"),
        ([(STDOUT, b"1\nha"), (STDERR, b"2\n"), (STDOUT, b"lf\n")], 1, b"half\n", b""),
        ([(STDOUT, b"a\rb\x0bc\n"), (STDOUT, b"d\n")], 2, b"a\rb\x0bc\nd\n", b""),
    ],
)
def test_tail_counts_lines_not_pieces(
    show: Show, pieces: list[tuple[int, bytes]], tail: int, out: bytes, err: bytes
) -> None:
    assert show(pieces, tail=tail) == (out, err)


def test_each_line_gets_the_time_it_began(show: Show) -> None:
    out, err = show([(STDOUT, b"a\nb"), (STDERR, b"e\n"), (STDOUT, b"b\nc\n")], times=True)
    stamp = "1970-01-01T00:00:0{}.000000000Z "
    assert out.decode() == f"{stamp.format(1)}a\n{stamp.format(1)}bb\n{stamp.format(3)}c\n"
    assert err.decode() == f"{stamp.format(2)}e\n"


def test_durations_count_back_from_now() -> None:
    for text, seconds in (("90s", 90), ("10m", 600), ("1h30m", 5400), ("2d", 172800)):
        assert abs(time.time() - seconds - logs.parse_since(text) / 1e9) < 5


def test_dates_and_seconds(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(os.environ, "TZ", "Etc/GMT-2")
    time.tzset()
    try:
        assert logs.parse_since("2026-01-31T12:00:00Z") == 1769860800 * 10**9
        assert logs.parse_since("2026-01-31T12:00:00+01:00") == 1769857200 * 10**9
        assert logs.parse_since("2026-01-31T14:00:00") == 1769860800 * 10**9
        assert logs.parse_since("1769860800.5") == 1769860800500 * 10**6
    finally:
        monkeypatch.undo()
        time.tzset()


@pytest.mark.parametrize("text", ["yesterday", "10x", "-5m", "2026-13-01", "m"])
def test_wrong_times(text: str) -> None:
    with pytest.raises(ConfigError, match=re.escape(repr(text))):
        logs.parse_since(text)


@pytest.mark.parametrize(("text", "lines"), [("all", None), ("-1", None), ("0", 0), ("12", 12)])
def test_numbers_of_lines(text: str, lines: int | None) -> None:
    assert logs.parse_tail(text) == lines


@pytest.mark.parametrize("text", ["", "x", "-2", "1.5", "²"])
def test_wrong_numbers_of_lines(text: str) -> None:
    with pytest.raises(ConfigError):
        logs.parse_tail(text)
