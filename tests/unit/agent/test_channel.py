"""The agent's end of the connection: calls, order, back pressure, and whatever bytes a host may send."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hako.agent import channel as channel_module
from hako.agent.channel import Channel
from hako.agent.loop import Future
from hako.wire import calls, frames
from support.agentside import Bench


class Recorder:
    """A stream that notes what it is told."""

    def __init__(self) -> None:
        self.seen: list[object] = []

    def on_data(self, data: bytes, *, end: bool) -> None:
        self.seen.append((data, end))

    def on_credit(self, count: int) -> None:
        self.seen.append(count)

    def on_writable(self) -> None:
        self.seen.append("writable")

    def on_reset(self) -> None:
        self.seen.append("reset")


def test_calls_are_answered() -> None:
    with Bench() as bench:
        bench.request(1, "Hello", version=1)
        bench.request(3, "Fail")
        assert bench.answer(1) == {"method": "Hello", "params": {"version": 1}}
        with pytest.raises(calls.CallError, match="no such thing"):
            bench.answer(3)


def test_a_failing_handler_is_answered_too() -> None:
    async def handler(_method: str, _params: dict[str, Any]) -> dict[str, Any]:
        raise ZeroDivisionError("by zero")

    with Bench(handler) as bench:
        bench.request(1, "Hello")
        with pytest.raises(calls.CallError, match="ZeroDivisionError: by zero") as raised:
            bench.answer(1)
        assert raised.value.code == calls.INTERNAL


def test_an_answer_that_is_too_long_is_an_error_not_a_broken_connection() -> None:
    async def handler(_method: str, _params: dict[str, Any]) -> dict[str, Any]:
        return {"text": "x" * calls.MAX_CALL}

    with Bench(handler) as bench:
        bench.request(1, "Ps")
        with pytest.raises(calls.CallError) as raised:
            bench.answer(1)
        assert raised.value.code == calls.RESOURCE_EXHAUSTED


def test_a_request_that_makes_no_sense_is_answered_and_the_next_one_served() -> None:
    with Bench() as bench:
        bench.send(frames.encode(1, frames.REQUEST, b"{"))
        bench.request(3, "Hello")
        with pytest.raises(calls.CallError) as raised:
            bench.answer(1)
        assert raised.value.code == calls.INVALID_ARGUMENT
        assert bench.answer(3)


def test_streams_get_their_frames() -> None:
    with Bench() as bench:
        stream = Recorder()
        bench.channel.add_stream(5, stream)
        with pytest.raises(calls.CallError, match="stream 5 is in use"):
            bench.channel.add_stream(5, Recorder())
        bench.data(5, b"abc")
        bench.data(5, end=True)
        bench.credit(5, 77)
        bench.send(frames.encode(5, frames.CREDIT, b"odd"))
        bench.data(6, b"nobody's")
        bench.settle()
        assert stream.seen == [(b"abc", False), (b"", True), 77]
        bench.channel.remove_stream(5)
        bench.data(5, b"late")
        bench.settle()
        assert len(stream.seen) == 3


def test_answers_overtake_data() -> None:
    """A full connection delays an answer by what the kernel holds, not by what the agent has queued."""
    with Bench() as bench:
        piece = bytes(calls.CHUNK)
        for _ in range(20):
            bench.channel.send_data(7, piece)
        bench.request(1, "Hello")
        bench.settle()
        assert bench.answer(1)
        bench.run(lambda: len(bench.output(7)) == 20 * len(piece))
        order = [one.kind for one in bench.frames]
        assert 0 < order.index(frames.RESPONSE) < 20


def test_data_waits_until_the_host_takes_some() -> None:
    with Bench() as bench:
        stream = Recorder()
        sent = 0
        while bench.channel.can_send(stream):
            bench.channel.send_data(9, bytes(calls.CHUNK))
            sent += calls.CHUNK
        assert bench.channel._data_size <= channel_module._HIGH_WATER + calls.CHUNK + frames.HEADER.size
        assert not bench.channel.can_send(stream)
        assert stream.seen == []
        bench.run(lambda: len(bench.output(9)) == sent)
        bench.run(lambda: stream.seen == ["writable"])


def test_a_host_that_takes_no_answers_is_not_listened_to() -> None:
    """Memory is bounded although each of the calls costs little to send."""
    served = 0

    async def handler(_method: str, _params: dict[str, Any]) -> dict[str, Any]:
        nonlocal served
        served += 1
        return {"text": "x" * 10_000}

    with Bench(handler) as bench:
        request = frames.encode(1, frames.REQUEST, calls.encode_request("Info", {}))
        sent = 0
        bench.host.settimeout(0)
        for _ in range(200):
            try:
                sent += bench.host.send(request * 100)
            except BlockingIOError:
                bench.settle()
        limit = channel_module._MAX_ANSWERS
        refusals = 200 * (channel_module._READ_SIZE // len(request))
        assert limit <= bench.channel._urgent_size <= limit + 2 * 10_100 + refusals
        before = served
        bench.settle()
        assert served == before
        bench.run(lambda: len(bench.receive()) == sent // len(request))
        bench.request(3, "Info")
        assert bench.answer(3)


def test_the_number_of_calls_is_limited(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(calls, "MAX_CALLS", 3)
    gate = Future()

    async def handler(_method: str, _params: dict[str, Any]) -> dict[str, Any]:
        await gate
        return {}

    with Bench(handler) as bench:
        for number in (1, 3, 5, 7):
            bench.request(number, "Wait")
        with pytest.raises(calls.CallError) as raised:
            bench.answer(7)
        assert raised.value.code == calls.RESOURCE_EXHAUSTED
        gate.set(None)
        assert bench.answer(1) == bench.answer(5) == {}
        bench.request(9, "Wait")
        assert bench.answer(9) == {}


def test_bytes_that_are_no_frames_end_the_connection() -> None:
    with Bench() as bench:
        stream = Recorder()
        bench.channel.add_stream(5, stream)
        bench.send(b"\xff" * 20)
        with pytest.raises(calls.CallError, match="exceeds the limit") as raised:
            bench.answer(0)
        assert raised.value.code == calls.INVALID_ARGUMENT
        assert stream.seen == ["reset"]
        # Nothing is taken from this host any more, for where a frame begins cannot be known.
        bench.request(1, "Hello")
        bench.settle()
        assert [one.stream for one in bench.receive()] == [0]


def reconnect(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    """The host closes its end and opens it anew, which a port reports as an end of file."""
    ends = [b""]
    read = channel_module.os.read

    def once_ended(fd: int, size: int) -> bytes:
        if fd == bench.port.fileno() and ends:
            return ends.pop()
        return read(fd, size)

    with monkeypatch.context() as patch:
        patch.setattr(channel_module.os, "read", once_ended)
        bench.host.send(b"\0")
        bench.run(lambda: not ends)
    bench.port.recv(1)
    bench.frames.clear()


def test_the_next_host_starts_afresh(monkeypatch: pytest.MonkeyPatch) -> None:
    gates: list[Future] = []

    async def handler(method: str, _params: dict[str, Any]) -> dict[str, Any]:
        if method == "Wait":
            gates.append(Future())
            await gates[-1]
        return {"method": method}

    with Bench(handler) as bench:
        stream = Recorder()
        bench.channel.add_stream(5, stream)
        bench.request(1, "Wait")
        bench.send(frames.encode(3, frames.REQUEST, b"x" * 100)[:50])  # and the rest of it never comes
        bench.run(lambda: gates and bench.channel._decoder.pending)
        reconnect(bench, monkeypatch)
        assert stream.seen == ["reset"]
        bench.channel.add_stream(5, Recorder())
        gates[0].set(None)  # what the earlier host asked for is not told to this one
        bench.request(1, "Hello")
        assert bench.answer(1) == {"method": "Hello"}
        assert len(bench.receive()) == 1


def test_a_broken_connection_is_whole_again_for_the_next_host(monkeypatch: pytest.MonkeyPatch) -> None:
    with Bench() as bench:
        bench.send(b"\xff" * 20)
        with pytest.raises(calls.CallError):
            bench.answer(0)
        reconnect(bench, monkeypatch)
        bench.request(1, "Hello")
        assert bench.answer(1)


def test_a_host_that_has_gone_is_looked_for_at_intervals() -> None:
    """The port reports the closed end all the time: the agent must not spin."""
    with Bench() as bench:
        bench.host.close()
        reads = 0
        real = Channel._receive

        def count(self: Channel) -> None:
            nonlocal reads
            reads += 1
            real(self)

        Channel._receive = count  # type: ignore[method-assign]
        try:
            done = bench.loop.sleep(0.3)
            bench.loop.run(done)
        finally:
            Channel._receive = real  # type: ignore[method-assign]
        assert 1 < reads <= 8


pieces = st.lists(
    st.binary(max_size=100)
    | st.builds(
        frames.encode,
        stream=st.integers(0, 9),
        kind=st.integers(0, 5),
        data=st.binary(max_size=60) | st.sampled_from([b'{"method":"Hello","params":{}}', b"\0\0\1\0"]),
        flags=st.integers(0, 7),
    ),
    max_size=12,
)


@settings(max_examples=150, deadline=None)
@given(pieces)
def test_any_bytes(sent: list[bytes]) -> None:
    """Each request is answered, or the connection is given up on stream 0; the agent goes on."""
    with Bench() as bench:
        streams = {number: Recorder() for number in (2, 4)}
        for number, stream in streams.items():
            bench.channel.add_stream(number, stream)
        decoder, asked, broken = frames.Decoder(calls.MAX_CALL), list[int](), False
        for piece in sent:
            bench.send(piece)
        bench.settle()
        try:
            asked = [one.stream for one in decoder.feed(b"".join(sent)) if one.kind == frames.REQUEST]
        except frames.FrameError:
            broken = True
        answers = [one.stream for one in bench.receive() if one.kind == frames.RESPONSE]
        if broken:
            assert answers[-1] == 0
            assert all(stream.seen[-1] == "reset" for stream in streams.values())
        else:
            assert answers == asked
            assert bench.channel._decoder.pending == decoder.pending
        assert bench.channel._urgent_size == bench.channel._data_size == 0
