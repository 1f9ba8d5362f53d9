"""Programs that take what a process writes, as containerd names them."""

from __future__ import annotations

import asyncio
import os
import signal
from pathlib import Path

import pytest

from hako.agent_client import AgentClient
from hako.errors import HostError, TimedOutError
from hako.shim import log_helper, stdio
from support.agentside import open_fds
from support.hostside import failure, until
from support.streams import begin, make_helper, opened, run


@pytest.mark.parametrize(("scheme", "ready"), [("binary", ""), ("binary", "echo >&5"), ("binary-v2", "echo >&5")])
def test_a_log_helper_gets_everything(tmp_path: Path, scheme: str, ready: str) -> None:
    async def body(client: AgentClient) -> None:
        uri = f"{scheme}://{make_helper(tmp_path, ready)}?a=b&c=d+e"
        streams = await opened(stdout=uri, stderr=uri)
        assert (tmp_path / "told").exists(), "it was ready"
        process = await begin(client, "echo hello; echo oops >&2; sleep 0.1; head -c 200000 /dev/zero", streams)
        assert await process.wait() == 0
        await streams.close()

    run(tmp_path, body)
    assert (tmp_path / "out").read_bytes() == b"hello\n" + bytes(200_000)
    assert (tmp_path / "err").read_bytes() == b"oops\n"
    assert (tmp_path / "end").read_text() == "bye\n", "it was let end by itself"
    arguments, *environment, signals = (tmp_path / "told").read_text().splitlines()
    assert arguments == "a b c d e"
    assert set(environment) - {f"PWD={tmp_path}", "OLDPWD=/"} == {
        "CONTAINER_ID=the-container",
        "CONTAINER_NAMESPACE=the-namespace",
    }
    assert int(signals.split()[1], 16) & 1 << (signal.SIGPIPE - 1) == 0


def test_a_log_helper_of_a_terminal(tmp_path: Path) -> None:
    async def body(client: AgentClient) -> None:
        streams = await opened(stdout=f"binary://{make_helper(tmp_path)}", terminal=True)
        process = await begin(client, "echo hello", streams, terminal=True)
        assert await process.wait() == 0
        await asyncio.wait_for(streams.close(), 2)

    run(tmp_path, body)
    assert [(tmp_path / name).read_bytes() for name in ("out", "err", "end")] == [b"hello\r\n", b"", b"bye\n"]


def test_a_log_helper_that_does_not_say_that_it_is_ready(tmp_path: Path) -> None:
    before = open_fds()
    path = make_helper(tmp_path, program="#!/bin/sh\nexit 0\n")
    error = asyncio.run(failure(opened(stdout=f"binary-v2://{path}")))
    assert isinstance(error, HostError)
    assert "ready" in str(error)
    assert open_fds() == before


def test_a_log_helper_that_is_never_ready(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stdio, "_OPEN_SECONDS", 0.2)
    path = make_helper(tmp_path, program='#!/bin/sh\necho $$ > "${0%/*}/pid"\nexec sleep 60\n')

    async def body() -> None:
        with pytest.raises(TimedOutError, match="helper"):
            await opened(stdout=f"binary://{path}")
        await until(lambda: not os.path.exists(f"/proc/{(tmp_path / 'pid').read_text().strip()}"))

    before = open_fds()
    asyncio.run(body())
    assert open_fds() == before


def test_a_process_whose_log_helper_has_ended_gets_sigpipe(tmp_path: Path) -> None:
    async def body(client: AgentClient) -> None:
        uri = f"binary://{make_helper(tmp_path, program='#!/bin/sh')}"
        streams = await opened(stdout=uri, stderr=uri)
        process = await begin(client, "while :; do echo hello; done", streams)
        assert await asyncio.wait_for(process.wait(), 10) == 128 + signal.SIGPIPE
        await asyncio.wait_for(streams.close(), 1)

    run(tmp_path, body)


@pytest.mark.parametrize("deaf", [False, True])
def test_a_log_helper_that_stays_is_ended(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, *, deaf: bool) -> None:
    monkeypatch.setattr(log_helper, "_END_SECONDS", 0.2)
    monkeypatch.setattr(log_helper, "_TERM_SECONDS", 0.2)
    trap = "trap '' TERM" if deaf else "trap 'echo term > \"${0%/*}/end\"; exit' TERM"
    path = make_helper(tmp_path, program=f"#!/bin/sh\n{trap}\nexec 5>&-\nwhile :; do sleep 0.05; done\n")

    async def body(client: AgentClient) -> None:
        streams = await opened(stdout=f"binary://{path}")
        process = await begin(client, "echo hello", streams)
        assert await process.wait() == 0
        await asyncio.wait_for(streams.close(), 5)

    run(tmp_path, body)
    assert (tmp_path / "end").exists() is not deaf
