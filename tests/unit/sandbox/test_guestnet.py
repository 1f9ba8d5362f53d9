"""Tying a VM's cards to a network namespace before the VM runs, without a VM or a namespace."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any, cast

import pytest

from hako.agent_client import AgentClient
from hako.errors import HakoError, StateError
from hako.hypervisor.base import Hypervisor
from hako.network.api import Network
from hako.network.endpoint import Attachment, Endpoint
from hako.network.tap import Tap
from hako.sandbox import guestnet
from hako.sandbox.guestnet import Card, GuestNetwork

PATH = "/proc/self/ns/net"


class FakeTap:
    """What GuestNetwork asks of a tap."""

    def release(self) -> None: ...

    def close(self) -> None: ...


class FakeNetwork:
    """A namespace with one interface; notes what is done to it."""

    made: list[FakeNetwork]
    fails: bool
    held: threading.Event

    def __init__(self) -> None:
        self.attachments: list[Attachment] = []
        self.closed = False
        self.made.append(self)

    @classmethod
    def open(cls, path: str) -> FakeNetwork:
        assert path == PATH
        return cls()

    def endpoints(self) -> list[Endpoint]:
        return [Endpoint(7, "veth", {"name": "eth0", "mac": "02:00:00:00:00:07"})]

    def attach(self, endpoint: Endpoint, tap: Tap) -> None:
        assert self.held.wait(10)
        if self.fails:
            raise StateError("somebody has it")
        self.attachments.append(Attachment(endpoint, tap, set_allmulti=False))

    def close(self) -> None:
        self.closed = True


class FakeAgent:
    """Notes what the guest is told."""

    def __init__(self) -> None:
        self.told: list[Any] = []

    async def call(self, method: str, params: dict[str, Any], _timeout: float) -> dict[str, Any]:
        self.told.append((method, [entry["device"] for entry in params["interfaces"]]))
        return {}


Body = Callable[[GuestNetwork, FakeAgent], Awaitable[None]]


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch) -> Callable[[Body], None]:
    async def watch(_network: Network) -> AsyncIterator[Any]:
        await asyncio.Event().wait()
        yield None

    FakeNetwork.made, FakeNetwork.fails, FakeNetwork.held = [], False, threading.Event()
    FakeNetwork.held.set()
    monkeypatch.setattr(guestnet, "Network", FakeNetwork)
    monkeypatch.setattr(guestnet, "watch", watch)

    def whole(body: Body) -> None:
        async def main() -> None:
            network = GuestNetwork()
            network._cards.append(Card(0, cast(Tap, FakeTap())))
            try:
                await asyncio.wait_for(body(network, FakeAgent()), 20)
            finally:
                await network.close()
            assert all(made.closed for made in FakeNetwork.made)

        asyncio.run(main())

    return whole


async def connect(network: GuestNetwork, agent: FakeAgent) -> None:
    await network.connect(PATH, cast(Hypervisor, None), cast(AgentClient, agent))
    await network.settled()


def test_what_was_prepared_is_used(run: Callable[[Body], None]) -> None:
    async def body(network: GuestNetwork, agent: FakeAgent) -> None:
        network.prepare(PATH)
        network.cards_made()
        await connect(network, agent)
        (made,) = FakeNetwork.made
        assert len(made.attachments) == 1
        assert agent.told == [("Network", [0])]
        assert isinstance(await failure(connect(network, agent)), StateError)

    run(body)


def test_without_cards_it_is_done_when_the_vm_runs(run: Callable[[Body], None]) -> None:
    async def body(network: GuestNetwork, agent: FakeAgent) -> None:
        network.prepare(PATH)
        await asyncio.sleep(0)
        await connect(network, agent)
        assert agent.told == [("Network", [0])]

    run(body)


def test_a_failure_is_told_when_the_vm_runs(run: Callable[[Body], None]) -> None:
    async def body(network: GuestNetwork, agent: FakeAgent) -> None:
        FakeNetwork.fails = True
        network.cards_made()
        network.prepare(PATH)
        assert "somebody has it" in str(await failure(connect(network, agent)))
        FakeNetwork.fails = False
        await connect(network, agent)
        assert agent.told == [("Network", [0])]

    run(body)


@pytest.mark.parametrize("tying", [False, True])
def test_a_vm_that_ends_before_it_runs(run: Callable[[Body], None], tying: bool) -> None:
    async def body(network: GuestNetwork, agent: FakeAgent) -> None:
        network.prepare(PATH)
        if tying:
            FakeNetwork.held.clear()
            network.cards_made()
            while not FakeNetwork.made:
                await asyncio.sleep(0.001)
        closing = asyncio.create_task(network.close())
        await asyncio.sleep(0.01)
        assert closing.done() != tying, "a thread is waited for"
        FakeNetwork.held.set()
        await closing
        assert not any(card.interface for card in network._cards)
        # The next VM of this sandbox gets a network as ever.
        await connect(network, agent)
        assert len(FakeNetwork.made) == 1 + tying

    run(body)


async def failure(call: Awaitable[None]) -> HakoError:
    with pytest.raises(HakoError) as caught:
        await call
    return caught.value
