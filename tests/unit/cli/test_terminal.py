"""The user's terminal: raw mode and back, the keys that detach, bytes both ways."""

from __future__ import annotations

import contextlib
import fcntl
import os
import pty
import select
import signal
import struct
import termios
from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hako.cli import session, terminal
from hako.cli.terminal import Bridge, DetachKeys, RawMode


@pytest.fixture
def tty() -> Iterator[tuple[int, int]]:
    """A terminal: the user's side and the program's."""
    user, program = pty.openpty()
    yield user, program
    os.close(user)
    os.close(program)


@pytest.mark.parametrize(
    ("typed", "passed", "detached"),
    [
        ([b"abc"], b"abc", False),
        ([b"\x10\x11"], b"", True),
        ([b"a\x10\x11b"], b"a", True),
        ([b"\x10", b"\x11"], b"", True),
        ([b"\x10", b"x"], b"\x10x", False),
        ([b"\x10\x10\x11"], b"\x10", True),
        ([b"\x11\x10"], b"\x11", False),
        ([b"\x10a\x10\x11"], b"\x10a", True),
    ],
)
def test_detach_keys(typed: list[bytes], passed: bytes, detached: bool) -> None:
    keys = DetachKeys()
    got = [keys.feed(piece) for piece in typed]
    assert b"".join(piece for piece, _ in got) == passed
    assert got[-1][1] is detached


@given(st.lists(st.binary(max_size=8)))
def test_typing_without_the_keys_arrives_whole(pieces: list[bytes]) -> None:
    typed = b"".join(pieces).replace(b"\x11", b"")
    keys = DetachKeys()
    passed, detached = keys.feed(typed)
    more, _ = keys.feed(b".")
    assert not detached
    assert passed + more == typed + b"."


def test_raw_mode_is_undone(tty: tuple[int, int]) -> None:
    before = termios.tcgetattr(tty[1])

    def fail() -> None:
        with RawMode(tty[1]):
            raw = termios.tcgetattr(tty[1])
            assert not raw[3] & (termios.ECHO | termios.ICANON | termios.ISIG)
            raise RuntimeError("in between")

    with pytest.raises(RuntimeError, match="in between"):
        fail()
    assert termios.tcgetattr(tty[1]) == before


def test_raw_mode_of_no_terminal_does_nothing() -> None:
    read, write = os.pipe()
    with RawMode(read) as raw:
        raw.set()
    os.close(read)
    os.close(write)


def test_size(tty: tuple[int, int]) -> None:
    fcntl.ioctl(tty[1], termios.TIOCSWINSZ, struct.pack("HHHH", 33, 99, 0, 0))
    read, write = os.pipe()
    assert terminal.size(read, tty[1]) == (99, 33)
    assert terminal.size(tty[1], write) == (99, 33)
    assert terminal.size(read, write) is None
    os.close(read)
    os.close(write)


def turn(bridge: Bridge, poll: select.poll) -> None:
    """One round of the loop that a session runs."""
    bridge.register(poll)
    for fd, _ in poll.poll(5000):
        bridge.handle(fd)


def test_the_bridge_carries_both_ways(tty: tuple[int, int]) -> None:
    stdin, typed = os.pipe()
    shown, stdout = os.pipe()
    poll = select.poll()
    with Bridge(stdin, stdout) as bridge:
        far = {name: os.dup(fd) for name, fd in bridge.far_ends().items()}
        bridge.started()
        os.write(typed, b"ls\r")
        turn(bridge, poll)
        assert os.read(far["stdin"], 10) == b"ls\r"
        os.write(far["stdout"], b"a file\r\n")
        turn(bridge, poll)
        assert os.read(shown, 20) == b"a file\r\n"
        os.write(far["stdout"], b"last words")
        os.close(far.pop("stdout"))
        bridge.finish()
        assert os.read(shown, 20) == b"last words"
        os.write(typed, b"\x10\x11")
        turn(bridge, poll)
        assert bridge.detached
    assert os.read(far["stdin"], 1) == b""
    for fd in (stdin, typed, shown, stdout, far["stdin"]):
        os.close(fd)


def test_the_bridge_waits_for_a_slow_reader() -> None:
    stdin, typed = os.pipe()
    poll = select.poll()
    data = os.urandom(200_000).replace(b"\x10", b"\x00")
    with Bridge(stdin, 1) as bridge:
        far = {name: os.dup(fd) for name, fd in bridge.far_ends().items()}
        bridge.started()
        got = bytearray()
        sent = 0
        os.set_blocking(typed, False)
        while len(got) < len(data):
            if sent < len(data):
                with contextlib.suppress(BlockingIOError):
                    sent += os.write(typed, data[sent : sent + 65536])
            turn(bridge, poll)
            if select.select([far["stdin"]], [], [], 0)[0]:
                got += os.read(far["stdin"], 30_000)
        assert bytes(got) == data
    for fd in (stdin, typed, *far.values()):
        os.close(fd)


def test_the_bridge_survives_the_end_of_its_input_and_of_its_reader() -> None:
    stdin, typed = os.pipe()
    poll = select.poll()
    with Bridge(stdin, 1) as bridge:
        far = {name: os.dup(fd) for name, fd in bridge.far_ends().items()}
        bridge.started()
        os.close(typed)
        turn(bridge, poll)
        assert os.read(far["stdin"], 1) == b""
        os.close(far["stdout"])
        turn(bridge, poll)
        bridge.register(poll)
        assert poll.poll(0) == []
    os.close(stdin)
    os.close(far["stdin"])


def test_signals_are_collected_and_given_back() -> None:
    before = signal.getsignal(signal.SIGTERM)
    with session.Signals() as signals:
        os.kill(os.getpid(), signal.SIGTERM)
        os.kill(os.getpid(), signal.SIGUSR1)
        poll = select.poll()
        poll.register(signals, select.POLLIN)
        assert poll.poll(5000)
        assert sorted(signals.take()) == sorted([signal.SIGTERM, signal.SIGUSR1])
        assert signals.take() == []
    assert signal.getsignal(signal.SIGTERM) is before


def test_ignored_signals_stay_ignored() -> None:
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with session.Signals() as signals:
            os.kill(os.getpid(), signal.SIGHUP)
            os.kill(os.getpid(), signal.SIGUSR2)
            assert signals.take() == [signal.SIGUSR2]
    finally:
        signal.signal(signal.SIGHUP, before)


def test_impatient_interrupts_become_a_kill() -> None:
    waiting = session.Session("s", "c", stdin=False, tty=False)
    numbers = [waiting._patience(signal.SIGINT) for _ in range(3)]
    assert numbers == [signal.SIGINT, signal.SIGINT, signal.SIGKILL]
    assert waiting._patience(signal.SIGTERM) == signal.SIGTERM
