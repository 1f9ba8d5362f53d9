"""Containers and their processes in the guest: crun makes them, the agent keeps them.

A process goes created → running → stopped; its exit status stays until the host deletes it.
"""

from __future__ import annotations

import os
import time

from hako.agent import cgroups, crun, system
from hako.agent.channel import Channel
from hako.agent.loop import Future, Loop
from hako.agent.stdio import Stdio
from hako.wire import calls, jsontext

TYPE_CHECKING = False
if TYPE_CHECKING:
    import signal
    from typing import Any

    from hako.agent.ahead import Ahead
else:
    import _signal as signal  # signal itself brings enum and re

_STATE_DIR = "/run/hako/containers"
#: For what one crun command needs, under short names: a socket's path has at most 107 bytes.
_SCRATCH = "/run/hako/scratch"
#: Freezing waits for processes to get out of the kernel; looked at so often, with so long in between, seconds.
_FREEZE_LOOKS = 400
_FREEZE_PAUSE = 0.005


#: Exit status of a process ended by SIGKILL.
_KILLED = 128 + signal.SIGKILL


class Process:
    """The first process of a container, or one that was added by exec."""

    def __init__(self, stdio: Stdio, *, first: bool) -> None:
        self.stdio = stdio
        self._first = first
        #: Whether all others of its container end with it, which the kernel sees to in a process namespace of its own.
        self.ends_all = False
        self.pid = 0
        self.exited = Future()
        self.status = 0
        self.exited_at = 0
        self.oom = False

    def follow(self, loop: Loop, container_id: str, pid: int) -> None:
        """``pid`` is the process: note its end."""
        self.pid = pid
        future = loop.adopted(pid)
        future.on_done(lambda: self._on_exit(container_id, future.value))

    def _on_exit(self, container_id: str, status: int) -> None:
        self.status = status
        self.exited_at = time.time_ns()
        # The first process may well survive, or fail in its own way, when one of its children is killed.
        self.oom = (self._first or status == _KILLED) and cgroups.oom_kills(container_id) > 0
        if self.ends_all:
            try:
                cgroups.kill(container_id)
            except OSError:
                pass  # nobody is left
        self.stdio.on_exit()
        self.exited.set(self)

    def signal(self, number: int) -> None:
        """Send signal ``number``. Raises CallError when the process has ended."""
        if self.exited.done or not self.pid:
            raise calls.CallError(calls.NOT_FOUND, "the process has ended already")
        os.kill(self.pid, number)


class Container:
    """One container. ``started`` is set as soon as crun starts it, ``deleting`` while crun deletes it."""

    def __init__(self, container_id: str, init: Process) -> None:
        self.id = container_id
        #: What it is called in the guest: by crun, by its cgroup.
        self.key = container_id
        self.init = init
        self.execs: dict[str, Process] = {}
        self.started = False
        self.paused = False
        self.deleting = False

    @property
    def directory(self) -> str:
        """Where its config.json is."""
        return f"{_STATE_DIR}/{self.key}"

    @property
    def status(self) -> str:
        """created, running, paused or stopped."""
        if self.init.exited.done:
            return "stopped"
        if self.paused:
            return "paused"
        return "running" if self.started else "created"

    def process(self, exec_id: str) -> Process:
        """The process named ``exec_id``, the first one for an empty name. Raises CallError."""
        if not exec_id:
            return self.init
        if exec_id not in self.execs:
            raise calls.CallError(calls.NOT_FOUND, f"container {self.id} has no process {exec_id}")
        return self.execs[exec_id]

    def require(self, *allowed: str, what: str) -> None:
        """Raise CallError unless the container is in one of the states ``allowed``."""
        status = "deleting" if self.deleting else self.status
        if status not in allowed:
            raise calls.CallError(calls.FAILED_PRECONDITION, f"cannot {what} container {self.id} in the {status} state")


class Containers:
    """All containers of this guest."""

    def __init__(self, loop: Loop, channel: Channel) -> None:
        self._loop = loop
        self._channel = channel
        #: None stands for one that is being made.
        self._all: dict[str, Container | None] = {}
        self._serial = 0
        self._closing = False
        self._ahead: list[Ahead] = []

    def get(self, container_id: str) -> Container:
        """The container named ``container_id``. Raises CallError."""
        container = self._all.get(container_id)
        if container is None:
            raise calls.CallError(calls.NOT_FOUND, f"container {container_id} does not exist")
        return container

    def ids(self) -> list[str]:
        """Names of all containers."""
        return [name for name, container in self._all.items() if container is not None]

    async def create(
        self, container_id: str, spec: dict[str, Any], streams: dict[str, Any], *, start: bool
    ) -> Container:
        """Make a container from the OCI config ``spec``; ``start`` runs it at once, which saves one crun."""
        if self._closing:
            raise calls.CallError(calls.FAILED_PRECONDITION, "the VM is being shut down")
        if container_id in self._all:
            raise calls.CallError(calls.ALREADY_EXISTS, f"container {container_id} already exists")
        if len(self._all) >= calls.MAX_CONTAINERS:
            raise calls.CallError(calls.RESOURCE_EXHAUSTED, f"this VM has {calls.MAX_CONTAINERS} containers already")
        ahead = self._take_ahead(spec, streams)
        made = ahead.pipes if ahead is not None else None
        try:
            process = self._process(spec.get("process", {}), streams, first=True, made=made)
        except BaseException:
            if ahead is not None:
                ahead.drop()
            raise
        process.ends_all = _shares_processes(spec)
        container = Container(container_id, process)
        self._all[container_id] = None
        try:
            if ahead is not None:
                await self._create_ahead(ahead, container, spec, start=start)
            else:
                await self._create(container, spec, start=start)
        except BaseException:
            await self._undo_create(container)
            raise
        container.started = start
        self._all[container_id] = container
        return container

    async def _create(self, container: Container, spec: dict[str, Any], *, start: bool) -> None:
        os.makedirs(container.directory, exist_ok=True)
        spec.setdefault("linux", {})["cgroupsPath"] = f"/hako/{container.key}"
        _write_json(container.directory + "/config.json", spec)
        verb = ["run", "--detach"] if start else ["create"]
        await self._crun_process(
            [*verb, "--bundle", container.directory], [container.key], container, container.init, "create"
        )

    async def start_ahead(self) -> None:
        """Start cruns for the first containers, before there are any, unless that was done."""
        if self._ahead:
            return
        from hako.agent import ahead

        for kind in range(len(ahead.KINDS)):
            self._ahead.append(ahead.Ahead(self._loop, kind, _STATE_DIR, self._scratch()))
        for started in self._ahead:
            await started.waits()

    def _take_ahead(self, spec: dict[str, Any], streams: dict[str, Any]) -> Ahead | None:
        """A crun that was started ahead, if there is one that suits this container."""
        for ahead in self._ahead:
            if ahead.suits(spec, streams):
                self._ahead.remove(ahead)
                return ahead
        return None

    async def _create_ahead(self, ahead: Ahead, container: Container, spec: dict[str, Any], *, start: bool) -> None:
        spec["linux"]["cgroupsPath"] = f"/hako/{ahead.key}"
        if not ahead.go(spec):
            ahead.drop()
            await self._create(container, spec, start=start)
            return
        container.key = ahead.key
        await self._crun_process([], [], container, container.init, "create", ahead)
        if start and not crun.let_go(ahead.key):
            status, message = await self._crun(["start", ahead.key])
            if status != 0:
                raise crun.error(f"start {container.id}", status, message)

    def _process(
        self,
        process: dict[str, Any],
        streams: dict[str, Any],
        *,
        first: bool,
        made: dict[int, tuple[int, int]] | None = None,
    ) -> Process:
        terminal = process.get("terminal") is True
        return Process(Stdio(self._loop, self._channel, streams, terminal=terminal, made=made), first=first)

    async def _undo_create(self, container: Container) -> None:
        """Leave nothing of a container that could not be made."""
        container.init.stdio.close()
        try:
            await self._crun(["delete", "--force", container.key])
            _remove(container.directory)
        finally:
            del self._all[container.id]

    async def _crun_process(
        self,
        head: list[str],
        tail: list[str],
        container: Container,
        process: Process,
        what: str,
        ahead: Ahead | None = None,
    ) -> None:
        """Run a crun command that makes ``process``, or see ``ahead`` do it, and find its pid."""
        scratch = self._scratch()
        pid_file, socket_path = scratch + ".pid", scratch + ".tty"
        args = [*head, "--pid-file", pid_file]
        self._loop.hold_exits()  # the process may end before crun does
        try:
            if process.stdio.terminal:
                process.stdio.listen(socket_path)
                args += ["--console-socket", socket_path]
            if ahead is not None:
                pid_file = ahead.pid_file
                status, message = await crun.finish(ahead.ended, ahead.log)
            else:
                status, message = await crun.run(
                    self._loop, [*args, *tail], scratch + ".log", stdio=process.stdio.child_fds()
                )
            if status != 0:
                raise crun.error(f"{what} {container.id}", status, message)
            if process.stdio.terminal:
                process.stdio.accept()
            pid = int(cgroups.read(pid_file))
            process.follow(self._loop, container.key, pid)
        finally:
            self._loop.release_exits()
            process.stdio.after_spawn()
            _unlink(pid_file)
            if process.stdio.terminal:
                _unlink(socket_path)
        process.stdio.start()

    def _scratch(self) -> str:
        """The beginning of file names that only one crun command uses."""
        if not self._serial:  # makedirs runs a good deal of code to find that there is nothing to make
            os.makedirs(_SCRATCH, exist_ok=True)
        self._serial += 1
        return f"{_SCRATCH}/{self._serial}"

    async def _crun(self, args: list[str]) -> tuple[int, str]:
        return await crun.run(self._loop, args, self._scratch() + ".log")

    async def start(self, container: Container) -> None:
        """Let the first process of a created container run."""
        container.require("created", what="start")
        if container.started:
            raise calls.CallError(calls.FAILED_PRECONDITION, f"container {container.id} is being started already")
        container.started = True
        if crun.let_go(container.key):
            return
        status, message = await self._crun(["start", container.key])
        if status != 0:
            container.started = False
            raise crun.error(f"start {container.id}", status, message)

    async def exec(
        self, container: Container, exec_id: str, process: dict[str, Any], streams: dict[str, Any]
    ) -> Process:
        """Run one more process, an OCI ``process`` object, in a running container."""
        container.require("running", what="exec in")
        if exec_id in container.execs:
            raise calls.CallError(calls.ALREADY_EXISTS, f"container {container.id} has a process {exec_id} already")
        if len(container.execs) >= calls.MAX_EXECS:
            message = f"container {container.id} has {calls.MAX_EXECS} processes that were not deleted"
            raise calls.CallError(calls.RESOURCE_EXHAUSTED, message)
        added = self._process(process, streams, first=False)
        container.execs[exec_id] = added
        spec_path = self._scratch() + ".json"
        try:
            _write_json(spec_path, process)
            await self._crun_process(
                ["exec", "--detach", "--process", spec_path], [container.key], container, added, "exec in"
            )
        except BaseException:
            added.stdio.close()
            del container.execs[exec_id]
            raise
        finally:
            _unlink(spec_path)
        return added

    def kill(self, container: Container, exec_id: str, number: int, *, everyone: bool) -> None:
        """Signal one process, or all of the container."""
        if not everyone:
            container.process(exec_id).signal(number)
            return
        if number == signal.SIGKILL:
            cgroups.kill(container.key)
            return
        for pid in cgroups.pids(container.key):
            try:
                os.kill(pid, number)
            except ProcessLookupError:
                continue

    async def pause(self, container: Container) -> None:
        """Stop all processes of a running container, and wait until they stand still."""
        container.require("running", what="pause")
        cgroups.freeze(container.key, frozen=True)
        container.paused = True
        for _ in range(_FREEZE_LOOKS):
            if cgroups.is_frozen(container.key) or container.status != "paused":
                return
            await self._loop.sleep(_FREEZE_PAUSE)
        self.resume(container)
        raise calls.CallError(calls.INTERNAL, f"container {container.id} has processes that do not stop")

    def resume(self, container: Container) -> None:
        """Let a paused container go on."""
        container.require("paused", what="resume")
        cgroups.freeze(container.key, frozen=False)
        container.paused = False

    async def update(self, container: Container, resources: dict[str, Any]) -> None:
        """Change the limits of a container to the OCI ``resources`` object."""
        container.require("created", "running", "paused", what="update")
        path = self._scratch() + ".json"
        try:
            _write_json(path, resources)
            status, message = await self._crun(["update", "--resources", path, container.key])
        finally:
            _unlink(path)
        if status != 0:
            raise crun.error(f"update {container.id}", status, message)

    async def delete(self, container: Container, *, force: bool) -> None:
        """Remove a stopped container, or with ``force`` any."""
        allowed = ("stopped", "created", "running", "paused") if force else ("stopped", "created")
        container.require(*allowed, what="delete")
        container.deleting = True
        try:
            await self._end(container)
            status, message = await self._crun(["delete", "--force", container.key])
            if status != 0:
                raise crun.error(f"delete {container.id}", status, message)
            # What its processes wrote last may still be under way: outputs end by themselves.
            _remove(container.directory)
            del self._all[container.id]
        finally:
            container.deleting = False

    async def _end(self, container: Container) -> None:
        """Kill all processes of a container, frozen ones too."""
        if not container.init.exited.done:
            cgroups.kill(container.key)
            await container.init.exited

    async def close(self) -> None:
        """End every process of every container and make no more; containers stay, for the VM ends next."""
        self._closing = True
        for container in list(self._all.values()):
            if container is not None:
                await self._end(container)

    def delete_exec(self, container: Container, exec_id: str) -> None:
        """Forget a process that exec added and that has ended."""
        process = container.process(exec_id)
        if not process.exited.done:
            message = f"process {exec_id} of container {container.id} is running"
            raise calls.CallError(calls.FAILED_PRECONDITION, message)
        container.execs.pop(exec_id, None)


def _shares_processes(spec: dict[str, Any]) -> bool:
    """Whether the container of this OCI config is in another one's process namespace."""
    linux = spec.get("linux")
    namespaces = linux.get("namespaces") if isinstance(linux, dict) else None
    found = [entry for entry in namespaces or [] if isinstance(entry, dict) and entry.get("type") == "pid"]
    return not found or bool(found[0].get("path"))


def _write_json(path: str, value: dict[str, Any]) -> None:
    system.write(path, jsontext.dumps(value))


def _unlink(path: str) -> None:
    try:
        os.unlink(path)
    except FileNotFoundError:
        pass


def _remove(directory: str) -> None:
    """Remove a flat directory of the agent's own files."""
    try:
        for name in os.listdir(directory):
            _unlink(f"{directory}/{name}")
        os.rmdir(directory)
    except FileNotFoundError:
        pass
