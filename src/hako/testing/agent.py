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
import subprocess
import sys
from types import TracebackType

from hako.linux import syscalls


class LocalAgent:
    """An agent that runs as a child of this process until close(). ``directory`` is for its files.

    ``socket`` is the host's end of the connection; ``pid`` the agent's process. It is a fresh interpreter, so
    that what it has open and how much memory it takes are its own.
    """

    def __init__(self, directory: str) -> None:
        self.directory = directory
        self.socket, theirs = socket.socketpair()
        code = "import sys; sys.path[:] = sys.argv[3].split(':'); from hako.testing import agent; agent.main()"
        argv = [sys.executable, "-IS", "-c", code, directory, str(theirs.fileno()), ":".join(sys.path)]
        with theirs:
            self._process = subprocess.Popen(argv, pass_fds=(theirs.fileno(),), stdin=subprocess.DEVNULL)
        self.pid = self._process.pid

    def __enter__(self) -> LocalAgent:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """End the agent and all its containers."""
        self.socket.close()
        for pid in _members(os.path.join(self.directory, "cgroup")):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        self._process.kill()
        self._process.wait()

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


def main() -> None:
    """What hako.agent.main does in a VM, less what concerns the VM. Directory and port are arguments."""
    from hako.agent import cgroups, containers, crun, devices, network, pci, sockets, system
    from hako.agent.channel import Channel
    from hako.agent.loop import Loop
    from hako.agent.service import Service

    directory, port = sys.argv[1], int(sys.argv[2])
    os.set_blocking(port, False)
    os.set_inheritable(port, False)
    syscalls.prctl(syscalls.PR_SET_PDEATHSIG, signal.SIGKILL)
    syscalls.prctl(syscalls.PR_SET_CHILD_SUBREAPER, 1)
    crun.CRUN = fake_crun(directory)
    crun._ROOT = os.path.join(directory, "crun-state")
    containers._STATE_DIR = os.path.join(directory, "containers")
    containers._SCRATCH = os.path.join(directory, "scratch")
    sockets._DIRECTORY = os.path.join(directory, "sockets")
    cgroups.MOUNT = os.path.join(directory, "cgroup")
    crun._ENV["HAKO_TEST_CGROUP"] = cgroups.MOUNT
    cgroups.kill = _kill_members
    system.unmount_shares = lambda: None
    # The interfaces here are the host's.
    network.cards = list
    network.missing = lambda wanted, links: ""  # noqa: ARG005
    network.apply = lambda wanted, links, *, describe=True: []  # noqa: ARG005
    # So are memory and devices.
    system.reserve_memory = lambda *, little: None  # noqa: ARG005
    system.drop_caches = pci.ignore_hotplug = lambda: None
    pci.learn_share = lambda: False
    devices.guard = lambda key: True  # noqa: ARG005
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
