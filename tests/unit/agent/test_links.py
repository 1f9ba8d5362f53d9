"""One connection in the guest and its two streams: data, credit, and every order in which the two directions end."""

from __future__ import annotations

import contextlib
import os
import socket
from collections.abc import Iterator

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hako.agent.links import Link
from hako.wire import calls, frames
from hako.wire.calls import CHUNK, WINDOW
from support.agentside import Bench, open_fds

INCOMING, OUTGOING = 11, 13


class Linked(Bench):
    """A link on a Bench; ``peer`` is whoever it is connected with in the guest."""

    def __init__(self, *, connect: bool = True) -> None:
        super().__init__()
        self.times_closed: list[bool] = []
        self.link = Link(self.loop, self.channel, INCOMING, OUTGOING)
        self.link.on_closed = self._on_closed
        self.peer, self.ours = socket.socketpair()
        self.peer.setblocking(False)
        if connect:
            self.link.connect(self.ours)

    def _on_closed(self) -> None:
        self.times_closed.append(True)

    @property
    def closed(self) -> int:
        """How often the link has said that it is closed."""
        return len(self.times_closed)

    def __exit__(self, *_: object) -> None:
        super().__exit__()
        self.peer.close()
        self.ours.close()

    def received(self) -> bytes:
        """What has come to the peer since this was called last."""
        found = b""
        with contextlib.suppress(BlockingIOError):
            while data := self.peer.recv(1 << 20):
                found += data
        return found

    def at_end(self) -> bool:
        """Whether the peer finds the end of what it receives."""
        try:
            return self.peer.recv(1) == b""
        except BlockingIOError:
            return False


@pytest.fixture
def bench() -> Iterator[Linked]:
    before = open_fds()
    with Linked() as made:
        yield made
    assert open_fds() == before


def test_data_flows_both_ways(bench: Linked) -> None:
    bench.peer.send(b"to the host")
    bench.data(INCOMING, b"to the guest")
    bench.run(lambda: bench.output(OUTGOING) == b"to the host")
    bench.run(lambda: bench.received() == b"to the guest")
    assert not bench.link.closed


@pytest.mark.parametrize("host_first", [True, False])
def test_each_direction_ends_by_itself(bench: Linked, host_first: bool) -> None:
    def host_ends() -> None:
        bench.data(INCOMING, b"last of the host", end=True)
        bench.settle()
        assert bench.received() == b"last of the host"
        assert bench.at_end()

    def peer_ends() -> None:
        bench.peer.send(b"last of the peer")
        bench.peer.shutdown(socket.SHUT_WR)
        bench.run(lambda: bench.ended(OUTGOING))
        assert bench.output(OUTGOING) == b"last of the peer"

    first, second = (host_ends, peer_ends) if host_first else (peer_ends, host_ends)
    first()
    assert not bench.closed
    second()
    bench.run(lambda: bench.closed)
    assert bench.closed == 1
    assert not bench.channel._streams


def test_a_peer_that_goes_is_told_of_in_both_directions(bench: Linked) -> None:
    bench.peer.send(b"what it has sent before")
    bench.peer.close()
    bench.run(lambda: bench.ended(OUTGOING) and bench.ended(INCOMING))
    assert bench.output(OUTGOING) == b"what it has sent before"
    assert bench.closed == 1


def test_a_peer_that_has_sent_all_and_goes_later_is_noticed(bench: Linked) -> None:
    bench.peer.shutdown(socket.SHUT_WR)
    bench.run(lambda: bench.ended(OUTGOING))
    bench.settle()
    assert not bench.ended(INCOMING)
    bench.peer.close()
    bench.run(lambda: bench.ended(INCOMING))
    assert bench.closed == 1


def test_a_peer_that_takes_no_more_can_still_send(bench: Linked) -> None:
    bench.peer.shutdown(socket.SHUT_RD)
    bench.data(INCOMING, b"in vain")
    bench.run(lambda: bench.ended(INCOMING))
    bench.peer.send(b"an answer")
    bench.run(lambda: bench.output(OUTGOING) == b"an answer")
    bench.peer.close()
    bench.run(lambda: bench.ended(OUTGOING))
    assert bench.closed == 1


def test_a_host_that_takes_no_more_can_still_send(bench: Linked) -> None:
    bench.data(OUTGOING, end=True)
    bench.settle()
    with pytest.raises(BrokenPipeError):
        bench.peer.send(b"in vain")
    bench.data(INCOMING, b"an answer", end=True)
    bench.settle()
    assert bench.received() == b"an answer"
    bench.run(lambda: bench.closed)


def test_no_more_is_sent_than_granted(bench: Linked) -> None:
    sent = os.urandom(3 * WINDOW)
    rest = memoryview(sent)

    def push() -> bool:
        nonlocal rest
        with contextlib.suppress(BlockingIOError):
            while rest:
                rest = rest[bench.peer.send(rest[:CHUNK]) :]
        return len(bench.output(OUTGOING)) >= WINDOW

    bench.run(push)
    bench.settle()
    assert len(bench.output(OUTGOING)) == WINDOW
    bench.peer.setblocking(True)
    bench.credit(OUTGOING, WINDOW)
    bench.peer.setblocking(False)
    bench.run(lambda: push() and len(bench.output(OUTGOING)) == 2 * WINDOW)
    bench.credit(OUTGOING, WINDOW)
    bench.run(lambda: push() and bench.output(OUTGOING) == sent)


def test_a_peer_that_goes_waits_for_credit_without_work(bench: Linked) -> None:
    _fill(bench.peer, WINDOW + 1)
    bench.peer.close()
    bench.run(lambda: len(bench.output(OUTGOING)) == WINDOW)
    bench.settle()
    assert not bench.loop._epoll.poll(0), "the loop goes round and round"
    assert not bench.ended(OUTGOING)
    bench.credit(OUTGOING, 1000)
    bench.run(lambda: bench.ended(OUTGOING) and bench.ended(INCOMING))
    assert len(bench.output(OUTGOING)) == WINDOW + 1


def _fill(peer: socket.socket, size: int) -> None:
    peer.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4 * size)
    left = size
    while left:
        left -= peer.send(bytes(min(left, CHUNK)))


def test_what_the_host_sends_waits_for_the_peer(bench: Linked) -> None:
    sent = os.urandom(WINDOW)
    for at in range(0, WINDOW, CHUNK):
        bench.data(INCOMING, sent[at : at + CHUNK])
    bench.settle()
    received = b""

    def more() -> bool:
        nonlocal received
        received += bench.received()
        return len(received) == WINDOW

    bench.run(more)
    assert received == sent
    granted = [int.from_bytes(one.data, "big") for one in bench.receive() if one.kind == frames.CREDIT]
    assert sum(granted) >= WINDOW // 2


def test_a_host_that_sends_more_than_granted_ends_the_link(bench: Linked) -> None:
    for _ in range(100):
        bench.data(INCOMING, bytes(CHUNK))
        bench.settle()
    assert bench.ended(INCOMING)
    assert bench.ended(OUTGOING)
    assert bench.closed == 1


def test_a_host_that_goes_ends_the_link(bench: Linked) -> None:
    bench.channel._reset()
    assert bench.closed == 1
    assert bench.at_end()


def test_data_waits_for_the_socket() -> None:
    with Linked(connect=False) as bench:
        bench.data(INCOMING, b"early", end=True)
        bench.settle()
        assert not bench.closed
        bench.link.connect(bench.ours)
        assert bench.received() == b"early"
        assert bench.at_end()


def test_a_link_that_is_given_up_closes_the_socket_that_comes_late() -> None:
    with Linked(connect=False) as bench:
        bench.data(OUTGOING, end=True)
        bench.data(INCOMING, end=True)
        bench.run(lambda: bench.closed)
        bench.link.connect(bench.ours)
        assert bench.at_end()
        assert not bench.channel._streams


def test_numbers_in_use_are_refused() -> None:
    with Linked() as bench:
        for numbers in ((INCOMING, 15), (15, OUTGOING)):
            with pytest.raises(calls.CallError, match="in use"):
                Link(bench.loop, bench.channel, *numbers)
        assert set(bench.channel._streams) == {INCOMING, OUTGOING}


_STEP = st.one_of(
    st.tuples(st.just("host"), st.binary(max_size=300)),
    st.tuples(st.just("peer"), st.binary(max_size=300)),
    st.sampled_from([("host ends", b""), ("peer ends", b""), ("turn", b"")]),
)


@settings(max_examples=60, deadline=None)
@given(st.lists(_STEP, max_size=20))
def test_any_conversation_arrives_whole(steps: list[tuple[str, bytes]]) -> None:
    sent = {"host": b"", "peer": b""}
    ended: set[str] = set()
    before = open_fds()
    with Linked() as bench:
        received = b""
        for what, data in [*steps, ("host ends", b""), ("peer ends", b"")]:
            side = what.split(" ", maxsplit=1)[0]
            if what == "turn":
                bench.settle()
            elif side not in ended:
                sent[side] += data
                if what.endswith("ends"):
                    ended.add(side)
                if side == "host":
                    bench.data(INCOMING, data, end=what == "host ends")
                elif what == "peer ends":
                    bench.peer.shutdown(socket.SHUT_WR)
                elif data:
                    bench.peer.sendall(data)
            received += bench.received()
        bench.run(lambda: bench.closed and bench.ended(OUTGOING))
        received += bench.received()
        assert (received, bench.output(OUTGOING)) == (sent["host"], sent["peer"])
    assert open_fds() == before
