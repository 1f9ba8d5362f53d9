"""The sandbox process's heart: owns the VM, its containers and shares, and answers the control socket."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import socket
from collections.abc import Callable
from typing import Any

from hako import ids, store
from hako.config.settings import Config
from hako.errors import ConfigError, ExistsError, HakoError, HypervisorError, NotFoundError
from hako.oci import check as oci_check
from hako.sandbox import calls, disks, guestdevices, records, sizes, translate
from hako.sandbox import params as params_of
from hako.sandbox.container import Container, Process
from hako.sandbox.control import Connection, ControlServer, Fds
from hako.sandbox.guestmounts import SHARE
from hako.sandbox.hostsockets import HostSockets
from hako.sandbox.logs import LogWriter
from hako.sandbox.machine import Machine
from hako.sandbox.ownnet import OwnNetwork
from hako.sandbox.process_io import ProcessIO
from hako.sandbox.spec import GIVEN_NETWORK, SandboxSpec
from hako.sandbox.trace import Trace
from hako.sandbox.vm import Vm
from hako.storage import block, mountlist
from hako.storage.block import Plan
from hako.storage.sources import OpenDisk

log = logging.getLogger(__name__)

_DRAIN_TIMEOUT = 1.0


class Engine:
    """One sandbox. ``run`` is its whole life."""

    def __init__(self, machine: Machine) -> None:
        """``machine`` is the sandbox's VM, under way or ready perhaps; with its tree it is the engine's from now on."""
        self.machine = machine
        self.spec = spec = machine.spec
        self.config = config = machine.config
        self.trace = trace = machine.trace
        # The list itself: whoever reads the state sees what has happened up to then.
        self.state = records.new_state(spec) | {"trace": trace.spans}
        self.run_dir = records.run_dir(spec.id)
        self.data_dir = records.data_dir(spec.id)
        self.tree = machine.tree
        self.state["tree"] = os.path.relpath(self.tree.path, self.run_dir)
        self.disks = disks.Disks()
        self.containers: dict[str, Container] = {}
        self._own_network = OwnNetwork(spec, trace)
        self._host_sockets = HostSockets(allowed=config.sandbox.host_sockets)
        #: Called when a container has been started.
        self.on_started: Callable[[], None] = lambda: None
        self.machine.on_lost = self._on_lost
        #: Containers may be allowed more than there can be, as Kubernetes' are; the VM gets what is possible then.
        self.overcommits = False
        self._ready: asyncio.Future[Vm] = asyncio.get_running_loop().create_future()
        self.stopping = asyncio.Event()
        #: Nobody is waiting for what the sandbox is for: it was told, or its owner is gone or has let it go.
        self.released = asyncio.Event()
        self.disowned = False
        self._watchers: set[asyncio.Task[None]] = set()
        self._creating: set[str] = set()
        #: The guest may hold back what somebody will want to read when the sandbox is gone.
        self._has_to_write = spec.retain
        self.shares: list[dict[str, Any]] = []

    def describe_anew(self, spec: SandboxSpec, config: Config) -> None:
        """Before run(): the sandbox is to be another than was said. Its id, directories and owner stay."""
        from hako.cgroup.joining import Joining

        self.spec = self.machine.spec = spec
        self.config = self.machine.config = config
        self.state["spec"] = spec.to_json()
        self.machine.joining = Joining(spec.cgroup)
        self.save()

    @property
    def cgroup(self) -> dict[str, Any]:
        """The record of the VM's cgroup, as it is known by now; empty when it has none."""
        joining = self.machine.joining
        return joining.record if joining is not None else self.spec.cgroup

    def discard(self) -> None:
        """In place of run(): give back what a sandbox has that never began."""
        self.tree.close()
        records.finish(self.state)

    # --- life ---

    async def run(self, listener: socket.socket, owner: socket.socket) -> None:
        """Serve until the sandbox is stopped, its owner is gone or its VM has died; then give everything back."""
        server = ControlServer(listener, self.handle)
        connection = server.adopt(owner)
        tasks = [asyncio.create_task(self._boot())]
        if self.spec.owned:
            tasks.append(asyncio.create_task(self._watch_owner(connection)))
        else:
            self.released.set()
        try:
            await self.stopping.wait()
            await self._shut_down()
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            await self._give_back()
            # Whoever still waits for an answer gets one.
            await server.drain(_DRAIN_TIMEOUT)
            records.finish(self.state)
            server.close()

    async def _boot(self) -> None:
        try:
            self._own_network.start(self._fail)
            vm = await self.machine.ready()
            vm.agent.on_lost = self._on_lost
            await self._own_network.connect(vm, self.machine.network)
            self.state["network"] = self._own_network.state
            self.state["vm_pid"] = vm.hypervisor.pid or 0
            self.state["vm_name"] = self.machine.name
            self.state["info"] = vm.info
            self.state["status"] = "running"
            self.save()
            self._ready.set_result(vm)
        except HakoError as error:
            self._fail(error)
        except Exception as error:
            log.exception("The sandbox could not be started")
            self._fail(HypervisorError(f"The sandbox could not be started: {type(error).__name__}: {error}."))

    def _fail(self, error: HakoError) -> None:
        self.state["error"] = str(error)
        if not self._ready.done():
            self._ready.set_exception(error)
            self._ready.exception()  # nobody may be asking
        # Those who wait for the VM learn the reason before the socket closes.
        asyncio.get_running_loop().call_later(0.05, self.stopping.set)

    def _on_lost(self, error: HakoError) -> None:
        """The VM or its agent is gone without having been asked to go."""
        log.error("%s", error)
        self.state["error"] = str(error)
        asyncio.get_running_loop().call_later(0.05, self.stopping.set)

    async def _watch_owner(self, connection: Connection) -> None:
        await connection.closed.wait()
        self.released.set()
        if not self.stopping.is_set() and not self.disowned:
            log.info("Whoever started the sandbox is gone")
            if self.spec.network == GIVEN_NETWORK:
                # An engine's container that was never made: nobody will come and delete what is kept of it.
                self.state["spec"]["retain"] = False
            self.stopping.set()

    async def _shut_down(self) -> None:
        """End the containers and have the guest write everything out."""
        if not self._ready.done() or self._ready.exception() is not None:
            return
        vm = self._ready.result()
        vm.agent.on_lost = None
        running = any(container.record["status"] != "stopped" for container in self.containers.values())
        # By virtiofs what a process has written is on the host when it has ended, mapped files included.
        if running or len(self.disks) or (self._has_to_write and vm.info["share"] != "virtiofs"):
            with contextlib.suppress(HakoError):
                await vm.agent.call("Shutdown", {}, calls.STOP_TIMEOUT)
        if self._watchers:
            await asyncio.wait(self._watchers, timeout=calls.STOP_TIMEOUT)

    async def _give_back(self) -> None:
        if not self._ready.done():
            self._ready.set_exception(HypervisorError(f"Sandbox {self.spec.id} has been stopped."))
            self._ready.exception()  # nobody may be asking
        for task in self._watchers:
            task.cancel()
        self.disks.ending = True
        for container in self.containers.values():
            await container.close()
        await self._host_sockets.close()
        if self._own_network.wanted:
            await self.machine.network.close()  # the plugins want the interface for themselves
        await asyncio.gather(self.machine.close(), self._own_network.close())

    def save(self) -> None:
        try:
            records.write(self.state)
        except HakoError as error:
            log.error("%s", error)

    # --- calls ---

    async def handle(self, connection: Connection, method: str, params: dict[str, Any], fds: Fds) -> dict[str, Any]:
        """Answer one call of the control socket."""
        handler = calls.METHODS.get(method)
        if handler is None:
            raise ConfigError(f"A sandbox has no method {method[:64]}.")
        return await handler(self, params, fds, connection)

    async def vm(self) -> Vm:
        if self.stopping.is_set():
            raise HypervisorError(self.state["error"] or f"Sandbox {self.spec.id} is being stopped.")
        return await asyncio.shield(self._ready)

    def container(self, params: dict[str, Any]) -> Container:
        container = self.containers.get(params_of.text(params, "container"))
        if container is None:
            raise NotFoundError(f"Container {params['container']} does not exist in sandbox {self.spec.id}.")
        return container

    async def create(self, params: dict[str, Any], fds: Fds) -> dict[str, Any]:
        container_id = ids.check(params.get("container"), "Container id")
        spec = params.get("spec")
        oci_check.check(spec)
        assert isinstance(spec, dict)
        if container_id in self.containers or container_id in self._creating:
            raise ExistsError(f"container with id {container_id} already exists")
        self._creating.add(container_id)
        try:
            return await self._create(container_id, spec, params, fds)
        finally:
            self._creating.discard(container_id)

    async def _create(
        self, container_id: str, spec: dict[str, Any], params: dict[str, Any], fds: Fds
    ) -> dict[str, Any]:
        terminal = bool(spec["process"].get("terminal", False))
        start = params.get("start") is True
        trace = Trace()
        plan = Plan(container_id, devices=self.config.sandbox.block_devices)
        with contextlib.ExitStack() as held, contextlib.ExitStack() as opened:
            stdio = fds.take(params.get("stdio", []), (*params_of.FD_NAMES, params_of.MOUNTS))
            held.callback(_close_all, stdio)
            with trace.span("root file system", "container"), self.tree.seen_from(stdio.pop(params_of.MOUNTS, None)):
                log_writer, guest = self._prepare(spec, params, plan, held)
                files = disks.open_all(plan, self.tree, opened)
            vm = await self.vm()
            self._consult_resolv_conf(guest.spec)
            await self._host_sockets.listen(container_id, vm.agent)
            await self.fit({container_id: params_of.resources(spec)})
            container = Container(vm.agent, container_id, trace)
            async with container.disks:
                await self._attach(vm, plan, files, container, guest.spec)
                opened.close()
                process = await self._run(container, guest, params, log_writer, stdio)
                container.disks = container.disks.pop_all()
            container.held = held.pop_all()
        if start:  # by the same call
            trace.moment("start", "container")
            self.on_started()
        container.main = params.get("main") is True
        cgroup = params.get("cgroup")
        container.cgroup = cgroup if isinstance(cgroup, dict) else {}
        container.record = params_of.new_record(params, spec, terminal=terminal, started=start) | {"trace": trace.spans}
        self.containers[container_id] = container
        self.state["containers"][container_id] = container.record
        self.save()
        self.watch(container, process)
        return {"pid": process.pid, "trace": self.trace_of(container)}

    async def _attach(
        self, vm: Vm, plan: Plan, files: list[OpenDisk], container: Container, spec: dict[str, Any]
    ) -> None:
        """Give the VM what the container needs of disks, and ``spec`` the numbers that they have there."""
        if not plan.disks:
            return
        with container.trace.span("disks", "container"):
            nodes = await self.disks.attach(vm, plan, files)
        container.disks.push_async_callback(self.disks.detach, vm, container.id)
        guestdevices.renumber(spec, nodes)

    async def _run(
        self,
        container: Container,
        guest: translate.GuestSpec,
        params: dict[str, Any],
        log_writer: LogWriter | None,
        stdio: dict[str, int],
    ) -> Process:
        """Have the agent make the container; ``stdio`` is empty then."""
        start = params.get("start") is True
        terminal = bool(guest.spec["process"].get("terminal", False))
        keep_stdin = params.get("keep_stdin") is True
        io = ProcessIO(
            container.agent,
            terminal=terminal,
            log=log_writer,
            keep_stdin=keep_stdin,
            lingers=params.get("lingers") is True,
            started=start,
            trace=container.trace,
        )
        call = {"container": container.id, "spec": guest.spec, "start": start, **params_of.size(params)}
        call |= {"prepare": guest.prepare} if guest.prepare else {}
        with container.trace.span("create", "container"):
            given = dict(stdio)
            stdio.clear()  # they belong to the streams from now on
            if start:
                await self.machine.network.settled()
            process, _ = await container.run("Create", call, "", io, given)
            await self._settle(container)
        return process

    def _consult_resolv_conf(self, spec: dict[str, Any]) -> None:
        """Have names resolved that only the network's own name servers know, if the container's file names such."""
        for mount in spec["mounts"]:
            below_share = str(mount.get("source", "")).removeprefix(f"{SHARE}/")
            if os.path.normpath(mount["destination"]) == "/etc/resolv.conf" and below_share != mount["source"]:
                self.machine.network.resolver.consult(os.path.join(self.tree.path, below_share))

    async def _settle(self, container: Container) -> None:
        """Wait until the guest has its network, which it sets up while it makes its first container."""
        try:
            await self.machine.network.settled()
        except BaseException:
            with contextlib.suppress(HakoError):
                await container.call("Delete", {"force": True})
            raise

    def trace_of(self, container: Container) -> list[list[Any]]:
        """The phases of a container's start, those of its sandbox's among them."""
        return [*self.trace.spans, *container.trace.spans]

    def _prepare(
        self, spec: dict[str, Any], params: dict[str, Any], plan: Plan, held: contextlib.ExitStack
    ) -> tuple[LogWriter | None, translate.GuestSpec]:
        """The host's side of a new container: its image, layer, mounts and log, given back by ``held``.

        What it needs of disks is added to ``plan``.
        """
        container_id = plan.container_id
        layer = self._layer(container_id)
        if params.get("digest"):
            from hako.ociimage import api as ociimage

            image = ociimage.hold(str(params["digest"]))
            if image is not None:
                held.callback(os.close, image)
        store.ensure_dir(layer)
        # A failure takes the layer away; the end of the sandbox keeps it if it was asked to retain it.
        held.callback(self._drop_layer, container_id)
        held.callback(self.tree.remove, container_id)
        held.callback(self._host_sockets.remove, container_id)
        lower = params.get("lower")
        root = ""
        if isinstance(lower, str):
            self.tree.add_overlay(container_id, lower, layer)
        elif params.get("rootfs"):
            if block.for_guest(params["rootfs"]):
                root = plan.add_rootfs(params["rootfs"])
            else:
                self.tree.add_mounts(container_id, mountlist.parse(params["rootfs"]))
        else:
            self.tree.add_rootfs(container_id, str(spec["root"]["path"]))
        mounts = [*spec.get("mounts", []), *self.shares]
        self._has_to_write |= not isinstance(lower, str) or any(map(translate.is_bind, mounts))
        mounts += self._own_network.mounts(os.path.join(layer, "etc"), {**spec, "mounts": mounts})
        joined = params.get("joined")
        guest = translate.translate(
            {**spec, "mounts": mounts},
            container_id,
            self.tree,
            joined=joined if isinstance(joined, dict) else None,
            strict=params.get("strict") is True,
            plan=plan,
            root=root,
            sockets=self._host_sockets,
            shared=frozenset(params.get("shared") or ()),
        )
        if params.get("log") is not True:
            return None, guest
        writer = LogWriter(os.path.join(layer, "log"), self.config.log.max_size)
        held.callback(writer.close)
        return writer, guest

    def _layer(self, container_id: str) -> str:
        return os.path.join(self.data_dir, "containers", container_id)

    def _drop_layer(self, container_id: str) -> None:
        if not (self.stopping.is_set() and self.spec.retain and container_id in self.containers):
            store.remove_tree(self._layer(container_id))

    def watch(self, container: Container, process: Process) -> None:
        async def watch() -> None:
            end = await process.watch()
            if process.exec_id:
                process.exited.set_result(end)
                return
            container.trace.moment("exit", "container")
            # Whoever learns of the end finds everything as it is then.
            if end["oom"] and container.cgroup:
                await asyncio.to_thread(_report_oom, container.cgroup)
            container.record.update(status="stopped", **end)
            self.save()
            process.exited.set_result(end)
            if container.main and not self.is_needed():
                # The owner is about to ask how it ended.
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(calls.STOP_TIMEOUT):
                        await self.released.wait()
                if not self.is_needed():
                    self.stopping.set()

        task = asyncio.create_task(watch())
        self._watchers.add(task)
        task.add_done_callback(self._watchers.discard)

    def is_needed(self) -> bool:
        """Whether a container that keeps the sandbox alive has not ended, or is being made."""
        alive = (container.main and container.record["status"] != "stopped" for container in self.containers.values())
        return bool(self._creating) or any(alive)

    async def fit(self, changed: dict[str, Any], *, shrink: bool = True) -> None:
        """Make the VM as large as its containers need, with the resources of some of them ``changed``."""
        limits = {name: container.record["resources"] for name, container in self.containers.items()} | changed
        size, vcpus = sizes.memory(self.spec, limits.values()), sizes.vcpus(self.spec, limits.values())
        if self.overcommits:
            size, vcpus = sizes.possible((await self.vm()).hypervisor.spec, size, vcpus)
        if not shrink:
            info = self.state["info"]
            size, vcpus = max(size, info["memory"]), max(vcpus, info["vcpus"])
        await self.machine.fit(size, vcpus)

    def stop_soon(self) -> None:
        """End the sandbox; for signal handlers."""
        self.stopping.set()


def _close_all(fds: dict[str, int]) -> None:
    while fds:
        os.close(fds.popitem()[1])


def _report_oom(cgroup: dict[str, Any]) -> None:
    """Have the host's kernel report what the guest's has found, for engines that watch the host's cgroup."""
    from hako.cgroup.api import Cgroup

    try:
        Cgroup.open(cgroup).report_oom()
    except HakoError as error:
        log.warning("That memory ran out in the guest could not be reported to the host: %s", error)
