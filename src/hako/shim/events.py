"""Events for containerd: in order, and none lost while containerd restarts.

Facts: containerd pkg/shim/publisher.go, pkg/namespaces/ttrpc.go, cmd/containerd/command/publish.go.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections import deque
from collections.abc import Sequence

from hako import proc
from hako.errors import GRPC_UNAVAILABLE, HakoError, HostError, ProtocolError, TimedOutError
from hako.named import NamedTuple
from hako.shim.event_messages import SERVICE, Envelope, Event, ForwardRequest
from hako.shim.messages import Any, Empty, Timestamp
from hako.shim.ttrpc import Client, ClosedError

log = logging.getLogger(__name__)

#: Says in a call's metadata which of containerd's namespaces it is about.
NAMESPACE_KEY = "containerd-namespace-ttrpc"

#: Events that wait while containerd is away; then the oldest are dropped.
_MAX_QUEUED = 2048
#: Seconds for one try.
_TRY_SECONDS = 5.0
#: Seconds before the next try, for as long as containerd is away.
_DELAYS = (0.1, 0.5, 1.0, 2.0, 3.0, 5.0)
#: Tries of an event that containerd is there for, but does not take.
_MAX_REFUSALS = 5


class _RefusedError(Exception):
    """containerd, or its program, does not take the event."""


class _AwayError(Exception):
    """Nobody is there to take events."""


class _Queued(NamedTuple):
    topic: str
    envelope: Envelope


class Publisher:
    """Sends events of ``namespace`` to the ttrpc socket at ``address``, one after the other.

    Without an address each event is given to a program: ``fallback`` is how its command line begins, such as
    ``["/usr/bin/containerd", "--address", "/run/containerd/containerd.sock"]``. Without either nobody wants events.
    Needs a running event loop.
    """

    def __init__(self, address: str, namespace: str, fallback: Sequence[str] = ()) -> None:
        self._address = address
        self._namespace = namespace
        self._fallback = list(fallback)
        self._queue: deque[_Queued] = deque()
        self._wake = asyncio.Event()
        self._idle = asyncio.Event()
        self._idle.set()
        self._client: Client | None = None
        self._worker: asyncio.Task[None] | None = None
        self._closed = False

    def publish(self, event: Event) -> None:
        """Queue ``event``, which happened now, and return at once. Raises ProtobufError for what cannot be sent."""
        if self._closed or not (self._address or self._fallback):
            return
        if len(self._queue) >= _MAX_QUEUED:
            log.error("Dropped the event %s: containerd has taken none for long.", self._queue.popleft().topic)
        envelope = Envelope(
            timestamp=Timestamp.of_ns(time.time_ns()),
            namespace=self._namespace,
            topic=event.TOPIC,
            event=Any.pack(event),
        )
        self._queue.append(_Queued(event.TOPIC, envelope))
        self._idle.clear()
        self._wake.set()
        if self._worker is None:
            self._worker = asyncio.get_running_loop().create_task(self._work())

    async def drain(self, timeout: float) -> bool:
        """Wait until all events have been taken, at most ``timeout`` seconds; whether they have."""
        try:
            async with asyncio.timeout(timeout):
                await self._idle.wait()
        except TimeoutError:
            return False
        return True

    async def close(self) -> None:
        """Stop; events that nobody has taken yet are lost."""
        self._closed = True
        if self._worker is not None:
            self._worker.cancel()
            await asyncio.wait([self._worker])
        await self._disconnect()

    async def _work(self) -> None:
        while True:
            while self._queue:
                await self._deliver(self._queue.popleft())
            self._idle.set()
            self._wake.clear()
            await self._wake.wait()

    async def _deliver(self, item: _Queued) -> None:
        """Try until the event has been taken, or refused too often."""
        tries = refusals = 0
        while True:
            try:
                await (self._forward(item) if self._address else self._run(item))
                return
            except _AwayError as error:
                if not tries:
                    log.warning("containerd takes no events for now: %s", error)
            except _RefusedError as error:
                refusals += 1
                if refusals >= _MAX_REFUSALS:
                    log.error("Dropped the event %s, which containerd does not take: %s", item.topic, error)
                    return
            await asyncio.sleep(_DELAYS[min(tries, len(_DELAYS) - 1)])
            tries += 1

    async def _forward(self, item: _Queued) -> None:
        """Give the event to containerd's socket. Raises _AwayError and _RefusedError."""
        request = ForwardRequest(envelope=item.envelope)
        metadata = {NAMESPACE_KEY: self._namespace}
        while True:
            reused = self._client is not None and not self._client.closed
            client = await self._connect()
            try:
                await client.call(SERVICE, "Forward", request, Empty, timeout=_TRY_SECONDS, metadata=metadata)
                return
            except ClosedError as error:
                await self._disconnect()
                # A connection from before containerd's restart may say so on its first use only.
                if not reused:
                    raise _AwayError(str(error)) from error
            except (TimedOutError, ProtocolError) as error:
                await self._disconnect()
                raise _AwayError(str(error)) from error
            except HakoError as error:
                kind = _AwayError if error.grpc_code == GRPC_UNAVAILABLE else _RefusedError
                raise kind(str(error)) from error

    async def _run(self, item: _Queued) -> None:
        """Give the event to the program. Raises _RefusedError."""
        argv = [*self._fallback, "publish", "--topic", item.topic, "--namespace", self._namespace]
        assert item.envelope.event is not None
        try:
            await asyncio.to_thread(proc.run, argv, input=item.envelope.event.encode(), timeout=_TRY_SECONDS)
        except HostError as error:
            raise _RefusedError(str(error)) from error

    async def _connect(self) -> Client:
        """The connection, made anew if it has ended. Raises _AwayError."""
        if self._client is not None and not self._client.closed:
            return self._client
        await self._disconnect()
        try:
            self._client = await Client.connect(self._address)
        except ClosedError as error:
            raise _AwayError(str(error)) from error
        return self._client

    async def _disconnect(self) -> None:
        client, self._client = self._client, None
        if client is not None:
            await client.close()
