"""Sizes as people write them."""

from __future__ import annotations

import contextlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hako import units
from hako.errors import ConfigError


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("0", 0),
        ("1", 1),
        ("1b", 1),
        ("1k", 1024),
        ("1K", 1024),
        ("1kb", 1024),
        ("1kib", 1024),
        ("1KiB", 1024),
        ("512m", 512 << 20),
        ("512MB", 512 << 20),
        ("1.5g", 3 << 29),
        ("2t", 2 << 40),
        (" 1m ", 1 << 20),
        ("1 m", 1 << 20),
        (".5k", 512),
        ("0.1b", 0),
    ],
)
def test_sizes(text: str, size: int) -> None:
    assert units.parse_size(text, "The size") == size


@pytest.mark.parametrize(
    "text",
    ["", " ", "b", "k", "kb", "ib", "-1", "-1m", "1x", "1mm", "1m1", "one", "nan", "inf", "-inf", "1e400", "1,5m",
     "0x10", "1p", "m1", "1..5m", "1bb", "1_0", "٣", "²", ".", "9" * 5000, "9" * 400 + ".", "\0", "1\n2"],
)  # fmt: skip
def test_what_is_no_size_is_refused_by_name(text: str) -> None:
    with pytest.raises(ConfigError, match=r"^The size .* is not a size: write a number with b, k, m or g"):
        units.parse_size(text, "The size")


@given(st.text(max_size=20))
def test_any_text_is_a_size_or_a_config_error(text: str) -> None:
    with contextlib.suppress(ConfigError):
        assert units.parse_size(text, "The size") >= 0


@given(st.integers(0, 1 << 50))
def test_bytes_come_back_exactly(size: int) -> None:
    assert units.parse_size(str(size), "The size") == size


@pytest.mark.parametrize(
    ("size", "text"),
    [
        (0, "0B"),
        (1, "1B"),
        (1023, "1023B"),
        (1024, "1KiB"),
        (1536, "1.5KiB"),
        (512 << 20, "512MiB"),
        (3 << 29, "1.5GiB"),
        (1 << 60, "1.049e+06TiB"),
        (-2048, "-2KiB"),
    ],
)
def test_shown_sizes(size: int, text: str) -> None:
    assert units.format_size(size) == text
