"""The phases of a start as they are shown: checked, put in order, and as Chrome's trace events."""

from __future__ import annotations

from typing import Any

from hako.errors import NotFoundError, StateError
from hako.named import NamedTuple

#: Who was at work, in the order in which they appear; others come after these.
LANES = ("command", "sandbox", "VM", "container")
_MAX_SPANS = 512
_MAX_NAME = 64
_MAX_TIME = 1 << 63


class Phase(NamedTuple):
    """One phase; times in nanoseconds of the monotonic clock, or since the beginning of a Timeline."""

    name: str
    lane: str
    start: int
    end: int | None  #: None: it was not over when the trace was taken; as start: a moment

    @property
    def is_moment(self) -> bool:
        """Whether it takes no time."""
        return self.start == self.end


class Timeline(NamedTuple):
    """A start. Times count from its beginning, in nanoseconds."""

    title: str
    phases: list[Phase]  #: in the order in which they began
    length: int  #: what a picture shows; what was long after the start is beyond it

    @property
    def lanes(self) -> list[str]:
        """The lanes that there are, in order."""
        found = dict.fromkeys(phase.lane for phase in self.phases)
        return [lane for lane in LANES if lane in found] + [lane for lane in found if lane not in LANES]

    def stop(self, phase: Phase) -> int:
        """Where ``phase`` ends in a picture."""
        return max(self.length, phase.start) if phase.end is None else phase.end

    def when(self, name: str) -> int | None:
        """When the last phase called ``name`` was over."""
        return next((phase.end for phase in reversed(self.phases) if phase.name == name), None)


def parse(spans: object, what: str) -> list[Phase]:
    """The phases in ``spans``, ``[[name, lane, start, end], ...]`` from a state, of which nothing is taken on trust.

    Raises StateError naming ``what`` when it is something else.
    """
    if not isinstance(spans, list) or len(spans) > _MAX_SPANS:
        raise StateError(f"The trace of {what} is damaged: it is not a list of at most {_MAX_SPANS} phases.")
    found = []
    for number, span in enumerate(spans, 1):
        if not isinstance(span, list) or len(span) != 4:
            raise StateError(f"The trace of {what} is damaged: phase {number} is not a list of four.")
        name, lane, start, end = span
        for part, text in (("name", name), ("lane", lane)):
            if not isinstance(text, str) or not 0 < len(text) <= _MAX_NAME or not text.isprintable():
                raise StateError(f"The trace of {what} is damaged: phase {number} has no valid {part}.")
        if not _is_time(start) or not (end is None or (_is_time(end) and end >= start)):
            raise StateError(f"The trace of {what} is damaged: phase {number} has no valid times.")
        found.append(Phase(name, lane, start, end))
    return found


def _is_time(value: object) -> bool:
    return type(value) is int and 0 <= value < _MAX_TIME


def of_container(sandbox: list[Phase], own: list[Phase], *, whole: bool) -> list[Phase]:
    """What belongs to the start of a container: ``own``, and the start of its sandbox if it had to wait for that.

    It had if the sandbox is the container's own (``whole``), or was not ready when the container was asked for.
    """
    if own and not whole:
        asked = min(phase.start for phase in own)
        if all(phase.end is not None and phase.end <= asked for phase in sandbox):
            return own
    return [*sandbox, *own]


def build(title: str, phases: list[Phase]) -> Timeline:
    """Put ``phases`` in order. Raises NotFoundError when there are none."""
    if not phases:
        raise NotFoundError(f"There is no trace of {title}: none was written down before its sandbox ended.")
    begin = min(phase.start for phase in phases)
    moved = [
        phase._replace(start=phase.start - begin, end=None if phase.end is None else phase.end - begin)
        for phase in phases
    ]
    moved.sort(key=lambda phase: (phase.start, -(phase.end or phase.start)))
    return Timeline(title, moved, _length(moved))


def _length(phases: list[Phase]) -> int:
    """Up to the end of the start's work. A first output or an end long after that would squeeze it to nothing."""
    work = max((max(phase.start, phase.end or 0) for phase in phases if not phase.is_moment), default=0)
    moments = [phase.start for phase in phases if phase.is_moment]
    return max([work, *(at for at in moments if at <= 2 * work or not work)])


def ms(time: int) -> float:
    """Nanoseconds as milliseconds."""
    return time / 1e6


def chrome(timeline: Timeline) -> dict[str, Any]:
    """``timeline`` as Chrome's JSON object format: complete events, times in microseconds, a thread for each row.

    Lanes are threads. Phases of a lane that overlap without one lying in the other get a further row, because a
    thread's events must nest. (Google, Trace Event Format.)
    """
    rows: list[tuple[str, list[Phase]]] = []
    events: list[dict[str, Any]] = []
    by_lane = [phase for lane in timeline.lanes for phase in timeline.phases if phase.lane == lane]
    for phase in by_lane:
        row = next(
            (i for i, (lane, there) in enumerate(rows) if lane == phase.lane and _nests(timeline, phase, there)), -1
        )
        if row < 0:
            rows.append((phase.lane, []))
            row = len(rows) - 1
        rows[row][1].append(phase)
        event = {"name": phase.name, "cat": phase.lane, "ph": "X", "pid": 1, "tid": row + 1}
        event |= {"ts": phase.start / 1e3, "dur": (timeline.stop(phase) - phase.start) / 1e3}
        events.append(event | ({"args": {"unfinished": True}} if phase.end is None else {}))
    names = [_metadata("process_name", 0, {"name": f"hako {timeline.title}"})]
    for number, (lane, _) in enumerate(rows, 1):
        names.append(_metadata("thread_name", number, {"name": lane}))
        names.append(_metadata("thread_sort_index", number, {"sort_index": number}))
    return {"traceEvents": [*names, *events], "displayTimeUnit": "ms"}


def _nests(timeline: Timeline, phase: Phase, there: list[Phase]) -> bool:
    """Whether ``phase`` lies in or beside each of those that are ``there``, which began no later."""
    return all(phase.start >= timeline.stop(other) or timeline.stop(phase) <= timeline.stop(other) for other in there)


def _metadata(name: str, tid: int, args: dict[str, Any]) -> dict[str, Any]:
    return {"name": name, "ph": "M", "pid": 1, "tid": tid, "args": args}
