"""How many bytes per second the standard streams of a process in a container carry, in, out and both at once."""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Callable, Iterator

from bench import commands
from bench.context import Context, end_boxes
from bench.model import BenchError
from bench.targets.base import IDLE, Target

_MIB = 1 << 20
#: Bytes that are sent to learn how much can be.
TRIAL = _MIB
_MOST = 512 * _MIB


def streams(context: Context) -> None:
    """Each direction by itself, and bytes that go in and come back."""
    boxes = context.boxes(IDLE)
    for id, title, measure in (
        ("in", "bytes into a container", _into),
        ("out", "bytes out of a container", _out_of),
        ("both", "bytes into a container and back", _through),
    ):
        row = context.result.row(id, title, "MB/s", better="higher")
        ways = {}
        for target, box in boxes.items():
            # A first, short one says how much this runtime carries in the time there is, and warms it up.
            rate = measure(target, box, TRIAL)
            ways[target.name] = _way(measure, target, box, amount(rate, context.plan.stream_seconds))
        context.interleave(row, ways, context.plan.io_runs, warm_up=False)
    end_boxes(boxes)


def amount(rate: float, seconds: float) -> int:
    """The bytes that take about so many seconds at ``rate`` MB/s, in whole MiB, at least TRIAL."""
    return min(max(int(rate * 1e6 * seconds) // _MIB * _MIB, TRIAL), _MOST)


def _way(measure: Callable[[Target, str, int], float], target: Target, box: str, size: int) -> Callable[[], float]:
    return lambda: measure(target, box, size)


@contextlib.contextmanager
def _shell(target: Target, box: str, script: str) -> Iterator[commands.Session]:
    argv = target.exec_argv(box, ["sh", "-c", f"echo ready; {script}"], stdin=True)
    with commands.session(argv, target.env) as session:
        if session.line() != "ready":
            raise BenchError("The shell in the container did not begin.")
        yield session


def _into(target: Target, box: str, size: int) -> float:
    """MB/s from the first byte sent to the word that all have arrived."""
    with _shell(target, box, "cat >/dev/null; echo done") as session:
        data = os.urandom(_MIB)
        started = time.monotonic()
        for _ in range(size // _MIB):
            session.write(data)
        session.close_input()
        if session.line() != "done":
            raise BenchError("The bytes did not arrive.")
        return size / (time.monotonic() - started) / 1e6


def _out_of(target: Target, box: str, size: int) -> float:
    """MB/s from the word to begin to the last byte."""
    with _shell(target, box, f"read -r go; dd if=/dev/zero bs=65536 count={size >> 16} 2>/dev/null") as session:
        started = time.monotonic()
        session.send("go")
        session.count(size)
        return size / (time.monotonic() - started) / 1e6


def _through(target: Target, box: str, size: int) -> float:
    """MB/s of bytes that are sent and come back; each counts once. What comes back is compared."""
    with _shell(target, box, "exec cat") as session:
        data = os.urandom(_MIB)
        started = time.monotonic()
        session.echo(data, size // _MIB)
        return size / (time.monotonic() - started) / 1e6
