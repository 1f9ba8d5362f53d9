"""The standard streams of one process between the agent's raw streams, the log and whoever is attached."""

from __future__ import annotations

import asyncio
import contextlib
import os
import stat
from typing import Any

from hako.agent_client import AgentClient, InputStream, OutputStream
from hako.sandbox.fdio import FdReader, FdWriter
from hako.sandbox.logs import STDERR, STDOUT, LogWriter
from hako.sandbox.trace import Trace

#: After a process ended, something it left behind may hold its output open; waited for this long, seconds,
_DRAIN_SECONDS = 2.0
#: or for so many bytes, which is more than can still be under way from the process itself.
_DRAIN_BYTES = 1 << 20


class Attachment:
    """Descriptors that somebody has joined to a process."""

    def __init__(
        self, sinks: dict[int, list[FdWriter]], joined: list[tuple[int, FdWriter]], reader: asyncio.Task[None] | None
    ) -> None:
        self._sinks = sinks
        self._joined = joined
        self._reader = reader

    def sinks(self) -> set[FdWriter]:
        """Those that are written to."""
        return {sink for _, sink in self._joined}

    def end(self) -> None:
        """Part them from it: nothing is read from or written to them any more."""
        if self._reader is not None:
            self._reader.cancel()
        for stream, sink in self._joined:
            if sink in self._sinks[stream]:
                self._sinks[stream].remove(sink)
                sink.close()


class ProcessIO:
    """Owns the streams of one process; starts with open_streams(), ends with close().

    ``keep_stdin`` keeps the input open although nobody is attached yet (``run -d -i``). ``trace`` is told of the
    first output. With ``lingers`` the process's end does not wait for output that nobody takes, which goes on after it.
    One that is not ``started`` by the call that makes it is given no input before start().
    """

    def __init__(
        self,
        client: AgentClient,
        *,
        terminal: bool,
        log: LogWriter | None,
        keep_stdin: bool,
        lingers: bool = False,
        started: bool = True,
        trace: Trace | None = None,
    ) -> None:
        self._client = client
        self._terminal = terminal
        self._log = log
        self._keep_stdin = keep_stdin
        self._lingers = lingers
        self._trace = trace
        self._stdin: InputStream | None = None
        self._outputs: dict[int, OutputStream] = {}
        self._sinks: dict[int, list[FdWriter]] = {STDOUT: [], STDERR: []}
        #: Those the process was started with, in place of its own descriptors.
        self._first: set[FdWriter] = set()
        self._pumps: list[asyncio.Task[None]] = []
        self._readers: set[asyncio.Task[None]] = set()
        self._may_read = asyncio.Event()
        if started:
            self._may_read.set()
        self._input_ends = False
        self._draining: asyncio.Task[None] | None = None
        #: Pumps that wait for somebody to take what they have.
        self._handing_on = 0
        self._handed_on = 0

    def open_streams(self, fds: dict[str, int]) -> dict[str, Any]:
        """Open the streams this process needs, attach ``fds`` (stdin, stdout, stderr; owned from now on).

        Returns the ``stdio`` object for the agent's call.
        """
        numbers: dict[str, Any] = {}
        if not self._terminal and not self._keep_stdin and "stdin" in fds and _is_null(fds["stdin"]):
            # What engines give a process that is to have no input. The guest has a null device of its own for it.
            os.close(fds.pop("stdin"))
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
        attachment = self.attach(fds)
        if not self._terminal:
            self._first = attachment.sinks()
        for stream, output in self._outputs.items():
            self._pumps.append(asyncio.create_task(self._pump(stream, output)))
        return numbers

    def attach(self, fds: dict[str, int]) -> Attachment:
        """Join ``fds`` to the process; they are owned from now on. Returns what parts them again."""
        joined: list[tuple[int, FdWriter]] = []
        for stream, name in ((STDOUT, "stdout"), (STDERR, "stderr")):
            if name in fds:
                if stream in self._outputs:
                    joined.append((stream, FdWriter(fds[name])))
                    self._sinks[stream].append(joined[-1][1])
                else:
                    os.close(fds[name])
        reader: asyncio.Task[None] | None = None
        if "stdin" in fds and self._stdin is None:
            os.close(fds["stdin"])
        elif "stdin" in fds:
            reader = asyncio.create_task(self._feed(FdReader(fds["stdin"])))
            self._readers.add(reader)
            reader.add_done_callback(self._readers.discard)
        return Attachment(self._sinks, joined, reader)

    async def _feed(self, source: FdReader) -> None:
        assert self._stdin is not None
        try:
            # Whoever writes is not told that it has been read before there is somebody to read it: ctr, for one, would
            # be done before it knows what to close then.
            await self._may_read.wait()
            while data := await source.read():
                await self._stdin.write(data)
                if self._stdin.closed:
                    break
            # A terminal's input has no end of its own: whoever attaches next goes on.
            if self._input_ends or not self._terminal:
                self._end_input()
        finally:
            source.close()

    def start(self) -> None:
        """The process runs now: what it is to read may come."""
        self._may_read.set()

    def close_stdin(self) -> None:
        """No input follows what has been handed in: then the process sees its end, of a terminal the hang-up."""
        self._input_ends = True
        if all(reader.done() for reader in self._readers):
            self._end_input()

    def _end_input(self) -> None:
        if self._stdin is not None:
            self._stdin.close()
            for output in self._outputs.values() if self._terminal else ():
                output.close()
                output.feed(b"", end=True)  # nothing will come from the guest

    async def _pump(self, stream: int, output: OutputStream) -> None:
        while data := await output.read():
            if self._trace is not None:
                self._trace.moment("first output", "container")
                self._trace = None
            if self._log is not None:
                self._log.write(stream, data)
            self._handing_on += 1
            try:
                wanted = await self._hand_on(self._sinks[stream], data)
            finally:
                self._handing_on -= 1
            if not wanted:
                output.close()
                return
            output.consumed(len(data))
            self._handed_on += len(data)

    async def _hand_on(self, sinks: list[FdWriter], data: bytes) -> bool:
        """Write ``data`` to all who want it; False when the process has to learn that nobody does any more.

        That is when nothing is logged, and when the pipe that the process was started with has no reader: of
        ``run IMAGE yes | head``, ``yes`` is to end.
        """
        for sink in list(sinks):
            # One that was parted from the process meanwhile is not among them any more, and has not failed.
            if not await sink.write(data) and sink in sinks:
                sinks.remove(sink)
                sink.close()
                if not sinks and (self._log is None or sink in self._first):
                    return False
        return True

    async def drained(self) -> None:
        """Wait, after the process ended, until what it wrote has arrived, or until it cannot be waited for.

        Data that nobody takes, but somebody may (a pager that shows its first page), is waited for without end, unless
        the streams linger: then it goes on in the background.
        """
        if self._draining is None:
            self._draining = asyncio.create_task(self._drain())
        done, _ = await asyncio.wait({self._draining}, timeout=_DRAIN_SECONDS if self._lingers else None)
        for task in done:
            if not task.cancelled():  # by close()
                task.result()

    @property
    def is_drained(self) -> bool:
        """Whether nothing of the process's output is under way any more."""
        return self._draining is not None and self._draining.done()

    async def _drain(self) -> None:
        pending = {task for task in self._pumps if not task.done()}
        enough = self._handed_on + _DRAIN_BYTES
        while pending:
            before = self._handed_on
            done, pending = await asyncio.wait(pending, timeout=_DRAIN_SECONDS)
            if not done and not self._handing_on and (self._handed_on == before or self._handed_on > enough):
                break
        await self.close()

    async def close(self) -> None:
        """Give everything back."""
        tasks = [*self._readers, *self._pumps]
        if self._draining is not None and self._draining is not asyncio.current_task():
            tasks.append(self._draining)
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
        self._pumps = []


def _is_null(fd: int) -> bool:
    """Whether ``fd`` is the null device."""
    found = os.fstat(fd)
    return stat.S_ISCHR(found.st_mode) and found.st_rdev == os.makedev(1, 3)
