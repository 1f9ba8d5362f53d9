"""Signals that ask the benchmark to end: raised where that is safe, so that everything is given back."""

from __future__ import annotations

import contextlib
import signal
from collections.abc import Iterator
from types import FrameType

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)

_holds = 0
_pending = 0


class Interrupted(BaseException):
    """A signal has come."""

    def __init__(self, number: int) -> None:
        super().__init__(number)
        self.number = number


@contextlib.contextmanager
def raised() -> Iterator[None]:
    """The signals raise Interrupted in the block, but not while they are held."""
    saved = {number: signal.signal(number, _interrupt) for number in SIGNALS}
    try:
        yield
    finally:
        for number, handler in saved.items():
            signal.signal(number, handler)


@contextlib.contextmanager
def held() -> Iterator[None]:
    """No signal cuts the block short; one that comes meanwhile is raised at its end."""
    global _holds, _pending
    _holds += 1
    try:
        yield
    finally:
        _holds -= 1
    if _pending and not _holds:
        number, _pending = _pending, 0
        raise Interrupted(number)


@contextlib.contextmanager
def ignored() -> Iterator[None]:
    """The signals do nothing in the block."""
    saved = {number: signal.signal(number, signal.SIG_IGN) for number in SIGNALS}
    try:
        yield
    finally:
        for number, handler in saved.items():
            signal.signal(number, handler)


def _interrupt(number: int, _frame: FrameType | None) -> None:
    global _pending
    if _holds:
        _pending = number
    else:
        raise Interrupted(number)
