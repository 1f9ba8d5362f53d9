"""What is killed in the middle of everything: each part once. A clear report, and nothing is left."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import time
from collections.abc import Iterator

import pytest

from conftest import Roots, RunHako
from support import leaks
from support.children import Child, started

pytestmark = [pytest.mark.e2e, pytest.mark.slow, pytest.mark.usefixtures("guest_image", "busybox_image")]


@pytest.fixture
def running(hako_cmd: list[str], run_hako: RunHako, roots: Roots) -> Iterator[Child]:
    """A ``hako run`` in the foreground whose container is called ``victim``; at the end nothing of it is left."""
    argv = [*hako_cmd, "run", "--name", "victim", "busybox", "sh", "-c", "echo ready; sleep 1000"]
    with started(argv, stderr=subprocess.PIPE) as child:
        assert child.output.readline() == b"ready\n"
        yield child
        child.kill()
    assert leaks.wait_gone(roots.base, 10) == {}
    assert leaks.mounts(roots.base) == []
    assert leaks.files(roots.state) == []
    assert os.listdir(os.path.join(roots.state, "sandboxes")) == []
    run_hako("rm", "-f", "victim", check=False)
    assert os.listdir(os.path.join(roots.data, "sandboxes")) == []


def sandbox(run_hako: RunHako) -> dict[str, int]:
    """The processes of the container ``victim``."""
    (found,) = json.loads(run_hako("inspect", "victim").stdout)
    pids: dict[str, int] = found["sandbox"]
    return pids


def said(child: Child) -> str:
    """What ``hako run`` says when it ends."""
    return child.complaints.read().decode()


def test_the_vm_is_killed(running: Child, run_hako: RunHako) -> None:
    os.kill(sandbox(run_hako)["vm_pid"], signal.SIGKILL)
    text = said(running)
    assert running.wait(30) == 137
    assert text.startswith("hako: The VM of ")
    assert "SIGKILL" in text or "killed" in text
    assert len(text.splitlines()) == 1
    (found,) = json.loads(run_hako("inspect", "victim").stdout)
    assert (found["status"], found["exit_status"]) == ("stopped", 137)
    assert found["error"]


def test_the_sandbox_process_is_killed(running: Child, run_hako: RunHako) -> None:
    os.kill(sandbox(run_hako)["pid"], signal.SIGKILL)
    assert said(running) == "hako: The sandbox process was killed.\n"
    assert running.wait(30) == 137
    (found,) = json.loads(run_hako("inspect", "victim").stdout)
    assert (found["status"], found["exit_status"]) == ("stopped", 137)


def test_the_sandbox_process_of_a_background_container_is_killed(run_hako: RunHako, roots: Roots) -> None:
    run_hako("run", "-d", "--name", "victim", "busybox", "sleep", "1000")
    os.kill(sandbox(run_hako)["pid"], signal.SIGKILL)
    # Nobody asks: the guardian alone cleans up.
    deadline = time.monotonic() + 20
    while os.listdir(os.path.join(roots.state, "sandboxes")):
        assert time.monotonic() < deadline, "the guardian has not cleaned up"
        time.sleep(0.05)
    assert leaks.wait_gone(roots.base, 10) == {}
    assert "Exited (137)" in run_hako("ps", "-a").stdout
    run_hako("rm", "victim")


def test_the_client_is_killed(running: Child, run_hako: RunHako, roots: Roots) -> None:
    running.kill()
    assert running.wait(30) == -9
    assert leaks.wait_gone(roots.base, 20) == {}
    assert "Exited (137)" in run_hako("ps", "-a").stdout


def test_the_vm_is_killed_under_an_exec(running: Child, hako_cmd: list[str], run_hako: RunHako) -> None:
    argv = [*hako_cmd, "exec", "victim", "sh", "-c", "echo in; sleep 1000"]
    with started(argv, stderr=subprocess.PIPE) as child:
        assert child.output.readline() == b"in\n"
        os.kill(sandbox(run_hako)["vm_pid"], signal.SIGKILL)
        text = said(child)
        assert child.wait(30) == 137
        assert text.startswith("hako: The VM of ")
        assert len(text.splitlines()) == 1
