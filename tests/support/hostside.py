"""The host's side of the agent connection for tests: a client, its streams, a container's config.json."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from hako.agent_client import AgentClient, OutputStream
from hako.errors import HakoError
from hako.sandbox.logs import LogWriter
from hako.sandbox.process_io import ProcessIO
from hako.testing.agent import LocalAgent

Body = Callable[[AgentClient, LocalAgent], Awaitable[None]]


def with_agent(directory: str, body: Body, seconds: float = 60.0) -> None:
    """Run ``body`` with a client of a LocalAgent."""
    with LocalAgent(directory) as agent:

        async def main() -> None:
            client = AgentClient(agent.socket)
            try:
                await asyncio.wait_for(body(client, agent), seconds)
            finally:
                client.close()

        asyncio.run(main())


def config(*args: str, terminal: bool = False, **annotations: str) -> dict[str, Any]:
    """A config.json that runs ``args``."""
    process = {"args": list(args), "cwd": "/", "env": ["PATH=/bin"], "terminal": terminal}
    marks = {key.replace("_", "."): value for key, value in annotations.items()}
    return {"ociVersion": "1.0.2", "root": {"path": "rootfs"}, "process": process, "annotations": marks}


async def read_all(output: OutputStream) -> bytes:
    """Everything to the end of ``output``."""
    pieces = []
    while piece := await output.read():
        pieces.append(piece)
        output.consumed(len(piece))
    return b"".join(pieces)


async def failure(call: Awaitable[object]) -> HakoError:
    """The error that ``call`` ends with."""
    try:
        await call
    except HakoError as error:
        return error
    pytest.fail("it did not fail")


async def until(condition: Callable[[], object], seconds: float = 20.0) -> None:
    """Wait for ``condition()`` to be true."""
    async with asyncio.timeout(seconds):
        while not condition():
            await asyncio.sleep(0.005)


class Started:
    """A container whose streams a ProcessIO owns."""

    def __init__(self, client: AgentClient, io: ProcessIO) -> None:
        self.client = client
        self.io = io

    async def wait(self) -> int:
        """Wait for its end, then for its output; the exit status."""
        status = int((await self.client.call("Wait", {"container": "c"}))["exit_status"])
        await self.io.drained()
        return status


async def start(
    client: AgentClient,
    script: str,
    fds: dict[str, int] | None = None,
    *,
    terminal: bool = False,
    log: LogWriter | None = None,
    keep_stdin: bool = False,
    lingers: bool = False,
) -> Started:
    """Run ``script`` with ``fds``, which are owned from now on."""
    io = ProcessIO(client, terminal=terminal, log=log, keep_stdin=keep_stdin, lingers=lingers)
    stdio = io.open_streams(fds or {})
    spec = config("sh", "-c", script, terminal=terminal)
    await client.call("Create", {"container": "c", "spec": spec, "stdio": stdio, "start": True})
    return Started(client, io)


def read_now(fd: int) -> bytes:
    """All that is in the pipe ``fd`` up to its end."""
    pieces = []
    while piece := os.read(fd, 1 << 20):
        pieces.append(piece)
    os.close(fd)
    return b"".join(pieces)
