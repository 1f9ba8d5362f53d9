"""The sandbox process's heart: owns the VM, its containers and shares, and answers the control socket."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import socket
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from hako import ids, store
from hako.config.settings import Config
from hako.errors import ConfigError, ExistsError, HakoError, HypervisorError, NotFoundError, StateError
from hako.oci import check as oci_check
from hako.ociimage import api as ociimage
from hako.sandbox import records, replies, sizes, translate
from hako.sandbox.container import Container, Process
from hako.sandbox.control import Connection, ControlServer, Fds
from hako.sandbox.logs import LogWriter
from hako.sandbox.machine import Machine
from hako.sandbox.process_io import ProcessIO
from hako.sandbox.spec import SandboxSpec
from hako.sandbox.trace import Trace
from hako.sandbox.vm import Vm
from hako.storage.tree import SharedTree

if TYPE_CHECKING:
    from hako.sandbox.warm import WarmMachine

log = logging.getLogger(__name__)

_STOP_TIMEOUT = 10.0
_DRAIN_TIMEOUT = 1.0
_FD_NAMES = ("stdin", "stdout", "stderr")


class Engine:
    """One sandbox. ``run`` is its whole life."""

    def __init__(
        self,
        spec: SandboxSpec,
        config: Config,
        trace: Trace,
        namespace: int | None = None,
        warm: WarmMachine | None = None,
    ) -> None:
        """``namespace`` is the host's mount namespace, which this process has left; ``warm`` a VM from the pool."""
        self.spec = spec
        self.config = config
        self.trace = trace
        # The list itself: whoever reads the state sees what has happened up to then.
        self.state = records.new_state(spec) | {"trace": trace.spans}
        self.run_dir = records.run_dir(spec.id)
        self.data_dir = records.data_dir(spec.id)
        self.tree = SharedTree(os.path.join(self.run_dir, "shared")) if warm is None else warm.tree
        self.containers: dict[str, Container] = {}
        if warm is not None:
            self.state |= {"tree": os.path.relpath(self.tree.path, self.run_dir), "vm_name": warm.warm_id}
        self._machine = Machine(spec, config, self.tree.path, self.run_dir, trace) if warm is None else warm
        #: Called when a container has been started.
        self.on_started: Callable[[], None] = lambda: None
        self._machine.on_lost = self._on_lost
        self._machine.namespace = namespace
        self._ready: asyncio.Future[Vm] = asyncio.get_running_loop().create_future()
        self._stopping = asyncio.Event()
        #: Nobody is waiting for what the sandbox is for: it was told, or its owner is gone or has let it go.
        self._released = asyncio.Event()
        self._disowned = False
        self._watchers: set[asyncio.Task[None]] = set()
        self._creating: set[str] = set()
        #: The guest may hold back what somebody will want to read when the sandbox is gone.
        self._has_to_write = spec.retain
        self._shares: list[dict[str, Any]] = []

    # --- life ---

    async def run(self, listener: socket.socket, owner: socket.socket) -> None:
        """Serve until the sandbox is stopped, its owner is gone or its VM has died; then give everything back."""
        server = ControlServer(listener, self.handle)
        connection = server.adopt(owner)
        tasks = [asyncio.create_task(self._boot())]
        if self.spec.owned:
            tasks.append(asyncio.create_task(self._watch_owner(connection)))
        else:
            self._released.set()
        try:
            await self._stopping.wait()
            await self._shut_down()
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            await self._give_back()
            # Whoever still waits for an answer gets one.
            await server.drain(_DRAIN_TIMEOUT)
            self.tree.close()
            records.finish(self.state)
            server.close()

    async def _boot(self) -> None:
        try:
            vm = await self._machine.start()
            vm.agent.on_lost = self._on_lost
            self.state["vm_pid"] = vm.hypervisor.pid or 0
            self.state["info"] = vm.info
            self.state["status"] = "running"
            self._save()
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
        asyncio.get_running_loop().call_later(0.05, self._stopping.set)

    def _on_lost(self, error: HakoError) -> None:
        """The VM or its agent is gone without having been asked to go."""
        log.error("%s", error)
        self.state["error"] = str(error)
        asyncio.get_running_loop().call_later(0.05, self._stopping.set)

    async def _watch_owner(self, connection: Connection) -> None:
        await connection.closed.wait()
        self._released.set()
        if not self._stopping.is_set() and not self._disowned:
            log.info("Whoever started the sandbox is gone")
            self._stopping.set()

    async def _shut_down(self) -> None:
        """End the containers and have the guest write everything out."""
        if not self._ready.done() or self._ready.exception() is not None:
            return
        vm = self._ready.result()
        vm.agent.on_lost = None
        if self._has_to_write or any(container.record["status"] != "stopped" for container in self.containers.values()):
            with contextlib.suppress(HakoError):
                await vm.agent.call("Shutdown", {}, _STOP_TIMEOUT)
        if self._watchers:
            await asyncio.wait(self._watchers, timeout=_STOP_TIMEOUT)

    async def _give_back(self) -> None:
        if not self._ready.done():
            self._ready.set_exception(HypervisorError(f"Sandbox {self.spec.id} has been stopped."))
            self._ready.exception()  # nobody may be asking
        for task in self._watchers:
            task.cancel()
        for container in self.containers.values():
            await container.close()
        await self._machine.close()

    def _save(self) -> None:
        try:
            records.write(self.state)
        except HakoError as error:
            log.error("%s", error)

    # --- calls ---

    async def handle(self, connection: Connection, method: str, params: dict[str, Any], fds: Fds) -> dict[str, Any]:
        """Answer one call of the control socket."""
        handler = _METHODS.get(method)
        if handler is None:
            raise ConfigError(f"A sandbox has no method {method[:64]}.")
        return await handler(self, params, fds, connection)

    async def _vm(self) -> Vm:
        if self._stopping.is_set():
            raise HypervisorError(self.state["error"] or f"Sandbox {self.spec.id} is being stopped.")
        return await asyncio.shield(self._ready)

    def _container(self, params: dict[str, Any]) -> Container:
        container = self.containers.get(_text(params, "container"))
        if container is None:
            raise NotFoundError(f"Container {params['container']} does not exist in sandbox {self.spec.id}.")
        return container

    async def ready(self, _params: dict[str, Any], _fds: Fds, _connection: Connection) -> dict[str, Any]:
        await self._vm()
        return {"info": self.state["info"], "trace": self.trace.spans}

    async def get_state(self, _params: dict[str, Any], _fds: Fds, _connection: Connection) -> dict[str, Any]:
        return {"state": self.state}

    async def create(self, params: dict[str, Any], fds: Fds, _connection: Connection) -> dict[str, Any]:
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
        with contextlib.ExitStack() as held:
            with trace.span("root file system", "container"):
                log_writer, guest_spec = self._prepare(container_id, spec, params, held)
            vm = await self._vm()
            await self._fit({container_id: _resources(spec)})
            container = Container(vm.agent, container_id, trace)
            keep_stdin = params.get("keep_stdin") is True
            io = ProcessIO(vm.agent, terminal=terminal, log=log_writer, keep_stdin=keep_stdin, trace=trace)
            call = {"container": container_id, "spec": guest_spec, "start": start, **_size(params)}
            with trace.span("create", "container"):
                process, pid = await container.run("Create", call, "", io, fds.take(params.get("stdio", []), _FD_NAMES))
            container.held = held.pop_all()
        if start:  # by the same call
            trace.moment("start", "container")
            self.on_started()
        container.main = params.get("main") is True
        container.record = _new_record(params, spec, terminal=terminal, started=start) | {"trace": trace.spans}
        self.containers[container_id] = container
        self.state["containers"][container_id] = container.record
        self._save()
        self._watch(container, process)
        return {"pid": pid, "trace": self._trace(container)}

    def _trace(self, container: Container) -> list[list[Any]]:
        """The phases of a container's start, those of its sandbox's among them."""
        return [*self.trace.spans, *container.trace.spans]

    def _prepare(
        self, container_id: str, spec: dict[str, Any], params: dict[str, Any], held: contextlib.ExitStack
    ) -> tuple[LogWriter | None, dict[str, Any]]:
        """The host's side of a new container: its image, layer, mounts and log, given back by ``held``."""
        layer = self._layer(container_id)
        image = ociimage.hold(str(params.get("digest") or ""))
        if image is not None:
            held.callback(os.close, image)
        store.ensure_dir(layer)
        # A failure takes the layer away; the end of the sandbox keeps it if it was asked to retain it.
        held.callback(self._drop_layer, container_id)
        held.callback(self.tree.remove, container_id)
        lower = params.get("lower")
        if isinstance(lower, str):
            self.tree.add_overlay(container_id, lower, layer)
        else:
            self.tree.add_rootfs(container_id, str(spec["root"]["path"]))
        mounts = [*spec.get("mounts", []), *self._shares]
        self._has_to_write |= not isinstance(lower, str) or any(map(translate.is_bind, mounts))
        guest_spec = translate.to_guest({**spec, "mounts": mounts}, container_id, self.tree)
        if params.get("log") is not True:
            return None, guest_spec
        writer = LogWriter(os.path.join(layer, "log"), self.config.log.max_size)
        held.callback(writer.close)
        return writer, guest_spec

    def _layer(self, container_id: str) -> str:
        return os.path.join(self.data_dir, "containers", container_id)

    def _drop_layer(self, container_id: str) -> None:
        if not (self._stopping.is_set() and self.spec.retain and container_id in self.containers):
            store.remove_tree(self._layer(container_id))

    def _watch(self, container: Container, process: Process) -> None:
        async def watch() -> None:
            end = await process.watch()
            if process.exec_id:
                return
            container.trace.moment("exit", "container")
            container.record.update(status="stopped", **end)
            self._save()
            if container.main:
                # The owner is about to ask how it ended.
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(_STOP_TIMEOUT):
                        await self._released.wait()
                self._stopping.set()

        task = asyncio.create_task(watch())
        self._watchers.add(task)
        task.add_done_callback(self._watchers.discard)

    async def share(self, params: dict[str, Any], _fds: Fds, _connection: Connection) -> dict[str, Any]:
        """Give every container made from now on a directory of the host."""
        options = ["rbind", "ro" if params.get("readonly") is True else "rw"]
        source, destination = _text(params, "source"), _text(params, "destination")
        if not os.path.isdir(source) or not destination.startswith("/"):
            raise ConfigError(f"Cannot share {source} as {destination}: name a directory and an absolute path.")
        mount = {"type": "bind", "source": source, "destination": destination, "options": options}
        self._shares.append(mount)
        return {}

    async def start(self, params: dict[str, Any], _fds: Fds, _connection: Connection) -> dict[str, Any]:
        container = self._container(params)
        with container.trace.span("start", "container"):
            await container.call("Start")
        if container.record["status"] == "created":
            container.record.update(status="running", started_ns=time.time_ns())
        self._save()
        self.on_started()
        return {}

    async def exec(self, params: dict[str, Any], fds: Fds, _connection: Connection) -> dict[str, Any]:
        container = self._container(params)
        vm = await self._vm()
        exec_id = ids.check(params.get("exec"), "Process id")
        process_spec = oci_check.check_process(params.get("process"))
        io = ProcessIO(vm.agent, terminal=bool(process_spec.get("terminal", False)), log=None, keep_stdin=False)
        call = {"container": container.id, "exec": exec_id, "process": process_spec, **_size(params)}
        process, pid = await container.run("Exec", call, exec_id, io, fds.take(params.get("stdio", []), _FD_NAMES))
        self._watch(container, process)
        return {"pid": pid}

    async def wait(self, params: dict[str, Any], _fds: Fds, _connection: Connection) -> dict[str, Any]:
        container = self._container(params)
        exec_id = str(params.get("exec") or "")
        end = await asyncio.shield(container.process(exec_id).exited)
        if container.main and not exec_id:
            self._released.set()
        if exec_id and container.processes.pop(exec_id, None) is not None:
            with contextlib.suppress(HakoError):
                await container.call("Delete", {"exec": exec_id})
        return {**end, "trace": self._trace(container)} if params.get("trace") is True else end

    async def kill(self, params: dict[str, Any], _fds: Fds, _connection: Connection) -> dict[str, Any]:
        process = self._container(params).process(str(params.get("exec") or ""))
        if process.exited.done():
            raise StateError(f"cannot kill container {params['container']} in the stopped state")
        await process.kill(_number(params, "signal", 0, 64), everyone=params.get("all") is True)
        return {}

    async def resize(self, params: dict[str, Any], _fds: Fds, _connection: Connection) -> dict[str, Any]:
        process = self._container(params).process(str(params.get("exec") or ""))
        await process.resize(_number(params, "width", 0, 0xFFFF), _number(params, "height", 0, 0xFFFF))
        return {}

    async def attach(self, params: dict[str, Any], fds: Fds, connection: Connection) -> dict[str, Any]:
        """Join the caller's descriptors to a running process until it ends or the caller goes."""
        process = self._container(params).process(str(params.get("exec") or ""))
        if process.exited.done():
            raise StateError(f"Container {params['container']} is not running.")
        attachment = process.io.attach(fds.take(params.get("stdio", []), _FD_NAMES))
        gone: asyncio.Future[Any] = asyncio.ensure_future(connection.closed.wait())
        try:
            await asyncio.wait([gone, asyncio.shield(process.exited)], return_when=asyncio.FIRST_COMPLETED)
        finally:
            gone.cancel()
            attachment.end()
        return process.exited.result() if process.exited.done() else {}

    async def pause(self, params: dict[str, Any], _fds: Fds, _connection: Connection) -> dict[str, Any]:
        return await self._freeze(params, "Pause", "paused")

    async def resume(self, params: dict[str, Any], _fds: Fds, _connection: Connection) -> dict[str, Any]:
        return await self._freeze(params, "Resume", "running")

    async def _freeze(self, params: dict[str, Any], method: str, status: str) -> dict[str, Any]:
        container = self._container(params)
        await container.call(method)
        container.record["status"] = status
        self._save()
        return {}

    async def update(self, params: dict[str, Any], _fds: Fds, _connection: Connection) -> dict[str, Any]:
        resources = params.get("resources")
        if not isinstance(resources, dict):
            raise ConfigError("$.resources: not an object.")
        container = self._container(params)
        changed = {container.id: {**container.record["resources"], **resources}}
        # First more room, then the limits that use it; the other way round when there is to be less.
        await self._fit({**changed}, shrink=False)
        await container.call("Update", {"resources": resources})
        container.record["resources"] = changed[container.id]
        await self._fit({})
        self._save()
        return {}

    async def _fit(self, changed: dict[str, Any], *, shrink: bool = True) -> None:
        """Make the VM as large as its containers need, with the resources of some of them ``changed``."""
        limits = {name: container.record["resources"] for name, container in self.containers.items()} | changed
        size, vcpus = sizes.memory(self.spec, limits.values()), sizes.vcpus(self.spec, limits.values())
        if not shrink:
            info = self.state["info"]
            size, vcpus = max(size, info["memory"]), max(vcpus, info["vcpus"])
        await self._machine.fit(size, vcpus)

    async def stats(self, params: dict[str, Any], _fds: Fds, _connection: Connection) -> dict[str, Any]:
        return replies.stats(await self._container(params).call("Stats"))

    async def ps(self, params: dict[str, Any], _fds: Fds, _connection: Connection) -> dict[str, Any]:
        return replies.processes(await self._container(params).call("Ps"))

    async def delete(self, params: dict[str, Any], _fds: Fds, _connection: Connection) -> dict[str, Any]:
        container = self._container(params)
        await container.call("Delete", {"force": params.get("force") is True})
        await asyncio.wait([asyncio.shield(container.process("").exited)], timeout=_STOP_TIMEOUT)
        del self.containers[container.id]
        self.state["containers"].pop(container.id, None)
        self._save()
        # The guest may take seconds to give memory up, and nobody has to wait for that.
        self._machine.in_background(self._shrink())
        await container.close()
        return {}

    async def _shrink(self) -> None:
        with contextlib.suppress(HakoError):
            await self._fit({})
            self._save()

    async def disown(self, _params: dict[str, Any], _fds: Fds, _connection: Connection) -> dict[str, Any]:
        """From now on the sandbox outlives whoever started it."""
        self._disowned = True
        self._released.set()
        return {}

    def stop_soon(self) -> None:
        """End the sandbox; for signal handlers."""
        self._stopping.set()

    async def stop(self, _params: dict[str, Any], _fds: Fds, _connection: Connection) -> dict[str, Any]:
        self._stopping.set()
        return {}


def _text(params: dict[str, Any], key: str) -> str:
    value = params.get(key)
    if isinstance(value, str):
        return value
    raise ConfigError(f"$.{key}: not a text.")


def _number(params: dict[str, Any], key: str, low: int, high: int) -> int:
    value = params.get(key)
    if type(value) is int and low <= value <= high:
        return value
    raise ConfigError(f"$.{key}: not a number from {low} to {high}.")


def _size(params: dict[str, Any]) -> dict[str, int]:
    """Terminal size, when the caller gave one."""
    return {key: _number(params, key, 0, 0xFFFF) for key in ("width", "height")} if "width" in params else {}


def _resources(spec: dict[str, Any]) -> dict[str, Any]:
    """The resources that size the VM, out of a checked config.json."""
    found = spec.get("linux", {}).get("resources") or {}
    return {name: found[name] for name in ("memory", "cpu") if isinstance(found.get(name), dict)}


def _new_record(params: dict[str, Any], spec: dict[str, Any], *, terminal: bool, started: bool) -> dict[str, Any]:
    now = time.time_ns()
    return {
        "status": "running" if started else "created",
        "created_ns": now,
        "started_ns": now if started else 0,
        "image": str(params.get("image") or ""),
        "command": [str(arg) for arg in spec["process"].get("args", [])],
        "process": {key: value for key, value in spec["process"].items() if key != "args"},
        "resources": _resources(spec),
        "mounts": spec.get("mounts", []),
        "terminal": terminal,
        "lower": str(params.get("lower") or spec["root"]["path"]),
        "exit_status": 0,
        "exited_ns": 0,
        "oom": False,
        "error": "",
    }


_METHODS = {
    "Ready": Engine.ready,
    "State": Engine.get_state,
    "Create": Engine.create,
    "Share": Engine.share,
    "Start": Engine.start,
    "Exec": Engine.exec,
    "Wait": Engine.wait,
    "Kill": Engine.kill,
    "Resize": Engine.resize,
    "Attach": Engine.attach,
    "Pause": Engine.pause,
    "Resume": Engine.resume,
    "Update": Engine.update,
    "Stats": Engine.stats,
    "Ps": Engine.ps,
    "Delete": Engine.delete,
    "Disown": Engine.disown,
    "Stop": Engine.stop,
}
