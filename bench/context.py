"""What a piece gets: the runtimes, how much to measure, and where its figures go."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import NamedTuple

from bench.model import PieceResult, Row
from bench.noise import Noise
from bench.targets.base import Target
from bench.targets.hako import Hako

#: However long a piece takes, it has this many rounds, if so many were asked for.
_MIN_ROUNDS = 2


class Plan(NamedTuple):
    """How much to measure."""

    runs: int  #: rounds of what starts containers
    engine_runs: int  #: rounds of what starts containers under engines
    pod_runs: int  #: rounds of what starts pods
    pods_at_once: int  #: pods to start at once, 0 for none
    calls: int  #: rounds of what calls a running container
    at_once: tuple[tuple[int, int], ...]  #: starts at once, and rounds of it
    pods: tuple[int, ...]  #: idle containers whose memory is measured
    settle: float  #: seconds that an idle container is given to become idle
    idle: tuple[int, float]  #: windows of idle processor time, and the seconds of each
    io_runs: int  #: rounds of what moves files and bytes
    file_mib: int  #: size of files
    file_ops: int  #: files to create, random reads
    stream_seconds: float  #: how long a stream is to flow
    budget: float  #: seconds after which a piece makes no more rounds
    limit: float  #: seconds after which no piece is begun


FULL = Plan(15, 15, 15, 40, 30, ((10, 3), (50, 1)), (1, 10, 50), 5.0, (6, 10.0), 5, 64, 1000, 1.5, 240.0, 7200.0)
QUICK = Plan(5, 4, 3, 0, 10, ((10, 1),), (1,), 2.0, (2, 3.0), 2, 16, 300, 0.4, 12.0, 150.0)


class Context:
    """Passed to each piece. ``result`` is the piece's own; ``targets`` are those that take part in it."""

    def __init__(self, hako: Hako, targets: Sequence[Target], plan: Plan, noise: Noise, result: PieceResult) -> None:
        self.hako = hako
        self.targets = [target for target in targets if target.pieces is None or result.name in target.pieces]
        self.plan = plan
        self.noise = noise
        self.result = result
        self._deadline = time.monotonic() + plan.budget

    def rounds(self, count: int) -> Iterator[int]:
        """``count`` numbers, fewer when the piece's time is over; looks at the machine's noise now and then."""
        for number in range(count):
            if number >= min(count, _MIN_ROUNDS) and time.monotonic() > self._deadline:
                note = f"{number} of {count} rounds: the time for this piece was over."
                if note not in self.result.notes:
                    self.result.notes.append(note)
                return
            if number % 5 == 0:
                self.noise.sample()
            yield number

    def interleave(self, row: Row, ways: Mapping[str, Callable[[], float]], count: int, *, warm_up: bool) -> None:
        """Add ``count`` values to ``row`` for each way of measuring it, in turn: A, B, A, B."""
        if warm_up:
            for way in ways.values():
                way()
        for _ in self.rounds(count):
            for name, way in ways.items():
                row.add(name, way())

    def boxes(self, command: Sequence[str]) -> dict[Target, str]:
        """A container in the background of each runtime; the caller ends them (end_boxes) or leaves it to the end."""
        return {target: target.start(command) for target in self.targets}


def end_boxes(boxes: Mapping[Target, str]) -> None:
    """Remove containers."""
    for target, name in boxes.items():
        target.end(name)
