"""One container of a sandbox on the host's side: its processes, streams, log and last state."""

from __future__ import annotations

import asyncio
import contextlib
import time
from typing import Any

from hako.agent_client import AgentClient, field
from hako.errors import HakoError, NotFoundError
from hako.sandbox.process_io import ProcessIO
from hako.sandbox.trace import Trace

#: Exit status of a process that ended with its VM, as of one killed by SIGKILL.
LOST = 137
#: crun may have to be read through the share and translated by the emulator first.
CREATE_TIMEOUT = 120.0


class Process:
    """One process: the container's first or one added by exec. ``exited`` holds its end."""

    def __init__(self, agent: AgentClient, container_id: str, exec_id: str, io: ProcessIO) -> None:
        self._agent = agent
        self._target = {"container": container_id, **({"exec": exec_id} if exec_id else {})}
        self.exec_id = exec_id
        self.pid = 0  #: in the guest
        self.io = io
        #: The host's process that stands for this one and ends with it, as it does with that; 0 for none.
        self.holder = 0
        self.exited: asyncio.Future[dict[str, Any]] = asyncio.get_running_loop().create_future()

    async def watch(self) -> dict[str, Any]:
        """Wait for the end of the process and of its output; returns it. Tell ``exited`` when it is written down."""
        end: dict[str, Any]
        try:
            answer = await self._agent.call("Wait", self._target, None)
            end = {
                "exit_status": field(answer, "exit_status", int) & 0xFF,
                "exited_ns": time.time_ns(),
                "oom": field(answer, "oom", bool),
                "error": "",
            }
        except HakoError as error:
            end = {"exit_status": LOST, "exited_ns": time.time_ns(), "oom": False, "error": str(error)}
        await self.io.drained()
        return end

    async def kill(self, signal: int, *, everyone: bool = False) -> None:
        """Send ``signal`` to the process, or to all of the container."""
        await self._agent.call("Kill", {**self._target, "signal": signal, "all": everyone})

    async def resize(self, width: int, height: int) -> None:
        """Set the size of its terminal."""
        await self._agent.call("Resize", {**self._target, "width": width, "height": height})


class Container:
    """A container the agent has made. ``held`` gives back what it has on the host; ``trace`` is of its start."""

    def __init__(self, agent: AgentClient, container_id: str, trace: Trace) -> None:
        self.id = container_id
        self.agent = agent
        self.trace = trace
        self.held = contextlib.ExitStack()
        #: Gives back its disks, for which the VM is needed.
        self.disks = contextlib.AsyncExitStack()
        self.processes: dict[str, Process] = {}
        #: Streams of processes that are forgotten, whose output was still under way then.
        self._lingering: list[ProcessIO] = []
        self.main = False
        #: Its cgroup on the host, for hako.cgroup.api.Cgroup.open(); empty for none.
        self.cgroup: dict[str, Any] = {}
        self.record: dict[str, Any] = {}

    def process(self, exec_id: str) -> Process:
        """The process ``exec_id``, the first one for an empty name. Raises NotFoundError."""
        if exec_id not in self.processes:
            raise NotFoundError(f"Container {self.id} has no process {exec_id}.")
        return self.processes[exec_id]

    def forget(self, exec_id: str) -> bool:
        """Forget an exec that has ended; whether it was known. What it wrote goes on to whoever takes it."""
        process = self.processes.pop(exec_id, None)
        if process is None:
            return False
        self._lingering = [io for io in (*self._lingering, process.io) if not io.is_drained]
        return True

    async def run(
        self, method: str, params: dict[str, Any], exec_id: str, io: ProcessIO, fds: dict[str, int]
    ) -> tuple[Process, int]:
        """Have the agent make a process by ``method``; return it and its pid in the guest."""
        try:
            stdio = io.open_streams(fds)
            answer = await self.agent.call(method, {**params, "stdio": stdio}, CREATE_TIMEOUT)
            pid: int = field(answer, "pid", int)
        except BaseException:
            await io.close()
            raise
        process = Process(self.agent, self.id, exec_id, io)
        process.pid = pid
        self.processes[exec_id] = process
        return process, pid

    async def call(self, method: str, params: dict[str, Any] | None = None) -> dict[str, Any]:
        """Call the agent about this container."""
        return await self.agent.call(method, {"container": self.id, **(params or {})}, CREATE_TIMEOUT)

    async def close(self) -> None:
        """Give back streams, disks, mounts, log and image."""
        for io in (*(process.io for process in self.processes.values()), *self._lingering):
            with contextlib.suppress(HakoError):
                await io.close()
        await self.disks.aclose()
        # In a thread, for the layer may be large.
        await asyncio.to_thread(self.held.close)
