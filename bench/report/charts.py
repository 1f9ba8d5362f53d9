"""The plots: bars beside each other, ratios on a logarithmic axis, and the phases of a start. Pure functions."""

from __future__ import annotations

import math
from collections.abc import Sequence

from bench import stats
from bench.model import BASE, Phase, Results, Row
from bench.report.svg import CHARACTER, Svg
from bench.report.text import number

_MARGIN = 20.0
_ROOM = 400.0  #: for bars
_VALUES = 150.0  #: for what is written behind them
_BAR = 13.0
_STEP = _BAR + 3
_GAP = 12.0
#: The plots of phases, by piece.
_WATERFALLS = {
    "phases": ("phases.svg", "A start, from the command to its return"),
    "pods": ("pod.svg", "A pod, from RunPodSandbox until its container runs"),
}


def charts(results: Results) -> dict[str, str]:
    """The files to write: name and content. What was not measured has no plot."""
    rows = {piece.name: piece.rows for piece in results.pieces}
    found = {}
    for file, title, pieces in (
        ("starts.svg", "Starting and ending containers", ("run", "phases", "stop", "starts")),
        ("calls.svg", "Calls of running containers", ("exec", "state", "agent")),
        ("engines.svg", "As the runtime of an engine", ("runtime", "docker", "podman", "ctr", "pods")),
        ("transfer.svg", "Streams, files and network", ("streams", "files", "tcp")),
        ("idle.svg", "What idle containers cost", ("memory", "idle")),
    ):
        chosen = [row for piece in pieces for row in rows.get(piece, []) if row.unit]
        if chosen:
            found[file] = bars(title, chosen, names(results))
    compared = [row for row in results.rows() if any(row.ratio(name) for name in row.series)]
    if compared:
        found["ratios.svg"] = ratios("hako beside runc: how many times its cost", compared, names(results))
    for piece in results.pieces:
        if piece.phases:
            file, title = _WATERFALLS[piece.name]
            found[file] = waterfall(title, piece.phases)
    return found


def names(results: Results) -> list[str]:
    """The runtimes in order, runc last."""
    found = list(dict.fromkeys(name for row in results.rows() for name in row.series))
    return sorted(found, key=lambda name: (name == BASE, name))


def colours(order: Sequence[str]) -> dict[str, int]:
    """The colour of each runtime, the same in all plots."""
    others = [name for name in order if name not in ("hako", BASE)]
    return {"hako": 0, BASE: 1, **{name: at for at, name in enumerate(others, 2)}}


def _begin(title: str, labels: Sequence[str], legend: dict[str, int], about: str) -> tuple[Svg, float, float]:
    """A document with its head; where what is below that begins, and where bars do, to the right of their labels."""
    left = _MARGIN + max(len(label) for label in labels) * CHARACTER + 10
    svg = Svg(left + _ROOM + _VALUES, title)
    svg.label(_MARGIN, 28, title, "title")
    svg.label(_MARGIN, 46, about, "faint")
    x, y = _MARGIN, 66.0
    for name, colour in legend.items():
        svg.bar(x, y - 9, 10, 10, colour)
        svg.label(x + 15, y, name)
        x += 15 + len(name) * CHARACTER + 24
    return svg, y + 22, left


def bars(title: str, rows: Sequence[Row], order: Sequence[str]) -> str:
    """A group of bars for each row, with quartiles. Units differ, so each group has a scale of its own."""
    legend = {name: colour for name, colour in colours(order).items() if any(name in row.series for row in rows)}
    about = "Medians, with quartiles as whiskers. Each group has its own scale."
    svg, y, left = _begin(title, [row.title for row in rows], legend, about)
    for row in rows:
        found = {name: stats.summarize(row.series[name]) for name in order if name in row.series}
        top = max(1e-9, *(summary.q3 for summary in found.values()))
        svg.label(left - 10, y + len(found) * _STEP / 2 + 2, _plain(row.title), "end")
        svg.line(left, y - 3, left, y + len(found) * _STEP, "axis")
        for name, summary in found.items():
            # What the machine has less of can be negative, by chance.
            q1, median, q3 = (max(value, 0) / top * _ROOM for value in (summary.q1, summary.median, summary.q3))
            svg.bar(left, y, median, _BAR, legend[name], f"{name}: {number(summary.median)} {row.unit}")
            if summary.n > 1:
                svg.whisker(left + q1, left + q3, y + _BAR / 2)
            svg.label(left + max(median, q3) + 8, y + _BAR - 2, f"{number(summary.median)} {row.unit}")
            y += _STEP
        y += _GAP
    return svg.text()


def ratios(title: str, rows: Sequence[Row], order: Sequence[str]) -> str:
    """For each row how many times runc's cost it is, on a logarithmic axis, with the ratio's bounds."""
    groups = [(row, {name: value for name in order if (value := row.ratio(name))}) for row in rows]
    values = [each for _, found in groups for each in found.values()]
    begin = math.floor(math.log10(min(1.0, *(_clip(each.low) for each in values))))
    end = max(math.ceil(math.log10(max(1.0, *(_clip(each.high) for each in values)))), 1)
    legend = {
        name: colour for name, colour in colours(order).items() if any(name in found for _, found in groups)
    }  # fmt: skip
    about = "1 is as good as runc, 10 ten times its time, or a tenth of its throughput. Logarithmic."
    svg, y, left = _begin(title, [row.title for row in rows], legend, about)
    bottom = y + 14 + len(values) * _STEP + len(groups) * _GAP / 2

    def place(value: float) -> float:
        return left + (math.log10(_clip(value)) - begin) / (end - begin) * _ROOM

    for power in range(begin, end + 1):
        svg.line(place(10.0**power), y + 4, place(10.0**power), bottom, "axis" if power == 0 else "grid")
        svg.label(place(10.0**power), y, f"{10.0**power:g}", "middle")
    y += 14
    for row, found in groups:
        svg.label(left - 10, y + len(found) * _STEP / 2 + 2, _plain(row.title), "end")
        for name, value in found.items():
            start, stop = sorted((place(1.0), place(value.value)))
            svg.bar(start, y, stop - start, _BAR, legend[name], f"{name}: {number(value.value)}")
            svg.whisker(place(value.low), place(value.high), y + _BAR / 2)
            svg.label(max(stop, place(value.high)) + 8, y + _BAR - 2, number(value.value))
            y += _STEP
        y += _GAP / 2
    return svg.text()


def _plain(title: str) -> str:
    """A title without the marks of code that text and Markdown have."""
    return title.replace("`", "")


def _clip(value: float) -> float:
    """A ratio that can be drawn: nothing measured is zero, or further away from runc than this."""
    return min(max(value, 1e-3), 1e6)


def waterfall(title: str, phases: Sequence[Phase]) -> str:
    """Each phase where it happens, one below the other."""
    lanes = {lane: at for at, lane in enumerate(dict.fromkeys(phase.lane for phase in phases))}
    about = "Milliseconds after the first command or call; medians, by who is at work."
    svg, y, left = _begin(title, [phase.name for phase in phases], lanes, about)
    end = max(phase.end for phase in phases) or 1.0
    step = _round_step(end / 5)
    bottom = y + 8 + len(phases) * _STEP
    tick = 0.0
    while tick <= end:
        x = left + tick / end * _ROOM
        svg.line(x, y, x, bottom, "axis" if tick == 0 else "grid")
        svg.label(x, bottom + 14, f"{tick:g}", "middle")
        tick += step
    y += 8
    for phase in phases:
        x, width = left + max(phase.begin, 0) / end * _ROOM, (phase.end - phase.begin) / end * _ROOM
        svg.label(left - 10, y + _BAR - 2, phase.name, "end")
        svg.bar(x, y, width, _BAR, lanes[phase.lane], f"{phase.name}: {number(phase.end - phase.begin)} ms")
        took = f"{number(phase.end - phase.begin)} ms" if phase.end > phase.begin else f"at {number(phase.end)} ms"
        svg.label(x + max(width, 1) + 6, y + _BAR - 2, took)
        y += _STEP
    return svg.text()


def _round_step(about: float) -> float:
    """1, 2 or 5 times a power of ten, near ``about``."""
    power = 10.0 ** math.floor(math.log10(about)) if about > 0 else 1.0
    return next((power * factor for factor in (1.0, 2.0, 5.0) if power * factor >= about), power * 10)
