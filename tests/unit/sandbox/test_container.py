"""A container's processes on the host's side."""

from __future__ import annotations

import asyncio
import os
from pathlib import Path

import pytest

from hako.agent_client import AgentClient
from hako.errors import NotFoundError
from hako.sandbox import process_io
from hako.sandbox.container import Container
from hako.sandbox.process_io import ProcessIO
from hako.sandbox.trace import Trace
from hako.testing.agent import LocalAgent
from support.agentside import open_fds
from support.hostside import config, with_agent


@pytest.mark.parametrize("read", [False, True])
def test_output_outlives_an_exec_that_is_forgotten(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, *, read: bool
) -> None:
    monkeypatch.setattr(process_io, "_DRAIN_SECONDS", 0.02)

    async def body(client: AgentClient, _agent: LocalAgent) -> None:
        before = open_fds()
        container = Container(client, "c", Trace())
        io = ProcessIO(client, terminal=False, log=None, keep_stdin=False)
        first = {"container": "c", "spec": config("sleep", "60"), "start": True}
        await container.run("Create", first, "", io, {})
        stdout = os.pipe()
        io = ProcessIO(client, terminal=False, log=None, keep_stdin=False, lingers=True)
        added = {"container": "c", "exec": "e", "process": config("head", "-c", "200000", "/dev/zero")["process"]}
        process, _ = await container.run("Exec", added, "e", io, {"stdout": stdout[1]})
        assert (await asyncio.wait_for(process.watch(), 10))["exit_status"] == 0
        assert container.forget("e")
        assert not container.forget("e")
        with pytest.raises(NotFoundError):
            container.process("e")
        assert not io.is_drained
        if read:
            assert len(await asyncio.to_thread(_read_all, stdout[0])) == 200_000
        await container.close()
        assert io.is_drained
        os.close(stdout[0])
        assert open_fds() == before

    with_agent(str(tmp_path), body)


def _read_all(fd: int) -> bytes:
    found = b""
    while data := os.read(fd, 1 << 16):
        found += data
    return found
