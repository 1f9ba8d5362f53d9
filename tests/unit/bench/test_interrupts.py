"""Signals that ask to end."""

from __future__ import annotations

import os
import signal

import pytest

from bench import interrupts


def test_a_signal_is_raised() -> None:
    with pytest.raises(interrupts.Interrupted) as caught, interrupts.raised():
        os.kill(os.getpid(), signal.SIGTERM)
    assert caught.value.number == signal.SIGTERM


def test_a_signal_waits_until_the_outermost_block_that_holds_it() -> None:
    done = []

    def work() -> None:
        with interrupts.held():
            with interrupts.held():
                os.kill(os.getpid(), signal.SIGINT)
                done.append("inner")
            done.append("outer")
        done.append("not this")

    with pytest.raises(interrupts.Interrupted), interrupts.raised():
        work()
    assert done == ["inner", "outer"]
    with interrupts.held():
        pass  # it is raised once


def test_signals_can_be_ignored() -> None:
    with interrupts.raised(), interrupts.ignored():
        os.kill(os.getpid(), signal.SIGINT)


def test_handlers_come_back() -> None:
    before = [signal.getsignal(number) for number in interrupts.SIGNALS]
    with interrupts.raised(), interrupts.ignored():
        pass
    assert [signal.getsignal(number) for number in interrupts.SIGNALS] == before
