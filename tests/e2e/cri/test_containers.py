"""The life of containers: how they end, are stopped, killed and removed."""

from __future__ import annotations

import time

import pytest

from support import cri_messages as m
from support.machine import until
from support.pods import Ctr, Pod, fails

pytestmark = [pytest.mark.e2e, pytest.mark.slow]

_MIB = 1 << 20
_STUBBORN = "trap 'echo asked' TERM; echo ready; while :; do sleep 1000 & wait $!; done"


def test_life(pod: Pod) -> None:
    made = pod.create("life", "sleep", "1000", labels={"part": "one"})
    created = made.status()
    assert (created.state, created.started_at, created.finished_at) == (m.CREATED, 0, 0)
    pod.cri.start(made.id)
    running = made.status()
    assert (running.state, running.finished_at) == (m.RUNNING, 0)
    assert running.started_at >= running.created_at
    assert [found.id for found in pod.cri.containers(label_selector={"part": "one"})] == [made.id]
    ended = made.stop()
    assert (ended.state, ended.exit_code) == (m.EXITED, 137)
    assert ended.finished_at > ended.started_at
    assert made.stop().finished_at == ended.finished_at  # again, which changes nothing
    made.remove()
    assert "not found" in fails(made.status)
    made.remove()


def test_removed_before_it_starts(pod: Pod) -> None:
    made = pod.create("never", "sleep", "1000")
    made.remove()
    assert pod.cri.containers(id=made.id) == []


@pytest.mark.parametrize("code", [0, 1, 255])
def test_exit_code(pod: Pod, code: int) -> None:
    made = pod.start("code", "sh", "-c", f"exit {code}")
    status = made.until_exited()
    assert status.exit_code == code
    assert status.reason == ("Error" if code else "Completed")
    made.remove()


@pytest.mark.parametrize(("signal", "number"), [("KILL", 9), ("SEGV", 11), ("TERM", 15)])
def test_ended_by_a_signal(pod: Pod, signal: str, number: int) -> None:
    # The first process of a namespace cannot do it to itself; the shell ends as its child has ended.
    made = pod.start("signal", "sh", "-c", f"sh -c 'kill -{signal} $$'; exit $?")
    assert made.until_exited().exit_code == 128 + number
    made.remove()


def test_a_command_that_is_not_there(pod: Pod) -> None:
    made = pod.create("missing", "no-such-command")
    assert "no-such-command" in fails(pod.cri.start, made.id)
    status = made.until_exited()
    assert status.exit_code in (127, 128)
    assert status.reason in ("StartError", "ContainerCannotRun")
    made.remove()


def test_asked_to_stop(pod: Pod) -> None:
    made = pod.start("polite", "sh", "-c", _STUBBORN.replace("'echo asked'", "'echo bye; exit 3'"))
    made.until_logged("ready")
    assert made.stop(30).exit_code == 3
    made.check_said("ready\nbye\n")
    made.remove()


def test_killed_when_it_does_not_stop(pod: Pod) -> None:
    made = pod.start("stubborn", "sh", "-c", _STUBBORN)
    made.until_logged("ready")
    started = time.monotonic()
    status = made.stop(1)
    assert 1 <= time.monotonic() - started < 15
    assert status.exit_code == 137
    made.check_said("ready\nasked\n")
    made.remove()


def test_removed_while_it_runs(pod: Pod) -> None:
    made = pod.start("removed", "sh", "-c", _STUBBORN)
    made.remove()
    assert pod.cri.containers(id=made.id) == []
    assert "not found" in fails(made.exec, "true")


def test_out_of_memory(pod: Pod) -> None:
    """The container that takes too much is killed, and no other one."""
    neighbour = pod.start("neighbour")
    made = pod.start(
        "greedy", "sh", "-c", "dd if=/dev/zero of=/dev/null bs=64M; exit $?", memory_limit_in_bytes=32 * _MIB
    )
    assert made.until_exited().exit_code == 137
    until(lambda: made.status().reason == "OOMKilled", "the reason is known")
    assert neighbour.sh("echo here") == "here"
    for one in (made, neighbour):
        one.stop()
        one.remove()


def test_ended_while_nobody_looks(pod: Pod) -> None:
    """Many that end at once: each with its own code, and all of its output."""
    count = 8
    all_made: list[Ctr] = [
        pod.start(f"burst-{number}", "sh", "-c", f"seq 200; exit {number}") for number in range(count)
    ]
    for number, made in enumerate(all_made):
        assert made.until_exited().exit_code == number
        made.check_said("".join(f"{n}\n" for n in range(1, 201)))
        made.remove()
