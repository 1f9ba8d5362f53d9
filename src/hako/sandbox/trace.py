"""When the phases of a start happened: cheap to write down, and kept with the state of the sandbox.

Times are nanoseconds of the monotonic clock, which all processes of the host share. Phases may overlap. The *lane* of
a phase says who was at work: ``command``, ``sandbox``, ``VM`` or ``container``.
"""

from __future__ import annotations

import os
import time

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

#: More are not kept: a trace is of a start, not of a life.
MAX_SPANS = 256


class Trace:
    """Phases as they happen. Nothing here fails: a trace is never the reason why something does not start.

    ``spans`` is the list itself, not a copy, in the form that is kept as JSON: ``[name, lane, start, end]``, where
    ``end`` is None while the phase lasts, and equal to ``start`` for a moment.
    """

    def __init__(self, earlier: Trace | None = None) -> None:
        """``earlier`` is what another process has written down, up to the start of this one."""
        self.spans: list[list[Any]] = [] if earlier is None else [list(span) for span in earlier.spans]
        self.marked = time.monotonic_ns()  #: where the next mark() begins

    def mark(self, name: str, lane: str = "sandbox") -> None:
        """The phase ``name`` ends now; it began with the last mark, or when the trace was made."""
        now = time.monotonic_ns()
        self.add(name, lane, self.marked, now)
        self.marked = now

    def begin(self, name: str, lane: str = "sandbox") -> list[Any]:
        """The phase ``name`` begins now, whatever else is under way. Returns its entry."""
        return self.add(name, lane, time.monotonic_ns(), None)

    def end(self, name: str) -> None:
        """The phase ``name`` ends now: the one that began last, if any has."""
        for span in reversed(self.spans):
            if span[0] == name and span[3] is None:
                span[3] = time.monotonic_ns()
                return

    def span(self, name: str, lane: str = "sandbox") -> Span:
        """The phase ``name`` is the ``with`` block, also when that is left by an error."""
        return Span(self, name, lane)

    def moment(self, name: str, lane: str = "sandbox") -> None:
        """Something that takes no time happens now."""
        now = time.monotonic_ns()
        self.add(name, lane, now, now)

    def add(self, name: str, lane: str, start: int, end: int | None) -> list[Any]:
        """A phase whose times are known. Returns its entry."""
        entry = [name, lane, start, end]
        if len(self.spans) < MAX_SPANS:
            self.spans.append(entry)
        return entry


class Span:
    """What Trace.span() returns."""

    def __init__(self, trace: Trace, name: str, lane: str) -> None:
        self._trace = trace
        self._name = name
        self._lane = lane
        self._entry: list[Any] = []

    def __enter__(self) -> None:
        self._entry = self._trace.begin(self._name, self._lane)

    def __exit__(self, *_: object) -> None:
        self._entry[3] = time.monotonic_ns()


def of_process(lane: str, running_since: int | None = None) -> Trace:
    """A trace that begins with the start of this process, which ran its own code ``running_since``, by default now."""
    trace = Trace()
    if running_since is not None:
        trace.marked = running_since
    trace.add("process start", lane, min(process_start(), trace.marked), trace.marked)
    return trace


def process_start() -> int:
    """When this process was started, or now if the kernel does not say; exact to a clock tick, 10 ms."""
    try:
        with open("/proc/self/stat", "rb") as file:
            started = start_time(file.read(4096), os.sysconf("SC_CLK_TCK"))
    except (OSError, ValueError):
        return time.monotonic_ns()
    # The kernel counts from the boot, time spent suspended included.
    since_boot = time.clock_gettime_ns(time.CLOCK_BOOTTIME)
    now = time.monotonic_ns()
    return min(now, max(0, now - (since_boot - started)))


def start_time(stat: bytes, ticks_per_second: int) -> int:
    """The start of the process in nanoseconds since the boot, from its /proc/PID/stat (proc_pid_stat(5), field 22).

    Raises ValueError when that is not in there.
    """
    fields = stat.rpartition(b")")[2].split()
    if len(fields) < 20:
        raise ValueError("too short")
    return int(fields[19]) * 1_000_000_000 // ticks_per_second
