"""cruns that are started ahead of the containers they make: which each suits, and what is left of them."""

from __future__ import annotations

import asyncio
import os
import signal
from pathlib import Path
from typing import Any

import pytest

from hako.agent import devices
from hako.agent.ahead import KINDS
from hako.agent_client import AgentClient, OutputStream
from hako.errors import CommandError, ConfigError
from hako.testing.agent import LocalAgent
from support.hostside import config, failure, read_all, until, with_agent

DENY = {"allow": False, "access": "rwm"}
NULL = {"allow": True, "type": "c", "major": 1, "minor": 3, "access": "rwm"}


def usual(*args: str, **more: Any) -> dict[str, Any]:
    """A config.json with the usual rules for devices."""
    return {**config(*args), "linux": {"resources": {"devices": [DENY, NULL]}}, **more}


async def create(
    client: AgentClient, name: str, spec: dict[str, Any], *, start: bool = True, stdin: int | None = None
) -> OutputStream:
    """Make a container with output and errors; return its output."""
    output, errors = client.open_output(), client.open_output()
    stdio = {"stdout": output.number, "stderr": errors.number} | ({} if stdin is None else {"stdin": stdin})
    await client.call("Create", {"container": name, "spec": spec, "stdio": stdio, "start": start})
    return output


def waiting(agent: LocalAgent) -> list[tuple[int, ...]]:
    """Which cruns wait for their config.json: the standard streams that are pipes, of each."""
    base = Path(agent.directory, "containers")
    return [kind for number, kind in enumerate(KINDS) if (base / f"_ahead{number}/config.json").is_fifo()]


def ahead(agent: LocalAgent, name: str) -> bool:
    """Whether the container ``name``, the only one, was made by a crun that was started ahead."""
    (made,) = os.listdir(os.path.join(agent.directory, "crun-state"))
    assert made == name or made.startswith("_ahead")
    return made != name


@pytest.mark.parametrize("start", [True, False])
def test_the_first_container_is_made_by_it(tmp_path: Path, start: bool) -> None:
    async def body(client: AgentClient, agent: LocalAgent) -> None:
        await client.call("Settle", {})
        assert waiting(agent) == [*KINDS]
        # More than a pipe holds by itself.
        spec = usual("sh", "-c", "echo hello; exit 3", annotations={"long": "x" * (100 << 10)})
        output = await create(client, "c", spec, start=start)
        assert ahead(agent, "c")
        state = {"container": "c"}
        if not start:
            assert (await client.call("State", state))["status"] == "created"
            await client.call("Start", state)
        assert (await client.call("Wait", state))["exit_status"] == 3
        assert await read_all(output) == b"hello\n"
        await client.call("Delete", state)
        assert waiting(agent) == [(0, 1, 2), ()]
        assert os.listdir(os.path.join(agent.directory, "crun-state")) == []
        # The next one is made as ever.
        output = await create(client, "d", usual("echo", "again"))
        assert not ahead(agent, "d")
        assert await read_all(output) == b"again\n"

    with_agent(str(tmp_path), body)


@pytest.mark.parametrize("start", [True, False])
def test_a_command_that_does_not_exist(tmp_path: Path, start: bool) -> None:
    async def body(client: AgentClient, agent: LocalAgent) -> None:
        await client.call("Settle", {})
        before = len(agent.open_files())
        error = await failure(create(client, "c", usual("nope"), start=start))
        assert isinstance(error, CommandError)
        assert error.exit_code == 127
        assert waiting(agent) == [(0, 1, 2), ()]
        await until(lambda: len(agent.open_files()) == before - 4)

    with_agent(str(tmp_path), body)


@pytest.mark.parametrize(
    "spec",
    [
        config("cat"),
        usual("cat", hooks={"startContainer": [{"path": "/bin/true"}]}),
        {**config("cat"), "linux": {"resources": {"devices": [{"allow": True, "access": "rwm"}]}}},
    ],
    ids=["rules", "hooks", "all devices"],
)
def test_a_container_that_it_does_not_suit(tmp_path: Path, spec: dict[str, Any]) -> None:
    async def body(client: AgentClient, agent: LocalAgent) -> None:
        await client.call("Settle", {})
        await create(client, "c", spec)
        assert not ahead(agent, "c")
        await client.call("Delete", {"container": "c", "force": True})
        assert waiting(agent) == [*KINDS], "they go on waiting"
        output = await create(client, "d", usual("echo", "hello"))
        assert ahead(agent, "d")
        assert await read_all(output) == b"hello\n"

    with_agent(str(tmp_path), body)


@pytest.mark.parametrize("start", [True, False])
def test_a_container_with_input(tmp_path: Path, start: bool) -> None:
    async def body(client: AgentClient, agent: LocalAgent) -> None:
        await client.call("Settle", {})
        before = len(agent.open_files())
        stream = client.open_input()
        output = await create(client, "c", usual("cat"), start=start, stdin=stream.number)
        assert ahead(agent, "c")
        assert waiting(agent) == [(1, 2), ()]
        await stream.write(b"in")
        if not start:
            await client.call("Start", {"container": "c"})
        stream.close()
        assert await read_all(output) == b"in"
        assert (await client.call("Wait", {"container": "c"}))["exit_status"] == 0
        await client.call("Delete", {"container": "c"})
        await until(lambda: len(agent.open_files()) == before - 6)

    with_agent(str(tmp_path), body)


def test_a_container_that_does_not_read_its_input(tmp_path: Path) -> None:
    async def body(client: AgentClient, agent: LocalAgent) -> None:
        await client.call("Settle", {})
        stream = client.open_input()
        await create(client, "c", usual("sh", "-c", "exec <&-; sleep 60"), stdin=stream.number)
        assert ahead(agent, "c")
        async with asyncio.timeout(20):
            while not stream.closed:
                await stream.write(b"x")
                await asyncio.sleep(0.01)

    with_agent(str(tmp_path), body)


def test_a_container_whose_output_nobody_wants(tmp_path: Path) -> None:
    async def body(client: AgentClient, agent: LocalAgent) -> None:
        await client.call("Settle", {})
        output = await create(client, "c", usual("yes"))
        assert ahead(agent, "c")
        output.close()
        assert (await client.call("Wait", {"container": "c"}))["exit_status"] == 128 + signal.SIGPIPE

    with_agent(str(tmp_path), body)


def test_a_pod(tmp_path: Path) -> None:
    """A pause container, which has no streams, and one without input beside it."""

    async def body(client: AgentClient, agent: LocalAgent) -> None:
        await client.call("Settle", {})
        spec = usual("sh", "-c", "head -c 200000 /dev/zero; exec sleep 60")
        await client.call("Create", {"container": "p", "spec": spec, "stdio": {}, "start": False})
        assert ahead(agent, "p")
        await client.call("Start", {"container": "p"})
        await create(client, "c", usual("sleep", "60"))
        assert waiting(agent) == [(0, 1, 2)]
        # Each name stands for its own.
        pids = {name: (await client.call("State", {"container": name}))["pid"] for name in ("p", "c")}
        for name, pid in pids.items():
            processes = (await client.call("Ps", {"container": name}))["processes"]
            assert [process["pid"] for process in processes] == [pid]
        for name in ("c", "p"):
            await client.call("Kill", {"container": name, "signal": 9})
            assert (await client.call("Wait", {"container": name}))["exit_status"] == 137
            await client.call("Delete", {"container": name})
        assert os.listdir(os.path.join(agent.directory, "crun-state")) == []

    with_agent(str(tmp_path), body)


@pytest.mark.parametrize("missing", ["stdout", "stderr"])
def test_a_container_with_one_output(tmp_path: Path, missing: str) -> None:
    async def body(client: AgentClient, agent: LocalAgent) -> None:
        await client.call("Settle", {})
        (there,) = {"stdout", "stderr"} - {missing}
        output = client.open_output()
        spec = usual("sh", "-c", "echo stdout; echo stderr >&2")
        call = {"container": "c", "spec": spec, "stdio": {there: output.number}, "start": True}
        await client.call("Create", call)
        assert not ahead(agent, "c")
        assert await read_all(output) == f"{there}\n".encode()

    with_agent(str(tmp_path), body)


def test_they_are_started_once(tmp_path: Path) -> None:
    async def body(client: AgentClient, agent: LocalAgent) -> None:
        await client.call("Settle", {"squeeze": True})
        before = agent.open_files()
        await client.call("Settle", {})
        assert waiting(agent) == [*KINDS]
        assert agent.open_files() == before

    with_agent(str(tmp_path), body)


def test_those_that_have_died_are_not_used(tmp_path: Path) -> None:
    async def body(client: AgentClient, agent: LocalAgent) -> None:
        await client.call("Settle", {})
        children = Path(f"/proc/{agent.pid}/task/{agent.pid}/children")
        for pid in children.read_text().split():
            os.kill(int(pid), 9)
        await until(lambda: not children.read_text())
        output = await create(client, "c", usual("echo", "hello"))
        assert not ahead(agent, "c")
        assert await read_all(output) == b"hello\n"

    with_agent(str(tmp_path), body)


def test_a_stream_in_use_is_refused(tmp_path: Path) -> None:
    async def body(client: AgentClient, agent: LocalAgent) -> None:
        await client.call("Settle", {})
        before = len(agent.open_files())
        number = client.open_output().number
        call = {"container": "c", "spec": usual("true"), "stdio": {"stdout": number, "stderr": number}}
        assert isinstance(await failure(client.call("Create", call)), ConfigError)
        await until(lambda: len(agent.open_files()) == before - 4)
        assert waiting(agent) == [(0, 1, 2), ()]

    with_agent(str(tmp_path), body)


@pytest.mark.parametrize(
    "rules",
    [
        [DENY],
        [DENY, NULL],
        [{**DENY, "type": "a"}, {**NULL, "access": "r"}],
        [DENY, {"allow": True, "type": "b", "access": "m"}, {"allow": True, "type": "c", "access": "m"}],
        [DENY, {"allow": True, "type": "c", "major": 136, "access": "rwm"}],
        [DENY, {"allow": False, "type": "c", "major": 10, "minor": 229, "access": "rwm"}],
    ],
)
def test_usual_rules(rules: list[dict[str, Any]]) -> None:
    assert devices.are_usual(rules)


@pytest.mark.parametrize(
    "rules",
    [
        None,
        {},
        [],
        [7],
        [NULL],
        [{"allow": True, "access": "rwm"}],
        [{**DENY, "access": "rw"}],
        [{**DENY, "type": "c"}],
        [{**DENY, "major": 1}],
        [DENY, {"allow": True, "access": "rwm"}],
        [DENY, {**NULL, "minor": 1}],
        [DENY, {**NULL, "type": "b"}],
        [DENY, {"allow": True, "type": "c", "major": 1, "access": "rwm"}],
        [DENY, {"allow": True, "type": "c", "major": 10, "minor": 229, "access": "rwm"}],
        [DENY, {"allow": True, "type": "b", "access": "rm"}],
    ],
)
def test_unusual_rules(rules: object) -> None:
    assert not devices.are_usual(rules)
