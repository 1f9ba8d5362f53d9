"""Port-forward: a namespace's loopback leads to servers of the agent's, which is a process of this host here."""

from __future__ import annotations

import asyncio
import logging
import os
import socket
import threading
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest

from hako.agent_client import AgentClient
from hako.linux import bpf
from hako.network import namespace as namespaces
from hako.sandbox import forward
from hako.sandbox.forward import Forward
from hako.testing.agent import LocalAgent
from support.agentside import open_fds
from support.hostside import until, with_agent
from support.servers import echo, tcp_server

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="needs root: network namespaces and programs in the kernel")

SIZE = 4 << 20


class Pod:
    """A network namespace whose ports are forwarded."""

    def __init__(self, namespace: int) -> None:
        self.namespace = namespace
        self.forward = Forward()

    @property
    def path(self) -> str:
        return f"/proc/self/fd/{self.namespace}"

    def _connect(self, port: int, address: str) -> socket.socket:
        made = namespaces.inside(self.namespace, lambda: socket.create_connection((address, port), timeout=20))
        made.setblocking(False)
        return made

    async def connect(self, port: int, address: str = "127.0.0.1") -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        """A connection as an engine makes it."""
        return await asyncio.open_connection(sock=self._connect(port, address))

    async def exchange(self, port: int, data: bytes, address: str = "127.0.0.1") -> bytes:
        """What comes back when ``data`` is sent and ended."""
        reader, writer = await self.connect(port, address)

        async def send() -> None:
            writer.write(data)
            await writer.drain()
            writer.write_eof()

        _, received = await asyncio.gather(send(), reader.read())
        writer.close()
        return received


def run(tmp_path: Path, body: Callable[[Pod], Awaitable[None]]) -> None:
    """Run ``body`` with ports that are forwarded; nothing is left afterwards."""

    async def whole(client: AgentClient, agent: LocalAgent) -> None:
        await client.call("Info", {})
        before, agents = len(open_fds()), len(agent.open_files())
        pod = Pod(namespaces.create_unnamed(lambda _: None))
        try:
            await pod.forward.start(pod.path, client)
            await body(pod)
        finally:
            await pod.forward.close()
            os.close(pod.namespace)
        await until(lambda: len(open_fds()) == before)
        assert not client._streams
        await until(lambda: len(agent.open_files()) == agents)

    with_agent(str(tmp_path), whole)


@pytest.mark.parametrize("address", ["127.0.0.1", "::1"])
@pytest.mark.parametrize("listens_at", ["127.0.0.1", "::1"])
def test_much_flows_both_ways_at_once(tmp_path: Path, address: str, listens_at: str) -> None:
    data = os.urandom(SIZE)

    async def body(pod: Pod) -> None:
        received = await asyncio.gather(*(pod.exchange(port, data, address) for _ in range(3)))
        assert [one == data for one in received] == [True] * 3

    with tcp_server(echo, listens_at) as port:
        run(tmp_path, body)


def test_a_port_where_nobody_listens_resets_the_connection(tmp_path: Path) -> None:
    async def body(pod: Pod) -> None:
        reader, writer = await pod.connect(1)
        with pytest.raises(ConnectionResetError):
            await reader.read()
        writer.close()

    run(tmp_path, body)


def test_each_side_can_end_first(tmp_path: Path) -> None:
    gone = threading.Event()

    def speak_and_listen(connected: socket.socket) -> None:
        connected.sendall(b"first")
        connected.shutdown(socket.SHUT_WR)
        assert connected.recv(100) == b"last"
        assert connected.recv(100) == b""
        gone.set()

    async def body(pod: Pod) -> None:
        reader, writer = await pod.connect(port)
        assert await reader.read() == b"first"
        await asyncio.sleep(0.05)
        writer.write(b"last")
        writer.close()
        await until(gone.is_set)

    with tcp_server(speak_and_listen) as port:
        run(tmp_path, body)


def test_connections_are_limited(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(forward, "MAX_CONNECTIONS", 4)

    async def body(pod: Pod) -> None:
        held = [await pod.connect(port) for _ in range(10)]
        await until(lambda: len(pod.forward._connections) >= 4)
        assert len(pod.forward._connections) <= 5  # one for each family may have been taken already
        for index, (_, writer) in enumerate(held):
            writer.write(b"%d" % index)
            writer.write_eof()
        for index, (reader, writer) in enumerate(held):
            assert await reader.read() == b"%d" % index
            writer.close()

    with tcp_server(echo) as port:
        run(tmp_path, body)


def test_connections_end_with_it(tmp_path: Path) -> None:
    async def body(pod: Pod) -> None:
        reader, writer = await pod.connect(port)
        writer.write(b"x")
        assert await reader.read(1) == b"x"
        await pod.forward.close()
        assert await reader.read() == b""
        writer.close()
        with pytest.raises(ConnectionRefusedError):
            await pod.connect(port)

    with tcp_server(echo) as port:
        run(tmp_path, body)


def test_a_kernel_that_cannot_do_it_only_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def fail(*_: object) -> int:
        raise OSError(22, "bpf: Invalid argument")

    monkeypatch.setattr(bpf, "attach", fail)

    async def body(pod: Pod) -> None:
        with pytest.raises(ConnectionRefusedError):
            await pod.connect(80)

    with caplog.at_level(logging.WARNING, logger="hako"):
        run(tmp_path, body)
    assert [record.message for record in caplog.records] == [
        "Ports cannot be forwarded to the container: Connections to the loopback of the container's network cannot be "
        "taken: bpf: Invalid argument."
    ]
