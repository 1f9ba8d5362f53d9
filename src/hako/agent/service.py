"""The agent's calls: one method each, parameters checked before anything is done. See docs/agent-protocol.md."""

from __future__ import annotations

import binascii
import os
import sys
import time

from hako.agent import cgroups, pci, system
from hako.agent.channel import Channel
from hako.agent.containers import Container, Containers
from hako.agent.loop import Future, Loop
from hako.version import __version__
from hako.wire import calls

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from hako.agent.sockets import Sockets

    Params = dict[str, Any]

_ID_FIRST = frozenset("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789")
_ID_REST = _ID_FIRST | frozenset("_.-")


#: A share's or network's device that was plugged in appears within 5 s, memory and processors are there within 10 s.
_MOUNT_TRIES = range(1000)  # made before a clone starts, which would take more code than the loop
_MOUNT_PAUSE = 0.005
_NETWORK_TRIES = 500
_NETWORK_PAUSE = 0.01
_RESIZE_TRIES = 1000
_RESIZE_PAUSE = 0.01
_LAST_STREAM = (1 << 32) - 1
#: The largest user or group; one more stands for none.
_LAST_ID = (1 << 32) - 2


def _bad(text: str) -> calls.CallError:
    return calls.CallError(calls.INVALID_ARGUMENT, text)


def _name(params: Params, key: str) -> str:
    value = params.get(key)
    if isinstance(value, str) and 0 < len(value) <= 128 and value[0] in _ID_FIRST and _ID_REST.issuperset(value):
        return value
    raise _bad(f"{key}: not a name")


def _optional_name(params: Params, key: str) -> str:
    return _name(params, key) if params.get(key) not in (None, "") else ""


def _integer(params: Params, key: str, low: int, high: int) -> int:
    value = params.get(key)
    if type(value) is int and low <= value <= high:
        return value
    raise _bad(f"{key}: not a number from {low} to {high}")


def _object(params: Params, key: str) -> dict[str, Any]:
    value = params.get(key)
    if isinstance(value, dict):
        return value
    raise _bad(f"{key}: not an object")


def _mac(params: Params) -> bytes:
    value = params.get("mac")
    if isinstance(value, str) and len(value) == 17 and value[2::3] == ":::::":
        try:
            mac = binascii.a2b_hex(value.replace(":", ""))
        except ValueError:
            mac = b""
        if len(mac) == 6 and not mac[0] & 1:
            return mac
    raise _bad("mac: not a MAC address such as 02:00:00:00:00:01")


def _size(params: Params) -> tuple[int, int] | None:
    """Terminal columns and rows, None when none are given."""
    if "width" not in params and "height" not in params:
        return None
    return _integer(params, "width", 0, 0xFFFF), _integer(params, "height", 0, 0xFFFF)


def _sized(process: dict[str, Any], params: Params) -> dict[str, Any]:
    """The OCI ``process`` with the terminal size that ``params`` ask for, in force from its first moment."""
    size = _size(params)
    return process if size is None else {**process, "consoleSize": {"width": size[0], "height": size[1]}}


def _flag(params: Params, key: str) -> bool:
    value = params.get(key, False)
    if isinstance(value, bool):
        return value
    raise _bad(f"{key}: not true or false")


class Service:
    """Answers the host's calls."""

    def __init__(self, loop: Loop) -> None:
        self._loop = loop
        self._channel: Channel | None = None
        self._containers: Containers | None = None
        self._sockets: Sockets | None = None
        self._first_memory = system.memory()["total"]
        self._kernel = os.uname().release
        self.ended = Future()

    def attach(self, channel: Channel) -> None:
        """Use ``channel`` for raw streams."""
        self._channel = channel
        self._containers = Containers(self._loop, channel)

    async def handle(self, method: str, params: Params) -> Params:
        """Answer one call. Raises CallError."""
        handler = _METHODS.get(method)
        if handler is None:
            raise calls.CallError(calls.UNIMPLEMENTED, f"the agent has no method {method[:64]}")
        try:
            return await handler(self, params)
        except ProcessLookupError as error:
            raise calls.CallError(calls.NOT_FOUND, "the process has ended already") from error
        except OSError as error:
            where = f": {error.filename}" if error.filename else ""
            raise calls.CallError(calls.INTERNAL, f"{method}: {error.strerror}{where}") from error

    @property
    def _store(self) -> Containers:
        assert self._containers is not None
        return self._containers

    @property
    def _host_sockets(self) -> Sockets:
        from hako.agent.sockets import Sockets

        if self._sockets is None:
            self._sockets = Sockets(self._loop)
        return self._sockets

    def _container(self, params: Params) -> Container:
        return self._store.get(_name(params, "container"))

    async def hello(self, params: Params) -> Params:
        version = _integer(params, "version", 0, 1 << 31)
        if version != calls.PROTOCOL_VERSION:
            message = f"the agent speaks protocol {calls.PROTOCOL_VERSION}, not {version}"
            raise calls.CallError(calls.FAILED_PRECONDITION, message)
        return {"version": version, "agent": __version__, "kernel": self._kernel, "uptime_ns": system.uptime_ns()}

    async def configure(self, params: Params) -> Params:
        if "time_ns" in params:
            system.set_clock(_integer(params, "time_ns", 1, 1 << 62))
        if "hostname" in params:
            system.set_hostname(_name(params, "hostname"))
        if "entropy" in params:
            text = params["entropy"]
            if not isinstance(text, str) or len(text) > 4096:
                raise _bad("entropy: not base64 text of at most 4096 characters")
            try:
                system.add_entropy(binascii.a2b_base64(text, strict_mode=True))
            except ValueError as error:
                raise _bad("entropy: not base64 text") from error
        if "machine_id" in params:
            system.set_machine_id(_name(params, "machine_id"))
        if params.get("mac"):
            system.set_mac(_mac(params))
        return {"time_ns": time.time_ns()}

    async def settle(self, params: Params) -> Params:
        squeeze = _flag(params, "squeeze")
        system.reserve_memory(little=squeeze)
        # What only some VMs need is loaded now, once, instead of in each clone.
        import hako.agent.ephemeral
        import hako.agent.resolver
        import hako.agent.sockets  # noqa: F401
        from hako.agent import network

        await self._store.start_ahead()
        system.forget_bytecode()
        system.forget_garbage()
        system.drop_caches()
        pci.ignore_hotplug()
        if squeeze:
            return {}
        network.note_untouched()
        return {"share": pci.learn_share()}

    async def resized(self, params: Params) -> Params:
        vcpus = _integer(params, "vcpus", 1, 255)
        extra = _integer(params, "extra", 0, 1 << 48)
        for _ in range(_RESIZE_TRIES):
            got = {"vcpus": system.online_vcpus(vcpus), "memory": system.memory()["total"]}
            if got["vcpus"] == vcpus and got["memory"] >= self._first_memory + extra:
                break
            await self._loop.sleep(_RESIZE_PAUSE)
        from hako.agent import network

        network.use_queues(got["vcpus"])
        return got

    async def mount_share(self, params: Params) -> Params:
        driver = params.get("driver")
        if driver not in ("9p", "virtiofs"):
            raise _bad("driver: not 9p or virtiofs")
        options = params.get("options", "")
        if not isinstance(options, str) or len(options) > 1024:
            raise _bad("options: not a short text")
        for attempt in _MOUNT_TRIES:
            if driver == "virtiofs" and not pci.use_known():
                pci.find_plugged()
            try:
                path = system.mount_share(str(driver), _name(params, "tag"), _name(params, "name"), options)
                break
            except OSError:
                # A device that has just been plugged in takes a moment to appear.
                if driver != "virtiofs" or attempt == _MOUNT_TRIES[-1]:
                    raise
            await self._loop.sleep(_MOUNT_PAUSE)
        return {"path": path}

    async def load_modules(self, params: Params) -> Params:
        system.load_on_demand(_name(params, "name"))
        return {}

    async def network(self, params: Params) -> Params:
        from hako.agent import network

        wanted = network.parse(params.get("interfaces"))
        describe = _flag(params, "describe")
        for _ in range(_NETWORK_TRIES):
            links = network.cards()
            if not network.missing(wanted, links):
                break
            pci.find_plugged()
            await self._loop.sleep(_NETWORK_PAUSE)
        interfaces = network.apply(wanted, links, describe=describe)
        return {"interfaces": interfaces} if describe else {}

    async def resolve(self, params: Params) -> Params:
        from hako.agent import resolver

        addresses = resolver.parse(params.get("addresses"))
        asking, answering = (_integer(params, "stdout", 1, _LAST_STREAM), _integer(params, "stdin", 1, _LAST_STREAM))
        assert self._channel is not None
        resolver.Relay(self._loop, self._channel, addresses, asking, answering)  # its streams keep it
        return {}

    async def pod(self, params: Params) -> Params:
        from hako.agent import pod

        hostname = _name(params, "hostname") if params.get("hostname") else ""
        return {"pid": pod.make(hostname, _object(params, "inside"), _object(params, "whole"))}

    async def attach_disks(self, params: Params) -> Params:
        from hako.agent import disks

        wanted = disks.serials(params.get("disks"), "disks")
        container_id = _name(params, "container")
        mounts, modules = params.get("mounts", []), params.get("modules", [])
        return {"disks": await disks.attach(self._loop, container_id, wanted, mounts, modules)}

    async def detach_disks(self, params: Params) -> Params:
        from hako.agent import disks

        wanted = disks.serials(params.get("disks"), "disks")
        await disks.detach(self._loop, _name(params, "container"), wanted)
        return {}

    async def listen(self, params: Params) -> Params:
        path = self._host_sockets.listen(
            _name(params, "socket"),
            _integer(params, "mode", 0, 0o7777),
            _integer(params, "uid", 0, _LAST_ID),
            _integer(params, "gid", 0, _LAST_ID),
        )
        return {"path": path}

    async def accept(self, params: Params) -> Params:
        from hako.agent.links import Link

        listener = self._host_sockets.get(_name(params, "socket"))
        incoming, outgoing = (_integer(params, "stdin", 1, _LAST_STREAM), _integer(params, "stdout", 1, _LAST_STREAM))
        assert self._channel is not None
        return await listener.accept(Link(self._loop, self._channel, incoming, outgoing))

    async def unlisten(self, params: Params) -> Params:
        self._host_sockets.unlisten(_name(params, "socket"))
        return {}

    async def dial(self, params: Params) -> Params:
        from hako.agent import sockets

        port, ipv6 = _integer(params, "port", 1, 0xFFFF), _flag(params, "ipv6")
        incoming, outgoing = (_integer(params, "stdin", 1, _LAST_STREAM), _integer(params, "stdout", 1, _LAST_STREAM))
        assert self._channel is not None
        await sockets.dial(self._loop, self._channel, port, incoming, outgoing, ipv6=ipv6)
        return {}

    async def create(self, params: Params) -> Params:
        spec = _object(params, "spec")
        if not isinstance(spec.get("linux", {}), dict):
            raise _bad("spec: linux is not an object")
        spec["process"] = _sized(_object(spec, "process"), params)
        if "prepare" in params:
            from hako.agent import ephemeral

            wanted = _object(params, "prepare")
            ephemeral.prepare(wanted)
            await ephemeral.request(self._loop, wanted.get("request", []))
        container = await self._store.create(
            _name(params, "container"), spec, _object(params, "stdio"), start=_flag(params, "start")
        )
        return {"pid": container.init.pid}

    async def start(self, params: Params) -> Params:
        container = self._container(params)
        await self._store.start(container)
        return {"pid": container.init.pid}

    async def exec(self, params: Params) -> Params:
        container = self._container(params)
        exec_id = _name(params, "exec")
        process = _sized(_object(params, "process"), params)
        added = await self._store.exec(container, exec_id, process, _object(params, "stdio"))
        return {"pid": added.pid}

    async def wait(self, params: Params) -> Params:
        process = self._container(params).process(_optional_name(params, "exec"))
        await process.exited
        return {"exit_status": process.status, "exited_at": process.exited_at, "oom": process.oom}

    async def kill(self, params: Params) -> Params:
        container = self._container(params)
        number = _integer(params, "signal", 0, 64)
        exec_id = _optional_name(params, "exec")
        self._store.kill(container, exec_id, number, everyone=_flag(params, "all"))
        return {}

    async def delete(self, params: Params) -> Params:
        container = self._container(params)
        exec_id = _optional_name(params, "exec")
        if exec_id:
            self._store.delete_exec(container, exec_id)
        else:
            await self._store.delete(container, force=_flag(params, "force"))
            system.forget_files()
        return {}

    async def pause(self, params: Params) -> Params:
        await self._store.pause(self._container(params))
        return {}

    async def resume(self, params: Params) -> Params:
        self._store.resume(self._container(params))
        return {}

    async def update(self, params: Params) -> Params:
        await self._store.update(self._container(params), _object(params, "resources"))
        return {}

    async def stats(self, params: Params) -> Params:
        return cgroups.stats(self._container(params).key)

    async def ps(self, params: Params) -> Params:
        return {"processes": cgroups.processes(self._container(params).key)}

    async def state(self, params: Params) -> Params:
        container = self._container(params)
        return {"status": container.status, "pid": container.init.pid}

    async def resize(self, params: Params) -> Params:
        process = self._container(params).process(_optional_name(params, "exec"))
        size = _size(params)
        if size is None:
            raise _bad("width, height: missing")
        if not process.stdio.terminal:
            raise calls.CallError(calls.FAILED_PRECONDITION, "the process has no terminal")
        process.stdio.resize(*size)
        return {}

    async def info(self, _params: Params) -> Params:
        return {"containers": self._store.ids(), "memory": system.memory(), "uptime_ns": system.uptime_ns()}

    async def shutdown(self, _params: Params) -> Params:
        await self._store.close()
        if "hako.agent.disks" in sys.modules:  # some were attached
            from hako.agent import disks

            await disks.unmount_all(self._loop)
        system.unmount_shares()
        return {}


_METHODS = {
    "Hello": Service.hello,
    "Configure": Service.configure,
    "Settle": Service.settle,
    "Resized": Service.resized,
    "MountShare": Service.mount_share,
    "LoadModules": Service.load_modules,
    "Network": Service.network,
    "Resolve": Service.resolve,
    "Pod": Service.pod,
    "AttachDisks": Service.attach_disks,
    "DetachDisks": Service.detach_disks,
    "Listen": Service.listen,
    "Accept": Service.accept,
    "Unlisten": Service.unlisten,
    "Dial": Service.dial,
    "Create": Service.create,
    "Start": Service.start,
    "Exec": Service.exec,
    "Wait": Service.wait,
    "Kill": Service.kill,
    "Delete": Service.delete,
    "Pause": Service.pause,
    "Resume": Service.resume,
    "Update": Service.update,
    "Stats": Service.stats,
    "Ps": Service.ps,
    "State": Service.state,
    "Resize": Service.resize,
    "Info": Service.info,
    "Shutdown": Service.shutdown,
}
