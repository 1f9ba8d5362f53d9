"""A crun that is started ahead of the container it makes: which containers it suits, and what is left of it."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

from hako.agent import devices
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


def waiting(agent: LocalAgent) -> bool:
    """Whether a crun waits for its config.json."""
    return os.path.exists(os.path.join(agent.directory, "containers", "_ahead", "config.json"))


def ahead(agent: LocalAgent, name: str) -> bool:
    """Whether the container ``name`` was made by the crun that was started ahead."""
    state = os.path.join(agent.directory, "crun-state")
    assert len(os.listdir(state)) == 1
    return not os.path.exists(os.path.join(state, name))


@pytest.mark.parametrize("start", [True, False])
def test_the_first_container_is_made_by_it(tmp_path: Path, start: bool) -> None:
    async def body(client: AgentClient, agent: LocalAgent) -> None:
        await client.call("Settle", {})
        assert waiting(agent)
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
        assert not waiting(agent)
        assert os.listdir(os.path.join(agent.directory, "crun-state")) == []
        # The next one is made as ever.
        output = await create(client, "d", usual("echo", "again"))
        assert not ahead(agent, "d")
        assert await read_all(output) == b"again\n"

    with_agent(str(tmp_path), body)


@pytest.mark.parametrize("start", [True, False])
def test_a_command_that_does_not_exist(tmp_path: Path, start: bool) -> None:
    async def body(client: AgentClient, agent: LocalAgent) -> None:
        await client.call("Info", {})
        before = agent.open_files()
        await client.call("Settle", {})
        error = await failure(create(client, "c", usual("nope"), start=start))
        assert isinstance(error, CommandError)
        assert error.exit_code == 127
        assert not waiting(agent)
        await until(lambda: agent.open_files() == before)

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
        assert waiting(agent), "it goes on waiting"
        output = await create(client, "d", usual("echo", "hello"))
        assert ahead(agent, "d")
        assert await read_all(output) == b"hello\n"

    with_agent(str(tmp_path), body)


def test_a_container_with_input(tmp_path: Path) -> None:
    async def body(client: AgentClient, agent: LocalAgent) -> None:
        await client.call("Settle", {})
        stream = client.open_input()
        output = await create(client, "c", usual("cat"), stdin=stream.number)
        assert not ahead(agent, "c")
        await stream.write(b"in")
        stream.close()
        assert await read_all(output) == b"in"

    with_agent(str(tmp_path), body)


def test_one_that_has_died_is_not_used(tmp_path: Path) -> None:
    async def body(client: AgentClient, agent: LocalAgent) -> None:
        await client.call("Settle", {})
        children = Path(f"/proc/{agent.pid}/task/{agent.pid}/children")
        (pid,) = children.read_text().split()
        os.kill(int(pid), 9)
        await until(lambda: not children.read_text())
        output = await create(client, "c", usual("echo", "hello"))
        assert not ahead(agent, "c")
        assert await read_all(output) == b"hello\n"

    with_agent(str(tmp_path), body)


def test_a_stream_in_use_is_refused(tmp_path: Path) -> None:
    async def body(client: AgentClient, agent: LocalAgent) -> None:
        await client.call("Info", {})
        before = agent.open_files()
        await client.call("Settle", {})
        number = client.open_output().number
        call = {"container": "c", "spec": usual("true"), "stdio": {"stdout": number, "stderr": number}}
        assert isinstance(await failure(client.call("Create", call)), ConfigError)
        await until(lambda: agent.open_files() == before)
        assert not waiting(agent)

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
