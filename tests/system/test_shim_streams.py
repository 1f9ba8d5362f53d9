"""Streams as containerd names them, and what a guest measures, in a real VM."""

from __future__ import annotations

import asyncio
import contextlib
import os
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import pytest

import hako
from hako.sandbox import client, requests
from hako.shim import metrics
from hako.shim import metrics_v2_messages as v2
from hako.shim.stdio import Stdio, open_stdio

pytestmark = [pytest.mark.system, pytest.mark.usefixtures("guest_image", "busybox_image")]


class Guest:
    """A container of a VM that takes further processes, by the calls of its sandbox."""

    def __init__(self, sandbox: str, container: str) -> None:
        self._sandbox = sandbox
        self.container = container

    async def call(self, method: str, params: dict[str, Any], fds: dict[str, int] | None = None) -> dict[str, Any]:
        given = list((fds or {}).values())
        return await asyncio.to_thread(client.call, self._sandbox, method, params, given)

    async def exec(self, name: str, script: str, streams: Stdio, *, terminal: bool = False) -> None:
        process = {"args": ["sh", "-c", script], "cwd": "/", "env": ["PATH=/bin"], "terminal": terminal}
        fds = streams.take()
        params = requests.exec(self.container, name, process, list(fds)) | {"lingers": True}
        await self.call("Exec", params, fds)
        for fd in fds.values():
            os.close(fd)

    async def about(self, method: str, name: str) -> dict[str, Any]:
        return await self.call(method, requests.target(self.container, name))


@pytest.fixture(scope="module")
def guest(guest_image: object, busybox_image: object) -> Iterator[Guest]:
    with hako.Sandbox(image="busybox") as sandbox:
        yield Guest(sandbox.id, sandbox.create(["sleep", "1000"]).id)


@contextlib.asynccontextmanager
async def fifos(directory: Path, *, terminal: bool = False) -> AsyncIterator[tuple[Stdio, int, int]]:
    """Streams at fifos, with a writer of the input and a reader of the output."""
    names = [str(directory / name) for name in ("in", "out")]
    for name in names:
        os.mkfifo(name)
    reader = os.open(names[1], os.O_RDONLY | os.O_NONBLOCK)
    streams = await open_stdio(names[0], names[1], "", terminal=terminal, container_id="c", namespace="n")
    writer = os.open(names[0], os.O_WRONLY)
    try:
        yield streams, writer, reader
    finally:
        await streams.close()
        os.close(reader)


async def read_until(fd: int, end: bytes) -> bytes:
    """What the fifo has up to ``end``."""
    found = b""
    deadline = time.monotonic() + 30
    while not found.endswith(end):
        with contextlib.suppress(BlockingIOError):
            found += os.read(fd, 1 << 16)
        assert time.monotonic() < deadline, found
        await asyncio.sleep(0.01)
    return found


def test_input_ends_when_it_is_closed(guest: Guest, tmp_path: Path) -> None:
    async def body() -> None:
        async with fifos(tmp_path) as (streams, writer, reader):
            await guest.exec("cat", "cat; echo end; exit 3", streams)
            waiting = asyncio.create_task(guest.about("Wait", "cat"))
            os.write(writer, b"hello\n")
            os.close(writer)
            assert await read_until(reader, b"\n") == b"hello\n"
            assert not waiting.done()
            await guest.about("CloseStdin", "cat")
            streams.close_stdin()
            assert (await asyncio.wait_for(waiting, 30))["exit_status"] == 3
            assert os.read(reader, 100) == b"end\n"
            assert os.read(reader, 100) == b"", "the end"

    asyncio.run(body())


def test_a_terminal_hangs_up_when_its_input_is_closed(guest: Guest, tmp_path: Path) -> None:
    async def body() -> None:
        async with fifos(tmp_path, terminal=True) as (streams, writer, reader):
            await guest.exec(
                "tty", "trap 'exit 7' HUP; echo ready; read line; sleep 1000 & wait", streams, terminal=True
            )
            waiting = asyncio.create_task(guest.about("Wait", "tty"))
            await read_until(reader, b"ready\r\n")
            os.close(writer)
            streams.close_stdin()
            await guest.about("CloseStdin", "tty")
            assert (await asyncio.wait_for(waiting, 30))["exit_status"] == 7
            assert os.read(reader, 100) == b""

    asyncio.run(body())


def test_what_a_guest_measures_has_both_forms(guest: Guest) -> None:
    stats = asyncio.run(guest.call("Stats", {"container": guest.container}))
    found = metrics.of_container(stats, unified=True)
    assert isinstance(found, v2.Metrics)
    assert found.pids is not None
    assert (found.pids.current > 0, found.pids.limit) == (True, (1 << 64) - 1)
    assert found.cpu is not None
    assert found.memory is not None
    assert found.cpu.usage_usec >= found.cpu.user_usec + found.cpu.system_usec - 1 > 0
    assert found.memory.usage_limit == (1 << 64) - 1
    assert found.memory.usage >= found.memory.anon > 0
    assert found.memory.pgfault > 0
    former = metrics.of_container(stats, unified=False)
    assert former.memory is not None
    assert former.memory.usage is not None
    assert type(former).decode(former.encode()) == former
