"""Columns, times and sizes as people read them."""

from __future__ import annotations

import time

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence

_UNITS = ((365 * 86400, "year"), (30 * 86400, "month"), (7 * 86400, "week"), (86400, "day"), (3600, "hour"))


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """``rows`` below ``header``, in columns as wide as their content."""
    lines = [[_printable(cell) for cell in row] for row in (header, *rows)]
    widths = [max(len(line[column]) for line in lines) for column in range(len(header))]
    return "\n".join("   ".join(map(str.ljust, line, widths)).rstrip() for line in lines)


def _printable(text: str) -> str:
    """``text`` without what would move the cursor or forge another row: some of it comes from images."""
    return "".join(char if char.isprintable() else "?" for char in text)


def duration(seconds: float) -> str:
    """``seconds`` as ``5 minutes``."""
    for length, unit in _UNITS:
        if seconds >= 2 * length:
            return f"{int(seconds // length)} {unit}s"
    if seconds >= 3600:
        return "1 hour" if seconds < 5400 else "2 hours"
    if seconds >= 120:
        return f"{int(seconds // 60)} minutes"
    if seconds >= 60:
        return "1 minute"
    return f"{max(0, int(seconds))} second{'' if int(seconds) == 1 else 's'}"


def since(time_ns: int) -> str:
    """How long ``time_ns`` (since 1970) is ago, as ``5 minutes``."""
    return duration(time.time() - time_ns / 1e9)


def timestamp(time_ns: int) -> str:
    """``time_ns`` (since 1970) in RFC 3339 with nanoseconds, or an empty text for 0."""
    if not time_ns:
        return ""
    return f"{time.strftime('%Y-%m-%dT%H:%M:%S', time.gmtime(time_ns // 10**9))}.{time_ns % 10**9:09d}Z"


def shorten(text: str, width: int) -> str:
    """``text`` in at most ``width`` characters."""
    return text if len(text) <= width else text[: width - 1] + "…"
