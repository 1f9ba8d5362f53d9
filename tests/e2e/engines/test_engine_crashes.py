"""Containers of docker whose VMs or sandbox processes are killed at random: docker notices, and nothing is left."""

from __future__ import annotations

import contextlib
import os
import random
import signal
import threading
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from conftest import Roots
from support import leaks
from support.engines import IMAGE, Box
from support.machine import until

pytestmark = [pytest.mark.e2e, pytest.mark.slow]

_LOOP = "while :; do echo going on; sleep 0.2; done"


def sandboxes(roots: Roots) -> set[int]:
    """The processes that own a VM."""
    return {pid for pid in leaks.processes(roots.base) if _name(pid) == "hako-sandbox"}


class Killer:
    """Kills each process at most once, whichever thread asks."""

    def __init__(self, box: Box, roots: Roots, seed: int) -> None:
        self.killed: set[int] = set()
        self._box, self._roots = box, roots
        self._random = random.Random(seed)
        self._lock = threading.Lock()

    def strike(self) -> None:
        """Kill what one more container depends on, with SIGKILL."""
        with self._lock:
            owners = sandboxes(self._roots) if self._box.runtime == "hako" else self._first_processes()
            left = sorted(owners - self.killed)
            if not left:
                return
            owner = self._random.choice(left)
            self.killed.add(owner)
            # The VM and the process that owns it: whichever goes first, the other one follows.
            victim = self._random.choice([owner, *_children(owner, "qemu-system")])
            with contextlib.suppress(ProcessLookupError):
                os.kill(victim, signal.SIGKILL)

    def _first_processes(self) -> set[int]:
        names = self._box.output("ps", "-q").split()
        pids = (self._box("inspect", "-f", "{{.State.Pid}}", name, check=False).stdout for name in names)
        return {int(pid) for pid in pids if pid.strip() not in ("", "0")}


def _name(pid: int) -> str:
    try:
        with open(f"/proc/{pid}/comm", encoding="utf-8") as file:
            return file.read().strip()
    except OSError:
        return ""


def _children(pid: int, name: str) -> list[int]:
    try:
        with open(f"/proc/{pid}/task/{pid}/children", encoding="ascii") as file:
            return [int(child) for child in file.read().split() if _name(int(child)).startswith(name)]
    except OSError:
        return []


def _create_and_kill(box: Box, roots: Roots, *, containers: int, streams: int) -> None:
    killer = Killer(box, roots, seed=containers)
    # What only the first start needs is made before anything is killed.
    box("run", "--rm", IMAGE, "true")

    def stream(number: int) -> list[str]:
        failed = []
        for count in range(number, containers, streams):
            done = box("run", "-d", "--name", f"crash{count}", IMAGE, "sh", "-c", _LOOP, check=False)
            if done.status != 0:
                assert "OCI runtime" in done.stderr or "No such" in done.stderr, done.stderr
                failed.append(f"crash{count}")
            if count % 2:
                killer.strike()
        return failed

    with ThreadPoolExecutor(streams) as pool:
        failed = [name for names in pool.map(stream, range(streams)) for name in names]
    names = [f"crash{count}" for count in range(containers)]
    states: dict[str, dict[str, Any]] = {}

    def settled() -> bool:
        states.update((name, box.state(name)) for name in names)
        running = [name for name in names if states[name]["Status"] == "running"]
        return all(box("exec", name, "echo", "alive", check=False).status == 0 for name in running)

    until(settled, "docker has noticed each end", 120)
    running = [name for name in names if states[name]["Status"] == "running"]
    # A VM that is killed while it is being cloned is replaced by one that boots, so there may be more.
    assert len(running) >= containers - len(killer.killed), states
    assert len(running) < containers
    for name in set(names) - {*running, *failed}:
        assert (states[name]["Status"], states[name]["ExitCode"]) == ("exited", 137)
    box("rm", "-f", *names)
    assert box.output("ps", "-aq") == ""


@pytest.mark.parametrize("box", ["docker-hako", "podman-hako"], indirect=True)
@pytest.mark.parametrize("what", ["VM", "sandbox process"])
def test_a_running_container_loses(box: Box, roots: Roots, what: str) -> None:
    box.start("victim", IMAGE, "sh", "-c", _LOOP)
    box.until_logged("victim", "going on")
    (owner,) = sandboxes(roots)
    (vm,) = _children(owner, "qemu-system")
    os.kill(vm if what == "VM" else owner, signal.SIGKILL)
    assert box.output("wait", "victim") == "137"
    assert box.until_state("victim", "exited")["ExitCode"] == 137
    box("start", "victim")
    until(lambda: box.state("victim")["Status"] == "running", "it runs again")
    assert box.output("exec", "victim", "echo", "alive") == "alive"


@pytest.mark.parametrize("box", ["docker-runc", "docker-hako"], indirect=True)
def test_some_of_eight_are_killed(box: Box, roots: Roots) -> None:
    _create_and_kill(box, roots, containers=8, streams=2)


@pytest.mark.soak
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("box", ["docker-runc", "docker-hako"], indirect=True)
def test_half_of_hundreds_are_killed(box: Box, roots: Roots) -> None:
    for _ in range(2):
        _create_and_kill(box, roots, containers=50, streams=4)
