"""How containers in the background end, and what they leave, through the real command."""

from __future__ import annotations

from pathlib import Path

import pytest

from conftest import RunHako
from support.children import started

pytestmark = [pytest.mark.e2e, pytest.mark.slow, pytest.mark.usefixtures("guest_image", "busybox_image")]

_SCRIPT = "trap 'echo stopping; exit 4' TERM; mkdir /made; echo inside > /made/file; while :; do sleep 0.1; done"


def line_of(run_hako: RunHako, name: str) -> str:
    """What ``hako ps -a`` says of the container ``name``, an empty text when it does not know it."""
    lines = run_hako("ps", "-a").stdout.splitlines()
    return next((line for line in lines if line.endswith(f" {name}")), "")


def test_stop_asks_first_and_what_it_left_can_be_read(hako_cmd: list[str], run_hako: RunHako, tmp_path: Path) -> None:
    (tmp_path / "volume").mkdir()
    (tmp_path / "volume" / "file").write_text("of the volume")
    run_hako("run", "-d", "--name", "polite", "-v", f"{tmp_path}/volume:/volume", "busybox", "sh", "-c", _SCRIPT)
    run_hako("exec", "polite", "sh", "-c", "until [ -s /made/file ]; do sleep 0.05; done")
    with started([*hako_cmd, "logs", "-f", "polite"]) as following:
        assert run_hako("stop", "-t", "30", "polite").stdout == "polite\n"
        assert following.output.read() == b"stopping\n"
        assert following.wait(30) == 0
    assert "Exited (4)" in line_of(run_hako, "polite")
    assert "polite" not in run_hako("ps").stdout
    assert run_hako("logs", "--tail", "1", "polite").stdout == "stopping\n"
    (tmp_path / "late").write_text("late")
    run_hako("cp", f"{tmp_path}/late", "polite:/made/")
    run_hako("cp", "polite:/made", f"{tmp_path}/back")
    run_hako("cp", "polite:/volume/file", f"{tmp_path}/through")
    assert (tmp_path / "back" / "late").read_text() == "late"
    assert (tmp_path / "back" / "file").read_text() == "inside\n"
    assert (tmp_path / "through").read_text() == "of the volume"
    for words in (["exec", "polite", "true"], ["attach", "polite"], ["kill", "polite"]):
        done = run_hako(*words, check=False)
        assert (done.returncode, done.stderr) == (125, "hako: The container polite is not running.\n")
    assert run_hako("rm", "polite").stdout == "polite\n"
    assert line_of(run_hako, "polite") == ""


def test_a_stop_that_is_not_heeded_kills(run_hako: RunHako) -> None:
    run_hako("run", "-d", "--name", "deaf", "busybox", "sleep", "1000")  # PID 1 without a handler ignores SIGTERM
    run_hako("stop", "-t", "0.5", "deaf")
    assert "Exited (137)" in line_of(run_hako, "deaf")
    run_hako("rm", "deaf")


def test_kill_sends_the_signal_that_is_named(hako_cmd: list[str], run_hako: RunHako) -> None:
    script = "trap 'echo one' USR1; trap 'exit 8' HUP; echo ready; while :; do sleep 0.1; done"
    run_hako("run", "-d", "--name", "target", "busybox", "sh", "-c", script)
    with started([*hako_cmd, "logs", "-f", "target"]) as following:
        assert following.output.readline() == b"ready\n"
        run_hako("kill", "-s", "USR1", "target")
        assert following.output.readline() == b"one\n"
        run_hako("kill", "-s", "1", "target")
        assert following.output.read() == b""
        assert following.wait(30) == 0
    assert "Exited (8)" in line_of(run_hako, "target")
    run_hako("rm", "target")


def test_rm_by_force(run_hako: RunHako) -> None:
    run_hako("run", "-d", "--name", "doomed", "busybox", "sleep", "1000")
    assert run_hako("rm", "-f", "doomed").stdout == "doomed\n"
    assert line_of(run_hako, "doomed") == ""


def test_a_container_for_one_run_leaves_nothing(run_hako: RunHako) -> None:
    run_hako("run", "-d", "--rm", "--name", "brief", "busybox", "sleep", "1000")
    run_hako("stop", "-t", "0", "brief")
    assert line_of(run_hako, "brief") == ""
