"""One process of a container as containerd sees it, the first one or one that was added, from creation to deletion."""

from __future__ import annotations

import asyncio
import time
from typing import Any

from hako.sandbox.container import LOST
from hako.shim.messages import Timestamp
from hako.shim.stdio import Stdio
from hako.shim.task_messages import TaskStatus

#: Until the size of its terminal is told to a process, it is kept here.
Size = tuple[int, int]


class Process:
    """``exec_id`` is empty for the first process. ``spec`` is the process object of OCI's config.json."""

    def __init__(self, exec_id: str, spec: dict[str, Any], streams: tuple[str, str, str], *, terminal: bool) -> None:
        self.exec_id = exec_id
        self.spec = spec
        self.streams = streams  #: where containerd has stdin, stdout and stderr
        self.terminal = terminal
        self.stdio: Stdio | None = None
        self.size: Size | None = None
        self.pid = 0
        self.started = False
        #: Its start is under way, and its end is not told before that of it is.
        self.starting = False
        self.announced = asyncio.Event()
        self.ended = asyncio.Event()
        self.exit_status = 0
        self.exited_ns = 0
        self.oom = False

    def end(self, exit_status: int, exited_ns: int, *, oom: bool = False) -> None:
        """It has ended; tell those who wait."""
        self.exit_status, self.exited_ns, self.oom = exit_status, exited_ns, oom
        self.ended.set()

    def lose(self) -> None:
        """It has ended with its VM, or was never run."""
        if not self.ended.is_set():
            self.end(LOST, time.time_ns())

    @property
    def exited_at(self) -> Timestamp | None:
        """When it ended."""
        return Timestamp.of_ns(self.exited_ns) if self.exited_ns else None

    def status(self, *, paused: bool = False) -> int:
        """Its TaskStatus; ``paused`` says whether its container is."""
        if self.ended.is_set():
            return TaskStatus.STOPPED
        if not self.started:
            return TaskStatus.CREATED
        return TaskStatus.PAUSED if paused else TaskStatus.RUNNING

    async def written(self) -> None:
        """Wait until the guest has nothing more of what it wrote, however long nobody takes that."""
        if self.stdio is not None:
            await self.stdio.written()

    async def close(self) -> None:
        """Give back its streams."""
        stdio, self.stdio = self.stdio, None
        if stdio is not None:
            await stdio.close()
