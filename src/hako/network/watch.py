"""Following the interfaces of a namespace in an asyncio program."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

from hako.network.api import Changes, Network

#: An engine makes an interface in many small steps; this is how long it may pause between two of them.
_SETTLE_SECONDS = 0.02


async def watch(network: Network) -> AsyncIterator[Changes]:
    """What changes, as it does, until the task is cancelled. Raises HostError.

    It uses ``network`` between two items only, so the caller may attach and detach while it handles one.
    """
    while True:
        await _readable(network.fileno())
        await asyncio.sleep(_SETTLE_SECONDS)
        changes = await asyncio.to_thread(network.changes)
        if changes:
            yield changes


async def _readable(fd: int) -> None:
    loop = asyncio.get_running_loop()
    ready: asyncio.Future[None] = loop.create_future()

    def wake() -> None:
        if not ready.done():
            ready.set_result(None)

    loop.add_reader(fd, wake)
    try:
        await ready
    finally:
        loop.remove_reader(fd)
