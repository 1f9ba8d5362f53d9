"""The agent in a process of the host, for tests: the real code, with hako.testing.crun in crun's place.

    with LocalAgent(directory) as agent:
        client = AgentClient(agent.socket)
        await client.call("Create", {...})

Its containers are plain processes and its cgroups plain files, so neither root nor a VM is needed. What it cannot
show is what crun and the guest's kernel do; tests/system/test_agent.py does that.
"""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import sys
from types import TracebackType

from hako.linux import syscalls


class LocalAgent:
    """An agent that runs as a child of this process until close(). ``directory`` is for its files.

    ``socket`` is the host's end of the connection; ``pid`` the agent's process. Start it before there are
    threads or an event loop: it is forked.
    """

    def __init__(self, directory: str) -> None:
        self.directory = directory
        self.socket, theirs = socket.socketpair()
        # So that it cannot miss the end of the process that started it.
        parent = os.getpid()
        self.pid = os.fork()
        if self.pid == 0:
            status = 1
            try:
                self.socket.close()
                syscalls.prctl(syscalls.PR_SET_PDEATHSIG, signal.SIGKILL)
                if os.getppid() == parent:
                    _be_agent(directory, theirs.detach())
                status = 0
            finally:
                os._exit(status)
        theirs.close()

    def __enter__(self) -> LocalAgent:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """End the agent and all its containers."""
        self.socket.close()
        if self.pid:
            for pid in [*_members(os.path.join(self.directory, "cgroup")), self.pid]:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            os.waitpid(self.pid, 0)
            self.pid = 0

    def memory(self) -> int:
        """Bytes of memory that the agent has of its own at this moment."""
        with open(f"/proc/{self.pid}/smaps_rollup", encoding="ascii") as file:
            return sum(int(line.split()[1]) << 10 for line in file if line.startswith("Private_"))

    def open_files(self) -> list[str]:
        """What the agent has open."""
        directory = f"/proc/{self.pid}/fd"
        return sorted(os.readlink(f"{directory}/{name}") for name in os.listdir(directory))


def fake_crun(directory: str) -> str:
    """Make the program that stands in for crun; return its path."""
    path = os.path.join(directory, "crun")
    program = os.path.join(os.path.dirname(os.path.abspath(__file__)), "crun.py")
    with open(path, "w", encoding="utf-8") as file:
        file.write(f'#!/bin/sh\nexec {sys.executable} -IS {program} "$@"\n')
    os.chmod(path, 0o700)
    return path


def _be_agent(directory: str, port: int) -> None:
    """What hako.agent.main does in a VM, less what concerns the VM."""
    from hako.agent import cgroups, containers, crun, system
    from hako.agent.channel import Channel
    from hako.agent.loop import Loop
    from hako.agent.service import Service

    os.set_blocking(port, False)
    signal.set_wakeup_fd(-1)
    syscalls.prctl(syscalls.PR_SET_CHILD_SUBREAPER, 1)
    crun.CRUN = fake_crun(directory)
    crun._ROOT = os.path.join(directory, "crun-state")
    containers._STATE_DIR = os.path.join(directory, "containers")
    containers._SCRATCH = os.path.join(directory, "scratch")
    cgroups.MOUNT = os.path.join(directory, "cgroup")
    crun._ENV["HAKO_TEST_CGROUP"] = cgroups.MOUNT
    cgroups.kill = _kill_members
    system.unmount_shares = lambda: None
    loop = Loop()
    loop.start()
    service = Service(loop)
    service.attach(Channel(loop, port, service.handle))
    loop.run(service.ended)


def _kill_members(container_id: str) -> None:
    from hako.agent import cgroups

    for pid in _members(cgroups.directory(container_id)):
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)


def _members(directory: str) -> list[int]:
    """The processes in the files that stand for cgroups, below ``directory``."""
    found: list[int] = []
    for base, _, names in os.walk(directory):
        if "cgroup.procs" in names:
            with open(os.path.join(base, "cgroup.procs"), encoding="ascii") as file:
                found += [int(line) for line in file]
    return found
