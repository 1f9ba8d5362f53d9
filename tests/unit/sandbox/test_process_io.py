"""A process's streams between the agent, the log and whoever is attached, with a real agent and real processes."""

from __future__ import annotations

import asyncio
import os
import select
from pathlib import Path

import pytest

from hako.agent_client import AgentClient
from hako.sandbox import logs, process_io
from hako.sandbox.logs import LogWriter
from hako.sandbox.process_io import ProcessIO
from hako.testing.agent import LocalAgent
from hako.wire.calls import WINDOW
from support.agentside import open_fds
from support.hostside import config, read_now, start, until, with_agent


def entries(path: Path) -> dict[int, bytes]:
    """What the log at ``path`` has for each stream."""
    found: dict[int, bytes] = {}
    for entry in logs.read(str(path)):
        found[entry.stream] = found.get(entry.stream, b"") + entry.data
    return found


def test_all_three_streams_and_the_log(tmp_path: Path) -> None:
    async def body(client: AgentClient, _agent: LocalAgent) -> None:
        before = open_fds()
        given, stdout, stderr = os.pipe(), os.pipe(), os.pipe()
        writer = LogWriter(str(tmp_path / "log"), 1 << 20)
        fds = {"stdin": given[0], "stdout": stdout[1], "stderr": stderr[1]}
        process = await start(client, "cat; echo problem >&2; exit 3", fds, log=writer)
        os.write(given[1], b"hello")
        os.close(given[1])
        assert await process.wait() == 3
        assert (read_now(stdout[0]), read_now(stderr[0])) == (b"hello", b"problem\n")
        assert entries(tmp_path / "log") == {1: b"hello", 2: b"problem\n"}
        writer.close()
        assert open_fds() == before

    with_agent(str(tmp_path), body)


def test_only_what_somebody_wants_is_transported(tmp_path: Path) -> None:
    async def body(client: AgentClient, _agent: LocalAgent) -> None:
        io = ProcessIO(client, terminal=False, log=None, keep_stdin=False)
        assert io.open_streams({}) == {}
        await io.close()
        io = ProcessIO(client, terminal=True, log=None, keep_stdin=True)
        assert set(io.open_streams({})) == {"stdin", "stdout"}
        await io.close()
        assert client._streams == {}

    with_agent(str(tmp_path), body)


@pytest.mark.parametrize("keep_stdin", [False, True])
def test_the_null_device_is_the_guests_own(tmp_path: Path, keep_stdin: bool) -> None:
    async def body(client: AgentClient, _agent: LocalAgent) -> None:
        read, write = os.pipe()
        null = os.open("/dev/null", os.O_RDONLY)
        script = "stat -Lc %F /dev/stdin; cat"
        started = await start(client, script, {"stdin": null, "stdout": write}, keep_stdin=keep_stdin)
        # Without a keeper the input is at its end.
        if not keep_stdin:
            assert await started.wait() == 0
        else:
            await until(lambda: select.select([read], [], [], 0)[0])
        await started.io.close()
        assert read_now(read) == (b"fifo\n" if keep_stdin else b"character special file\n")

    with_agent(str(tmp_path), body)


def test_a_slow_reader_of_one_stream_does_not_hold_up_the_other(tmp_path: Path) -> None:
    async def body(client: AgentClient, _agent: LocalAgent) -> None:
        stdout, stderr = os.pipe(), os.pipe()
        script = f"head -c {WINDOW * 4} /dev/zero & head -c 3000000 /dev/zero >&2; wait"
        process = await start(client, script, {"stdout": stdout[1], "stderr": stderr[1]})
        assert len(await asyncio.to_thread(read_exactly, stderr[0], 3_000_000)) == 3_000_000
        reading = asyncio.create_task(asyncio.to_thread(read_now, stdout[0]))
        assert await process.wait() == 0
        assert len(await reading) == WINDOW * 4
        os.close(stderr[0])

    with_agent(str(tmp_path), body)


def read_exactly(fd: int, count: int) -> bytes:
    data = bytearray()
    while len(data) < count:
        data += os.read(fd, count - len(data))
    return bytes(data)


def test_output_waits_for_a_pager_after_the_process_has_ended(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(process_io, "_DRAIN_SECONDS", 0.02)

    async def body(client: AgentClient, _agent: LocalAgent) -> None:
        stdout = os.pipe()
        process = await start(client, "head -c 200000 /dev/zero", {"stdout": stdout[1]})
        waiting = asyncio.create_task(process.wait())
        await until(lambda: process.io._handing_on)
        await asyncio.sleep(0.2)
        assert not waiting.done(), "the last page is still to be shown"
        assert len(await asyncio.to_thread(read_now, stdout[0])) == 200_000
        assert await waiting == 0

    with_agent(str(tmp_path), body)


@pytest.mark.parametrize("script", ["sleep 60 & echo done", "(while :; do echo x; done) & echo done"])
def test_what_a_process_leaves_behind_is_not_waited_for(
    script: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(process_io, "_DRAIN_SECONDS", 0.05)

    async def body(client: AgentClient, _agent: LocalAgent) -> None:
        before = open_fds()
        null = os.open("/dev/null", os.O_WRONLY)
        process = await start(client, script, {"stdout": null})
        assert await asyncio.wait_for(process.wait(), 10) == 0
        assert open_fds() == before

    with_agent(str(tmp_path), body)


@pytest.mark.parametrize("logged", [False, True])
def test_the_reader_of_the_first_output_goes_away(logged: bool, tmp_path: Path) -> None:
    """As of ``hako run IMAGE yes | head``: the process gets SIGPIPE."""

    async def body(client: AgentClient, _agent: LocalAgent) -> None:
        stdout = os.pipe()
        writer = LogWriter(str(tmp_path / "log"), 1 << 16) if logged else None
        process = await start(client, "while :; do echo x; done", {"stdout": stdout[1]}, log=writer)
        assert await asyncio.to_thread(os.read, stdout[0], 2) == b"x\n"
        os.close(stdout[0])
        assert await process.wait() == 141
        if writer is not None:
            writer.close()

    with_agent(str(tmp_path), body)


def test_attaching_and_going_again(tmp_path: Path) -> None:
    async def body(client: AgentClient, _agent: LocalAgent) -> None:
        before = open_fds()
        process = await start(client, 'while read line; do echo "got $line"; done', keep_stdin=True)
        for word in (b"one", b"two"):
            given, stdout = os.pipe(), os.pipe()
            attachment = process.io.attach({"stdin": given[0], "stdout": stdout[1]})
            os.write(given[1], word + b"\n")
            assert await asyncio.to_thread(os.read, stdout[0], 100) == b"got " + word + b"\n"
            attachment.end()
            attachment.end()
            assert await asyncio.to_thread(os.read, stdout[0], 100) == b"", "its copy is closed"
            for fd in (given[1], stdout[0]):
                os.close(fd)
        assert (await client.call("State", {"container": "c"}))["status"] == "running"
        given = os.pipe()
        process.io.attach({"stdin": given[0]})
        os.close(given[1])  # and this end is the process's
        assert await process.wait() == 0
        assert open_fds() == before

    with_agent(str(tmp_path), body)


def test_leaving_while_output_is_held_up_lets_it_go_on(tmp_path: Path) -> None:
    async def body(client: AgentClient, _agent: LocalAgent) -> None:
        process = await start(client, "read line; head -c 3000000 /dev/zero; exit 5", keep_stdin=True)
        given, stdout = os.pipe(), os.pipe()
        attachment = process.io.attach({"stdin": given[0], "stdout": stdout[1]})
        os.write(given[1], b"go\n")
        await until(lambda: process.io._handing_on)
        await asyncio.sleep(0.02)
        attachment.end()
        assert await process.wait() == 5, "not killed by SIGPIPE"
        for fd in (given[1], stdout[0]):
            os.close(fd)

    with_agent(str(tmp_path), body)


def test_two_who_are_attached_get_the_same(tmp_path: Path) -> None:
    async def body(client: AgentClient, _agent: LocalAgent) -> None:
        process = await start(client, "read line; echo hello; echo oops >&2", keep_stdin=True)
        pipes = [os.pipe() for _ in range(4)]
        given = os.pipe()
        process.io.attach({"stdout": pipes[0][1], "stderr": pipes[1][1]})
        process.io.attach({"stdin": given[0], "stdout": pipes[2][1], "stderr": pipes[3][1]})
        os.write(given[1], b"go\n")
        os.close(given[1])
        assert await process.wait() == 0
        assert [read_now(read) for read, _ in pipes] == [b"hello\n", b"oops\n"] * 2

    with_agent(str(tmp_path), body)


def test_what_cannot_be_joined_is_closed(tmp_path: Path) -> None:
    async def body(client: AgentClient, _agent: LocalAgent) -> None:
        before = open_fds()
        process = await start(client, "exec sleep 60")
        pipes = [os.pipe() for _ in range(3)]
        process.io.attach({"stdin": pipes[0][0], "stdout": pipes[1][1], "stderr": pipes[2][1]})
        for fd in (pipes[0][1], pipes[1][0], pipes[2][0]):
            os.close(fd)
        assert open_fds() == before

    with_agent(str(tmp_path), body)


def test_the_end_of_a_terminals_input_is_not_the_processs(tmp_path: Path) -> None:
    async def body(client: AgentClient, _agent: LocalAgent) -> None:
        given = os.pipe()
        process = await start(client, "read line; echo got $line", {"stdin": given[0]}, terminal=True, keep_stdin=True)
        os.close(given[1])
        await asyncio.sleep(0.05)
        given, stdout = os.pipe(), os.pipe()
        process.io.attach({"stdin": given[0], "stdout": stdout[1]})
        os.write(given[1], b"more\n")
        assert await process.wait() == 0
        assert read_now(stdout[0]).replace(b"\r", b"").endswith(b"got more\n")
        os.close(given[1])

    with_agent(str(tmp_path), body)


def test_close_gives_everything_back_in_the_middle(tmp_path: Path) -> None:
    async def body(client: AgentClient, _agent: LocalAgent) -> None:
        before = open_fds()
        given, stdout = os.pipe(), os.pipe()
        process = await start(
            client, "while :; do echo x; done", {"stdin": given[0], "stdout": stdout[1]}, keep_stdin=True
        )
        await until(lambda: process.io._handing_on)
        await process.io.close()
        await process.io.close()
        assert client._streams == {}
        for fd in (given[1], stdout[0]):
            os.close(fd)
        assert open_fds() == before

    with_agent(str(tmp_path), body)


def test_no_more_input_is_to_come(tmp_path: Path) -> None:
    async def body(client: AgentClient, _agent: LocalAgent) -> None:
        before = open_fds()
        given, stdout = os.pipe(), os.pipe()
        process = await start(client, "cat; exit 3", {"stdin": given[0], "stdout": stdout[1]})
        process.io.close_stdin()
        os.write(given[1], b"all of it")  # whoever has the other end may not be done
        os.close(given[1])
        assert await process.wait() == 3
        process.io.close_stdin()
        assert read_now(stdout[0]) == b"all of it"
        assert open_fds() == before

    with_agent(str(tmp_path), body)


def test_no_more_input_where_nobody_is_attached(tmp_path: Path) -> None:
    async def body(client: AgentClient, _agent: LocalAgent) -> None:
        process = await start(client, "cat; exit 3", keep_stdin=True)
        process.io.close_stdin()
        assert await process.wait() == 3

    with_agent(str(tmp_path), body)


@pytest.mark.parametrize("end_first", [False, True])
def test_a_terminal_hangs_up_when_no_more_input_is_to_come(tmp_path: Path, *, end_first: bool) -> None:
    async def body(client: AgentClient, _agent: LocalAgent) -> None:
        before = open_fds()
        given, stdout = os.pipe(), os.pipe()
        fds = {"stdin": given[0], "stdout": stdout[1]}
        process = await start(client, "trap 'exit 7' HUP; echo ready; read line; sleep 60", fds, terminal=True)
        assert await asyncio.to_thread(os.read, stdout[0], 100) == b"ready\r\n"
        if end_first:
            os.close(given[1])
            await until(lambda: not process.io._readers)
            process.io.close_stdin()
        else:
            process.io.close_stdin()
            os.close(given[1])
        assert await asyncio.wait_for(process.wait(), 10) == 7
        assert read_now(stdout[0]) == b""
        assert open_fds() == before

    with_agent(str(tmp_path), body)


def test_streams_that_linger_do_not_hold_up_the_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(process_io, "_DRAIN_SECONDS", 0.02)

    async def body(client: AgentClient, _agent: LocalAgent) -> None:
        before = open_fds()
        stdout = os.pipe()
        process = await start(client, "head -c 200000 /dev/zero", {"stdout": stdout[1]}, lingers=True)
        assert await process.wait() == 0, "nobody has read it yet"
        assert not process.io.is_drained
        assert len(await asyncio.to_thread(read_now, stdout[0])) == 200_000
        await until(lambda: process.io.is_drained)
        assert open_fds() == before

    with_agent(str(tmp_path), body)


def test_streams_that_linger_are_given_back_by_close(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(process_io, "_DRAIN_SECONDS", 0.02)

    async def body(client: AgentClient, _agent: LocalAgent) -> None:
        before = open_fds()
        stdout = os.pipe()
        process = await start(client, "head -c 200000 /dev/zero", {"stdout": stdout[1]}, lingers=True)
        assert await process.wait() == 0
        await process.io.close()
        await process.io.close()
        assert process.io.is_drained
        os.close(stdout[0])
        assert open_fds() == before

    with_agent(str(tmp_path), body)


def test_nothing_is_read_for_a_process_that_does_not_run_yet(tmp_path: Path) -> None:
    async def body(client: AgentClient, _agent: LocalAgent) -> None:
        given, stdout = os.pipe(), os.pipe()
        os.set_blocking(given[1], False)
        io = ProcessIO(client, terminal=False, log=None, keep_stdin=False, started=False)
        stdio = io.open_streams({"stdin": given[0], "stdout": stdout[1]})
        await client.call("Create", {"container": "c", "spec": config("cat"), "stdio": stdio})
        written = os.write(given[1], bytes(1 << 20))
        await asyncio.sleep(0.1)
        with pytest.raises(BlockingIOError):
            os.write(given[1], b"more")
        await client.call("Start", {"container": "c"})
        io.start()
        os.close(given[1])
        assert len(await asyncio.to_thread(read_exactly, stdout[0], written)) == written
        await client.call("Wait", {"container": "c"})
        await io.drained()
        os.close(stdout[0])

    with_agent(str(tmp_path), body)
