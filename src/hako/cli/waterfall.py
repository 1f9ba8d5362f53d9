"""A start as lines of text with a bar for each phase."""

from __future__ import annotations

from hako.cli import tables, timeline

TYPE_CHECKING = False
if TYPE_CHECKING:
    from hako.cli.timeline import Phase, Timeline

#: Below this a bar shows nothing.
_MIN_BAR = 10
_MAX_NAME = 24
_HEADER = ("PHASE", "LANE", "START", "MS")
_COLOURS = {"command": "36", "sandbox": "34", "VM": "35", "container": "32"}


def render(found: Timeline, width: int, *, fancy: bool) -> str:
    """``found`` in lines of at most ``width`` characters. ``fancy`` is for terminals: blocks and colours."""
    rows = [(phase.name, phase.lane, f"{timeline.ms(phase.start):.1f}", _duration(phase)) for phase in found.phases]
    widths = [max(len(row[column]) for row in (_HEADER, *rows)) for column in range(4)]
    widths[:2] = [min(width, _MAX_NAME) for width in widths[:2]]
    columns = [0, 1, 2, 3] if width - sum(widths) - 8 >= _MIN_BAR else [0, 2, 3]
    room = width - sum(widths[column] + 2 for column in columns)
    if room < _MIN_BAR:
        widths[0] = max(4, min(widths[0], widths[0] + room + 2))
    lines = [tables.shorten(headline(found), width), "", _line(_HEADER, widths, columns)]
    for phase, row in zip(found.phases, rows, strict=True):
        text = _line(row, widths, columns)
        if room >= _MIN_BAR:
            text = f"{text}  {_bar(found, phase, room, fancy=fancy)}"
        lines.append(text)
    # Only a width that not even the numbers fit in leaves anything to cut off here.
    return "\n".join(line.rstrip() if room >= _MIN_BAR else line[:width].rstrip() for line in lines)


def headline(found: Timeline) -> str:
    """What matters most, in a sentence."""
    parts = []
    for name, text in (("start", "started after"), ("first output", "first output after")):
        at = found.when(name)
        if at is not None:
            parts.append(f"{text} {timeline.ms(at):.0f} ms")
    return f"{found.title}: {', '.join(parts) or 'not started yet'}"


def _duration(phase: Phase) -> str:
    if phase.end is None:
        return "..."
    return "" if phase.is_moment else f"{timeline.ms(phase.end - phase.start):.1f}"


def _line(row: tuple[str, ...], widths: list[int], columns: list[int]) -> str:
    """Words to the left, numbers to the right."""
    cells = [
        tables.shorten(row[column], widths[column]).ljust(widths[column])
        if column < 2
        else row[column].rjust(widths[column])
        for column in columns
    ]
    return "  ".join(cells)


def _bar(found: Timeline, phase: Phase, room: int, *, fancy: bool) -> str:
    """``room`` characters for the length of the start; what lies beyond it is an arrow at the edge."""
    full, moment, beyond = ("█", "▏", "→") if fancy else ("#", "|", ">")
    if phase.start > found.length:
        return " " * (room - 1) + beyond
    scale = room / max(found.length, 1)
    begin = min(int(phase.start * scale), room - 1)
    length = max(1, min(round(found.stop(phase) * scale), room) - begin)
    mark = moment if phase.is_moment else full * length
    colour = _COLOURS.get(phase.lane) if fancy else None
    return " " * begin + (f"\x1b[{colour}m{mark}\x1b[0m" if colour else mark)
