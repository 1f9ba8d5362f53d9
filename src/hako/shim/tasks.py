"""containerd's Task service, version 2 and 3, which differ in name alone: messages in, messages out.

Facts: containerd api/runtime/task/v3/shim.proto; cmd/containerd-shim-runc-v2 for what each call does in which state.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from hako.errors import ConfigError, ExistsError, NotFoundError, UnsupportedError
from hako.runtime.making import read_config
from hako.shim import event_messages as events
from hako.shim import metrics
from hako.shim import task_messages as messages
from hako.shim.messages import Any as AnyMessage
from hako.shim.messages import Empty
from hako.shim.process import Process
from hako.shim.task import Task
from hako.shim.ttrpc import Method, Services, to_the_end
from hako.version import __version__
from hako.wire import jsontext

if TYPE_CHECKING:
    from hako.shim.podfiles import PodFiles
    from hako.shim.shim import Shim

#: What is done to the end, whether or not containerd is there to hear of it: it may be killed, and come back.
_CHANGES = ("Create", "Start", "Delete", "Pause", "Resume", "Kill", "Exec", "Update")
_MAX_JSON = 4 << 20


class Tasks:
    """The containers of a shim, by containerd's ids."""

    def __init__(self, shim: Shim) -> None:
        self._shim = shim
        self.all: dict[str, Task] = {}
        self._making: set[str] = set()
        #: Namespaces of what stands for the pod itself, where no container does: host path to guest path.
        self.pod_namespaces: dict[str, str] = {}
        #: What the shim makes for a pod's containers, where containerd does not.
        self.pod_files: PodFiles | None = None

    def services(self) -> Services:
        """What a ttrpc server needs to know."""
        methods = {
            "State": Method(messages.StateRequest, self.state),
            "Create": Method(messages.CreateTaskRequest, self.create),
            "Start": Method(messages.StartRequest, self.start),
            "Delete": Method(messages.DeleteRequest, self.delete),
            "Pids": Method(messages.PidsRequest, self.pids),
            "Pause": Method(messages.PauseRequest, self.pause),
            "Resume": Method(messages.ResumeRequest, self.resume),
            "Checkpoint": Method(messages.CheckpointTaskRequest, self.checkpoint),
            "Kill": Method(messages.KillRequest, self.kill),
            "Exec": Method(messages.ExecProcessRequest, self.exec),
            "ResizePty": Method(messages.ResizePtyRequest, self.resize_pty),
            "CloseIO": Method(messages.CloseIORequest, self.close_io),
            "Update": Method(messages.UpdateTaskRequest, self.update),
            "Wait": Method(messages.WaitRequest, self.wait),
            "Stats": Method(messages.StatsRequest, self.stats),
            "Connect": Method(messages.ConnectRequest, self.connect),
            "Shutdown": Method(messages.ShutdownRequest, self.shutdown),
        }
        for name in _CHANGES:
            methods[name] = methods[name]._replace(handler=to_the_end(methods[name].handler))
        return dict.fromkeys((messages.SERVICE_V2, messages.SERVICE_V3), methods)

    async def close(self) -> None:
        """Give back what containerd has not deleted."""
        for task in list(self.all.values()):
            await task.close()

    def find(self, container_id: str) -> Task:
        """The container ``container_id``. Raises NotFoundError."""
        task = self.all.get(container_id)
        if task is None:
            raise NotFoundError(f"The container {container_id} does not exist.")
        return task

    def _process(self, request: Any) -> tuple[Task, Process]:
        """What a request with ``id`` and ``exec_id`` means. Raises NotFoundError."""
        task = self.find(request.id)
        return task, task.process(request.exec_id)

    # --- making and removing ---

    async def create(self, request: messages.CreateTaskRequest) -> messages.CreateTaskResponse:
        """Make a container from a bundle."""
        if request.checkpoint:
            raise UnsupportedError("hako cannot restore a container from a checkpoint of its processes.")
        if request.id in self.all or request.id in self._making:
            raise ExistsError(f"container with id {request.id} already exists")
        self._making.add(request.id)
        try:
            task = await self._create(request)
        finally:
            self._making.discard(request.id)
        self._shim.publisher.publish(
            events.TaskCreate(
                container_id=task.id,
                bundle=task.bundle,
                rootfs=request.rootfs,
                io=events.TaskIO(
                    stdin=request.stdin, stdout=request.stdout, stderr=request.stderr, terminal=request.terminal
                ),
                pid=task.init.pid,
            )
        )
        return messages.CreateTaskResponse(pid=task.init.pid)

    async def _create(self, request: messages.CreateTaskRequest) -> Task:
        bundle, spec = read_config(request.bundle)
        streams = (request.stdin, request.stdout, request.stderr)
        # containerd's word counts: it is what it has made streams for.
        spec["process"]["terminal"] = request.terminal
        if self.pod_files is not None:
            spec["mounts"] = [*(spec.get("mounts") or []), *self.pod_files.mounts(spec)]
        task = Task(
            self._shim, request.id, bundle, spec, Process("", spec["process"], streams, terminal=request.terminal)
        )
        rootfs = [
            {"type": mount.type, "source": mount.source, "target": mount.target, "options": mount.options}
            for mount in request.rootfs
        ]
        await task.create(rootfs, self._joined(spec))
        self.all[task.id] = task
        return task

    def _joined(self, spec: Mapping[str, Any]) -> dict[str, str]:
        """Namespaces of the pod's other containers that ``spec`` names: host path to guest path."""
        guests = {str(task.init.pid): task.guest_pid for task in self.all.values()}
        found = {}
        for entry in (spec.get("linux") or {}).get("namespaces") or []:
            path = str(entry.get("path") or "")
            words = path.split("/")
            # /proc/PID/ns/KIND
            if len(words) == 5 and words[1] == "proc" and words[3] == "ns" and words[2] in guests:
                found[path] = f"/proc/{guests[words[2]]}/ns/{words[4]}"
            elif path in self.pod_namespaces:
                found[path] = self.pod_namespaces[path]
        return found

    async def delete(self, request: messages.DeleteRequest) -> messages.DeleteResponse:
        """Remove a container or a process that was added to one."""
        task, process = self._process(request)
        if process.exec_id:
            await task.delete_exec(process)
        else:
            await task.delete()
            self.all.pop(task.id, None)
        deleted = events.TaskDelete(
            container_id=task.id,
            pid=process.pid,
            exit_status=process.exit_status,
            exited_at=process.exited_at,
            id=process.exec_id,
        )
        self._shim.publisher.publish(deleted)
        return messages.DeleteResponse(pid=process.pid, exit_status=process.exit_status, exited_at=process.exited_at)

    async def exec(self, request: messages.ExecProcessRequest) -> Empty:
        """Add a process; Start runs it."""
        task = self.find(request.id)
        spec = _json(request.spec, "spec")
        spec["terminal"] = request.terminal
        streams = (request.stdin, request.stdout, request.stderr)
        task.add(Process(request.exec_id, spec, streams, terminal=request.terminal))
        return Empty()

    async def start(self, request: messages.StartRequest) -> messages.StartResponse:
        """Run what was created."""
        task, process = self._process(request)
        pid = await (task.start_exec(process) if process.exec_id else task.start())
        return messages.StartResponse(pid=pid)

    # --- state ---

    async def state(self, request: messages.StateRequest) -> messages.StateResponse:
        """What is known of a process."""
        task, process = self._process(request)
        stdin, stdout, stderr = process.streams
        return messages.StateResponse(
            id=task.id,
            bundle=task.bundle,
            pid=process.pid,
            status=process.status(paused=task.paused),
            stdin=stdin,
            stdout=stdout,
            stderr=stderr,
            terminal=process.terminal,
            exit_status=process.exit_status,
            exited_at=process.exited_at,
            exec_id=process.exec_id,
        )

    async def wait(self, request: messages.WaitRequest) -> messages.WaitResponse:
        """Wait for the end of a process."""
        _, process = self._process(request)
        await process.ended.wait()
        return messages.WaitResponse(exit_status=process.exit_status, exited_at=process.exited_at)

    async def pids(self, request: messages.PidsRequest) -> messages.PidsResponse:
        """The processes of a container."""
        task = self.find(request.id)
        names = {process.pid: process.exec_id for process in task.execs.values() if process.pid}
        found = []
        for pid in await task.pids():
            name = names.get(pid)
            info = AnyMessage.pack(messages.ProcessDetails(exec_id=name)) if name else None
            found.append(messages.ProcessInfo(pid=pid, info=info))
        return messages.PidsResponse(processes=found)

    async def stats(self, request: messages.StatsRequest) -> messages.StatsResponse:
        """What a container uses, in the form of the host's cgroups."""
        found = await self.find(request.id).stats()
        return messages.StatsResponse(stats=AnyMessage.pack(metrics.of_container(found)))

    async def connect(self, request: messages.ConnectRequest) -> messages.ConnectResponse:
        """Whom containerd talks to."""
        task = self.all.get(request.id)
        pid = task.init.pid if task is not None else 0
        return messages.ConnectResponse(shim_pid=os.getpid(), task_pid=pid, version=__version__)

    # --- changes ---

    async def kill(self, request: messages.KillRequest) -> Empty:
        """Send a signal."""
        task, process = self._process(request)
        if request.signal > 64:
            raise ConfigError(f"{request.signal} is not a signal: they are numbered up to 64.")
        await task.kill(process, request.signal, everyone=request.all)
        return Empty()

    async def pause(self, request: messages.PauseRequest) -> Empty:
        """Freeze a container."""
        await self.find(request.id).freeze(paused=True)
        return Empty()

    async def resume(self, request: messages.ResumeRequest) -> Empty:
        """Let it go on."""
        await self.find(request.id).freeze(paused=False)
        return Empty()

    async def resize_pty(self, request: messages.ResizePtyRequest) -> Empty:
        """Set the size of a terminal."""
        task, process = self._process(request)
        await task.resize(process, min(request.width, 0xFFFF), min(request.height, 0xFFFF))
        return Empty()

    async def close_io(self, request: messages.CloseIORequest) -> Empty:
        """End the input of a process."""
        task, process = self._process(request)
        if request.stdin:
            await task.close_stdin(process)
        return Empty()

    async def update(self, request: messages.UpdateTaskRequest) -> Empty:
        """Change the limits of a container."""
        await self.find(request.id).update(_json(request.resources, "resources"))
        return Empty()

    async def checkpoint(self, request: messages.CheckpointTaskRequest) -> Empty:
        """Not for a VM's processes."""
        self.find(request.id)
        raise UnsupportedError(
            "hako cannot checkpoint a container: its processes belong to the kernel of its VM; run the container with "
            "runc for that."
        )

    async def shutdown(self, _request: messages.ShutdownRequest) -> Empty:
        """End the shim, unless it has containers, or a pod that containerd ends by the Sandbox service."""
        if not (self.all or self._making or self.pod_files is not None):
            await self._shim.leave()
        return Empty()


def _json(value: AnyMessage | None, what: str) -> dict[str, Any]:
    """The JSON object in an Any. Raises ConfigError."""
    try:
        found = jsontext.loads(value.value) if value is not None and len(value.value) <= _MAX_JSON else None
    except (ValueError, RecursionError):
        found = None
    if not isinstance(found, dict):
        raise ConfigError(f"$.{what}: not a JSON object.")
    return found
