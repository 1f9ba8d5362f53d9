"""Sizes and times as people write them."""

from __future__ import annotations

from hako.errors import ConfigError

# "", b, k, kb, kib, m, ...: all binary, as docker's are.
_FACTORS = {"": 1, "b": 1} | {
    prefix + rest: 1 << (10 * power) for power, prefix in enumerate("kmgt", 1) for rest in ("", "b", "ib")
}
_DIGITS = frozenset("0123456789.")


def parse_size(text: str, what: str) -> int:
    """Bytes in ``text`` such as ``512m`` or ``1.5g`` (binary units, as docker's). Raises ConfigError."""
    body = text.strip().lower()
    number = body.rstrip("bikmgt ")
    factor = _FACTORS.get(body[len(number) :].strip())
    try:
        if factor is not None and _DIGITS.issuperset(number):
            return int(number) * factor if "." not in number else int(float(number) * factor)
    except (ValueError, OverflowError):
        pass
    raise ConfigError(f"{what} {text!r} is not a size: write a number with b, k, m or g, for example 512m.")


def format_size(size: float) -> str:
    """``size`` bytes with three significant digits and a binary unit: ``12.3MiB``."""
    for unit in ("B", "KiB", "MiB", "GiB", "TiB"):
        if abs(size) < 1024 or unit == "TiB":
            return f"{size:.4g}{unit}"
        size /= 1024
    raise AssertionError
