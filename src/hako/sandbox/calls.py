"""The calls of a sandbox's control socket, apart from what makes a container: one function for each method."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import time
from typing import TYPE_CHECKING, Any

from hako import ids
from hako.agent_client import field
from hako.errors import ConfigError, HakoError, StateError
from hako.oci import check as oci_check
from hako.sandbox import guestresources, guestsysctl, links, replies
from hako.sandbox import params as params_of
from hako.sandbox.control import Connection, Fds
from hako.sandbox.process_io import ProcessIO

if TYPE_CHECKING:
    from hako.sandbox.engine import Engine

#: Seconds that what ends has for it.
STOP_TIMEOUT = 10.0


async def create(engine: Engine, params: dict[str, Any], fds: Fds, _connection: Connection) -> dict[str, Any]:
    """Make a container."""
    return await engine.create(params, fds)


async def ready(engine: Engine, _params: dict[str, Any], _fds: Fds, _connection: Connection) -> dict[str, Any]:
    """Wait until there is a VM, and tell what is known of it."""
    await engine.vm()
    return {"info": engine.state["info"], "trace": engine.trace.spans}


async def get_state(engine: Engine, _params: dict[str, Any], _fds: Fds, _connection: Connection) -> dict[str, Any]:
    """The sandbox's state, as it is kept on disk."""
    return {"state": engine.state}


async def share(engine: Engine, params: dict[str, Any], _fds: Fds, _connection: Connection) -> dict[str, Any]:
    """Give every container made from now on a directory of the host."""
    options = ["rbind", "rro" if params.get("readonly") is True else "rw"]
    source, destination = params_of.text(params, "source"), params_of.text(params, "destination")
    if not os.path.isdir(source) or not destination.startswith("/"):
        raise ConfigError(f"Cannot share {source} as {destination}: name a directory and an absolute path.")
    mount = {"type": "bind", "source": source, "destination": destination, "options": options}
    engine.shares.append(mount)
    return {}


async def start(engine: Engine, params: dict[str, Any], _fds: Fds, _connection: Connection) -> dict[str, Any]:
    """Let the first process of a created container run."""
    container = engine.container(params)
    with container.trace.span("start", "container"):
        await container.call("Start")
    container.process("").io.start()
    if container.record["status"] == "created":
        container.record.update(status="running", started_ns=time.time_ns())
    engine.save()
    engine.on_started()
    return {}


async def exec(engine: Engine, params: dict[str, Any], fds: Fds, _connection: Connection) -> dict[str, Any]:
    """Add a process to a running container."""
    container = engine.container(params)
    vm = await engine.vm()
    exec_id = ids.check(params.get("exec"), "Process id")
    process_spec = guestresources.process(oci_check.check_process(params.get("process")))
    terminal, lingers = bool(process_spec.get("terminal", False)), params.get("lingers") is True
    io = ProcessIO(vm.agent, terminal=terminal, log=None, keep_stdin=False, lingers=lingers)
    call = {"container": container.id, "exec": exec_id, "process": process_spec, **params_of.size(params)}
    process, pid = await container.run("Exec", call, exec_id, io, fds.take(params.get("stdio", []), params_of.FD_NAMES))
    engine.watch(container, process)
    return {"pid": pid}


async def wait(engine: Engine, params: dict[str, Any], _fds: Fds, connection: Connection) -> dict[str, Any]:
    """Wait for the end of a process."""
    container = engine.container(params)
    exec_id = str(params.get("exec") or "")
    process = container.process(exec_id)
    if params.get("hold") is True:
        process.holder = connection.peer
    try:
        end = await asyncio.shield(process.exited)
    except asyncio.CancelledError:
        # The process lives as long as whoever stands for it on the host.
        if process.holder == connection.peer and not process.exited.done():
            engine.machine.in_background(process.kill(signal.SIGKILL, everyone=not exec_id))
        raise
    if container.main and not exec_id:
        engine.released.set()
    if exec_id and container.forget(exec_id):
        with contextlib.suppress(HakoError):
            await container.call("Delete", {"exec": exec_id})
    return {**end, "trace": engine.trace_of(container)} if params.get("trace") is True else end


async def holders(engine: Engine, params: dict[str, Any], _fds: Fds, _connection: Connection) -> dict[str, Any]:
    """The host's processes that stand for those of the container, the first one's first."""
    processes = engine.container(params).processes
    return {"pids": [process.holder for process in processes.values() if process.holder]}


async def network(engine: Engine, params: dict[str, Any], _fds: Fds, _connection: Connection) -> dict[str, Any]:
    """Give the guest the interfaces of a network namespace; ``forward``: and what connects to its loopback."""
    path, forward = params_of.text(params, "path"), params.get("forward") is True
    engine.machine.network.prepare(path)
    vm = await engine.vm()
    with engine.trace.span("network", "VM"):
        await engine.machine.network.connect(path, vm.hypervisor, vm.agent, forward=forward)
    return {}


async def dial(engine: Engine, params: dict[str, Any], fds: Fds, _connection: Connection) -> dict[str, Any]:
    """Connect the socket that comes along with a port of the guest's loopback."""
    vm = await engine.vm()
    port = params_of.number(params, "port", 1, 0xFFFF)
    taken = fds.take(params.get("stdio", []), ("socket",))
    if not taken:
        raise ConfigError("$.stdio: there is no socket.")
    sock = links.own(taken["socket"])
    try:
        streams = await links.dial(vm.agent, port)
    except BaseException:
        sock.close()
        raise
    engine.machine.in_background(links.carry(sock, streams))
    return {}


async def pod(engine: Engine, params: dict[str, Any], _fds: Fds, _connection: Connection) -> dict[str, Any]:
    """Make the namespaces that a pod's containers share, where none of them stands for the pod."""
    vm = await engine.vm()
    sysctls = params.get("sysctls") or {}
    if not isinstance(sysctls, dict) or not all(isinstance(value, str) for value in sysctls.values()):
        raise ConfigError("$.sysctls: not an object of texts.")
    inside, whole = guestsysctl.split(sysctls)
    paths = {name.replace(".", "/"): value for name, value in inside.items()}
    asked = {"hostname": str(params.get("hostname") or ""), "inside": paths, "whole": whole}
    return {"pid": field(await vm.agent.call("Pod", asked), "pid", int)}


async def kill(engine: Engine, params: dict[str, Any], _fds: Fds, _connection: Connection) -> dict[str, Any]:
    """Send a signal."""
    process = engine.container(params).process(str(params.get("exec") or ""))
    if process.exited.done():
        raise StateError(f"cannot kill container {params['container']} in the stopped state")
    await process.kill(params_of.number(params, "signal", 0, 64), everyone=params.get("all") is True)
    return {}


async def resize(engine: Engine, params: dict[str, Any], _fds: Fds, _connection: Connection) -> dict[str, Any]:
    """Set the size of a process's terminal."""
    process = engine.container(params).process(str(params.get("exec") or ""))
    await process.resize(params_of.number(params, "width", 0, 0xFFFF), params_of.number(params, "height", 0, 0xFFFF))
    return {}


async def close_stdin(engine: Engine, params: dict[str, Any], _fds: Fds, _connection: Connection) -> dict[str, Any]:
    """Let a process's input end where what has been handed in ends; a terminal hangs up there."""
    engine.container(params).process(str(params.get("exec") or "")).io.close_stdin()
    return {}


async def attach(engine: Engine, params: dict[str, Any], fds: Fds, connection: Connection) -> dict[str, Any]:
    """Join the caller's descriptors to a running process until it ends or the caller goes."""
    process = engine.container(params).process(str(params.get("exec") or ""))
    if process.exited.done():
        raise StateError(f"Container {params['container']} is not running.")
    attachment = process.io.attach(fds.take(params.get("stdio", []), params_of.FD_NAMES))
    gone: asyncio.Future[Any] = asyncio.ensure_future(connection.closed.wait())
    try:
        await asyncio.wait([gone, asyncio.shield(process.exited)], return_when=asyncio.FIRST_COMPLETED)
    finally:
        gone.cancel()
        attachment.end()
    return process.exited.result() if process.exited.done() else {}


async def pause(engine: Engine, params: dict[str, Any], _fds: Fds, _connection: Connection) -> dict[str, Any]:
    """Freeze all processes of a container."""
    return await _freeze(engine, params, "Pause", "paused")


async def resume(engine: Engine, params: dict[str, Any], _fds: Fds, _connection: Connection) -> dict[str, Any]:
    """Let them go on."""
    return await _freeze(engine, params, "Resume", "running")


async def _freeze(engine: Engine, params: dict[str, Any], method: str, status: str) -> dict[str, Any]:
    container = engine.container(params)
    await container.call(method)
    container.record["status"] = status
    engine.save()
    return {}


async def update(engine: Engine, params: dict[str, Any], _fds: Fds, _connection: Connection) -> dict[str, Any]:
    """Change the limits of a container."""
    resources = params.get("resources")
    if not isinstance(resources, dict):
        raise ConfigError("$.resources: not an object.")
    # Some engines send all that config.json has; device rules stay as they are, as with runc.
    resources = {key: value for key, value in resources.items() if key != "devices"}
    container = engine.container(params)
    changed = {container.id: {**container.record["resources"], **resources}}
    # First more room, then the limits that use it; the other way round when there is to be less.
    await engine.fit({**changed}, shrink=False)
    await container.call("Update", {"resources": guestresources.resources(resources)})
    container.record["resources"] = changed[container.id]
    await engine.fit({})
    engine.save()
    return {}


async def stats(engine: Engine, params: dict[str, Any], _fds: Fds, _connection: Connection) -> dict[str, Any]:
    """What a container uses."""
    return replies.stats(await engine.container(params).call("Stats"))


async def ps(engine: Engine, params: dict[str, Any], _fds: Fds, _connection: Connection) -> dict[str, Any]:
    """The processes of a container, as the guest sees them."""
    return replies.processes(await engine.container(params).call("Ps"))


async def delete(engine: Engine, params: dict[str, Any], _fds: Fds, _connection: Connection) -> dict[str, Any]:
    """Remove a container; ``last`` tells whether the sandbox ends with it."""
    container = engine.container(params)
    await container.call("Delete", {"force": params.get("force") is True})
    await asyncio.wait([asyncio.shield(container.process("").exited)], timeout=STOP_TIMEOUT)
    del engine.containers[container.id]
    engine.state["containers"].pop(container.id, None)
    engine.save()
    # The guest may take seconds to give memory up, and nobody has to wait for that.
    engine.machine.in_background(_shrink(engine))
    await container.close()
    return {"last": not engine.is_needed()}


async def _shrink(engine: Engine) -> None:
    with contextlib.suppress(HakoError):
        await engine.fit({})
        engine.save()


async def disown(engine: Engine, _params: dict[str, Any], _fds: Fds, _connection: Connection) -> dict[str, Any]:
    """From now on the sandbox outlives whoever started it."""
    engine.disowned = True
    engine.released.set()
    return {}


async def stop(engine: Engine, _params: dict[str, Any], _fds: Fds, _connection: Connection) -> dict[str, Any]:
    """End the sandbox."""
    engine.stopping.set()
    return {}


METHODS = {
    "Ready": ready,
    "State": get_state,
    "Create": create,
    "Share": share,
    "Start": start,
    "Exec": exec,
    "Wait": wait,
    "Holders": holders,
    "Network": network,
    "Pod": pod,
    "Dial": dial,
    "Kill": kill,
    "Resize": resize,
    "CloseStdin": close_stdin,
    "Attach": attach,
    "Pause": pause,
    "Resume": resume,
    "Update": update,
    "Stats": stats,
    "Ps": ps,
    "Delete": delete,
    "Disown": disown,
    "Stop": stop,
}
