"""The host's end of a relay for name servers: real servers and sockets, and a guest that says what it likes."""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest

from hako.agent_client import AgentClient
from hako.errors import HostError
from hako.sandbox import resolver
from hako.sandbox.resolver import Resolver, loopback_servers
from hako.wire import calls, frames, queries
from hako.wire.queries import TCP, UDP, Message
from support.agentside import open_fds
from support.hostside import until

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="needs root: sockets are made in a network namespace")

#: Nobody else of this machine's is there.
ADDRESS = "127.0.77.11"
QUESTION = b"question of a client"
NAMESPACE = "/proc/self/ns/net"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", []),
        ("nameserver 127.0.0.11\noptions ndots:0\n", ["127.0.0.11"]),
        ("search a.b\nnameserver\t127.0.0.53  trailing\nnameserver 10.0.0.1\n", ["127.0.0.53"]),
        ("nameserver 127.0.0.1\nnameserver 127.0.0.2\nnameserver 127.0.0.1", ["127.0.0.1", "127.0.0.2"]),
        ("nameserver 10.0.0.1\nnameserver 10.0.0.2\nnameserver 10.0.0.3\nnameserver 127.0.0.11", []),
        ("# nameserver 127.0.0.11\n;nameserver 127.0.0.11\nnameservers 127.0.0.11\nnameserver", []),
        ("nameserver ::1\nnameserver 127.1\nnameserver localhost\nnameserver 127.0.0.1\0\n", []),
    ],
)
def test_the_servers_of_a_file(text: str, expected: list[str]) -> None:
    assert loopback_servers(text) == expected


class Guest:
    """Speaks frames as an agent does: takes calls, asks and is answered."""

    def __init__(self, sock: socket.socket) -> None:
        sock.setblocking(False)
        self._sock = sock
        self._decoder = frames.Decoder()
        self._answers = queries.Decoder()
        self.calls: list[dict[str, Any]] = []
        self.answers: list[Message] = []
        self.ended: set[int] = set()
        self.error: calls.CallError | None = None

    async def serve(self) -> None:
        """Take what comes until the host is gone."""
        loop = asyncio.get_running_loop()
        while data := await loop.sock_recv(self._sock, 1 << 20):
            for frame in self._decoder.feed(data):
                await self._take(frame)

    async def _take(self, frame: frames.Frame) -> None:
        if frame.kind == frames.REQUEST:
            method, params = calls.decode_request(frame.data)
            assert method == "Resolve"
            self.calls.append(params)
            answer = calls.encode_result({}) if self.error is None else calls.encode_error(self.error)
            await self._send(frames.encode(frame.stream, frames.RESPONSE, answer))
        elif frame.kind == frames.DATA:
            self.answers += self._answers.feed(frame.data)
            if frame.flags & frames.FLAG_REMOTE_CLOSED:
                self.ended.add(frame.stream)

    async def _send(self, data: bytes) -> None:
        await asyncio.get_running_loop().sock_sendall(self._sock, data)

    async def ask(self, *questions: Message) -> None:
        """Ask, in frames that do not care where a question begins."""
        data = b"".join(question.encode() for question in questions)
        for at in range(0, len(data), 1000):
            await self._send(frames.encode(self.calls[-1]["stdout"], frames.DATA, data[at : at + 1000]))


class Server:
    """A name server, by UDP and TCP, which answers with what it was asked, backwards, if it is asked politely."""

    def __init__(self) -> None:
        self.datagram = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self.datagram.bind((ADDRESS, 0))
        self.listener = socket.create_server((ADDRESS, self.datagram.getsockname()[1]))
        self.port = self.datagram.getsockname()[1]
        self.asked: list[bytes] = []

    async def serve(self) -> None:
        """Answer until it is cancelled."""
        server = await asyncio.start_server(self._on_client, sock=self.listener)
        loop = asyncio.get_running_loop()
        self.datagram.setblocking(False)
        async with server:
            while True:
                data, client = await loop.sock_recvfrom(self.datagram, 0xFFFF)
                self.asked.append(data)
                if data[:6] != b"silent":
                    await loop.sock_sendto(self.datagram, data[::-1], client)

    async def _on_client(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(asyncio.IncompleteReadError):
            data = await reader.readexactly(int.from_bytes(await reader.readexactly(2), "big"))
            self.asked.append(data)
            answer = len(data).to_bytes(2, "big") + data[::-1]
            writer.write(answer[:10] if data[:4] == b"half" else answer)
            await writer.drain()
        writer.close()


@contextlib.asynccontextmanager
async def serving(server: Server) -> AsyncIterator[None]:
    task = asyncio.create_task(server.serve())
    await asyncio.sleep(0)
    try:
        yield
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        server.datagram.close()
        server.listener.close()


Body = Callable[[Resolver, AgentClient, Guest, Server], Awaitable[None]]


@pytest.fixture
def on_a_relay(monkeypatch: pytest.MonkeyPatch) -> Callable[[Body], None]:
    """Runs a function with a resolver, what it needs, and a server at another port than 53."""

    async def main(body: Body) -> None:
        before = open_fds()
        ours, theirs = socket.socketpair()
        server, guest = Server(), Guest(theirs)
        monkeypatch.setattr(resolver, "PORT", server.port)
        client = AgentClient(ours)
        found = Resolver()
        task = asyncio.create_task(guest.serve())
        try:
            async with asyncio.timeout(60), serving(server):
                await body(found, client, guest, server)
                await found.close()
                await until(lambda: {call["stdin"] for call in guest.calls} <= guest.ended)
        finally:
            await found.close()
            client.close()
            await asyncio.gather(task, return_exceptions=True)
            theirs.close()
        assert open_fds() <= before | {name for name in open_fds() if not _is_socket(name)}

    return lambda body: asyncio.run(main(body))


def _is_socket(name: str) -> bool:
    try:
        return os.readlink(f"/proc/self/fd/{name}").startswith("socket:")
    except FileNotFoundError:
        return False


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "resolv.conf"
    path.write_text(f"nameserver {ADDRESS}\n")
    return path


def test_questions_are_answered(on_a_relay: Callable[[Body], None], file: Path) -> None:
    long = bytes(range(256)) * 250

    async def body(found: Resolver, client: AgentClient, guest: Guest, _server: Server) -> None:
        found.consult(str(file))
        await found.settled()
        assert not guest.calls, "there is no network yet"
        found.connect(NAMESPACE, client)
        await found.settled()
        (call,) = guest.calls
        assert call["addresses"] == [ADDRESS]
        await guest.ask(Message(7, 0, UDP, QUESTION), Message(8, 0, TCP, long), Message(9, 0, UDP, long))
        await until(lambda: len(guest.answers) == 3)
        got = {answer.token: (answer.server, answer.protocol, answer.data) for answer in guest.answers}
        assert got == {7: (0, UDP, QUESTION[::-1]), 8: (0, TCP, long[::-1]), 9: (0, UDP, long[::-1])}

    on_a_relay(body)


def test_no_answer_is_an_answer(
    on_a_relay: Callable[[Body], None], file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(resolver, "_ANSWER_SECONDS", 0.05)

    async def body(found: Resolver, client: AgentClient, guest: Guest, server: Server) -> None:
        found.connect(NAMESPACE, client)
        found.consult(str(file))
        await found.settled()
        hostile = [Message(1, 1, UDP, QUESTION), Message(2, 255, TCP, QUESTION), Message(3, 0, 1, QUESTION)]
        await guest.ask(Message(0, 0, UDP, b"silent, please"), *hostile, Message(4, 0, TCP, b"half of it, please"))
        await until(lambda: len(guest.answers) == 5)
        assert {answer.token: answer.data for answer in guest.answers} == dict.fromkeys(range(5), b"")
        assert sorted(server.asked) == [b"half of it, please", b"silent, please"]
        await guest.ask(Message(5, 0, UDP, QUESTION))
        await until(lambda: guest.answers[-1].data == QUESTION[::-1])

    on_a_relay(body)


def test_a_guest_that_floods_is_not_heard(
    on_a_relay: Callable[[Body], None], file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(queries, "MAX_QUESTIONS", 4)

    async def body(found: Resolver, client: AgentClient, guest: Guest, server: Server) -> None:
        found.connect(NAMESPACE, client)
        found.consult(str(file))
        await found.settled()
        silent = [Message(token, 0, UDP, b"silent %d" % token) for token in range(4)]
        await guest.ask(*silent, *(Message(token, 0, UDP, QUESTION) for token in range(4, 2000)))
        await until(lambda: len(server.asked) >= 4)
        # All that was sent before has been read when a call made later is answered.
        await client.call("Resolve", {"addresses": [], "stdin": 1, "stdout": guest.calls[-1]["stdout"]})
        assert sorted(server.asked) == [question.data for question in silent]
        assert not guest.answers
        guest.calls.pop()

    on_a_relay(body)


def test_where_nobody_listens_nothing_is_relayed(on_a_relay: Callable[[Body], None], file: Path) -> None:
    file.write_text(f"nameserver 127.0.77.12\nnameserver {ADDRESS}\n")

    async def body(found: Resolver, client: AgentClient, guest: Guest, _server: Server) -> None:
        found.connect(NAMESPACE, client)
        found.consult(str(file))
        await found.settled()
        assert [call["addresses"] for call in guest.calls] == [[ADDRESS]]

    on_a_relay(body)


def test_servers_of_the_guest_are_left_alone(on_a_relay: Callable[[Body], None], file: Path) -> None:
    async def body(found: Resolver, client: AgentClient, guest: Guest, server: Server) -> None:
        found.connect(NAMESPACE, client, guests=[ADDRESS])
        found.consult(str(file))
        await found.settled()
        assert not guest.calls
        assert not server.asked

    on_a_relay(body)


def test_a_file_that_changes(on_a_relay: Callable[[Body], None], file: Path, tmp_path: Path) -> None:
    file.write_text("nameserver 10.0.0.1\n")

    async def body(found: Resolver, client: AgentClient, guest: Guest, _server: Server) -> None:
        found.connect(NAMESPACE, client)
        for path in (str(file), str(tmp_path), str(tmp_path / "none")):
            found.consult(path)
        await found.settled()
        assert not guest.calls
        file.write_text(f"nameserver {ADDRESS}\n")
        for _ in range(3):
            found.look()
        await found.settled()
        found.look()
        await found.settled()
        assert len(guest.calls) == 1
        await guest.ask(Message(1, 0, UDP, QUESTION))
        await until(lambda: guest.answers)

    on_a_relay(body)


def test_an_agent_that_cannot(on_a_relay: Callable[[Body], None], file: Path, caplog: pytest.LogCaptureFixture) -> None:
    async def body(found: Resolver, client: AgentClient, guest: Guest, _server: Server) -> None:
        guest.error = calls.CallError(calls.INTERNAL, "it cannot")
        found.connect(NAMESPACE, client)
        found.consult(str(file))
        await found.settled()
        assert f"only {ADDRESS} knows cannot be resolved" in caplog.text
        guest.error = None
        found.look()
        await found.settled()
        await guest.ask(Message(1, 0, UDP, QUESTION))
        await until(lambda: guest.answers)

    on_a_relay(body)


def test_no_such_namespace(on_a_relay: Callable[[Body], None]) -> None:
    async def body(found: Resolver, client: AgentClient, _guest: Guest, _server: Server) -> None:
        with pytest.raises(HostError, match="Cannot open the network namespace /proc/self/ns/none"):
            found.connect("/proc/self/ns/none", client)

    on_a_relay(body)


def test_it_can_be_closed_in_the_middle(on_a_relay: Callable[[Body], None], file: Path) -> None:
    async def body(found: Resolver, client: AgentClient, guest: Guest, server: Server) -> None:
        found.connect(NAMESPACE, client)
        found.consult(str(file))
        await found.settled()
        await guest.ask(Message(1, 0, UDP, b"silent, please"))
        await until(lambda: server.asked)
        await found.close()
        # And while the guest is being asked to listen.
        found.connect(NAMESPACE, client)
        found.consult(str(file))
        await asyncio.sleep(0)

    on_a_relay(body)
