"""Port-forward: what connects to the loopback of a container's network namespace reaches the guest's loopback.

Nothing is known here of who listens in the guest: each connection is taken, and reset when nobody does.
"""

from __future__ import annotations

import asyncio
import logging
import os
import socket

from hako.agent_client import AgentClient
from hako.errors import HakoError
from hako.network import namespace as namespaces
from hako.network.loopback import Loopback
from hako.sandbox import links

log = logging.getLogger(__name__)

#: Connections of one sandbox; further ones wait in the kernel.
MAX_CONNECTIONS = 256
#: Seconds without new connections after one could not be taken.
_ACCEPT_PAUSE = 0.5


class Forward:
    """Owns the listeners and connections of one sandbox: none before start(), and close() ends them."""

    def __init__(self) -> None:
        self._loopback: Loopback | None = None
        self._accepting: list[asyncio.Task[None]] = []
        self._connections: set[asyncio.Task[None]] = set()
        self._freed = asyncio.Event()

    async def start(self, path: str, agent: AgentClient) -> None:
        """Begin in the network namespace at ``path``. A kernel that cannot do it is told to the log, nothing more."""
        try:
            self._loopback = await asyncio.to_thread(_open, path)
        except HakoError as error:
            log.warning("Ports cannot be forwarded to the container: %s", error)
            return
        self._accepting = [
            asyncio.ensure_future(self._accept(listener, agent)) for listener in self._loopback.listeners
        ]

    async def _accept(self, listener: socket.socket, agent: AgentClient) -> None:
        while True:
            while len(self._connections) >= MAX_CONNECTIONS:
                self._freed.clear()
                await self._freed.wait()
            try:
                connected, _ = await asyncio.get_running_loop().sock_accept(listener)
            except OSError as error:
                # Out of descriptors, most likely; trying at once would not help.
                log.warning("A connection for the container cannot be taken: %s", error.strerror)
                await asyncio.sleep(_ACCEPT_PAUSE)
                continue
            task = asyncio.ensure_future(_serve(connected, agent))
            self._connections.add(task)
            task.add_done_callback(self._on_end)

    def _on_end(self, task: asyncio.Task[None]) -> None:
        self._connections.discard(task)
        self._freed.set()

    async def close(self) -> None:
        """Stop, and end all connections. Can be repeated."""
        tasks = [*self._accepting, *self._connections]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        self._accepting = []
        if self._loopback is not None:
            self._loopback.close()
            self._loopback = None


def _open(path: str) -> Loopback:
    namespace = namespaces.open_namespace(path)
    try:
        return Loopback(namespace)
    finally:
        os.close(namespace)


async def _serve(connected: socket.socket, agent: AgentClient) -> None:
    try:
        # The name of what was connected to is also the name of this end.
        port = int(connected.getsockname()[1])
        streams = await links.dial(agent, port, ipv6=connected.family == socket.AF_INET6)
    except (HakoError, OSError) as error:
        log.debug("A connection for the container was not made: %s", error)
        links.reset(connected)
        return
    except BaseException:
        links.reset(connected)
        raise
    await links.carry(connected, streams)
