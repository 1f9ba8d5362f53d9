"""The report as text for a terminal and as Markdown for docs/performance.md. Pure functions."""

from __future__ import annotations

from collections.abc import Sequence

from bench import stats
from bench.model import BASE, Phase, PieceResult, Results, Row

_BAR = 48


def number(value: float) -> str:
    """Three digits that count, more for large numbers."""
    if value == 0:
        return "0"
    if abs(value) >= 100:
        return f"{value:.0f}"
    return f"{value:.1f}" if abs(value) >= 10 else f"{value:.2f}"


def spread(found: stats.Summary) -> str:
    """``median (quartile to quartile, least, count)``."""
    if found.n == 1:
        return number(found.median)
    return f"{number(found.median)} ({number(found.q1)} to {number(found.q3)}, min {number(found.min)}, n {found.n})"


def ratio(found: stats.Ratio | None) -> str:
    """``x 3.1 (2.9 to 3.4)``; empty for none."""
    return "" if found is None else f"x {number(found.value)} ({number(found.low)} to {number(found.high)})"


def heading(results: Results) -> list[str]:
    """Lines on the machine and the versions."""
    about = results.machine
    where = [
        f"{about['cpu']}, {about['cpus']} CPUs, {about['memory_gib']} GiB",
        f"{about['system']}, kernel {about['kernel']}",
        "a virtual machine itself" if about["virtual"] else "",
        "" if about["kvm"] else "no /dev/kvm",
    ]
    return [
        f"{about['date']}: {'; '.join(part for part in where if part)}",
        ", ".join(f"{name} {version}" for name, version in results.versions.items() if version),
    ]


def row_lines(row: Row) -> list[str]:
    """A row for the terminal: one line for each runtime, and its notes."""
    width = max(map(len, row.series))
    lines = [f"{row.title}, {row.unit}" if row.unit else row.title]
    for name, values in row.series.items():
        line = f"    {name:<{width}}  {spread(stats.summarize(values))}"
        compared = ratio(row.ratio(name))
        lines.append(f"{line:<58}  {compared}".rstrip())
    return lines + [f"    {note}" for note in [*row.budgets(), *row.notes]]


def piece_lines(piece: PieceResult) -> list[str]:
    """A piece for the terminal."""
    lines = [f"== {piece.name} ({piece.seconds:.0f} s)"]
    for row in piece.rows:
        lines += row_lines(row)
    lines += waterfall(piece.phases)
    lines += [f"    Note: {note}" for note in piece.notes]
    return [*lines, f"    FAILED: {piece.error}"] if piece.error else lines


def waterfall(phases: Sequence[Phase]) -> list[str]:
    """The phases of a start, each as a bar that stands where it happens."""
    if not phases:
        return []
    end = max(phase.end for phase in phases) or 1.0
    width = max(len(phase.name) for phase in phases)
    lanes = max(len(phase.lane) for phase in phases)
    lines = ["phases of a start, ms"]
    for phase in phases:
        left = max(0, round(phase.begin / end * _BAR))
        bar = " " * left + "#" * max(1, round(phase.end / end * _BAR) - left)
        took = phase.end - phase.begin
        lines.append(f"    {phase.lane:<{lanes}}  {phase.name:<{width}}  {phase.begin:>7.1f}  {took:>7.1f}  {bar}")
    return lines


def noise_lines(results: Results) -> list[str]:
    """The verdict on the machine, with what to do."""
    noise = results.noise
    load = f"load {noise['load_before']} before, {noise['load_most']} at most, {noise['load_after']} after"
    if noise["verdict"] == "quiet":
        return [f"The machine was quiet ({load})."]
    meaning = {
        "noisy": "Trust the ratios, and differences between two runs only above a fifth.",
        "very noisy": "Trust orders of magnitude alone; run it again on a quieter machine.",
    }[noise["verdict"]]
    warning = f"WARNING: the machine was {noise['verdict']} ({load}). {meaning}"
    return [warning, *(f"  {why}" for why in noise["reasons"])]


def report(results: Results) -> str:
    """The whole report for the terminal."""
    lines = [*heading(results), ""]
    for piece in results.pieces:
        lines += [*piece_lines(piece), ""]
    return "\n".join([*lines, *noise_lines(results)]) + "\n"


def markdown(results: Results) -> str:
    """Tables for docs/performance.md: a row for each figure, a column for each runtime, and the ratio."""
    lines = [*heading(results), "", *noise_lines(results), ""]
    for piece in results.pieces:
        names = list(dict.fromkeys(name for row in piece.rows for name in row.series))
        if not names:
            continue
        compared = [name for name in names if name != BASE and BASE in names]
        header = ["what", *names, *(f"{name} / {BASE}" for name in compared)]
        lines += ["| " + " | ".join(header) + " |", "|" + "---|" * len(header)]
        for row in piece.rows:
            cells = [_cell(row, name) for name in names] + [_ratio_cell(row, name) for name in compared]
            lines.append("| " + " | ".join([row.title, *cells]) + " |")
        lines.append("")
    return "\n".join(lines)


def _cell(row: Row, name: str) -> str:
    if name not in row.series:
        return ""
    found = stats.summarize(row.series[name])
    bounds = f" ({number(found.q1)} to {number(found.q3)})" if found.n > 1 else ""
    return f"{number(found.median)}{bounds} {row.unit}".rstrip()


def _ratio_cell(row: Row, name: str) -> str:
    found = row.ratio(name)
    return "" if found is None else f"{number(found.value)} ({number(found.low)} to {number(found.high)})"
