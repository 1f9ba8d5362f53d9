"""The network of a sandbox's guest: the namespace that an engine has prepared, and what of it the guest has.

The VM has a card from the start, whose tap is tied to nothing. connect() takes the tap to the namespace and ties it to
the first interface; further ones get cards that are plugged in. A card whose interface has gone waits, switched off,
for the next one.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from typing import TYPE_CHECKING, Any

from hako.agent_client import AgentClient
from hako.errors import HakoError, StateError
from hako.hypervisor.base import Hypervisor, Nic
from hako.network.api import Network
from hako.network.endpoint import Attachment, Endpoint
from hako.network.tap import Tap
from hako.network.watch import watch
from hako.sandbox.resolver import Resolver

if TYPE_CHECKING:
    from hako.sandbox.forward import Forward

log = logging.getLogger(__name__)

#: A guest that has a card plugged in looks for it, by code that may have to be translated first.
_TIMEOUT = 30.0


class Card:
    """A network card of the VM. ``device`` is how the guest knows it: the address it came with, or its place among
    those that were there from the start. ``tap`` is what it is tied to."""

    def __init__(self, device: str | int, tap: Tap) -> None:
        self.device = device
        self.tap = tap
        self.interface = 0  #: index of the interface that it stands for, 0 for none


class GuestNetwork:
    """Owns the taps of a VM and what they are tied to. Give it ``vm`` when it runs; close it at the end."""

    def __init__(self) -> None:
        self._cards: list[Card] = []
        self._network: Network | None = None
        self._watching: asyncio.Task[None] | None = None
        self._telling: asyncio.Task[None] | None = None
        self._hypervisor: Hypervisor | None = None
        self._agent: AgentClient | None = None
        self._made = asyncio.Event()
        self._preparing: asyncio.Task[Network] | None = None
        self._tying = False
        #: Give it the resolv.conf of each container.
        self.resolver = Resolver()
        self._forward: Forward | None = None

    def add_card(self, queues: int) -> tuple[int, ...]:
        """The descriptors of a new tap for a card; release() when QEMU has them. Blocks. Raises HostError."""
        # A clone's has the address of its template's.
        card = Card(len(self._cards), Tap.alone(queues))
        self._cards.append(card)
        return tuple(card.tap.fds)

    def cards_made(self) -> None:
        """There are all cards that the VM has from the start: prepare() can go on."""
        self._made.set()

    def release(self) -> None:
        """QEMU has the queues of the cards: this process does not need them any more."""
        for card in self._cards:
            card.tap.release()

    def drop_cards(self) -> asyncio.Future[None]:
        """The VM is gone. Whoever ends this process waits for threads, so nobody has to wait for what is returned."""
        cards, self._cards = self._cards, []

        def close() -> None:
            for card in cards:
                card.tap.close()

        return asyncio.get_running_loop().run_in_executor(None, close)

    def prepare(self, path: str) -> None:
        """Begin with connect() before the VM runs: tie its cards to what there is at ``path``."""
        if self._network is None and self._preparing is None:
            self._preparing = asyncio.create_task(self._prepare(path))

    async def _prepare(self, path: str) -> Network:
        await self._made.wait()
        # What threads do cannot be given up: from now on this comes to its end.
        self._tying = True
        try:
            network = await asyncio.to_thread(Network.open, path)
            try:
                free = [card for card in self._cards if not card.interface]
                for endpoint, card in zip(await asyncio.to_thread(network.endpoints), free, strict=False):
                    await asyncio.to_thread(network.attach, endpoint, card.tap)
                    card.interface = endpoint.index
            except BaseException:
                await asyncio.to_thread(network.close)
                raise
            return network
        finally:
            self._tying = False

    async def _prepared(self) -> Network | None:
        """What prepare() has made, None when it has not begun. Raises HakoError."""
        preparing = self._preparing
        if preparing is None:
            return None
        if not self._tying:
            preparing.cancel()
        await asyncio.wait({preparing})
        if self._preparing is not preparing:
            return None  # close() has taken it
        self._preparing = None
        return None if preparing.cancelled() else preparing.result()

    async def connect(self, path: str, hypervisor: Hypervisor, agent: AgentClient, *, forward: bool = False) -> None:
        """Give the guest the interfaces of the network namespace at ``path``, now and as they come and go.

        ``forward``: what connects to the namespace's loopback reaches the guest's. The guest sets its interfaces up in
        the background; settled() waits for it. Raises HakoError; it has no network then.
        """
        if self._network is not None:
            raise StateError("The virtual machine has a network already.")
        self._hypervisor, self._agent = hypervisor, agent
        prepared = await self._prepared()
        network = prepared if prepared is not None else await asyncio.to_thread(Network.open, path)
        self._network = network
        try:
            tied = {attachment.endpoint.index for attachment in network.attachments}
            for endpoint in await asyncio.to_thread(network.endpoints):
                if endpoint.index not in tied:
                    await self._attach(network, endpoint)
            await self._find_servers(path, agent, forward=forward)
        except BaseException:
            await self.close()
            raise
        if network.attachments:
            self._telling = asyncio.create_task(self._tell(network, agent))
        self._watching = asyncio.create_task(self._follow(network, agent))

    async def _find_servers(self, path: str, agent: AgentClient, *, forward: bool) -> None:
        """Have the guest reach name servers on the namespace's loopback, or the namespace servers on the guest's."""
        if not forward:
            self.resolver.connect(path, agent)
            return
        # Few need these.
        from hako.network.loopback import LOOPBACKS
        from hako.sandbox.forward import Forward

        self.resolver.connect(path, agent, guests=LOOPBACKS)
        self._forward = Forward()
        await self._forward.start(path, agent)

    async def settled(self) -> None:
        """Wait until the guest has what connect() has given it, and its name servers. Raises HakoError."""
        if self._telling is not None:
            await asyncio.shield(self._telling)
        await self.resolver.settled()

    async def _attach(self, network: Network, endpoint: Endpoint) -> None:
        card = next((card for card in self._cards if not card.interface), None)
        if card is not None:
            await asyncio.to_thread(network.attach, endpoint, card.tap)
        else:
            card = await self._plug(endpoint)
            self._cards.append(card)
            await asyncio.to_thread(network.attach, endpoint, card.tap)
        card.interface = endpoint.index

    async def _plug(self, endpoint: Endpoint) -> Card:
        assert self._hypervisor is not None
        first = self._hypervisor.spec.find(Nic)
        nic = Nic(endpoint.mac, first.queues if first is not None else 1)
        # An interface may come back while its old card serves another one.
        nic = nic._replace(mac=_another(nic.mac, {card.device for card in self._cards}))
        tap = await asyncio.to_thread(Tap.alone, nic.queues)
        try:
            await self._hypervisor.plug(nic, tap.fds)
        except BaseException:
            tap.close()
            raise
        tap.release()
        return Card(nic.mac, tap)

    async def _tell(self, network: Network, agent: AgentClient) -> None:
        """Have the guest bring its cards to what the namespace has."""
        devices = {card.interface: card.device for card in self._cards if card.interface}
        wanted: list[dict[str, Any]] = [
            attachment.endpoint.description | {"device": devices[attachment.endpoint.index]}
            for attachment in network.attachments
        ]
        await agent.call("Network", {"interfaces": wanted}, _TIMEOUT)

    async def _follow(self, network: Network, agent: AgentClient) -> None:
        try:
            with contextlib.suppress(HakoError):  # whoever connected it is told
                await self.settled()
            async for changes in watch(network):
                try:
                    for attachment in changes.vanished:
                        await self._detach(network, attachment)
                    for endpoint in changes.appeared:
                        await self._attach(network, endpoint)
                    # An engine that connects another network may resolve names from then on.
                    self.resolver.look()
                    await self._tell(network, agent)
                except HakoError as error:
                    log.error("The guest could not follow a change of its network: %s", error)
        except HakoError as error:
            log.error("The network of the guest is not followed any more: %s", error)

    async def _detach(self, network: Network, attachment: Attachment) -> None:
        for card in self._cards:
            if card.interface == attachment.endpoint.index:
                card.interface = 0
        await asyncio.to_thread(network.detach, attachment)

    async def close(self) -> None:
        """Untie everything. The cards stay. Can be repeated."""
        tasks = [task for task in (self._watching, self._telling) if task is not None]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        self._watching = self._telling = None
        self._made.clear()
        await self.resolver.close()
        if self._forward is not None:
            await self._forward.close()
            self._forward = None
        network, self._network = self._network, None
        with contextlib.suppress(HakoError):
            prepared = await self._prepared()
            network = network if prepared is None else prepared
        if network is not None:
            with contextlib.suppress(HakoError):
                await asyncio.to_thread(network.close)
        for card in self._cards:
            card.interface = 0


def _another(mac: str, taken: set[str | int]) -> str:
    """``mac``, or an address like it that is not among the ``taken``."""
    number = int(mac.replace(":", ""), 16)
    while mac in taken:
        number = (number + 1) % (1 << 48)
        text = f"{number:012x}"
        mac = ":".join(text[at : at + 2] for at in range(0, 12, 2))
    return mac
