"""The agent's calls for connections: listening for the host's sockets, and connecting to the guest's own servers."""

from __future__ import annotations

import os
import socket
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from hako.agent import sockets
from hako.agent.service import Service
from hako.wire import calls
from support.agentside import Bench, open_fds

LISTEN = {"socket": "s1", "mode": 0o660, "uid": os.getuid(), "gid": os.getgid()}


class Agent(Bench):
    """The agent's service on a Bench."""

    def __init__(self) -> None:
        super().__init__(self._handle)
        self.service = Service(self.loop)
        self.service.attach(self.channel)
        self._number = 1001

    async def _handle(self, method: str, params: dict[str, Any]) -> dict[str, Any]:
        return await self.service.handle(method, params)

    def call(self, method: str, **params: Any) -> dict[str, Any]:
        """Call and wait for the answer. Raises CallError."""
        return self.answer(self.begin(method, **params))

    def begin(self, method: str, **params: Any) -> int:
        """Call; the number that answer() takes."""
        self._number += 2
        self.request(self._number, method, **params)
        return self._number


@pytest.fixture
def agent(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Agent]:
    monkeypatch.setattr(sockets, "_DIRECTORY", str(tmp_path / "sockets"))
    before = open_fds()
    with Agent() as made:
        yield made
        for name in list(made.service._host_sockets._listeners):
            made.service._host_sockets.unlisten(name)
    assert open_fds() == before


def connect(path: str) -> socket.socket:
    client = socket.socket(socket.AF_UNIX)
    client.connect(path)
    client.settimeout(20)
    return client


def test_a_client_is_taken_when_the_host_asks(agent: Agent) -> None:
    path = agent.call("Listen", **LISTEN)["path"]
    status = os.stat(path)
    assert stat.S_ISSOCK(status.st_mode)
    assert (stat.S_IMODE(status.st_mode), status.st_uid, status.st_gid) == (0o660, os.getuid(), os.getgid())
    assert os.listdir(os.path.dirname(path)) == ["socket"]
    with connect(path) as client:
        client.send(b"early")
        told = agent.call("Accept", socket="s1", stdin=11, stdout=13)
        assert told == {"uid": os.getuid(), "gid": os.getgid(), "groups": os.getgroups()}
        agent.run(lambda: agent.output(13) == b"early")
        agent.data(11, b"answer", end=True)
        agent.settle()
        assert client.recv(100) == b"answer"
        assert client.recv(100) == b""
    agent.run(lambda: agent.ended(13))


def test_clients_come_in_the_order_of_the_calls(agent: Agent) -> None:
    path = agent.call("Listen", **LISTEN)["path"]
    numbers = [agent.begin("Accept", socket="s1", stdin=stdin, stdout=stdin + 2) for stdin in (11, 15, 19)]
    agent.settle()
    clients = [connect(path) for _ in numbers]
    for index, (number, client) in enumerate(zip(numbers, clients, strict=True)):
        agent.answer(number)
        client.send(b"%d" % index)
        agent.run(lambda index=index: agent.output(13 + 4 * index) == b"%d" % index)
        client.close()
        agent.run(lambda index=index: agent.ended(13 + 4 * index))


@pytest.mark.parametrize("ending", ["streams", "unlisten", "reset"])
def test_a_call_for_a_client_can_be_given_up(agent: Agent, ending: str) -> None:
    path = agent.call("Listen", **LISTEN)["path"]
    number = agent.begin("Accept", socket="s1", stdin=11, stdout=13)
    agent.settle()
    if ending == "streams":
        agent.data(13, end=True)
    elif ending == "unlisten":
        agent.call("Unlisten", socket="s1")
        assert not os.path.exists(os.path.dirname(path))
    else:
        agent.channel._reset()
    if ending != "reset":
        with pytest.raises(calls.CallError) as caught:
            agent.answer(number)
        assert caught.value.code == calls.NOT_FOUND
    assert not agent.channel._streams
    if ending != "unlisten":
        # Nobody is lost to a call that has been given up.
        with connect(path) as client:
            agent.call("Accept", socket="s1", stdin=15, stdout=17)
            client.send(b"x")
            agent.run(lambda: agent.output(17) == b"x")
        agent.run(lambda: agent.ended(17))


def test_a_socket_that_is_not_there(agent: Agent) -> None:
    agent.call("Listen", **LISTEN)
    with pytest.raises(calls.CallError, match="exists already"):
        agent.call("Listen", **LISTEN)
    for method, more in (("Unlisten", {}), ("Accept", {"stdin": 11, "stdout": 13})):
        with pytest.raises(calls.CallError, match="does not exist"):
            agent.call(method, socket="s2", **more)
    assert not agent.channel._streams


@pytest.mark.parametrize("numbers", [{"stdin": 0, "stdout": 13}, {"stdin": 11}, {"stdin": 11, "stdout": "13"}])
def test_other_numbers_of_streams_are_refused(agent: Agent, numbers: dict[str, Any]) -> None:
    agent.call("Listen", **LISTEN)
    with pytest.raises(calls.CallError, match=r"^std") as caught:
        agent.call("Accept", socket="s1", **numbers)
    assert caught.value.code == calls.INVALID_ARGUMENT
    assert not agent.channel._streams


def test_streams_in_use_are_refused(agent: Agent) -> None:
    agent.call("Listen", **LISTEN)
    agent.begin("Accept", socket="s1", stdin=11, stdout=13)
    with pytest.raises(calls.CallError, match="in use"):
        agent.call("Accept", socket="s1", stdin=15, stdout=13)
    with pytest.raises(calls.CallError, match="in use"):
        agent.call("Dial", port=80, stdin=11, stdout=15)
    assert set(agent.channel._streams) == {11, 13}


def listener(family: socket.AddressFamily, address: str) -> socket.socket:
    made = socket.socket(family, socket.SOCK_STREAM)
    made.bind((address, 0))
    made.listen()
    made.settimeout(20)
    return made


@pytest.mark.parametrize("ipv6", [False, True])
@pytest.mark.parametrize("address", ["127.0.0.1", "::1"])
def test_a_server_of_either_family_is_found(agent: Agent, address: str, ipv6: bool) -> None:
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    with listener(family, address) as server:
        agent.data(11, b"lost, for there is no stream yet")
        assert agent.call("Dial", port=server.getsockname()[1], ipv6=ipv6, stdin=11, stdout=13) == {}
        accepted, _ = server.accept()
    with accepted:
        accepted.sendall(b"hello")
        agent.run(lambda: agent.output(13) == b"hello")
        agent.data(11, b"from the host", end=True)
        agent.settle()
        assert accepted.recv(100) == b"from the host"
        assert accepted.recv(100) == b""
    agent.run(lambda: agent.ended(13))
    assert not agent.channel._streams


def test_a_port_without_a_server(agent: Agent) -> None:
    with listener(socket.AF_INET, "127.0.0.1") as server:
        port = server.getsockname()[1]
    with pytest.raises(calls.CallError, match=f"port {port}") as caught:
        agent.call("Dial", port=port, stdin=11, stdout=13)
    assert caught.value.code == calls.NOT_FOUND
    assert agent.ended(11)
    assert agent.ended(13)
    assert not agent.channel._streams


def test_a_server_that_does_not_answer_is_not_waited_for_long(agent: Agent, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sockets, "_CONNECT_SECONDS", 0.2)
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        server.listen(0)
        # Its queue is full: further connections are not answered.
        clients = [socket.socket() for _ in range(3)]
        for client in clients:
            client.setblocking(False)
            client.connect_ex(server.getsockname())
        with pytest.raises(calls.CallError, match="nothing in the VM listens"):
            agent.call("Dial", port=server.getsockname()[1], stdin=11, stdout=13)
        for client in clients:
            client.close()
