"""Texts in Go's shape."""

from __future__ import annotations

import time

import pytest

from hako.runtime import texts


@pytest.mark.parametrize(
    ("text", "quoted"),
    [
        ("", '""'),
        ("a b", '"a b"'),
        ('"\\', '"\\"\\\\"'),
        ("\n\t\r\a\b\f\v", '"\\n\\t\\r\\a\\b\\f\\v"'),
        ("\x01\x7f", '"\\x01\\x7f"'),
        ("é日", '"é日"'),
        ("\u200b\ue000", '"\\u200b\\ue000"'),
        ("\U000f0000", '"\\U000f0000"'),
        ("\udcff", '"\\xff"'),  # a byte that is not UTF-8
    ],
)
def test_quoting(text: str, quoted: str) -> None:
    assert texts.quote(text) == quoted


@pytest.mark.parametrize(
    ("ns", "text"),
    [
        (0, "1970-01-01T00:00:00Z"),
        (1_769_860_800_000_000_005, "2026-01-31T12:00:00.000000005Z"),
        (1_769_860_800_500_000_000, "2026-01-31T12:00:00.5Z"),
        (1_769_860_800_000_000_000, "2026-01-31T12:00:00Z"),
    ],
)
def test_timestamps(ns: int, text: str) -> None:
    assert texts.timestamp(ns) == text


@pytest.mark.parametrize(("zone", "ending"), [("UTC", "Z"), ("XXX-05:30", "+05:30"), ("XXX+03", "-03:00")])
def test_the_local_time_has_its_zone(zone: str, ending: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        patch.setenv("TZ", zone)
        time.tzset()
        now = texts.local_time()
    time.tzset()
    assert now.endswith(ending)
    assert now[10] == "T"


def test_a_table_has_columns_of_twelve_at_least_and_cannot_be_forged() -> None:
    shown = texts.table([("ID", "PID", "END"), ("a-very-long-identifier", "0", "x\ny"), ("é", "", "")])
    assert shown.splitlines() == [
        "ID                       PID         END",
        "a-very-long-identifier   0           x?y",
        "é                                    ",
    ]
