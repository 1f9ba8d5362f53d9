"""Names that an engine resolves itself: a relay between the guest and name servers on the loopback of its network.

An engine such as docker answers at 127.0.0.11 of the container's network namespace, and says so in its resolv.conf. The
processes in a VM have a loopback of their own, where the agent listens in the servers' place; what it is asked comes
here and goes on to the real ones. An address at which nothing listens in the namespace belongs to a server inside
the container, and is left alone.

The guest's questions are hostile input: their number, size and time are limited, and of their header no more is used
than the place of a server that exists and the protocol.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import socket
from collections.abc import Iterable

from hako.agent_client import AgentClient
from hako.errors import HakoError, HostError
from hako.network import namespace as namespaces
from hako.wire import queries

log = logging.getLogger(__name__)

PORT = 53
_MAX_FILE = 1 << 20
#: Seconds that a server has for an answer; resolvers ask again after as many.
_ANSWER_SECONDS = 5.0
#: Seconds to find out whether there is a server; on the loopback that is known at once.
_PROBE_SECONDS = 1.0
#: The guest's part may be code that has to be translated first.
_CALL_SECONDS = 30.0
_LONGEST = 0xFFFF


def loopback_servers(text: str) -> list[str]:
    """The name servers on the IPv4 loopback among those of a resolv.conf that count."""
    lines = (line.split() for line in text.splitlines())
    named = [words[1] for words in lines if len(words) > 1 and words[0] == "nameserver"]
    return [address for address in dict.fromkeys(named[: queries.MAX_SERVERS]) if _is_loopback(address)]


def _is_loopback(address: str) -> bool:
    try:
        return socket.inet_pton(socket.AF_INET, address)[0] == 127
    except (OSError, ValueError):
        return False


def _read(path: str) -> str:
    def open_without_waiting(name: str, flags: int) -> int:
        return os.open(name, flags | os.O_NONBLOCK)

    try:
        with open(path, "rb", opener=open_without_waiting) as file:
            return file.read(_MAX_FILE).decode("ascii", errors="replace")
    except OSError:
        return ""  # the container has gone


class Resolver:
    """Owns the relays of one sandbox: it has none before connect(), and close() ends them."""

    def __init__(self) -> None:
        self._files: list[str] = []
        self._namespace = -1
        self._agent: AgentClient | None = None
        self._guests: frozenset[str] = frozenset()
        self._starting: set[asyncio.Task[None]] = set()
        self._one_by_one = asyncio.Lock()
        self._relays: dict[str, Relay] = {}

    def connect(self, path: str, agent: AgentClient, *, guests: Iterable[str] = ()) -> None:
        """From now on relay to the name servers in the network namespace at ``path``. Raises HostError.

        Whoever is found at the addresses ``guests`` there is a server of the guest's itself: these are left alone.
        """
        self._guests = frozenset(guests)
        try:
            self._namespace = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        except OSError as error:
            raise HostError(f"Cannot open the network namespace {path}: {error.strerror}.") from error
        self._agent = agent
        self.look()

    def consult(self, path: str) -> None:
        """A container has this resolv.conf: relay to the servers that it names, now and after each look()."""
        self._files.append(path)
        self.look()

    def look(self) -> None:
        """Begin to relay to servers that a resolv.conf names and that are not relayed to yet; settled() waits.

        Relays that are not needed any more stay. Does nothing before connect().
        """
        if self._agent is None:
            return
        texts = [_read(path) for path in self._files]
        wanted = dict.fromkeys(address for text in texts for address in loopback_servers(text))
        new = [address for address in wanted if address not in self._relays and address not in self._guests]
        if new:
            task = asyncio.create_task(self._start(new, self._agent))
            self._starting.add(task)
            task.add_done_callback(self._starting.discard)

    async def settled(self) -> None:
        """Wait until the guest listens for what look() has found."""
        if self._starting:
            await asyncio.wait(self._starting)

    async def _start(self, addresses: list[str], agent: AgentClient) -> None:
        async with self._one_by_one:
            new = [address for address in addresses if address not in self._relays and await self._serves(address)]
            if not new:
                return
            try:
                relay = await Relay.start(new[: queries.MAX_SERVERS], self._namespace, agent)
            except HakoError as error:
                log.error("Names that only %s knows cannot be resolved in the guest: %s", " or ".join(new), error)
                return
            self._relays |= dict.fromkeys(new, relay)

    async def _serves(self, address: str) -> bool:
        """Whether there is a name server in the namespace; it serves TCP too (RFC 7766)."""
        with contextlib.suppress(OSError, TimeoutError), _open(self._namespace, socket.SOCK_STREAM) as server:
            async with asyncio.timeout(_PROBE_SECONDS):
                await asyncio.get_running_loop().sock_connect(server, (address, PORT))
            return True
        return False

    async def close(self) -> None:
        """End all relays. Can be repeated; connect() begins anew."""
        self._agent = None
        for task in self._starting:
            task.cancel()
        await asyncio.gather(*self._starting, return_exceptions=True)
        for relay in set(self._relays.values()):
            await relay.close()
        self._relays.clear()
        self._files.clear()
        if self._namespace >= 0:
            os.close(self._namespace)
            self._namespace = -1


class Relay:
    """Hands questions from the guest to name servers in the namespace of a descriptor, which stays the caller's."""

    def __init__(self, addresses: list[str], namespace: int, agent: AgentClient) -> None:
        self._addresses = addresses
        self._namespace = namespace
        self._questions = agent.open_output()
        self._answers = agent.open_input()
        self._writing = asyncio.Lock()
        self._exchanges: set[asyncio.Task[None]] = set()
        self._reading = asyncio.create_task(self._read())

    @classmethod
    async def start(cls, addresses: list[str], namespace: int, agent: AgentClient) -> Relay:
        """A relay whose guest side listens. Raises HakoError."""
        relay = cls(addresses, namespace, agent)
        streams = {"stdin": relay._answers.number, "stdout": relay._questions.number}
        try:
            await agent.call("Resolve", {"addresses": addresses, **streams}, _CALL_SECONDS)
        except BaseException:
            await relay.close()
            raise
        return relay

    async def _read(self) -> None:
        decoder = queries.Decoder()
        while data := await self._questions.read():
            self._questions.consumed(len(data))
            for question in decoder.feed(data):
                # The agent asks no more than that; what a guest asks beyond is not worth an answer.
                if len(self._exchanges) < queries.MAX_QUESTIONS:
                    exchange = asyncio.create_task(self._exchange(question))
                    self._exchanges.add(exchange)
                    exchange.add_done_callback(self._exchanges.discard)

    async def _exchange(self, question: queries.Message) -> None:
        answer = b""
        with contextlib.suppress(OSError, TimeoutError):
            async with asyncio.timeout(_ANSWER_SECONDS):
                answer = await self._ask(question)
        message = queries.Message(question.token, question.server, question.protocol, answer)
        async with self._writing:
            await self._answers.write(message.encode())

    async def _ask(self, question: queries.Message) -> bytes:
        """What the server answers; empty when there is no such server. Raises OSError."""
        ask = {queries.UDP: _ask_udp, queries.TCP: _ask_tcp}.get(question.protocol)
        if ask is None or question.server >= len(self._addresses):
            return b""
        kind = socket.SOCK_STREAM if question.protocol == queries.TCP else socket.SOCK_DGRAM
        with _open(self._namespace, kind) as server:
            await asyncio.get_running_loop().sock_connect(server, (self._addresses[question.server], PORT))
            return await ask(server, question.data)

    async def close(self) -> None:
        """End the relay on both sides. Can be repeated."""
        tasks = [self._reading, *self._exchanges]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        self._questions.close()
        self._answers.close()


def _open(namespace: int, kind: socket.SocketKind) -> socket.socket:
    opened = namespaces.inside(namespace, lambda: socket.socket(socket.AF_INET, kind))
    opened.setblocking(False)
    return opened


async def _ask_udp(server: socket.socket, question: bytes) -> bytes:
    loop = asyncio.get_running_loop()
    await loop.sock_sendall(server, question)
    return await loop.sock_recv(server, _LONGEST)


async def _ask_tcp(server: socket.socket, question: bytes) -> bytes:
    await asyncio.get_running_loop().sock_sendall(server, len(question).to_bytes(2, "big") + question)
    size = await _receive(server, 2)
    return await _receive(server, int.from_bytes(size, "big"))


async def _receive(server: socket.socket, size: int) -> bytes:
    """Exactly ``size`` bytes; empty when the server ends before."""
    data = b""
    while len(data) < size:
        piece = await asyncio.get_running_loop().sock_recv(server, size - len(data))
        if not piece:
            return b""
        data += piece
    return data
