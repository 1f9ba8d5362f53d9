"""The standard streams of one process between the agent's raw streams, the log and whoever is attached."""

from __future__ import annotations

import asyncio
import contextlib
import os
from typing import Any

from hako.sandbox.agent_client import AgentClient, InputStream, OutputStream
from hako.sandbox.fdio import FdReader, FdWriter
from hako.sandbox.logs import STDERR, STDOUT, LogWriter

#: After a process ended, something it left behind may hold its output open; waited for this long, seconds.
_DRAIN_SECONDS = 2.0


class ProcessIO:
    """Owns the streams of one process; starts with open_streams(), ends with close().

    ``keep_stdin`` keeps the input open although nobody is attached yet (``run -d -i``).
    """

    def __init__(self, client: AgentClient, *, terminal: bool, log: LogWriter | None, keep_stdin: bool) -> None:
        self._client = client
        self._terminal = terminal
        self._log = log
        self._keep_stdin = keep_stdin
        self._stdin: InputStream | None = None
        self._outputs: dict[int, OutputStream] = {}
        self._sinks: dict[int, list[FdWriter]] = {STDOUT: [], STDERR: []}
        self._pumps: list[asyncio.Task[None]] = []
        self._readers: list[asyncio.Task[None]] = []

    def open_streams(self, fds: dict[str, int]) -> dict[str, Any]:
        """Open the streams this process needs, attach ``fds`` (stdin, stdout, stderr; owned from now on).

        Returns the ``stdio`` object for the agent's call.
        """
        numbers: dict[str, Any] = {}
        if "stdin" in fds or self._keep_stdin:
            self._stdin = self._client.open_input()
            numbers["stdin"] = self._stdin.number
        wanted = {STDOUT: "stdout", STDERR: "stderr"}
        if self._terminal:
            del wanted[STDERR]
        for stream, name in wanted.items():
            if name in fds or self._log is not None or self._keep_stdin:
                self._outputs[stream] = self._client.open_output()
                numbers[name] = self._outputs[stream].number
        self.attach(fds)
        for stream, output in self._outputs.items():
            self._pumps.append(asyncio.create_task(self._pump(stream, output)))
        return numbers

    def attach(self, fds: dict[str, int]) -> asyncio.Task[None] | None:
        """Join ``fds`` to the process; they are owned from now on. Returns the task that reads stdin."""
        for stream, name in ((STDOUT, "stdout"), (STDERR, "stderr")):
            if name in fds:
                if stream in self._outputs:
                    self._sinks[stream].append(FdWriter(fds[name]))
                else:
                    os.close(fds[name])
        if "stdin" not in fds:
            return None
        if self._stdin is None:
            os.close(fds["stdin"])
            return None
        task = asyncio.create_task(self._feed(FdReader(fds["stdin"])))
        self._readers.append(task)
        return task

    async def _feed(self, source: FdReader) -> None:
        assert self._stdin is not None
        try:
            while data := await source.read():
                await self._stdin.write(data)
                if self._stdin.closed:
                    break
            # A terminal's input has no end of its own: whoever attaches next goes on.
            if not self._terminal:
                self._stdin.close()
        finally:
            source.close()

    async def _pump(self, stream: int, output: OutputStream) -> None:
        while data := await output.read():
            if self._log is not None:
                self._log.write(stream, data)
            sinks = self._sinks[stream]
            for sink in list(sinks):
                if not await sink.write(data):
                    sinks.remove(sink)
                    sink.close()
                    if not sinks and self._log is None:
                        output.close()
                        return
            output.consumed(len(data))

    def detach_stdin(self) -> None:
        """Whoever fed the input is gone."""
        for task in self._readers:
            task.cancel()

    async def drained(self) -> None:
        """Wait, after the process ended, until what it wrote has arrived, or until it cannot be waited for."""
        pending = [task for task in self._pumps if not task.done()]
        if pending:
            await asyncio.wait(pending, timeout=_DRAIN_SECONDS)
        await self.close()

    async def close(self) -> None:
        """Give everything back."""
        tasks = [*self._readers, *self._pumps]
        for task in tasks:
            task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await asyncio.gather(*tasks, return_exceptions=True)
        for output in self._outputs.values():
            output.close()
        if self._stdin is not None:
            self._stdin.close()
        for sinks in self._sinks.values():
            for sink in sinks:
                sink.close()
            sinks.clear()
        self._outputs = {}
        self._readers = []
        self._pumps = []
