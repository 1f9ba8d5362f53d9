"""The host's end of the agent connection, against a hostile agent: whatever it sends, calls end, memory is bounded."""

from __future__ import annotations

import asyncio
import json
import socket
from collections.abc import Awaitable, Callable
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hako import agent_client
from hako.agent_client import AgentClient, field
from hako.errors import (
    AgentError,
    CommandError,
    HakoError,
    HypervisorError,
    NotFoundError,
    ProtocolError,
    TimedOutError,
)
from hako.wire import calls, frames
from support.hostside import failure, read_all, until

Body = Callable[[AgentClient, "Guest"], Awaitable[None]]


class Guest:
    """The guest's end of the socket: sends what a test wants it to."""

    def __init__(self, sock: socket.socket) -> None:
        self.sock = sock
        self.decoder = frames.Decoder()
        self.frames: list[frames.Frame] = []

    async def push(self, data: bytes) -> None:
        await asyncio.get_running_loop().sock_sendall(self.sock, data)

    async def send(self, stream: int, kind: int, data: bytes = b"", flags: int = 0) -> None:
        await self.push(frames.encode(stream, kind, data, flags))

    async def answer(self, stream: int, value: object) -> None:
        await self.send(stream, frames.RESPONSE, json.dumps(value).encode())

    def received(self) -> list[frames.Frame]:
        while True:
            try:
                data = self.sock.recv(1 << 20)
            except BlockingIOError:
                return self.frames
            if not data:
                return self.frames
            self.frames += self.decoder.feed(data)

    def of(self, kind: int) -> list[frames.Frame]:
        return [one for one in self.received() if one.kind == kind]


def run(body: Body) -> None:
    """Run ``body``; nothing may reach the event loop's handler of last resort."""

    async def main() -> None:
        lost: list[dict[str, Any]] = []
        asyncio.get_running_loop().set_exception_handler(lambda _loop, context: lost.append(context))
        ours, theirs = socket.socketpair()
        theirs.setblocking(False)
        client = AgentClient(ours)
        try:
            await asyncio.wait_for(body(client, Guest(theirs)), 20)
        finally:
            client.close()
            theirs.close()
        assert lost == []

    asyncio.run(main())


def test_calls_and_answers() -> None:
    async def body(client: AgentClient, guest: Guest) -> None:
        first = asyncio.create_task(client.call("One", {"a": 1}))
        second = asyncio.create_task(client.call("Two", {}))
        await until(lambda: len(guest.of(frames.REQUEST)) == 2)
        one, two = guest.of(frames.REQUEST)
        assert calls.decode_request(one.data) == ("One", {"a": 1})
        assert (one.stream, two.stream) == (1, 3)
        await guest.answer(3, {"result": {"n": 2}})
        await guest.answer(1, {"result": {"n": 1}})
        assert await first == {"n": 1}
        assert await second == {"n": 2}

    run(body)


@pytest.mark.parametrize(
    ("answer", "kind", "text"),
    [
        ({"error": {"code": 5, "message": "no"}}, NotFoundError, "no"),
        ({"error": {"code": 13, "message": "broken"}}, AgentError, "broken"),
        ({"error": {"code": 3, "message": "nope", "exit_code": 127}}, CommandError, "nope"),
        ({"error": {"code": 13, "message": "a\x1b[31m\u202e\ud800\nb"}}, AgentError, "a [31m   b"),
        ({"error": {"code": 13, "message": 7}}, ProtocolError, "broke the protocol"),
        ({"error": {"code": "13", "message": ""}}, ProtocolError, "broke the protocol"),
        ({"error": {"code": 99, "message": ""}}, ProtocolError, "broke the protocol"),
        ({"result": 5}, ProtocolError, "broke the protocol"),
        ([], ProtocolError, "broke the protocol"),
        ({}, ProtocolError, "broke the protocol"),
    ],
)
def test_answers_that_are_errors(answer: object, kind: type[HakoError], text: str) -> None:
    async def body(client: AgentClient, guest: Guest) -> None:
        call = asyncio.create_task(client.call("One", {}))
        await until(lambda: guest.of(frames.REQUEST))
        await guest.answer(1, answer)
        error = await failure(call)
        assert type(error) is kind
        assert text in str(error)
        assert str(error).isprintable()
        alive = client._error is None
        assert alive == (kind is not ProtocolError)

    run(body)


def test_a_call_that_is_not_answered_in_time() -> None:
    async def body(client: AgentClient, guest: Guest) -> None:
        error = await failure(client.call("One", {}, 0.05))
        assert isinstance(error, TimedOutError)
        assert str(error) == "The agent in the VM did not answer One within 0.05 s."
        await guest.answer(1, {"result": {}})  # too late, and no harm
        call = asyncio.create_task(client.call("Two", {}))
        await until(lambda: len(guest.of(frames.REQUEST)) == 2)
        await guest.answer(3, {"result": {"ok": True}})
        assert await call == {"ok": True}

    run(body)


def test_answers_nobody_asked_for_and_answers_given_twice() -> None:
    async def body(client: AgentClient, guest: Guest) -> None:
        call = asyncio.create_task(client.call("One", {}))
        await until(lambda: guest.of(frames.REQUEST))
        for stream in (2, 99, 0xFFFFFFFF):
            await guest.answer(stream, {"result": {"wrong": True}})
        await guest.answer(1, {"result": {"n": 1}})
        await guest.answer(1, {"result": {"n": 2}})
        await guest.answer(1, "nonsense")
        await guest.send(1, frames.REQUEST, b"{}")
        assert await call == {"n": 1}
        assert client._calls == {}

    run(body)


@pytest.mark.parametrize(
    "data",
    [
        b"\xff" * 20,
        frames.HEADER.pack(calls.MAX_CALL + 1, 1, frames.DATA, 0),
        frames.encode(0, frames.RESPONSE, calls.encode_error(calls.CallError(3, "a frame of 4 GiB"))),
        frames.encode(0, frames.RESPONSE, b"junk"),
    ],
)
def test_what_ends_the_connection(data: bytes) -> None:
    async def body(client: AgentClient, guest: Guest) -> None:
        lost: list[HakoError] = []
        client.on_lost = lost.append
        call = asyncio.create_task(client.call("One", {}))
        output, given = client.open_output(), client.open_input()
        await until(lambda: guest.of(frames.REQUEST))
        await guest.push(data)
        error = await failure(call)
        if data.startswith(b"\0\0\0\4"):
            assert error.__cause__ is None
        assert isinstance(error, ProtocolError | AgentError)
        await until(lambda: lost)
        assert isinstance(lost[0], ProtocolError)
        assert await output.read() == b""
        await given.write(b"x" * (1 << 20))
        assert type(await failure(client.call("Two", {}))) is ProtocolError

    run(body)


def test_the_vm_goes_away() -> None:
    async def body(client: AgentClient, guest: Guest) -> None:
        call = asyncio.create_task(client.call("One", {}))
        await until(lambda: guest.of(frames.REQUEST))
        guest.sock.close()
        await asyncio.sleep(0.05)
        assert not call.done(), "the driver, which knows the reason, gets a moment to tell it"
        client.fail(HypervisorError("The VM ended: a reason."))
        assert str(await failure(call)) == "The VM ended: a reason."
        assert str(await failure(client.call("Two", {}))) == "The VM ended: a reason."

    run(body)


def test_the_vm_goes_away_without_a_word(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(agent_client, "_REASON_SECONDS", 0.01)

    async def body(client: AgentClient, guest: Guest) -> None:
        guest.sock.close()
        assert str(await failure(client.call("One", {}))) == "The VM has closed its connection."

    run(body)


def test_a_call_that_is_too_long_is_not_sent() -> None:
    async def body(client: AgentClient, guest: Guest) -> None:
        error = await failure(client.call("Create", {"spec": "x" * calls.MAX_CALL}))
        assert "the call Create has" in str(error)
        assert guest.received() == []

    run(body)


def test_output_within_the_window_and_credit_for_what_was_consumed() -> None:
    async def body(client: AgentClient, guest: Guest) -> None:
        output = client.open_output()
        quarter = calls.WINDOW // 4
        for _ in range(4):
            await guest.send(output.number, frames.DATA, bytes(quarter))
        await until(lambda: len(output._data) == calls.WINDOW)
        data = await output.read()
        assert len(data) == calls.WINDOW
        assert guest.of(frames.CREDIT) == []
        output.consumed(quarter - 1)
        assert guest.of(frames.CREDIT) == []
        output.consumed(1)
        assert [int.from_bytes(one.data, "big") for one in guest.of(frames.CREDIT)] == [quarter]
        await guest.send(output.number, frames.DATA, b"end", frames.FLAG_REMOTE_CLOSED)
        output.consumed(calls.WINDOW - quarter)
        assert await read_all(output) == b"end"

    run(body)


def test_data_beyond_the_credit_ends_the_connection() -> None:
    async def body(client: AgentClient, guest: Guest) -> None:
        output = client.open_output()
        for _ in range(calls.WINDOW // calls.CHUNK):
            await guest.send(output.number, frames.DATA, bytes(calls.CHUNK))
        await until(lambda: len(output._data) == calls.WINDOW)
        assert client._error is None
        await guest.send(output.number, frames.DATA, b"1")
        await until(lambda: client._error is not None)
        assert "more of a process's output than it was allowed to" in str(client._error)

    run(body)


def test_one_byte_frames_cost_no_more_than_their_bytes() -> None:
    async def body(client: AgentClient, guest: Guest) -> None:
        output = client.open_output()
        await guest.push(frames.encode(output.number, frames.DATA, b"x") * 50_000)
        await until(lambda: len(output._data) == 50_000)
        assert await output.read() == b"x" * 50_000

    run(body)


def test_data_after_the_end_and_for_unknown_streams_is_dropped() -> None:
    async def body(client: AgentClient, guest: Guest) -> None:
        output, given = client.open_output(), client.open_input()
        await guest.send(output.number, frames.DATA, b"all", frames.FLAG_REMOTE_CLOSED)
        for _ in range(20):
            await guest.send(output.number, frames.DATA, bytes(calls.CHUNK))
            await guest.send(12345, frames.DATA, bytes(calls.CHUNK))
            await guest.send(given.number, frames.DATA, bytes(calls.CHUNK))  # endless data on an input
        assert await read_all(output) == b"all"
        assert client._error is None
        assert not given.closed

    run(body)


def test_closing_an_output_tells_the_guest_and_forgets_it() -> None:
    async def body(client: AgentClient, guest: Guest) -> None:
        output = client.open_output()
        output.close()
        assert [(one.stream, one.flags) for one in guest.of(frames.DATA)] == [(output.number, 5)]
        await guest.send(output.number, frames.DATA, b"late")
        await asyncio.sleep(0.02)
        assert output._data == b""
        assert client._streams == {}

    run(body)


def test_input_waits_for_credit() -> None:
    async def body(client: AgentClient, guest: Guest) -> None:
        given = client.open_input()
        writing = asyncio.create_task(given.write(bytes(calls.WINDOW + 1000)))

        def sent() -> int:
            return sum(len(one.data) for one in guest.of(frames.DATA))

        await until(lambda: sent() == calls.WINDOW)
        assert max(len(one.data) for one in guest.of(frames.DATA)) == calls.CHUNK
        await asyncio.sleep(0.02)
        assert not writing.done()
        await guest.send(given.number, frames.CREDIT, (600).to_bytes(4, "big"))
        await until(lambda: sent() == calls.WINDOW + 600)
        await guest.send(given.number, frames.CREDIT, (0xFFFFFFFF).to_bytes(4, "big"))
        await writing
        assert given._credit <= calls.WINDOW
        given.close()
        assert guest.of(frames.DATA)[-1].flags & frames.FLAG_REMOTE_CLOSED

    run(body)


@pytest.mark.parametrize("how", ["process", "host", "connection"])
def test_a_writer_that_waits_is_woken_when_the_input_ends(how: str) -> None:
    async def body(client: AgentClient, guest: Guest) -> None:
        given = client.open_input()
        writing = asyncio.create_task(given.write(bytes(calls.WINDOW * 2)))
        await until(lambda: given._credit == 0)
        if how == "process":
            await guest.send(given.number, frames.DATA, b"", frames.FLAG_REMOTE_CLOSED)
        elif how == "host":
            given.close()
        else:
            client.fail(HypervisorError("gone"))
        await asyncio.wait_for(writing, 5)
        assert given.closed

    run(body)


def test_a_flood_of_credit_changes_nothing() -> None:
    async def body(client: AgentClient, guest: Guest) -> None:
        given, output = client.open_input(), client.open_output()
        for stream in (given.number, output.number, 77):
            for data in (b"\xff\xff\xff\xff", b"", b"\xff" * 5, b"x" * 1000):
                await guest.send(stream, frames.CREDIT, data)
        call = asyncio.create_task(client.call("One", {}))
        await until(lambda: guest.of(frames.REQUEST))
        await guest.answer(guest.of(frames.REQUEST)[0].stream, {"result": {}})
        await call
        assert given._credit == calls.WINDOW

    run(body)


def test_a_guest_that_does_not_listen_cannot_make_the_host_hoard(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(agent_client, "_MAX_QUEUED", 1 << 20)

    async def body(client: AgentClient, guest: Guest) -> None:
        tasks = [asyncio.create_task(client.call("Big", {"x": "y" * 100_000})) for _ in range(100)]
        errors = [await failure(task) for task in tasks]
        assert any("does not listen" in str(error) for error in errors)
        assert len(client._outgoing) <= 1 << 20

    run(body)


def test_stream_data_waits_for_room_instead() -> None:
    async def body(client: AgentClient, guest: Guest) -> None:
        inputs = [client.open_input() for _ in range(30)]
        tasks = [asyncio.create_task(one.write(bytes(calls.WINDOW))) for one in inputs]
        await asyncio.sleep(0.05)
        assert len(client._outgoing) <= agent_client._HIGH_WATER + calls.CHUNK * 2
        await until(lambda: guest.received() and all(task.done() for task in tasks))
        await until(lambda: sum(len(one.data) for one in guest.of(frames.DATA)) == 30 * calls.WINDOW)

    run(body)


def test_numbers_come_round() -> None:
    async def body(client: AgentClient, guest: Guest) -> None:
        client.open_output()  # number 1 stays in use
        client._next = (1 << 32) - 1
        assert [client.open_input().number, client.open_input().number] == [(1 << 32) - 1, 3]

    run(body)


guest_frames = st.builds(
    frames.encode,
    stream=st.integers(0, 9),
    kind=st.integers(0, 5),
    data=st.binary(max_size=40)
    | st.sampled_from([b'{"result":{}}', b'{"error":{"code":5,"message":"x"}}', b"\0\0\1\0", b"{"]),
    flags=st.integers(0, 7),
)


@settings(max_examples=150, deadline=None)
@given(st.lists(guest_frames | st.binary(max_size=60), max_size=15))
def test_any_bytes(sent: list[bytes]) -> None:
    """Each call ends with a result or a HakoError, and so do the streams."""

    async def body(client: AgentClient, guest: Guest) -> None:
        tasks: list[asyncio.Task[dict[str, Any]]] = [asyncio.create_task(client.call("One", {})) for _ in range(2)]
        await asyncio.sleep(0)
        output, given = client.open_output(), client.open_input()
        assert (output.number, given.number) == (5, 7)
        reading = asyncio.create_task(read_all(output))
        writing = asyncio.create_task(given.write(bytes(calls.WINDOW + 1)))
        for piece in sent:
            await guest.push(piece)
        await asyncio.sleep(0.001)
        guest.received()
        client.fail(HypervisorError("over"))
        for result in await asyncio.gather(*tasks, return_exceptions=True):
            assert isinstance(result, dict | HakoError)
        await asyncio.wait_for(asyncio.gather(reading, writing), 5)
        assert client._decoder.pending <= calls.MAX_CALL + frames.HEADER.size

    run(body)


@pytest.mark.parametrize(
    ("answer", "kind"),
    [
        ({}, int),
        ({"x": None}, int),
        ({"x": "1"}, int),
        ({"x": True}, int),
        ({"x": 1.0}, int),
        ({"x": 1 << 64}, int),
        ({"x": -(1 << 63) - 1}, int),
        ({"x": 1}, bool),
        ({"x": 1}, str),
        ({"x": ["a"]}, str),
        ({"x": {}}, list),
    ],
)
def test_fields_of_the_wrong_type(answer: dict[str, Any], kind: type) -> None:
    with pytest.raises(ProtocolError, match="no valid x"):
        field(answer, "x", kind)


def test_fields() -> None:
    assert field({"x": (1 << 64) - 1}, "x", int) == (1 << 64) - 1
    assert field({"x": False}, "x", bool) is False
    assert field({}, "x", int, 5) == 5
    assert field({"x": "6.1\x1b]0;evil\x07\ud800"}, "x", str) == "6.1 ]0;evil  "
    assert len(field({"x": "y" * 100_000}, "x", str)) == 1024
