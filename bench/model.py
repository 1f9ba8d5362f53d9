"""What a run of the benchmark has found: rows of values per runtime, and the phases of a start."""

from __future__ import annotations

from typing import Any, NamedTuple

from bench import stats

#: The version of results.json.
FORMAT = 1
#: What the others are compared with.
BASE = "runc"
#: What has budgets.
OURS = "hako"


class BenchError(Exception):
    """Something could not be measured. The text is one sentence for people."""


class Row:
    """One figure: its values for each runtime that took part, in the order they were measured.

    ``times`` and ``most`` are the budget of hako, if it has one: how many times runc's cost, and how much of the unit.
    """

    def __init__(
        self, id: str, title: str, unit: str, *, better: str = "lower", times: float | None = None,
        most: float | None = None,
    ) -> None:  # fmt: skip
        self.id = id
        self.title = title
        self.unit = unit
        self.better = better  #: lower or higher
        self.times = times
        self.most = most
        self.series: dict[str, list[float]] = {}
        self.notes: list[str] = []

    def add(self, name: str, value: float) -> None:
        """One more value of the runtime ``name``."""
        self.series.setdefault(name, []).append(value)

    def ratio(self, name: str) -> stats.Ratio | None:
        """How many times worse than runc: its time divided by runc's, or runc's throughput divided by its."""
        if name == BASE or BASE not in self.series:
            return None
        ours, theirs = self.series.get(name, []), self.series[BASE]
        return stats.ratio(ours, theirs) if self.better == "lower" else stats.ratio(theirs, ours)

    def budgets(self) -> list[str]:
        """Whether hako's median is within its budgets: a sentence for each that can be judged."""
        found, ratio = [], self.ratio(OURS)
        if self.times is not None and ratio is not None:
            found.append(_judged(f"at most {self.times:g} times {BASE}'s", ratio.value <= self.times))
        if self.most is not None and OURS in self.series:
            within = stats.summarize(self.series[OURS]).median <= self.most
            found.append(_judged(f"at most {self.most:g} {self.unit}", within))
        return found

    def to_json(self) -> dict[str, Any]:
        """The row for results.json."""
        series: dict[str, Any] = {}
        for name, values in self.series.items():
            series[name] = {"values": values, **stats.summarize(values)._asdict()}
            found = self.ratio(name)
            if found is not None:
                series[name]["ratio"] = found._asdict()
        return {
            "id": self.id, "title": self.title, "unit": self.unit, "better": self.better,
            "series": series, "budgets": self.budgets(), "notes": self.notes,
        }  # fmt: skip


def _judged(budget: str, within: bool) -> str:
    return f"The budget of {OURS}, {budget}, is {'kept' if within else 'MISSED'}."


class Phase(NamedTuple):
    """A phase of a start: when it begins and ends, in ms after the command was given. ``lane`` is who was at work."""

    name: str
    lane: str
    begin: float
    end: float


class PieceResult:
    """What one piece has found, or why it found nothing."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.seconds = 0.0
        self.rows: list[Row] = []
        self.phases: list[Phase] = []
        self.notes: list[str] = []
        self.error = ""

    def row(
        self, id: str, title: str, unit: str, *, better: str = "lower", times: float | None = None,
        most: float | None = None,
    ) -> Row:  # fmt: skip
        """A new row of this piece."""
        row = Row(f"{self.name}.{id}", title, unit, better=better, times=times, most=most)
        self.rows.append(row)
        return row

    def shared_row(self, id: str, title: str, unit: str) -> Row:
        """The row of that id, which another runtime may have begun."""
        found = next((row for row in self.rows if row.id == f"{self.name}.{id}"), None)
        return found or self.row(id, title, unit)

    def finish(self) -> None:
        """Drop rows that nobody has values for."""
        self.rows = [row for row in self.rows if row.series]

    def to_json(self) -> dict[str, Any]:
        """The piece for results.json."""
        return {
            "name": self.name, "seconds": round(self.seconds, 2), "error": self.error, "notes": self.notes,
            "rows": [row.to_json() for row in self.rows], "phases": [phase._asdict() for phase in self.phases],
        }  # fmt: skip


class Results(NamedTuple):
    """All of it. ``machine``, ``versions`` and ``noise`` are what report/ prints, as they come."""

    machine: dict[str, Any]
    versions: dict[str, Any]
    noise: dict[str, Any]
    arguments: list[str]
    pieces: list[PieceResult]

    def rows(self) -> list[Row]:
        """The rows of all pieces."""
        return [row for piece in self.pieces for row in piece.rows]

    def to_json(self) -> dict[str, Any]:
        """The content of results.json."""
        return {
            "format": FORMAT, "arguments": self.arguments, "machine": self.machine, "versions": self.versions,
            "noise": self.noise, "pieces": [piece.to_json() for piece in self.pieces],
        }  # fmt: skip
