"""Containers and their processes in the guest: crun makes them, the agent keeps them.

A process goes created → running → stopped; its exit status stays until the host deletes it.
"""

from __future__ import annotations

import json
import os
import signal
import time

from hako.agent import cgroups, crun
from hako.agent.channel import Channel
from hako.agent.loop import Future, Loop
from hako.agent.stdio import Stdio
from hako.wire import calls

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

_STATE_DIR = "/run/hako/containers"
_MAX_CONTAINERS = 512
_MAX_EXECS = 1024


class Process:
    """The first process of a container, or one that was added by exec."""

    def __init__(self, stdio: Stdio) -> None:
        self.stdio = stdio
        self.pid = 0
        self.exited = Future()
        self.status = 0
        self.exited_at = 0
        self.oom = False

    def follow(self, loop: Loop, container_id: str, pid: int) -> None:
        """``pid`` is the process: note its end."""
        self.pid = pid
        future = loop.child(pid)
        future.on_done(lambda: self._on_exit(container_id, future.value))

    def _on_exit(self, container_id: str, status: int) -> None:
        self.status = status
        self.exited_at = time.time_ns()
        self.oom = cgroups.oom_kills(container_id) > 0
        self.stdio.on_exit()
        self.exited.set(self)

    def signal(self, number: int) -> None:
        """Send signal ``number``. Raises CallError when the process has ended."""
        if self.exited.done or not self.pid:
            raise calls.CallError(calls.NOT_FOUND, "the process has ended already")
        os.kill(self.pid, number)


class Container:
    """One container. ``starting`` guards against two crun commands on it at once."""

    def __init__(self, container_id: str, init: Process) -> None:
        self.id = container_id
        self.init = init
        self.directory = f"{_STATE_DIR}/{container_id}"
        self.execs: dict[str, Process] = {}
        self.started = False
        self.paused = False

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
        if self.status not in allowed:
            message = f"cannot {what} container {self.id} in the {self.status} state"
            raise calls.CallError(calls.FAILED_PRECONDITION, message)


class Containers:
    """All containers of this guest."""

    def __init__(self, loop: Loop, channel: Channel) -> None:
        self._loop = loop
        self._channel = channel
        self._all: dict[str, Container | None] = {}

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
        if container_id in self._all:
            raise calls.CallError(calls.ALREADY_EXISTS, f"container {container_id} already exists")
        if len(self._all) >= _MAX_CONTAINERS:
            raise calls.CallError(calls.RESOURCE_EXHAUSTED, f"this VM has {_MAX_CONTAINERS} containers already")
        process = spec.get("process")
        terminal = isinstance(process, dict) and process.get("terminal") is True
        container = Container(container_id, Process(Stdio(self._loop, self._channel, streams, terminal=terminal)))
        self._all[container_id] = None
        try:
            os.makedirs(container.directory, exist_ok=True)
            spec.setdefault("linux", {})["cgroupsPath"] = f"/hako/{container_id}"
            _write_json(container.directory + "/config.json", spec)
            verb = ["run", "--detach"] if start else ["create"]
            await self._crun_process(
                [*verb, "--bundle", container.directory], [container_id], container, container.init, "create"
            )
        except BaseException:
            container.init.stdio.close()
            await self._crun(container, ["delete", "--force", container_id])
            _remove(container.directory)
            del self._all[container_id]
            raise
        container.started = start
        self._all[container_id] = container
        return container

    async def _crun_process(
        self, head: list[str], tail: list[str], container: Container, process: Process, what: str
    ) -> None:
        """Run a crun command that makes ``process``, and find its pid."""
        pid_file = f"{container.directory}/pid.{id(process)}"
        socket_path = f"{container.directory}/tty.{id(process)}"
        args = [*head, "--pid-file", pid_file]
        if process.stdio.terminal:
            process.stdio.listen(socket_path)
            args += ["--console-socket", socket_path]
        log = f"{container.directory}/log.{id(process)}"
        try:
            status, message = await crun.run(self._loop, [*args, *tail], log, stdio=process.stdio.child_fds())
            if status != 0:
                raise crun.error(f"{what} {container.id}", status, message)
            if process.stdio.terminal:
                process.stdio.accept()
            with open(pid_file, encoding="ascii") as file:
                pid = int(file.read(32))
        finally:
            process.stdio.after_spawn()
            _unlink(pid_file)
            _unlink(socket_path)
        process.follow(self._loop, container.id, pid)

    async def _crun(self, container: Container, args: list[str]) -> tuple[int, str]:
        return await crun.run(self._loop, args, f"{container.directory}/log.{args[0]}")

    async def start(self, container: Container) -> None:
        """Let the first process of a created container run."""
        container.require("created", what="start")
        if container.started:
            raise calls.CallError(calls.FAILED_PRECONDITION, f"container {container.id} is being started already")
        container.started = True
        status, message = await self._crun(container, ["start", container.id])
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
        if len(container.execs) >= _MAX_EXECS:
            raise calls.CallError(calls.RESOURCE_EXHAUSTED, f"container {container.id} has too many processes")
        terminal = process.get("terminal") is True
        added = Process(Stdio(self._loop, self._channel, streams, terminal=terminal))
        container.execs[exec_id] = added
        spec_path = f"{container.directory}/process.{id(added)}"
        try:
            _write_json(spec_path, process)
            await self._crun_process(
                ["exec", "--detach", "--process", spec_path], [container.id], container, added, "exec in"
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
            cgroups.kill(container.id)
            return
        for pid in cgroups.pids(container.id):
            try:
                os.kill(pid, number)
            except ProcessLookupError:
                continue

    def freeze(self, container: Container, *, frozen: bool) -> None:
        """Pause or resume a container."""
        container.require("running" if frozen else "paused", what="pause" if frozen else "resume")
        cgroups.freeze(container.id, frozen=frozen)
        container.paused = frozen

    async def update(self, container: Container, resources: dict[str, Any]) -> None:
        """Change the limits of a container to the OCI ``resources`` object."""
        container.require("created", "running", "paused", what="update")
        path = f"{container.directory}/resources.json"
        _write_json(path, resources)
        status, message = await self._crun(container, ["update", "--resources", path, container.id])
        _unlink(path)
        if status != 0:
            raise crun.error(f"update {container.id}", status, message)

    async def delete(self, container: Container, *, force: bool) -> None:
        """Remove a stopped container, or with ``force`` any."""
        if not force:
            container.require("stopped", "created", what="delete")
        if not container.init.exited.done:
            if container.paused:
                cgroups.freeze(container.id, frozen=False)
            cgroups.kill(container.id)
            await container.init.exited
        status, message = await self._crun(container, ["delete", "--force", container.id])
        if status != 0:
            raise crun.error(f"delete {container.id}", status, message)
        for process in (container.init, *container.execs.values()):
            process.stdio.close()
        _remove(container.directory)
        self._all.pop(container.id, None)

    async def kill_all(self) -> None:
        """End every process of every container; the containers themselves stay, for the VM ends next."""
        for container_id in self.ids():
            container = self.get(container_id)
            if not container.init.exited.done:
                if container.paused:
                    cgroups.freeze(container.id, frozen=False)
                cgroups.kill(container.id)
                await container.init.exited

    def delete_exec(self, container: Container, exec_id: str) -> None:
        """Forget a process that exec added and that has ended."""
        process = container.process(exec_id)
        if not process.exited.done:
            message = f"process {exec_id} of container {container.id} is running"
            raise calls.CallError(calls.FAILED_PRECONDITION, message)
        process.stdio.close()
        container.execs.pop(exec_id, None)


def _write_json(path: str, value: dict[str, Any]) -> None:
    with open(path, "w", encoding="utf-8") as file:
        json.dump(value, file)


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
