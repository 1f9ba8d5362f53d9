"""Sizes and times as people write them."""

from __future__ import annotations

from hako.errors import ConfigError

_FACTORS = {"": 1, "b": 1, "k": 1 << 10, "m": 1 << 20, "g": 1 << 30, "t": 1 << 40}


def parse_size(text: str, what: str) -> int:
    """Bytes in ``text`` such as ``512m`` or ``1.5g`` (binary units, as docker's). Raises ConfigError."""
    body = text.strip().lower()
    body = body.removesuffix("ib").removesuffix("b") if body[-1:] == "b" and len(body) > 1 else body
    number, unit = (body[:-1], body[-1:]) if body[-1:] in _FACTORS and not body[-1:].isdigit() else (body, "")
    try:
        value = float(number)
        size = int(value * _FACTORS[unit])
    except (ValueError, KeyError, OverflowError):
        size = -1
    if size < 0:
        raise ConfigError(f"{what} {text!r} is not a size: write a number with b, k, m or g, for example 512m.")
    return size


def format_size(size: float) -> str:
    """``size`` bytes with three significant digits and a binary unit: ``12.3MiB``."""
    for unit in ("B", "KiB", "MiB", "GiB", "TiB"):
        if abs(size) < 1024 or unit == "TiB":
            return f"{size:.4g}{unit}"
        size /= 1024
    raise AssertionError
