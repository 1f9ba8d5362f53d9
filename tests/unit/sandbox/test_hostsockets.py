"""Sockets of the host in a guest: the real agent in a process of its own, real servers, clients of any user."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import os
import socket
import struct
import tempfile
import threading
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from hako.agent_client import AgentClient
from hako.errors import AgentError, ConfigError, HypervisorError, ProtocolError
from hako.linux import syscalls
from hako.sandbox import hostsockets, links
from hako.sandbox.guestmounts import Mounts
from hako.sandbox.hostsockets import HostSockets
from hako.storage.sources import Source, look
from hako.testing.agent import LocalAgent
from support.agentside import open_fds
from support.hostside import until, with_agent
from support.servers import echo, unix_server

SIZE = 4 << 20


class Tree:
    """Stands for the shared tree, of which only this is used."""

    def open_path(self, source: str) -> int:
        return os.open(source, os.O_PATH | os.O_CLOEXEC)


class Host:
    """The sockets of a sandbox whose agent is a LocalAgent."""

    def __init__(self, sockets: HostSockets, client: AgentClient, agent: LocalAgent) -> None:
        self.sockets = sockets
        self.client = client
        self.agent = agent

    async def give(self, source: str, container: str = "c1") -> str:
        """Give a container the socket; where it is in the guest."""
        path = add(self.sockets, source, container)
        await self.sockets.listen(container, self.client)
        return f"{self.agent.directory}/sockets/{path.split('/')[-2]}/socket"


def add(sockets: HostSockets, source: str, container: str = "c1") -> str:
    return sockets.add(container, "$.mounts[0]", source, look(source), Tree())  # type: ignore[arg-type]


@pytest.fixture
def short() -> Iterator[str]:
    """A directory whose name leaves room in the address of a socket."""
    with tempfile.TemporaryDirectory(prefix="h", dir="/tmp") as directory:
        os.chmod(directory, 0o755)
        yield directory


def run(short: str, body: Callable[[Host], Awaitable[None]]) -> None:
    """Run ``body``; nothing is left of the sockets afterwards, on neither side."""

    async def whole(client: AgentClient, agent: LocalAgent) -> None:
        await client.call("Info", {})  # by then it has all that it has open by itself
        before, agents = len(open_fds()), len(agent.open_files())
        host = Host(HostSockets(allowed=True), client, agent)
        try:
            await body(host)
        finally:
            await host.sockets.close()
        await until(lambda: len(open_fds()) == before)
        assert not client._streams
        assert not client._calls
        listening = len(os.listdir(f"{short}/agent/sockets")) if os.path.exists(f"{short}/agent/sockets") else 0
        await until(lambda: len(agent.open_files()) == agents + listening)

    os.mkdir(f"{short}/agent")
    os.chmod(f"{short}/agent", 0o755)
    with_agent(f"{short}/agent", whole)


async def connect(path: str) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    return await asyncio.open_unix_connection(path)


async def send_on(writer: asyncio.StreamWriter) -> None:
    """Send until that fails."""
    while True:
        writer.write(bytes(1 << 16))
        await writer.drain()
        await asyncio.sleep(0.001)


async def exchange(path: str, data: bytes) -> bytes:
    """What comes back when ``data`` is sent and ended."""
    reader, writer = await connect(path)

    async def send() -> None:
        writer.write(data)
        await writer.drain()
        writer.write_eof()

    _, received = await asyncio.gather(send(), reader.read())
    writer.close()
    await writer.wait_closed()
    return received


def test_much_flows_both_ways_at_once(short: str) -> None:
    data = os.urandom(SIZE)

    async def body(host: Host) -> None:
        path = await host.give(f"{short}/s")
        received = await asyncio.gather(*(exchange(path, data) for _ in range(3)))
        assert [hashlib.sha256(one).digest() for one in received] == [hashlib.sha256(data).digest()] * 3

    with unix_server(f"{short}/s", echo):
        run(short, body)


def test_a_server_answers_after_the_end_of_the_question(short: str) -> None:
    def answer(connected: socket.socket) -> None:
        question = b""
        while data := connected.recv(100):
            question += data
        connected.sendall(question[::-1])

    async def body(host: Host) -> None:
        assert await exchange(await host.give(f"{short}/s"), b"question") == b"noitseuq"

    with unix_server(f"{short}/s", answer):
        run(short, body)


def test_a_server_that_speaks_first_and_goes(short: str) -> None:
    async def body(host: Host) -> None:
        reader, writer = await connect(await host.give(f"{short}/s"))
        assert await reader.read() == b"hello"
        # Whatever is sent now is for nobody.
        with pytest.raises(ConnectionError):
            await send_on(writer)
        writer.close()

    with unix_server(f"{short}/s", lambda connected: connected.sendall(b"hello")):
        run(short, body)


def test_a_server_learns_that_its_client_has_gone(short: str) -> None:
    gone = threading.Event()

    def write_until_nobody_reads(connected: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while True:
                connected.sendall(bytes(1 << 16))
        gone.set()

    async def body(host: Host) -> None:
        reader, writer = await connect(await host.give(f"{short}/s"))
        await reader.readexactly(SIZE)
        writer.close()
        await until(gone.is_set)

    with unix_server(f"{short}/s", write_until_nobody_reads):
        run(short, body)


def test_a_client_that_does_not_read_holds_up_its_server_alone(short: str) -> None:
    sent = [0]
    done = threading.Event()

    def flood(connected: socket.socket) -> None:
        connected.settimeout(1)
        with contextlib.suppress(OSError):
            while not done.is_set():
                sent[0] += connected.send(bytes(1 << 16))

    async def body(host: Host) -> None:
        slow = await connect(await host.give(f"{short}/flood", "c1"))
        await asyncio.sleep(0.5)
        before = sent[0]
        await asyncio.sleep(0.3)
        assert sent[0] == before < 4 << 20
        assert await exchange(await host.give(f"{short}/s", "c2"), b"others go on") == b"others go on"
        done.set()
        slow[1].close()

    with unix_server(f"{short}/flood", flood), unix_server(f"{short}/s", echo):
        run(short, body)


def test_a_server_that_is_not_there(short: str) -> None:
    async def body(host: Host) -> None:
        path = await host.give(f"{short}/s")
        assert await exchange(path, b"") == b""
        # A server that comes back makes another socket: what was mounted stays what it is.
        os.unlink(f"{short}/s")
        with unix_server(f"{short}/s", echo):
            assert await exchange(path, b"") == b""

    with unix_server(f"{short}/s", echo):
        pass
    run(short, body)


def test_the_socket_is_the_one_that_was_mounted(short: str) -> None:
    async def body(host: Host) -> None:
        path = await host.give(f"{short}/s")
        os.rename(f"{short}/s", f"{short}/elsewhere")
        with unix_server(f"{short}/s", lambda connected: connected.sendall(b"another one")):
            assert await exchange(path, b"the first") == b"the first"

    with unix_server(f"{short}/s", echo):
        run(short, body)


def test_containers_with_one_socket_have_one_in_the_guest(short: str) -> None:
    async def body(host: Host) -> None:
        first = await host.give(f"{short}/s", "c1")
        os.symlink(f"{short}/s", f"{short}/link")
        second = await host.give(f"{short}/link", "c2")
        other = await host.give(f"{short}/t", "c2")
        assert first == second != other
        host.sockets.remove("c1")
        assert await exchange(second, b"still there") == b"still there"
        host.sockets.remove("c2")
        await until(lambda: not os.path.exists(second) and not os.path.exists(other))

    with unix_server(f"{short}/s", echo), unix_server(f"{short}/t", echo):
        run(short, body)


def test_removal_works_from_other_threads(short: str) -> None:
    async def body(host: Host) -> None:
        path = await host.give(f"{short}/s")
        await asyncio.to_thread(host.sockets.remove, "c1")
        await until(lambda: not os.path.exists(path))

    with unix_server(f"{short}/s", echo):
        run(short, body)


def test_many_clients(short: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hostsockets, "MAX_CONNECTIONS", 8)

    async def body(host: Host) -> None:
        path = await host.give(f"{short}/s")
        most = 0

        async def one(index: int) -> None:
            nonlocal most
            assert await exchange(path, b"%d" % index) == b"%d" % index
            most = max(most, len(host.sockets._connections))

        await asyncio.gather(*(one(index) for index in range(100)))
        assert 1 < most <= 9  # one may have been taken already when the last place goes
        held = [await connect(path) for _ in range(12)]
        await until(lambda: len(host.sockets._connections) == 8)
        for _, writer in held:
            writer.close()
        assert await exchange(path, b"room again") == b"room again"

    with unix_server(f"{short}/s", echo):
        run(short, body)


def test_more_sockets_than_a_vm_can_have(short: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hostsockets, "MAX_SOCKETS", 1)

    async def body(host: Host) -> None:
        await host.give(f"{short}/s")
        await host.give(f"{short}/s", "c2")
        with pytest.raises(ConfigError, match="at most 1 sockets"):
            await host.give(f"{short}/t")

    with unix_server(f"{short}/s", echo), unix_server(f"{short}/t", echo):
        run(short, body)


def test_a_server_whose_queue_is_full_is_waited_for(short: str) -> None:
    async def body(host: Host) -> None:
        with socket.socket(socket.AF_UNIX) as listener:
            listener.bind(f"{short}/s")
            listener.listen(0)
            path = await host.give(f"{short}/s")
            with socket.socket(socket.AF_UNIX) as first:
                first.connect(f"{short}/s")
                exchanging = asyncio.create_task(exchange(path, b""))
                await asyncio.sleep(0.2)
                assert not exchanging.done()
                for _ in range(2):
                    accepted, _ = await asyncio.to_thread(listener.accept)
                    accepted.close()
                assert await exchanging == b""

    run(short, body)


def test_a_mount_of_a_socket_becomes_one_in_the_guest(short: str) -> None:
    class Seeing(Tree):
        def look(self, source: str) -> Source:
            return look(source)

    mount = {"destination": "/x", "type": "bind", "source": f"{short}/s", "options": ["rbind", "ro"]}

    async def body() -> None:
        sockets = HostSockets(allowed=True)
        (found,) = Mounts("c1", Seeing(), sockets=sockets).translate([mount])  # type: ignore[arg-type]
        assert found == {**mount, "source": sockets._sockets[0].guest_path}
        assert sockets._sockets[0].users == {"c1"}
        await sockets.close()

    with unix_server(f"{short}/s", echo):
        asyncio.run(body())


@pytest.mark.parametrize("kind", [socket.SOCK_DGRAM, socket.SOCK_SEQPACKET])
def test_sockets_of_another_kind_are_refused(short: str, kind: socket.SocketKind) -> None:
    async def body(host: Host) -> None:
        with socket.socket(socket.AF_UNIX, kind) as other:
            other.bind(f"{short}/s")
            if kind == socket.SOCK_SEQPACKET:
                other.listen(1)
            with pytest.raises(ConfigError, match=f"kind {kind.name}"):
                await host.give(f"{short}/s")

    run(short, body)


def test_a_server_does_not_notice_that_its_kind_is_found_out(short: str) -> None:
    connected: list[socket.socket] = []

    async def body(host: Host) -> None:
        add(host.sockets, f"{short}/s")
        await asyncio.sleep(0.1)
        assert not connected

    with unix_server(f"{short}/s", connected.append):
        run(short, body)


def test_the_setting_refuses_all() -> None:
    async def body() -> None:
        with pytest.raises(ConfigError, match=r"sandbox\.host_sockets"):
            add(HostSockets(allowed=False), "/")

    asyncio.run(body())


def _ids_of(connected: socket.socket) -> bytes:
    uid, gid = struct.unpack("3I", connected.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12))[1:]
    groups = connected.getsockopt(socket.SOL_SOCKET, 59, 1024)
    return repr((uid, gid, sorted(struct.unpack(f"{len(groups) // 4}I", groups)))).encode()


def _as_user(uid: int, gid: int, groups: list[int], path: str) -> bytes:
    """What is read from the socket by somebody else."""

    def work() -> bytes:
        syscalls.set_thread_groups(groups)
        syscalls.set_thread_effective_ids(uid, gid)
        with socket.socket(socket.AF_UNIX) as client:
            client.settimeout(20)
            client.connect(path)
            return client.recv(1000)

    return hostsockets.in_thread_of_its_own(work)


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root: other users connect")
def test_the_server_learns_who_its_client_is(short: str) -> None:
    async def body(host: Host) -> None:
        path = await host.give(f"{short}/s")
        for uid, gid, groups in ((1000, 1001, [5, 7]), (12345, 0, []), (0, 0, [])):
            told = await asyncio.to_thread(_as_user, uid, gid, groups, path)
            expected = (uid, gid, groups) if uid else (uid, gid, sorted(os.getgroups()))
            assert told == repr(expected).encode()
        assert (os.geteuid(), os.getegid()) == (0, 0)
        assert os.stat("/proc/self/fd").st_uid == 0

    with unix_server(f"{short}/s", lambda connected: connected.sendall(_ids_of(connected))):
        run(short, body)


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root: other users connect")
def test_the_hosts_permissions_count(short: str) -> None:
    async def body(host: Host) -> None:
        path = await host.give(f"{short}/s")
        os.chmod(f"{short}/s", 0o660)
        os.chown(f"{short}/s", 0, 7)
        assert await asyncio.to_thread(_as_user, 1000, 1000, [], path) == b""
        assert await asyncio.to_thread(_as_user, 1000, 1000, [7], path) == b"welcome"
        assert await asyncio.to_thread(_as_user, 1000, 7, [], path) == b"welcome"

    with unix_server(f"{short}/s", lambda connected: connected.sendall(b"welcome")):
        run(short, body)


class Lying:
    """An agent's client whose Accept tells what it likes."""

    def __init__(self, *answers: Any) -> None:
        self.answers = list(answers)
        self.asked = 0
        self.closed: list[int] = []

    def open_output(self) -> Any:
        return _Stream(self)

    open_input = open_output

    async def call(self, method: str, _params: dict[str, Any], _timeout: float | None = 0) -> Any:
        if method != "Accept":
            return {}
        self.asked += 1
        answer = self.answers.pop(0)
        if isinstance(answer, Exception):
            raise answer
        return answer


class _Stream:
    def __init__(self, agent: Lying) -> None:
        self.number = 1
        self._agent = agent

    def close(self) -> None:
        self._agent.closed.append(self.number)


@pytest.mark.parametrize(
    "answer",
    [
        {},
        {"uid": "0", "gid": 0, "groups": []},
        {"uid": (1 << 32) - 1, "gid": 0, "groups": []},
        {"uid": -1, "gid": 0, "groups": []},
        {"uid": True, "gid": 0, "groups": []},
        {"uid": 0, "gid": 1 << 70, "groups": []},
        {"uid": 0, "gid": 0, "groups": [0] * 257},
        {"uid": 0, "gid": 0, "groups": ["0"]},
        {"uid": 0, "gid": 0, "groups": {}},
        ProtocolError("x"),
        HypervisorError("The VM is gone."),
    ],
)
def test_a_guest_that_lies_about_its_clients_is_served_no_more(short: str, answer: Any) -> None:
    async def body() -> None:
        agent = Lying(answer)
        sockets = HostSockets(allowed=True)
        add(sockets, f"{short}/s")
        await sockets.listen("c1", agent)  # type: ignore[arg-type]
        await until(lambda: len(agent.closed) == 2)
        assert agent.asked == 1
        assert not sockets._connections
        await sockets.close()

    with unix_server(f"{short}/s", echo):
        asyncio.run(body())


def test_a_guest_that_cannot_take_a_client_is_asked_again(short: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hostsockets, "_RETRY_PAUSE", 0.01)

    async def body() -> None:
        agent = Lying(AgentError("too many open files"), AgentError("again"), HypervisorError("The VM is gone."))
        sockets = HostSockets(allowed=True)
        add(sockets, f"{short}/s")
        await sockets.listen("c1", agent)  # type: ignore[arg-type]
        await until(lambda: len(agent.closed) == 6)
        await sockets.close()

    with unix_server(f"{short}/s", echo):
        asyncio.run(body())


def test_only_stream_sockets_are_connected(tmp_path: Path) -> None:
    before = open_fds()
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as other:
        for fd in (os.open(tmp_path, os.O_RDONLY), os.dup(other.fileno())):
            with pytest.raises(ConfigError, match="to connect is not one of"):
                links.own(fd)
    assert open_fds() == before
