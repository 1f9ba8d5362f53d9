"""A start as a page for browsers that needs nothing else: a drawing, no scripts, nothing from elsewhere."""

from __future__ import annotations

from html import escape

from hako.cli import timeline, waterfall

TYPE_CHECKING = False
if TYPE_CHECKING:
    from hako.cli.timeline import Phase, Timeline

_ROW = 24
_TOP = 28
_LEFT = 190
_WIDTH = 760
_RIGHT = 120
_COLOURS = {"command": "#0e7490", "sandbox": "#2563eb", "VM": "#9333ea", "container": "#15803d"}
_OTHER = "#b45309"
_TICKS = 8

_PAGE = """\
<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; style-src 'unsafe-inline'">
<meta name="viewport" content="width=device-width">
<title>{title}</title>
<style>
:root {{ color-scheme: light dark; }}
body {{ font: 14px/1.5 system-ui, sans-serif; margin: 2em auto; max-width: {width}px; padding: 0 1em; }}
h1 {{ font-size: 1.1em; overflow-wrap: anywhere; }}
svg {{ width: 100%; height: auto; }}
text {{ fill: currentColor; font: 12px system-ui, sans-serif; }}
.grid {{ stroke: currentColor; stroke-opacity: 0.15; }}
.key {{ display: inline-block; width: 0.8em; height: 0.8em; margin: 0 0.3em 0 1em; }}
</style>
</head>
<body>
<h1>{title}</h1>
<p>{keys}</p>
<svg viewBox="0 0 {width} {height}" role="img" aria-label="{title}">
{drawing}
</svg>
</body>
</html>
"""


def render(found: Timeline) -> str:
    """The page."""
    height = _TOP + _ROW * len(found.phases) + 8
    drawing = [*_axis(found, height)]
    for number, phase in enumerate(found.phases):
        drawing += _row(found, phase, _TOP + number * _ROW)
    keys = [f'<span class="key" style="background:{_colour(lane)}"></span>{escape(lane)}' for lane in found.lanes]
    return _PAGE.format(
        title=escape(waterfall.headline(found)),
        keys="".join(keys),
        width=_LEFT + _WIDTH + _RIGHT,
        height=height,
        drawing="\n".join(drawing),
    )


def _axis(found: Timeline, height: int) -> list[str]:
    """A line and a number at each step."""
    lines = []
    unit = step(timeline.ms(found.length))
    at = 0.0
    while at <= timeline.ms(found.length):
        x = _x(found, at * 1e6)
        lines.append(f'<line class="grid" x1="{x:.1f}" y1="{_TOP - 6}" x2="{x:.1f}" y2="{height}"/>')
        lines.append(f'<text x="{x:.1f}" y="{_TOP - 12}" text-anchor="middle">{at:g} ms</text>')
        at += unit
    return lines


def step(length: float) -> float:
    """The distance of the marks on an axis of ``length``: 1, 2 or 5 times a power of ten, so that they are few."""
    unit = 0.001
    while True:
        for factor in (1, 2, 5):
            if unit * factor * _TICKS >= length:
                return unit * factor
        unit *= 10


def _x(found: Timeline, time: float) -> float:
    return _LEFT + _WIDTH * min(time / max(found.length, 1), 1.0)


def _row(found: Timeline, phase: Phase, y: int) -> list[str]:
    begin, end = _x(found, phase.start), _x(found, found.stop(phase))
    took = "" if phase.is_moment else f"{timeline.ms(found.stop(phase) - phase.start):.1f} ms"
    if phase.end is None:
        took = "not over"
    after = f"at {timeline.ms(phase.start):.1f} ms"
    label = (after + " →" if phase.start > found.length else "") or took or after
    about = ", ".join(part for part in (f"{phase.name} ({phase.lane})", after, took) if part)
    bar = f'<rect x="{begin:.1f}" y="{y + 4}" width="{max(end - begin, 2):.1f}" height="{_ROW - 8}" rx="2"'
    return [
        f"<g><title>{escape(about)}</title>",
        f'<text x="0" y="{y + 16}">{escape(phase.name)}</text>',
        f'{bar} fill="{_colour(phase.lane)}"/>',
        f'<text x="{max(end, begin + 2) + 5:.1f}" y="{y + 16}">{escape(label)}</text></g>',
    ]


def _colour(lane: str) -> str:
    return _COLOURS.get(lane, _OTHER)
