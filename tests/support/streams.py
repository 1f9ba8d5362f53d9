"""A process's streams as containerd names them: opened as the shim does, used by processes of a real agent."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

from hako.agent_client import AgentClient
from hako.shim.stdio import Stdio, open_stdio
from hako.testing.agent import LocalAgent
from support.agentside import open_fds
from support.hostside import Started, start, with_agent

#: Writes what it is told and gets into files beside it, and ends when its input does.
HELPER = """\
#!/bin/sh
cd "${0%/*}"
{ echo "$@"; env; grep SigIgn /proc/self/status; } > told
READY
exec 5>&-
cat <&3 > out &
cat <&4 > err &
exec 3<&- 4<&-
wait
echo bye > end
"""


async def opened(stdin: str = "", stdout: str = "", stderr: str = "", *, terminal: bool = False, **more: Any) -> Stdio:
    """open_stdio() for a container with a name."""
    return await open_stdio(
        stdin, stdout, stderr, terminal=terminal, container_id="the-container", namespace="the-namespace", **more
    )


def run(directory: Path, body: Callable[[AgentClient], Awaitable[None]]) -> None:
    """Run ``body`` with an agent; descriptors of this process that are left fail the test."""

    async def checked(client: AgentClient, _agent: LocalAgent) -> None:
        before = open_fds()
        await body(client)
        assert open_fds() == before

    agent = directory / "agent"
    agent.mkdir()
    with_agent(str(agent), checked)


async def begin(client: AgentClient, script: str, streams: Stdio, *, terminal: bool = False) -> Started:
    """Run ``script`` with ``streams``."""
    return await start(client, script, streams.take(), terminal=terminal, lingers=True)


def make_helper(directory: Path, ready: str = "", program: str = HELPER) -> str:
    """A log helper in ``directory``; it runs the commands ``ready`` when it is."""
    path = directory / "helper"
    path.write_text(program.replace("READY", ready))
    path.chmod(0o755)
    return str(path)
