"""Connections between a socket of the host and one in the guest, carried by two raw streams of the agent's.

Each direction ends by itself (``shutdown``), is held up by whoever does not take what it brings, and holds no more than
a stream's window meanwhile. A link ends when both directions have, or with the sandbox.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
import struct
from typing import Any

from hako.agent_client import AgentClient
from hako.errors import ConfigError
from hako.wire.calls import CHUNK

#: The guest looks for a server for ten seconds, by code that may have to be translated first.
_DIAL_SECONDS = 40.0
_RESET = struct.pack("ii", 1, 0)  # l_onoff, l_linger


class Streams:
    """The two streams of a link that nothing flows on yet. ``numbers`` goes into the call that begins it."""

    def __init__(self, agent: AgentClient) -> None:
        self.output = agent.open_output()
        self.input = agent.open_input()
        self.numbers: dict[str, Any] = {"stdin": self.input.number, "stdout": self.output.number}

    def close(self) -> None:
        """End both, as the guest learns. Can be repeated."""
        self.output.close()
        self.input.close()


def own(fd: int) -> socket.socket:
    """The stream socket of the descriptor ``fd``, which is owned from now on. Raises ConfigError for anything else."""
    try:
        made = socket.socket(fileno=fd)
    except OSError:
        os.close(fd)
        raise ConfigError("The descriptor to connect is not one of a socket.") from None
    if made.type != socket.SOCK_STREAM:
        made.close()
        raise ConfigError("The socket to connect is not one of SOCK_STREAM.")
    made.setblocking(False)
    return made


async def dial(agent: AgentClient, port: int, *, ipv6: bool = False) -> Streams:
    """The streams of a new connection to ``port`` of the guest's loopback, ``ipv6``: at ::1 rather than 127.0.0.1.

    Raises NotFoundError when nothing listens there.
    """
    streams = Streams(agent)
    try:
        await agent.call("Dial", {"port": port, "ipv6": ipv6, **streams.numbers}, _DIAL_SECONDS)
    except BaseException:
        streams.close()
        raise
    return streams


async def carry(sock: socket.socket, streams: Streams) -> None:
    """Carry bytes between ``sock`` and the guest until neither sends any more; closes both. Raises nothing else."""
    try:
        async with asyncio.TaskGroup() as group:
            group.create_task(_from_guest(sock, streams))
            group.create_task(_to_guest(sock, streams))
    finally:
        streams.close()
        sock.close()


async def _from_guest(sock: socket.socket, streams: Streams) -> None:
    loop = asyncio.get_running_loop()
    while data := await streams.output.read():
        try:
            await loop.sock_sendall(sock, data)
        except OSError:  # EPIPE and kin: it takes no more
            streams.output.close()
            return
        streams.output.consumed(len(data))
    streams.output.close()
    _shut(sock, socket.SHUT_WR)


async def _to_guest(sock: socket.socket, streams: Streams) -> None:
    reading = asyncio.ensure_future(_read(sock, streams))
    refused = asyncio.ensure_future(streams.input.wait_closed())
    try:
        await asyncio.wait((reading, refused), return_when=asyncio.FIRST_COMPLETED)
    finally:
        reading.cancel()
        refused.cancel()
    _shut(sock, socket.SHUT_RD)


async def _read(sock: socket.socket, streams: Streams) -> None:
    loop = asyncio.get_running_loop()
    with contextlib.suppress(OSError):
        while data := await loop.sock_recv(sock, CHUNK):
            await streams.input.write(data)
            if streams.input.closed:
                return
    streams.input.close()


def _shut(sock: socket.socket, how: int) -> None:
    with contextlib.suppress(OSError):  # its peer is gone already
        sock.shutdown(how)


def reset(sock: socket.socket) -> None:
    """Close ``sock`` so that the peer of a TCP connection finds it reset."""
    with contextlib.suppress(OSError):
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
    sock.close()
