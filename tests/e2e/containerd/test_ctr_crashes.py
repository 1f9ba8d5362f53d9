"""containerd, a shim or a VM is killed, with runc and with hako: tasks go on, or end once and leave nothing."""

from __future__ import annotations

import os
import signal
import subprocess
from pathlib import Path

import pytest

from support.ctr import Ctr
from support.engines import differs
from support.machine import until

pytestmark = [pytest.mark.e2e, pytest.mark.slow]

_LOOP = "i=0; while :; do i=$((i+1)); echo $i; sleep 0.1; done"

GAP = differs(
    "a task that ends while containerd 2 does not run",
    runc="is removed when containerd is back, without an exit code",
    hako="has ended, with its exit code",
    why="containerd removes what says that it has no process; an ended task of hako still names its own",
)


def bundle(ctr: Ctr, name: str) -> Path:
    """The directory that containerd has made for a task."""
    return Path(ctr.containerd.base, "state", "io.containerd.runtime.v2.task", ctr.containerd.namespace, name)


def children(pid: int) -> list[int]:
    """The processes that ``pid`` has started."""
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def test_containerd_is_killed(ctr: Ctr, tmp_path: Path) -> None:
    log = ctr.start("on", "sh", "-c", _LOOP)
    go = f"type=bind,src={tmp_path},dst=/go,options=rbind:ro"
    ctr.start("ends", "sh", "-c", "until [ -e /go/on ]; do sleep 0.1; done; echo over; exit 9", options=("--mount", go))
    ctr.until_logged(log, "3\n")
    pid = ctr.tasks()["on"][0]
    ctr.containerd.kill()
    (tmp_path / "on").touch()
    # Both go on without containerd.
    ctr.until_logged(f"{ctr.directory}/ends.log", "over")
    seen = len(Path(log).read_text().splitlines())
    ctr.until_logged(log, f"{seen + 5}\n")
    ctr.containerd.restart()
    assert ctr.tasks()["on"] == (pid, "RUNNING")
    if ctr.either(GAP, runc=ctr.containerd.has_sandbox_api, hako=False):
        assert "ends" not in ctr.tasks()
    else:
        ctr.until_stopped("ends")
        assert ctr.delete("ends") == 9
    assert ctr.exec("on", "echo", "alive").stdout == "alive\n"
    with ctr.events() as events:
        ctr("task", "kill", "--signal", "KILL", "on")
        ctr.until_stopped("on")
        assert ctr.delete("on") == 137
        events.until("on", "exit", "delete")
    numbers = [int(line) for line in Path(log).read_text().splitlines()]
    assert numbers == list(range(1, len(numbers) + 1))


def test_containerd_is_restarted_with_a_client_on_fifos(ctr: Ctr) -> None:
    ctr("run", "--detach", *ctr.made("talks", "sh", "-c", "while read -r line; do echo got $line; done"))
    for turn in range(2):
        argv = ctr.containerd.argv("task", "attach", "talks")
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
        with subprocess.Popen(argv, env=ctr.containerd.machine.environment, **pipes) as client:
            assert client.stdin is not None
            assert client.stdout is not None
            client.stdin.write(b"%d\n" % turn)
            client.stdin.flush()
            assert client.stdout.readline() == b"got %d\n" % turn
            client.kill()
        ctr.containerd.restart()
    assert ctr.status("talks") == "RUNNING"


def test_the_shim_is_killed(ctr: Ctr) -> None:
    log = ctr.start("victim", "sh", "-c", _LOOP)
    ctr.until_logged(log, "3\n")
    (shim,) = ctr.shims()
    with ctr.events() as events:
        os.kill(shim, signal.SIGKILL)
        until(lambda: "exit" in events.topics("victim"), "containerd is told of the end")
        exits = [event.content for event in events.of("victim") if event.topic == "/tasks/exit"]
    assert [content["exit_status"] for content in exits] == [137]
    assert ctr.status("victim") in ("", "STOPPED")
    ctr.remove("victim")
    assert ctr.tasks() == {}
    assert not bundle(ctr, "victim").exists()
    # The same name can be used at once.
    assert ctr.run("echo", "again", name="victim").stdout == "again\n"


def test_the_first_process_is_killed_from_outside(ctr: Ctr) -> None:
    """Under hako that is the VM."""
    log = ctr.start("victim", "sh", "-c", _LOOP)
    ctr.until_logged(log, "3\n")
    (shim,) = ctr.shims()
    machines = [pid for pid in children(shim) if Path(f"/proc/{pid}/comm").read_text().startswith("qemu-system")]
    victims = machines if ctr.hako else [ctr.tasks()["victim"][0]]
    with ctr.events() as events:
        for pid in victims:
            os.kill(pid, signal.SIGKILL)
        ctr.until_stopped("victim")
        assert ctr.exec("victim", "true", check=False).status != 0
        assert ctr.delete("victim") == 137
        exit, *_ = events.until("victim", "exit", "delete")
    assert len(victims) == 1
    assert exit.content["exit_status"] == 137


def test_the_shim_of_a_task_that_has_ended_is_killed(ctr: Ctr) -> None:
    ctr.start("victim", "sh", "-c", "exit 7")
    ctr.until_stopped("victim")
    (shim,) = ctr.shims()
    os.kill(shim, signal.SIGKILL)
    until(lambda: not bundle(ctr, "victim").exists(), "containerd has cleaned up")
    assert ctr.status("victim") == ""


def test_containerd_and_the_shim_are_killed(ctr: Ctr) -> None:
    log = ctr.start("victim", "sh", "-c", _LOOP)
    ctr.until_logged(log, "3\n")
    (shim,) = ctr.shims()
    ctr.containerd.kill()
    os.kill(shim, signal.SIGKILL)
    ctr.containerd.restart()
    until(lambda: not bundle(ctr, "victim").exists(), "containerd has cleaned up")
    assert ctr.status("victim") == ""
