"""The shim beside its sandbox's engine: what both of containerd's services have in common, and its life.

It outlives its VM: that all containers have ended is told, and answered for, until containerd has deleted them.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
from collections.abc import Awaitable, Coroutine
from typing import Any, TypeVar

from hako.config.settings import Config
from hako.errors import ConfigError, HakoError, HypervisorError, TimedOutError
from hako.network import namespace as namespaces
from hako.runtime import hostcgroup, joining
from hako.sandbox import calls, records
from hako.sandbox.control import Connection, Fds
from hako.sandbox.engine import Engine
from hako.sandbox.spec import SandboxSpec
from hako.shim import places
from hako.shim.events import Publisher
from hako.shim.face import Face
from hako.shim.holder import Lifeline
from hako.shim.sandboxes import Sandboxes
from hako.shim.tasks import Tasks
from hako.shim.ttrpc import Server

log = logging.getLogger(__name__)

T = TypeVar("T")

#: Seconds that a call which asks something of the guest has for it; containerd's patience with ``kill`` is 10.
GUEST_SECONDS = 8.0
#: Seconds that a guest has to end.
_END_SECONDS = 4.0
#: Seconds for events that containerd does not take, and for answers under way, at the very end.
_DRAIN_SECONDS = 3.0
#: Seconds that containerd has, after that, to take the last answer and to hang up.
_LET_GO_SECONDS = 1.0


class Nobody(Connection):
    """Who calls the engine from inside its own process."""

    def __init__(self) -> None:
        self.peer = 0
        self.closed = asyncio.Event()


class Shim:
    """One shim. ``run`` is its whole life."""

    def __init__(self, face: Face, engine: Engine) -> None:
        self.call = face.call
        self.engine = engine
        engine.overcommits = True
        self._face = face
        self._nobody = Nobody()
        fallback = [self.call.publish_binary, "--address", self.call.address] if self.call.publish_binary else []
        self.publisher = Publisher(self.call.events, self.call.namespace, fallback)
        self.lifeline = Lifeline()
        #: The VM has ended, and all that is known of its containers is known.
        self.gone = asyncio.Event()
        self._leaving = asyncio.Event()
        self._left = asyncio.Event()
        self._outside: asyncio.Future[None] | None = None
        self._namespace = -1
        self._no_namespace: HakoError = ConfigError("The pod has no network namespace yet; create its sandbox first.")
        self._network: asyncio.Task[None] | None = None
        self._running: Coroutine[Any, Any, None] | None = None
        self._engine_task: asyncio.Task[None] | None = None
        self.tasks = Tasks(self)
        self._sandboxes = Sandboxes(self)

    async def run(self, running: Coroutine[Any, Any, None]) -> None:
        """Serve until containerd says that it needs the shim no more; give everything back."""
        self._running = running
        server = Server(self._face.listener, {**self.tasks.services(), **self._sandboxes.services()})
        try:
            if self._face.begins:
                self.begin()
                self._begin_own_network(self._face.spec)
            await self._leaving.wait()
        finally:
            await self._give_back(server)

    @property
    def begun(self) -> bool:
        """Whether the VM has been started, or is being."""
        return self._engine_task is not None

    def begin(self, spec: SandboxSpec | None = None, config: Config | None = None) -> None:
        """Start the VM; a pod's, of which nothing was known before, by another description."""
        if spec is not None and config is not None:
            self.engine.describe_anew(spec, config)
        assert self._running is not None
        self._engine_task = asyncio.create_task(self._running)
        self._engine_task.add_done_callback(self._on_engine_done)
        self._running = None

    def _on_engine_done(self, task: asyncio.Task[None]) -> None:
        if not task.cancelled() and task.exception() is not None:
            log.error("The sandbox's engine has failed: %s", task.exception())
        self.gone.set()

    async def _give_back(self, server: Server) -> None:
        try:
            await self._give_all_back()
        finally:
            self._left.set()
        await server.drain(_DRAIN_SECONDS)
        await server.let_go(_LET_GO_SECONDS)
        server.close()
        await self.publisher.close()

    async def _give_all_back(self) -> None:
        """Give back what there is besides the connections to containerd."""
        self._leave_cgroup()
        self.engine.stop_soon()
        if self._engine_task is not None:
            await asyncio.wait([self._engine_task])
        elif self._running is not None:
            self._running.close()
            self.engine.discard()
        await self.tasks.close()
        self._sandboxes.close()
        await self.publisher.drain(_DRAIN_SECONDS)
        places.forget(self._face.address)
        self.lifeline.close()
        if self._namespace >= 0:
            os.close(self._namespace)
        if self._outside is not None:
            await self._outside
        await asyncio.to_thread(self._forget)

    def _forget(self) -> None:
        """Remove the cgroup, which this process has left, and what is kept of the sandbox."""
        try:
            hostcgroup.delete(self.engine.cgroup)
        except HakoError as error:
            log.warning("%s", error)
        records.forget(self.engine.spec.id)

    async def leave(self) -> None:
        """End, and the VM with it; return when nothing is left but the connection that this was asked for over."""
        self._leaving.set()
        await self._left.wait()

    def in_cgroup(self) -> contextlib.AbstractAsyncContextManager[None]:
        """For the block, this process is in the VM's cgroup; what it starts then is born there. Raises HostError."""
        way = self.engine.machine.joining
        return way.inside() if way is not None else contextlib.nullcontext()

    # --- the pod's network ---

    def _begin_own_network(self, spec: dict[str, Any]) -> None:
        """Use the network namespace that the config.json names. Whoever asks for it is told why there is none."""
        try:
            self.begin_network(joining.network_path(spec), wait=bool(spec.get("hooks")))
        except HakoError as error:
            self._no_namespace = error

    def begin_network(self, path: str, *, wait: bool = False) -> None:
        """Use the network namespace at ``path``, a new one if that is empty; connect the guest, or ``wait`` with it.

        Raises HakoError when there is no such namespace.
        """
        self._namespace = namespaces.open_namespace(path) if path else namespaces.create_unnamed(lambda _kernel: None)
        if not wait:
            self.connect_network()

    def connect_network(self) -> None:
        """Give the guest what is in the namespace now, and what will come there; network() waits for that."""
        if self._network is None:
            self._network = asyncio.create_task(self._connect())
            self._network.add_done_callback(lambda task: task.cancelled() or task.exception())

    async def _connect(self) -> None:
        await self.ask("Network", {"path": f"/proc/self/fd/{self.namespace}", "forward": True}, seconds=None)

    @property
    def namespace(self) -> int:
        """The descriptor of the pod's network namespace on the host. Raises HakoError when there is none."""
        if self._namespace < 0:
            raise self._no_namespace
        return self._namespace

    async def network(self) -> None:
        """Wait until the guest has its network. Raises why it has not got it."""
        if self._network is not None:
            await asyncio.shield(self._network)

    # --- the engine ---

    async def ask(
        self,
        method: str,
        params: dict[str, Any],
        fds: dict[str, int] | None = None,
        seconds: float | None = GUEST_SECONDS,
    ) -> dict[str, Any]:
        """Call the engine as a client of the control socket would. Descriptors ``fds`` are the engine's from now on.

        Raises what the engine raises, and TimedOutError after ``seconds``.
        """
        given = Fds(list((fds or {}).values()))
        if fds is not None:
            params = {**params, "stdio": list(fds)}
        try:
            return await self.within(calls.METHODS[method](self.engine, params, given, self._nobody), seconds)
        finally:
            given.close()

    async def within(self, work: Awaitable[T], seconds: float | None) -> T:
        """``work``, for at most ``seconds``. Raises TimedOutError."""
        try:
            async with asyncio.timeout(seconds):
                return await work
        except TimeoutError:
            raise TimedOutError(f"The guest of sandbox {self.engine.spec.id} does not answer.") from None

    def _leave_cgroup(self) -> None:
        """Begin to leave the VM's cgroup, where nothing more is to be started. It takes the kernel some time."""
        way = self.engine.machine.joining
        if way is not None and self._outside is None:
            self._outside = asyncio.ensure_future(asyncio.to_thread(way.leave))

    async def end_sandbox(self) -> None:
        """End the VM in an orderly way, if its guest takes part in that; return when its containers have ended."""
        self._leave_cgroup()
        self.engine.stop_soon()
        try:
            await self.within(self.gone.wait(), _END_SECONDS)
        except TimedOutError:
            await self.end_vm()

    async def end_vm(self) -> None:
        """End the VM at once, without asking the guest; return when its containers have ended."""
        self._leave_cgroup()
        self.engine.stopping.set()
        await self.engine.machine.kill()
        await self.gone.wait()

    def why_gone(self) -> HypervisorError:
        """What a call is answered that needs a VM, when that has ended."""
        return HypervisorError(self.engine.state["error"] or f"Sandbox {self.engine.spec.id} has been stopped.")
