"""One container as containerd sees it: made in the shim's VM, with the processes that were added to it."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import signal
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from hako import ids
from hako.errors import ExistsError, HakoError, HypervisorError, NotFoundError, StateError, TimedOutError
from hako.oci import hooks, pods
from hako.runtime import command, console, containers, hostcgroup, joining
from hako.sandbox import requests
from hako.sandbox.params import MOUNTS
from hako.shim import event_messages as events
from hako.shim.holder import Holder
from hako.shim.process import Process
from hako.shim.stdio import open_stdio

if TYPE_CHECKING:
    from hako.shim.shim import Shim

log = logging.getLogger(__name__)

#: Seconds that the guest has for a signal, or to remove a container. Who does not do that has lost its VM.
_END_SECONDS = 4.0
#: Signals that no process can hold back.
_FATAL = (signal.SIGKILL,)
_OCI_VERSION = "1.0.2"
#: Where the containers of a pod share memory. With a container that stands for the pod, containerd sees to that.
_SHM = "/dev/shm"


class Task:
    """One container. Made by create(), and gone after delete()."""

    def __init__(self, shim: Shim, container_id: str, bundle: str, spec: dict[str, Any], init: Process) -> None:
        """``spec`` is the checked config.json in ``bundle``."""
        self.id = container_id
        self.guest_id = containers.guest_id(container_id)
        self.bundle = bundle
        self.init = init
        self.execs: dict[str, Process] = {}
        self.paused = False
        self.guest_pid = 0
        self.holder: Holder | None = None
        self._shim = shim
        self._spec = spec
        self._followers: set[asyncio.Task[None]] = set()

    @property
    def owns_vm(self) -> bool:
        """Whether the VM was made for this container, and ends with it."""
        return self.id == self._shim.call.id

    @property
    def _is_pod(self) -> bool:
        """Whether it stands for a pod, whose other containers may outlive it."""
        return pods.is_sandbox(self._spec.get("annotations") or {})

    def process(self, exec_id: str) -> Process:
        """The process ``exec_id``, the first one for an empty name. Raises NotFoundError."""
        process = self.execs.get(exec_id) if exec_id else self.init
        if process is None:
            raise NotFoundError(f"The container {self.id} has no process {exec_id}.")
        return process

    # --- making ---

    async def create(self, rootfs: list[dict[str, Any]], joined: dict[str, str]) -> None:
        """Make the container, whose root ``rootfs`` describes; empty: it is in the bundle. Raises HakoError.

        ``joined`` is as in hako.sandbox.translate.
        """
        self._check_network()
        given = self._spec.get("hooks") or {}
        try:
            async with self._shim.in_cgroup():
                self.holder = self._hold()
            self.init.pid = self.holder.pid
            for kind in ("prestart", "createRuntime", "createContainer"):
                await self._run_hooks(kind, given.get(kind), "creating")
            self._shim.connect_network()
            await self._shim.network()
            await self._create(rootfs, joined)
        except BaseException:
            await self.close()
            raise

    def _hold(self) -> Holder:
        return Holder(self.id, self._shim.namespace, self._shim.lifeline, self._on_holder_killed)

    def _check_network(self) -> None:
        """A VM has one network: whoever joins it cannot have another. Raises StateError."""
        path = joining.network_path(self._spec)
        if not path or self.owns_vm:
            return
        mine = os.fstat(self._shim.namespace)
        if joining.identity(path) != (mine.st_dev, mine.st_ino):
            raise StateError(
                f"The container {self.id} is to have the network namespace {path}, which is not its pod's; "
                "the containers of a pod share one network."
            )

    async def _create(self, rootfs: list[dict[str, Any]], joined: dict[str, str]) -> None:
        process = self._spec["process"]
        fds = await self._open_streams(self.init)
        # What the engine mounts may have been mounted on the host after this process got mounts of its own.
        origin = self._shim.engine.machine.namespace
        if origin is not None:
            fds[MOUNTS] = os.dup(origin)
        size = self.init.size or console.wanted_size(process)
        params = requests.create(self.guest_id, self._spec, lower=None, stdio=(), start=False, size=size)
        params |= {"strict": True, "joined": joined, "rootfs": rootfs, "lingers": True}
        if self._shim.tasks.pod_files is not None:
            params["shared"] = [_SHM]
        if self.owns_vm:
            params["cgroup"] = self._shim.engine.cgroup
        with command.faults_in_engines_words(process["args"][0]):
            answer = await self._shim.ask("Create", params, fds, seconds=None)
        self.guest_pid = int(answer["pid"])
        self._follow(self.init)

    async def _open_streams(self, process: Process) -> dict[str, int]:
        stdin, stdout, stderr = process.streams
        process.stdio = await open_stdio(
            stdin,
            stdout,
            stderr,
            terminal=process.terminal,
            container_id=process.exec_id or self.id,
            namespace=self._shim.call.namespace,
            directory=self.bundle,
            mounts=self._shim.engine.machine.namespace,
        )
        return process.stdio.take()

    async def _run_hooks(self, kind: str, entries: list[dict[str, Any]] | None, status: str) -> None:
        if not entries:
            return
        pid = self.holder.pid if self.holder is not None and status != "stopped" else 0
        state = {"ociVersion": self._spec.get("ociVersion") or _OCI_VERSION, "id": self.id, "pid": pid}
        state |= {"status": status, "bundle": self.bundle}
        if self._spec.get("annotations"):
            state["annotations"] = self._spec["annotations"]
        enter = self._enter_network if kind == "createContainer" else None
        await asyncio.to_thread(hooks.run, entries, state, where=kind, cwd=self.bundle, enter=enter)

    def _enter_network(self) -> None:
        from hako.linux import syscalls

        syscalls.setns(self._shim.namespace, syscalls.CLONE_NEWNET)

    # --- running ---

    async def start(self) -> int:
        """Let the first process run; returns its pid. Raises HakoError."""
        self.init.starting = True
        try:
            with command.faults_in_engines_words(self._spec["process"]["args"][0]):
                await self._shim.ask("Start", {"container": self.guest_id}, seconds=None)
        except BaseException:
            self.init.announced.set()
            raise
        self.init.started = True
        self._announce(self.init, events.TaskStart(container_id=self.id, pid=self.init.pid))
        await self._run_hooks("poststart", (self._spec.get("hooks") or {}).get("poststart"), "running")
        return self.init.pid

    def add(self, process: Process) -> None:
        """Add a process that start_exec() is to start. Raises ExistsError."""
        if process.exec_id in self.execs:
            raise ExistsError(f"The container {self.id} has a process {process.exec_id} already.")
        if self.init.ended.is_set():
            raise StateError(f"cannot exec in a stopped container: {self.id} has ended")
        self.execs[process.exec_id] = process
        self._shim.publisher.publish(events.TaskExecAdded(container_id=self.id, exec_id=process.exec_id))

    async def start_exec(self, process: Process) -> int:
        """Start a process that was added; returns its pid in the guest. Raises HakoError."""
        if process.started or process.ended.is_set():
            raise StateError(f"The process {process.exec_id} has been started before.")
        fds = await self._open_streams(process)
        size = process.size or console.wanted_size(process.spec)
        params = requests.exec(self.guest_id, ids.check(process.exec_id, "Process id"), process.spec, (), size)
        params["lingers"] = True
        try:
            with command.faults_in_engines_words(str((process.spec.get("args") or [""])[0])):
                answer = await self._shim.ask("Exec", params, fds, seconds=None)
        except BaseException:
            await process.close()
            raise
        process.pid = int(answer["pid"])
        process.started = True
        self._follow(process)
        started = events.TaskExecStarted(container_id=self.id, exec_id=process.exec_id, pid=process.pid)
        self._announce(process, started)
        return process.pid

    def _announce(self, process: Process, event: events.Event) -> None:
        """Tell of a start, before which its end is not told."""
        self._shim.publisher.publish(event)
        process.announced.set()

    def _follow(self, process: Process) -> None:
        follower = asyncio.create_task(self._follow_to_end(process))
        self._followers.add(follower)
        follower.add_done_callback(self._followers.discard)

    async def _follow_to_end(self, process: Process) -> None:
        await self._wait_end(process)
        if process.starting:
            await process.announced.wait()
        if process.oom and not process.exec_id:
            self._shim.publisher.publish(events.TaskOOM(container_id=self.id))
        self._tell_exit(process)
        if self.owns_vm and not process.exec_id and not self._is_pod:
            # containerd is about to delete it, and what ends with it takes a while.
            for ended in (self.init, *self.execs.values()):
                await ended.written()
            await self._shim.end_sandbox()

    def _tell_exit(self, process: Process) -> None:
        self._shim.publisher.publish(
            events.TaskExit(
                container_id=self.id,
                id=process.exec_id or self.id,
                pid=process.pid,
                exit_status=process.exit_status,
                exited_at=process.exited_at,
            )
        )

    async def _wait_end(self, process: Process) -> None:
        """Wait for its end as the engine tells it, or for the engine's own."""
        target = requests.target(self.guest_id, process.exec_id)
        waiting = asyncio.ensure_future(self._shim.ask("Wait", target, seconds=None))
        gone = asyncio.ensure_future(self._shim.gone.wait())
        await asyncio.wait([waiting, gone], return_when=asyncio.FIRST_COMPLETED)
        gone.cancel()
        if not waiting.done():
            waiting.cancel()
            await asyncio.wait([waiting])
        if waiting.cancelled() or waiting.exception() is not None:
            process.lose()
        else:
            end = waiting.result()
            process.end(int(end["exit_status"]), int(end["exited_ns"]), oom=end["oom"] is True)

    def _on_holder_killed(self) -> None:
        """Somebody has ended the process that stands for the container, which means the container."""
        if not self.init.ended.is_set():
            log.warning("The process that stands for %s was ended, so the container is", self.id)
            self._shim.engine.machine.in_background(self._kill_quietly())

    async def _kill_quietly(self) -> None:
        with _logged(f"Ending {self.id}"):
            await self.kill(self.init, int(signal.SIGKILL), everyone=True)

    # --- signals and state ---

    async def kill(self, process: Process, number: int, *, everyone: bool) -> None:
        """Send a signal. A guest that does not take the last of all loses its VM. Raises HakoError."""
        if process.ended.is_set():
            raise NotFoundError(f"process already finished: {process.exec_id or self.id}")
        if process.exec_id and not process.started:
            process.lose()
            return
        target = requests.target(self.guest_id, process.exec_id, signal=number, all=everyone)
        try:
            await self._shim.ask("Kill", target, seconds=_END_SECONDS)
        except (TimedOutError, HypervisorError):
            if number not in _FATAL:
                raise
            log.warning("The guest does not answer, so its VM is ended")
            await self._shim.end_vm()
        except StateError:
            raise NotFoundError(f"process already finished: {process.exec_id or self.id}") from None

    async def resize(self, process: Process, width: int, height: int) -> None:
        """Set the size of a process's terminal, at once or when it starts."""
        process.size = (width, height)
        if process.pid and not process.ended.is_set() and (process.started or not process.exec_id):
            target = requests.target(self.guest_id, process.exec_id, width=width, height=height)
            await self._shim.ask("Resize", target)

    async def close_stdin(self, process: Process) -> None:
        """The end of a process's input."""
        if process.stdio is None:
            return
        process.stdio.close_stdin()
        if process.pid and not process.ended.is_set():
            await self._shim.ask("CloseStdin", requests.target(self.guest_id, process.exec_id))

    async def freeze(self, *, paused: bool) -> None:
        """Pause it, or let it go on."""
        await self._shim.ask("Pause" if paused else "Resume", {"container": self.guest_id})
        self.paused = paused
        event = events.TaskPaused if paused else events.TaskResumed
        self._shim.publisher.publish(event(container_id=self.id))

    async def update(self, resources: dict[str, Any]) -> None:
        """Change its limits."""
        # A guest may need some time to get more memory, or to give it up.
        await self._shim.ask("Update", {"container": self.guest_id, "resources": resources}, seconds=60)
        if self.owns_vm and not self._is_pod:
            await asyncio.to_thread(hostcgroup.update, self._shim.engine.cgroup, resources)

    async def stats(self) -> dict[str, Any]:
        """What it uses, as the engine tells it."""
        return await self._shim.ask("Stats", {"container": self.guest_id})

    async def pids(self) -> list[int]:
        """Its processes: the first one's pid is the holder's, as elsewhere; the others' are the guest's."""
        if self.init.ended.is_set():
            # containerd 2, when it is started, removes a task that has none, and nobody would learn its exit code.
            return [self.init.pid]
        found = await self._shim.ask("Ps", {"container": self.guest_id})
        return [self.init.pid if pid == self.guest_pid else pid for pid in _pids(found)]

    # --- the end ---

    async def delete_exec(self, process: Process) -> None:
        """Forget a process that has ended or was never started. Raises StateError."""
        if process.started and not process.ended.is_set():
            raise StateError(f"cannot delete a running process: {process.exec_id}")
        await process.close()
        self.execs.pop(process.exec_id, None)

    async def delete(self) -> None:
        """Remove a container that does not run, and the VM if it was made for it. Raises HakoError."""
        if self.init.started and not self.init.ended.is_set():
            raise StateError(f"cannot delete a running process: the container {self.id} has not ended")
        await self._close_ended()
        if self.owns_vm:
            await self._shim.end_sandbox()
        else:
            await self._remove_from_guest()
        self.init.lose()
        await self._settle()
        await self.close()
        with _logged(f"poststop of {self.id}"):
            await self._run_hooks("poststop", (self._spec.get("hooks") or {}).get("poststop"), "stopped")

    async def _close_ended(self) -> None:
        """What its processes wrote last, and nobody has read yet, is given some time, and needs the guest."""
        ended = [process for process in (self.init, *self.execs.values()) if process.ended.is_set()]
        await asyncio.gather(*(process.close() for process in ended))

    async def _remove_from_guest(self) -> None:
        try:
            await self._shim.ask("Delete", {"container": self.guest_id, "force": True}, seconds=_END_SECONDS)
        except NotFoundError:
            return
        except TimedOutError:
            log.warning("The guest does not answer, so its VM is ended")
            await self._shim.end_vm()
        except HypervisorError:
            # The VM is gone, and the container with it; the rest of that is about to be known.
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._shim.gone.wait(), _END_SECONDS)
            if not self._shim.gone.is_set():
                raise
        except HakoError:
            if not self._shim.gone.is_set():
                raise

    async def _settle(self) -> None:
        """Wait until the ends of its processes have been told."""
        if self._followers:
            await asyncio.wait(self._followers, timeout=_END_SECONDS)

    async def close(self) -> None:
        """Give back what it has on the host."""
        for follower in self._followers:
            follower.cancel()
        for process in (self.init, *self.execs.values()):
            await process.close()
        if self.holder is not None:
            self.holder.close()


def _pids(answer: dict[str, Any]) -> list[int]:
    return [int(process["pid"]) for process in answer["processes"]]


@contextlib.contextmanager
def _logged(what: str) -> Iterator[None]:
    try:
        yield
    except HakoError as error:
        log.warning("%s: %s", what, error)
