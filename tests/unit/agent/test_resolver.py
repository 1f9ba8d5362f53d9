"""The guest's end of a relay for name servers: what clients send becomes questions, answers find their clients."""

from __future__ import annotations

import contextlib
import os
import socket
from collections.abc import Iterator

import pytest

from hako.agent import redirect, resolver
from hako.wire import calls, queries
from hako.wire.queries import TCP, UDP, Message
from support.agentside import Bench, open_fds

ASKING, ANSWERING = 11, 13
ADDRESS = "127.0.0.77"
QUESTION, ANSWER = b"question of a client", b"answer"


class Relaying(Bench):
    """A relay on a Bench, whose port is not hidden behind port 53."""

    def __init__(self) -> None:
        super().__init__()
        self.relay = resolver.Relay(self.loop, self.channel, [ADDRESS, "127.0.0.78"], ASKING, ANSWERING)
        self.at = (ADDRESS, self.relay._servers[0].port)

    def questions(self) -> list[Message]:
        """What the host has been asked by now."""
        return list(queries.Decoder().feed(self.output(ASKING)))

    def asked(self, count: int = 1) -> list[Message]:
        """Wait until the host has been asked ``count`` questions."""
        self.run(lambda: len(self.questions()) >= count)
        return self.questions()

    def answer(self, question: Message, data: bytes = ANSWER) -> None:  # type: ignore[override]  # a question's, not a call's
        """Answer as the host."""
        self.data(ANSWERING, Message(question.token, question.server, question.protocol, data).encode())


@pytest.fixture
def bench(monkeypatch: pytest.MonkeyPatch) -> Iterator[Relaying]:
    # The programs would be attached above all processes of this machine; tests/system/test_resolver.py has them.
    monkeypatch.setattr(redirect, "install", lambda servers: list(servers) and [])
    with Relaying() as made:
        yield made


def datagram() -> socket.socket:
    """A client by UDP."""
    made = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    made.settimeout(20)
    return made


@pytest.mark.parametrize(
    "value",
    [
        *(None, "127.0.0.11", {}, [], ["127.0.0.1"] * 4, [1], [None], ["::1"], ["10.0.0.1"], ["localhost"]),
        *(["127.1"], [""], ["127.0.0.11", "8.8.8.8"], ["127.0.0.11\0"], ["127.0.0.256"]),
    ],
)
def test_other_addresses_are_refused(value: object) -> None:
    with pytest.raises(calls.CallError, match="addresses") as caught:
        resolver.parse(value)
    assert caught.value.code == calls.INVALID_ARGUMENT


def test_addresses_of_the_loopback_are_taken() -> None:
    assert resolver.parse(["127.0.0.11", "127.9.8.7"]) == ["127.0.0.11", "127.9.8.7"]


def test_each_datagram_gets_its_own_answer(bench: Relaying) -> None:
    with datagram() as one, datagram() as two:
        one.sendto(QUESTION, bench.at)
        (first,) = bench.asked()
        two.sendto(QUESTION[::-1], ("127.0.0.78", bench.relay._servers[1].port))
        _, second = bench.asked(2)
        assert (first.server, first.protocol, first.data) == (0, UDP, QUESTION)
        assert (second.server, second.protocol, second.data) == (1, UDP, QUESTION[::-1])
        bench.answer(second, b"to the second")
        bench.answer(first, b"to the first")
        bench.settle()
        assert two.recv(100) == b"to the second"
        assert one.recvfrom(100) == (b"to the first", bench.at)


def test_what_nobody_has_asked_is_dropped(bench: Relaying) -> None:
    with datagram() as client:
        client.sendto(b"too short", bench.at)
        client.sendto(QUESTION, bench.at)
        (question,) = bench.asked()
        assert question.data == QUESTION
        bench.answer(Message(question.token + 1, 0, UDP, b""))
        bench.answer(question, b"right")
        bench.answer(question, b"again")
        bench.settle()
        assert client.recv(100) == b"right"
        client.setblocking(False)
        with pytest.raises(BlockingIOError):
            client.recv(100)


def test_a_connection_asks_one_after_another(bench: Relaying) -> None:
    long = bytes(0xFFFF)
    with socket.create_connection(bench.at, timeout=20) as client:
        bench.settle()
        client.sendall(b"".join(len(data).to_bytes(2, "big") + data for data in (QUESTION, QUESTION[::-1])))
        (first,) = bench.asked()
        bench.settle()
        assert len(bench.questions()) == 1
        assert (first.protocol, first.data) == (TCP, QUESTION)
        bench.answer(first)
        _, second = bench.asked(2)
        assert second.data == QUESTION[::-1]
        assert client.recv(2 + len(ANSWER), socket.MSG_WAITALL) == len(ANSWER).to_bytes(2, "big") + ANSWER
        bench.answer(second, long)
        received = bytearray()
        client.setblocking(False)

        def more() -> bool:
            with contextlib.suppress(BlockingIOError):
                received.extend(client.recv(1 << 20))
            return len(received) == 2 + len(long)

        bench.run(more)
        # A question of the largest size comes in pieces.
        client.setblocking(True)
        client.sendall(b"\xff\xff" + long)
        *_, third = bench.asked(3)
        assert third.data == long


@pytest.mark.parametrize("sent", [b"\0\0", b"\0\x05short"])
def test_a_connection_that_sends_no_question_is_ended(bench: Relaying, sent: bytes) -> None:
    with socket.create_connection(bench.at, timeout=20) as client:
        client.sendall(sent)
        bench.run(lambda: bench.relay._servers[0]._clients)
        bench.run(lambda: not bench.relay._servers[0]._clients)
        assert client.recv(10) == b""
    assert not bench.questions()


def test_a_connection_without_an_answer_is_ended(bench: Relaying) -> None:
    with socket.create_connection(bench.at, timeout=20) as client:
        client.sendall(len(QUESTION).to_bytes(2, "big") + QUESTION)
        (question,) = bench.asked()
        bench.answer(question, b"")
        bench.settle()
        assert client.recv(10) == b""


def test_the_oldest_connection_makes_room(bench: Relaying) -> None:
    clients = []
    try:
        for _ in range(resolver._MAX_CLIENTS + 1):
            clients.append(socket.create_connection(bench.at, timeout=20))
            bench.settle()
        assert clients[0].recv(1) == b""
        clients[1].sendall(len(QUESTION).to_bytes(2, "big") + QUESTION)
        assert bench.asked()[0].data == QUESTION
    finally:
        for client in clients:
            client.close()


def test_so_many_questions_at_a_time(bench: Relaying) -> None:
    most = queries.MAX_QUESTIONS
    with datagram() as client:
        for index in range(most + 5):
            client.sendto(QUESTION + bytes([index]), bench.at)
        questions = bench.asked(most)
        bench.settle()
        assert len(bench.questions()) == most
        # By TCP there is nobody to wait for: the client learns at once.
        with socket.create_connection(bench.at, timeout=20) as other:
            other.sendall(len(QUESTION).to_bytes(2, "big") + QUESTION)
            bench.run(lambda: bench.relay._servers[0]._clients)
            bench.run(lambda: not bench.relay._servers[0]._clients)
            assert other.recv(10) == b""
        bench.answer(questions[7])
        assert bench.asked(most + 1)[most].data == QUESTION + bytes([most])
    assert len({question.token for question in bench.questions()}) == most + 1


def test_no_more_than_the_host_can_take(bench: Relaying) -> None:
    size = 60_000
    sent = 0
    with datagram() as client:
        while (sent + 1) * (size + queries.HEADER.size) <= calls.WINDOW:
            sent += 1
            client.sendto(bytes(size), bench.at)
            bench.asked(sent)
        client.sendto(bytes(size), bench.at)  # dropped
        bench.settle()
        bench.credit(ASKING, calls.WINDOW)
        bench.settle()
        client.sendto(QUESTION, bench.at)
        assert bench.asked(sent + 1)[-1].data == QUESTION


def test_the_host_gets_its_credit_back(bench: Relaying) -> None:
    sent = 0
    with datagram() as client:
        client.sendto(QUESTION, bench.at)
        (question,) = bench.asked()
        while sent < calls.WINDOW // 2:
            data = Message(question.token + 1, 0, UDP, bytes(40_000)).encode()
            bench.data(ANSWERING, data)
            sent += len(data)
        credits: list[int] = []

        def granted() -> bool:
            credits[:] = [int.from_bytes(one.data, "big") for one in bench.receive() if one.kind == 4]
            return bool(credits)

        bench.run(granted)
        assert credits == [sent]


@pytest.mark.parametrize("stream", [ASKING, ANSWERING])
def test_the_end_of_either_stream_ends_it(bench: Relaying, stream: int) -> None:
    with socket.create_connection(bench.at, timeout=20) as client:
        bench.settle()
        bench.data(stream, end=True)
        bench.run(lambda: bench.ended(ASKING) and bench.ended(ANSWERING))
        assert client.recv(1) == b""
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(bench.at, timeout=20)


def test_it_ends_with_the_connection_to_the_host(bench: Relaying) -> None:
    bench.channel._reset()
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(bench.at, timeout=20)


def test_nothing_is_left_of_one_that_fails(bench: Relaying, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(_servers: object) -> list[int]:
        raise PermissionError(1, "Operation not permitted")

    before = open_fds()
    with pytest.raises(calls.CallError, match=f"stream {ANSWERING} is in use"):
        resolver.Relay(bench.loop, bench.channel, [ADDRESS], 21, ANSWERING)
    monkeypatch.setattr(redirect, "install", refuse)
    with pytest.raises(PermissionError):
        resolver.Relay(bench.loop, bench.channel, [ADDRESS], 21, 23)
    assert open_fds() == before
    with datagram() as client:
        client.sendto(QUESTION, bench.at)
        assert bench.asked()


def test_the_programs_go_with_their_descriptors(bench: Relaying, monkeypatch: pytest.MonkeyPatch) -> None:
    read, write = os.pipe()
    monkeypatch.setattr(redirect, "install", lambda servers: list(servers) and [write])
    relay = resolver.Relay(bench.loop, bench.channel, [ADDRESS], 21, 23)
    os.set_blocking(read, False)
    with pytest.raises(BlockingIOError):
        os.read(read, 1)
    relay.close()
    assert os.read(read, 1) == b""
    os.close(read)
