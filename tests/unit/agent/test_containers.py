"""Containers in the agent, driven through the whole protocol: the real agent in a process, a stand-in for crun."""

from __future__ import annotations

import asyncio
import os
import signal
from pathlib import Path
from typing import Any

import pytest

from hako.agent_client import AgentClient
from hako.errors import AgentError, CommandError, ConfigError, ExistsError, NotFoundError, StateError
from hako.testing.agent import LocalAgent
from hako.wire.calls import WINDOW
from support.hostside import config, failure, read_all, until, with_agent


async def create(client: AgentClient, name: str, *args: str, start: bool = False, **more: Any) -> dict[str, Any]:
    params = {"container": name, "spec": config(*args), "stdio": {}, "start": start}
    return await client.call("Create", {**params, **more})


async def wait(client: AgentClient, name: str, exec_id: str = "") -> int:
    end = await client.call("Wait", {"container": name, **({"exec": exec_id} if exec_id else {})})
    assert isinstance(end["exit_status"], int)
    return end["exit_status"]


async def status(client: AgentClient, name: str) -> str:
    return str((await client.call("State", {"container": name}))["status"])


def left_behind(agent: LocalAgent) -> list[str]:
    """Files of the agent that belong to some container."""
    found = []
    for name in ("containers", "scratch", "crun-state", "cgroup"):
        for base, _, files in os.walk(os.path.join(agent.directory, name)):
            found += [os.path.join(base, file) for file in files]
    return found


def test_the_life_of_a_container(tmp_path: Path) -> None:
    async def body(client: AgentClient, agent: LocalAgent) -> None:
        output = client.open_output()
        answer = await create(client, "c", "sh", "-c", "echo hello; exit 3", stdio={"stdout": output.number})
        assert answer["pid"] > 1
        assert await status(client, "c") == "created"
        assert isinstance(await failure(client.call("Pause", {"container": "c"})), StateError)
        assert isinstance(await failure(client.call("Exec", {**exec_params("true"), "container": "c"})), StateError)
        await client.call("Start", {"container": "c"})
        assert isinstance(await failure(client.call("Start", {"container": "c"})), StateError)
        assert await wait(client, "c") == 3
        assert await read_all(output) == b"hello\n"
        assert await status(client, "c") == "stopped"
        assert await wait(client, "c") == 3, "the status stays until the container is deleted"
        for method in ("Start", "Pause", "Resume"):
            assert isinstance(await failure(client.call(method, {"container": "c"})), StateError)
        assert isinstance(await failure(client.call("Kill", {"container": "c", "signal": 9})), NotFoundError)
        await client.call("Delete", {"container": "c"})
        assert isinstance(await failure(client.call("State", {"container": "c"})), NotFoundError)
        assert left_behind(agent) == []

    with_agent(str(tmp_path), body)


def exec_params(*args: str, name: str = "e", **stdio: int) -> dict[str, Any]:
    return {"container": "c", "exec": name, "process": config(*args)["process"], "stdio": stdio}


def test_exec(tmp_path: Path) -> None:
    async def body(client: AgentClient, agent: LocalAgent) -> None:
        await create(client, "c", "sleep", "60", start=True)
        output = client.open_output()
        await client.call("Exec", exec_params("sh", "-c", "echo inside; exit 7", stdout=output.number))
        assert await read_all(output) == b"inside\n"
        assert await wait(client, "c", "e") == 7
        assert isinstance(await failure(client.call("Exec", exec_params("true"))), ExistsError)
        await client.call("Delete", {"container": "c", "exec": "e"})
        assert isinstance(await failure(client.call("Wait", {"container": "c", "exec": "e"})), NotFoundError)
        await client.call("Exec", exec_params("sleep", "60"))
        assert isinstance(await failure(client.call("Delete", {"container": "c", "exec": "e"})), StateError)
        await client.call("Kill", {"container": "c", "exec": "e", "signal": int(signal.SIGTERM)})
        assert await wait(client, "c", "e") == 128 + signal.SIGTERM
        assert await status(client, "c") == "running"

    with_agent(str(tmp_path), body)


@pytest.mark.parametrize("start", [False, True])
def test_a_command_that_does_not_exist(tmp_path: Path, start: bool) -> None:
    async def body(client: AgentClient, agent: LocalAgent) -> None:
        await client.call("Info", {})  # it is up
        before = agent.open_files()
        output = client.open_output()
        error = await failure(create(client, "c", "nope", start=start, stdio={"stdout": output.number}))
        assert isinstance(error, CommandError)
        assert error.exit_code == 127
        assert await read_all(output) == b"", "crun's own words are not the container's output"
        assert left_behind(agent) == []
        assert agent.open_files() == before
        await create(client, "c", "true", start=True)
        assert await wait(client, "c") == 0

    with_agent(str(tmp_path), body)


def test_an_exec_of_what_does_not_exist(tmp_path: Path) -> None:
    async def body(client: AgentClient, agent: LocalAgent) -> None:
        await create(client, "c", "sleep", "60", start=True)
        before, files = agent.open_files(), left_behind(agent)
        error = await failure(client.call("Exec", exec_params("nope")))
        assert isinstance(error, CommandError)
        assert error.exit_code == 127
        assert isinstance(await failure(client.call("Wait", {"container": "c", "exec": "e"})), NotFoundError)
        assert (agent.open_files(), left_behind(agent)) == (before, files)
        await client.call("Exec", exec_params("true"))
        assert await wait(client, "c", "e") == 0

    with_agent(str(tmp_path), body)


def test_a_creation_that_fails_half_way_leaves_nothing(tmp_path: Path) -> None:
    async def body(client: AgentClient, agent: LocalAgent) -> None:
        await client.call("Info", {})  # it is up
        before = agent.open_files()
        error = await failure(create(client, "c", "sleep", "60", spec=config("sleep", "60", fail="create")))
        assert "create c: create fails because the test wants it to" in str(error)
        assert left_behind(agent) == []
        assert agent.open_files() == before
        assert (await client.call("Info", {}))["containers"] == []

    with_agent(str(tmp_path), body)


def test_a_process_that_ends_before_crun_does(tmp_path: Path) -> None:
    gate = str(tmp_path / "gate")

    async def body(client: AgentClient, agent: LocalAgent) -> None:
        ended = tmp_path / "ended"
        spec = config("sh", "-c", f"touch {ended}; exit 4", hold_run=gate)
        creation = asyncio.create_task(create(client, "c", "true", start=True, spec=spec))
        await until(ended.exists)
        Path(gate).touch()
        await creation
        assert await wait(client, "c") == 4

    with_agent(str(tmp_path), body)


def test_a_name_is_taken_from_the_first_moment(tmp_path: Path) -> None:
    gate = str(tmp_path / "gate")

    async def body(client: AgentClient, agent: LocalAgent) -> None:
        first = asyncio.create_task(create(client, "c", "true", spec=config("true", hold_create=gate)))
        await until((tmp_path / "crun-state" / "c").exists)
        assert isinstance(await failure(create(client, "c", "true")), ExistsError)
        for method in ("Start", "Wait", "Delete", "Stats"):
            assert isinstance(await failure(client.call(method, {"container": "c"})), NotFoundError)
        Path(gate).touch()
        await first
        assert await status(client, "c") == "created"

    with_agent(str(tmp_path), body)


def test_deleting_twice_at_once(tmp_path: Path) -> None:
    gate = str(tmp_path / "gate")

    async def body(client: AgentClient, agent: LocalAgent) -> None:
        await create(client, "c", "true", start=True, spec=config("true", hold_delete=gate))
        assert await wait(client, "c") == 0
        first = asyncio.create_task(client.call("Delete", {"container": "c"}))
        await asyncio.sleep(0)
        error = await failure(client.call("Delete", {"container": "c"}))
        assert isinstance(error, StateError)
        assert "cannot delete container c in the deleting state" in str(error)
        Path(gate).touch()
        await first

    with_agent(str(tmp_path), body)


def test_a_failed_delete_can_be_repeated(tmp_path: Path) -> None:
    async def body(client: AgentClient, agent: LocalAgent) -> None:
        await create(client, "c", "true", start=True, spec=config("true", fail="delete"))
        await wait(client, "c")
        for _ in range(2):
            assert isinstance(await failure(client.call("Delete", {"container": "c"})), AgentError)

    with_agent(str(tmp_path), body)


def test_delete_needs_force_for_a_running_container(tmp_path: Path) -> None:
    async def body(client: AgentClient, agent: LocalAgent) -> None:
        output = client.open_output()
        await create(client, "c", "sh", "-c", "echo up; exec sleep 60", start=True, stdio={"stdout": output.number})
        assert await output.read() == b"up\n"
        assert isinstance(await failure(client.call("Delete", {"container": "c"})), StateError)
        waiting = asyncio.create_task(wait(client, "c"))
        await client.call("Delete", {"container": "c", "force": True})
        assert await waiting == 137
        assert await read_all(output) == b""

    with_agent(str(tmp_path), body)


def test_output_that_nobody_has_taken_yet_survives_delete(tmp_path: Path) -> None:
    async def body(client: AgentClient, agent: LocalAgent) -> None:
        output = client.open_output()
        size = 400_000
        script = f"head -c {size} /dev/zero"
        await create(client, "c", "sh", "-c", script, start=True, stdio={"stdout": output.number})
        waiting = asyncio.create_task(wait(client, "c"))
        taken = 0
        while not waiting.done():  # just enough for the process to end, with a pipe full still under way
            piece = await output.read()
            taken += len(piece)
            output.consumed(len(piece))
            await asyncio.sleep(0)
        await client.call("Delete", {"container": "c"})
        assert taken + len(await read_all(output)) == size

    with_agent(str(tmp_path), body)


def test_kill_one_or_all(tmp_path: Path) -> None:
    async def body(client: AgentClient, agent: LocalAgent) -> None:
        script = 'trap "echo got it" USR1; echo up; while :; do sleep 0.05; done'
        outputs = [client.open_output(), client.open_output()]
        await create(client, "c", "sh", "-c", script, start=True, stdio={"stdout": outputs[0].number})
        await client.call("Exec", exec_params("sh", "-c", script, stdout=outputs[1].number))
        for output in outputs:
            assert await output.read() == b"up\n"
        await client.call("Kill", {"container": "c", "signal": int(signal.SIGUSR1), "exec": "e"})
        assert await outputs[1].read() == b"got it\n"
        await client.call("Kill", {"container": "c", "signal": int(signal.SIGUSR1), "all": True})
        assert [await output.read() for output in outputs] == [b"got it\n"] * 2
        await client.call("Kill", {"container": "c", "signal": 0})
        await client.call("Kill", {"container": "c", "signal": 9, "all": True})
        assert (await wait(client, "c"), await wait(client, "c", "e")) == (137, 137)

    with_agent(str(tmp_path), body)


def test_pause_and_resume(tmp_path: Path) -> None:
    freeze = tmp_path / "cgroup" / "hako" / "c" / "cgroup.freeze"

    async def body(client: AgentClient, agent: LocalAgent) -> None:
        await create(client, "c", "sleep", "60", start=True)
        assert isinstance(await failure(client.call("Resume", {"container": "c"})), StateError)
        await client.call("Pause", {"container": "c"})
        assert (await status(client, "c"), freeze.read_text()) == ("paused", "1")
        assert isinstance(await failure(client.call("Pause", {"container": "c"})), StateError)
        assert isinstance(await failure(client.call("Exec", exec_params("true"))), StateError)
        await client.call("Resume", {"container": "c"})
        assert (await status(client, "c"), freeze.read_text()) == ("running", "0")
        await client.call("Pause", {"container": "c"})
        await client.call("Kill", {"container": "c", "signal": 9})
        assert await wait(client, "c") == 137
        assert await status(client, "c") == "stopped"

    with_agent(str(tmp_path), body)


def test_pause_waits_for_the_processes_to_stand_still(tmp_path: Path) -> None:
    events = tmp_path / "cgroup" / "hako" / "c" / "cgroup.events"

    async def body(client: AgentClient, agent: LocalAgent) -> None:
        await create(client, "c", "sleep", "60", start=True)
        events.write_text("populated 1\nfrozen 0\n")
        pause = asyncio.create_task(client.call("Pause", {"container": "c"}))
        await asyncio.sleep(0)
        assert await status(client, "c") == "paused"
        assert not pause.done()
        events.write_text("populated 1\nfrozen 1\n")
        await pause
        await client.call("Resume", {"container": "c"})
        events.write_text("populated 1\nfrozen 0\n")
        error = await failure(client.call("Pause", {"container": "c"}))
        assert "processes that do not stop" in str(error)
        assert await status(client, "c") == "running"

    with_agent(str(tmp_path), body)


def test_update_stats_and_ps(tmp_path: Path) -> None:
    cgroup = tmp_path / "cgroup" / "hako" / "c"

    async def body(client: AgentClient, agent: LocalAgent) -> None:
        pid = (await create(client, "c", "sleep", "60", start=True))["pid"]
        await client.call("Update", {"container": "c", "resources": {"memory": {"limit": 12345}}})
        (cgroup / "memory.current").write_text("77\n")
        (cgroup / "pids.max").write_text("max\n")
        (cgroup / "cpu.stat").write_text("usage_usec 5\nodd line\n")
        (cgroup / "io.stat").write_text("8:0 rbytes=1 wbytes=2 rios=3 wios=4\n8:16 rbytes=10 wbytes=x\n")
        stats = await client.call("Stats", {"container": "c"})
        assert (stats["memory"]["limit"], stats["memory"]["usage"], stats["memory"]["peak"]) == (12345, 77, None)
        assert (stats["pids"]["limit"], stats["cpu"]) == (None, {"usage_usec": 5})
        first = {"major": 8, "minor": 0, "rbytes": 1, "wbytes": 2, "rios": 3, "wios": 4}
        second = {"major": 8, "minor": 16, "rbytes": 10, "wbytes": 0, "rios": 0, "wios": 0}
        assert stats["io"] == {"rbytes": 11, "wbytes": 2, "rios": 3, "wios": 4, "devices": [first, second]}
        (entry,) = (await client.call("Ps", {"container": "c"}))["processes"]
        assert (entry["pid"], entry["command"], entry["uid"]) == (pid, "sleep 60", os.getuid())
        resources = {"memory": {"limit": 1}}
        await client.call("Kill", {"container": "c", "signal": 9})
        await wait(client, "c")
        assert isinstance(await failure(client.call("Update", {"container": "c", "resources": resources})), StateError)

    with_agent(str(tmp_path), body)


def test_an_out_of_memory_kill_is_reported(tmp_path: Path) -> None:
    async def body(client: AgentClient, agent: LocalAgent) -> None:
        await create(client, "c", "sleep", "60", start=True)
        (tmp_path / "cgroup" / "hako" / "c" / "memory.events").write_text("oom 1\noom_kill 1\n")
        for name, command in (("fine", "exit 0"), ("killed", "kill -9 $$")):
            await client.call("Exec", exec_params("sh", "-c", command, name=name))
            end = await client.call("Wait", {"container": "c", "exec": name})
            assert end["oom"] is (name == "killed")
        await client.call("Kill", {"container": "c", "signal": 15})
        assert (await client.call("Wait", {"container": "c"}))["oom"] is True

    with_agent(str(tmp_path), body)


def test_stdin(tmp_path: Path) -> None:
    async def body(client: AgentClient, agent: LocalAgent) -> None:
        stdin, stdout = client.open_input(), client.open_output()
        await create(client, "c", "cat", start=True, stdio={"stdin": stdin.number, "stdout": stdout.number})
        text = os.urandom(1 << 20)
        reading = asyncio.create_task(read_all(stdout))
        await stdin.write(text)
        stdin.close()
        assert await reading == text
        assert await wait(client, "c") == 0

    with_agent(str(tmp_path), body)


def test_stdin_of_a_process_that_does_not_read_it(tmp_path: Path) -> None:
    async def body(client: AgentClient, agent: LocalAgent) -> None:
        stdin, stdout = client.open_input(), client.open_output()
        script = "exec 0<&-; echo closed; exec sleep 60"
        await create(
            client, "c", "sh", "-c", script, start=True, stdio={"stdin": stdin.number, "stdout": stdout.number}
        )
        assert await stdout.read() == b"closed\n"
        await asyncio.wait_for(stdin.write(bytes(4 << 20)), 20)
        assert stdin.closed

    with_agent(str(tmp_path), body)


def test_a_process_whose_output_nobody_wants_gets_sigpipe(tmp_path: Path) -> None:
    async def body(client: AgentClient, agent: LocalAgent) -> None:
        stdout = client.open_output()
        await create(client, "c", "sh", "-c", "while :; do echo x; done", start=True, stdio={"stdout": stdout.number})
        await stdout.read()
        stdout.close()
        assert await wait(client, "c") == 128 + signal.SIGPIPE

    with_agent(str(tmp_path), body)


def test_a_terminal(tmp_path: Path) -> None:
    async def body(client: AgentClient, agent: LocalAgent) -> None:
        stdin, stdout = client.open_input(), client.open_output()
        spec = config("sh", "-c", "stty size; read line; stty size; echo got $line", terminal=True)
        stdio = {"stdin": stdin.number, "stdout": stdout.number, "stderr": 9999}
        await create(client, "c", "sh", spec=spec, stdio=stdio, width=100, height=33, start=True)
        assert await stdout.read() == b"33 100\r\n"
        await client.call("Resize", {"container": "c", "width": 81, "height": 25})
        await stdin.write(b"hello\n")
        assert (await read_all(stdout)).replace(b"\r", b"").split(b"\n") == [b"hello", b"25 81", b"got hello", b""]
        assert await wait(client, "c") == 0
        await client.call("Resize", {"container": "c", "width": 80, "height": 24})
        await client.call("Delete", {"container": "c"})
        assert left_behind(agent) == []

    with_agent(str(tmp_path), body)


def test_a_terminal_whose_host_lets_go_hangs_up(tmp_path: Path) -> None:
    async def body(client: AgentClient, agent: LocalAgent) -> None:
        stdin, stdout = client.open_input(), client.open_output()
        stdio = {"stdin": stdin.number, "stdout": stdout.number}
        spec = config("sh", "-c", "echo up; while :; do sleep 0.05; done", terminal=True)
        await create(client, "c", "sh", spec=spec, stdio=stdio, start=True)
        assert await stdout.read() == b"up\r\n"
        stdout.close()
        assert await wait(client, "c") == 128 + signal.SIGHUP
        await until(lambda: stdin.closed)

    with_agent(str(tmp_path), body)


def test_a_process_without_terminal_cannot_be_resized(tmp_path: Path) -> None:
    async def body(client: AgentClient, agent: LocalAgent) -> None:
        await create(client, "c", "sleep", "60", start=True)
        error = await failure(client.call("Resize", {"container": "c", "width": 1, "height": 1}))
        assert isinstance(error, StateError)
        assert isinstance(await failure(client.call("Resize", {"container": "c"})), ConfigError)

    with_agent(str(tmp_path), body)


def test_long_names_with_a_terminal(tmp_path: Path) -> None:
    """The path of a socket is short, the name of a container need not be."""
    name = "n" * 128

    async def body(client: AgentClient, agent: LocalAgent) -> None:
        spec = config("true", terminal=True)
        await create(client, name, "true", spec=spec, start=True)
        assert await wait(client, name) == 0

    with_agent(str(tmp_path), body)


def test_many_containers_at_once(tmp_path: Path) -> None:
    async def body(client: AgentClient, agent: LocalAgent) -> None:
        async def one(number: int) -> None:
            output = client.open_output()
            script = f"echo {number}; exit {number}"
            await create(client, f"c{number}", "sh", "-c", script, start=True, stdio={"stdout": output.number})
            assert await wait(client, f"c{number}") == number
            assert await read_all(output) == b"%d\n" % number
            await client.call("Delete", {"container": f"c{number}"})

        await client.call("Info", {})  # it is up
        before = agent.open_files()
        await asyncio.gather(*(one(number) for number in range(20)))
        assert left_behind(agent) == []
        assert agent.open_files() == before

    with_agent(str(tmp_path), body)


def test_a_slow_reader_costs_the_agent_no_memory(tmp_path: Path) -> None:
    async def body(client: AgentClient, agent: LocalAgent) -> None:
        slow, quick = client.open_output(), client.open_output()
        script = "head -c 300000000 /dev/zero >&2 & cat /dev/zero | head -c 50000000; wait"
        stdio = {"stdout": quick.number, "stderr": slow.number}
        await create(client, "c", "sh", "-c", script, start=True, stdio=stdio)
        before = agent.memory()
        taken = 0
        while taken < 50_000_000:
            piece = await quick.read()
            taken += len(piece)
            quick.consumed(len(piece))
        await client.call("Info", {}, 2.0)
        assert agent.memory() - before < 2 << 20
        held = await slow.read()
        assert len(held) <= WINDOW
        slow.consumed(len(held))
        assert len(held) + len(await read_all(slow)) == 300_000_000
        assert agent.memory() - before < 2 << 20
        assert await wait(client, "c") == 0

    with_agent(str(tmp_path), body)


def test_shutdown_ends_everything_and_lets_nothing_begin(tmp_path: Path) -> None:
    async def body(client: AgentClient, agent: LocalAgent) -> None:
        await create(client, "c", "sleep", "60", start=True)
        await create(client, "d", "sleep", "60")
        waiting = asyncio.create_task(wait(client, "c"))
        await client.call("Shutdown", {})
        assert await waiting == 137
        assert await status(client, "d") == "stopped"
        assert isinstance(await failure(create(client, "e", "true")), StateError)

    with_agent(str(tmp_path), body)
