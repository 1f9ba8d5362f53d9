"""Following a namespace from an asyncio program, as `docker network connect` and `disconnect` change it."""

from __future__ import annotations

import asyncio
import contextlib

import pytest

from hako.network.api import Network
from hako.network.watch import watch
from support.netns import connected, on_a_host_of_its_own, run, veth

pytestmark = pytest.mark.system


def test_changes_are_told_as_they_come() -> None:
    async def follow(path: str, network: Network) -> None:
        network.attach_all()
        network.changes()
        async with contextlib.aclosing(watch(network)) as found:
            await asyncio.to_thread(veth, "h1", "eth1", path)
            while not (changes := await anext(found)).appeared:
                pass
            assert [endpoint.name for endpoint in changes.appeared] == ["eth1"]
            added = network.attach(changes.appeared[0])

            await asyncio.to_thread(run, "ip", "addr", "add", "10.10.0.2/24", "dev", "eth1", inside=path)
            while not (changes := await anext(found)).changed:
                pass
            assert changes.changed == [added]
            assert added.endpoint.description["addresses"] == [{"address": "10.10.0.2/24"}]

            await asyncio.to_thread(run, "ip", "link", "del", "h1")
            while not (changes := await anext(found)).vanished:
                pass
            assert changes.vanished == [added]
            network.detach(added)

            waiting = asyncio.ensure_future(anext(found))
            done, _ = await asyncio.wait([waiting], timeout=0.3)
            assert not done, "what one does oneself is no change"
            waiting.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await waiting

    def body() -> None:
        with connected() as path, Network.open(path) as network:
            asyncio.run(asyncio.wait_for(follow(path, network), 30))

    on_a_host_of_its_own(body)
