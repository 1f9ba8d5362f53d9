"""Texts in the shape that Go's library gives them, which is what programs that read runc's output expect."""

from __future__ import annotations

import time

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence

_ESCAPES = {
    '"': '\\"', "\\": "\\\\", "\a": "\\a", "\b": "\\b", "\f": "\\f", "\n": "\\n", "\r": "\\r", "\t": "\\t", "\v": "\\v",
}  # fmt: skip
_SURROGATES = range(0xDC80, 0xDD00)  # how Python holds bytes that are not UTF-8
#: Width of a column at least, and space between two.
_LEAST_WIDTH = 12
_PADDING = 3


def quote(text: str) -> str:
    """``text`` in double quotes, with what cannot be printed escaped, as Go's %q."""
    return '"' + "".join(map(_escaped, text)) + '"'


def _escaped(char: str) -> str:
    if char in _ESCAPES:
        return _ESCAPES[char]
    if char.isprintable():
        return char
    number = ord(char)
    if number in _SURROGATES:
        return f"\\x{number - 0xDC00:02x}"
    if number < 0x80:
        return f"\\x{number:02x}"
    return f"\\u{number:04x}" if number < 0x10000 else f"\\U{number:08x}"


def timestamp(ns: int) -> str:
    """A moment, in nanoseconds since 1970, as RFC 3339 in UTC; zeros at the end of the fraction are left out."""
    seconds, rest = divmod(ns, 10**9)
    fraction = f".{rest:09}".rstrip("0") if rest else ""
    return time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(seconds)) + fraction + "Z"


def local_time() -> str:
    """Now, as RFC 3339 with the zone's offset, to the second."""
    now = time.localtime()
    zone = time.strftime("%z", now)
    offset = "Z" if zone == "+0000" else f"{zone[:3]}:{zone[3:]}"
    return time.strftime("%Y-%m-%dT%H:%M:%S", now) + offset


def table(rows: Sequence[Sequence[str]]) -> str:
    """``rows`` in columns, a line each, as runc's lists are laid out. Nothing in a cell can forge another line."""
    cells = [["".join(char if char.isprintable() else "?" for char in cell) for cell in row] for row in rows]
    widths = [max(_LEAST_WIDTH, *(len(cell) + _PADDING for cell in column)) for column in zip(*cells, strict=True)]
    widths[-1] = 0
    return "".join("".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) + "\n" for row in cells)
