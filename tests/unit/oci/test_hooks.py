"""Hooks as real processes: what they are given, and what becomes of the container when one fails."""

from __future__ import annotations

import contextlib
import json
import logging
import os
import signal
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from hako.errors import HostError
from hako.linux import syscalls
from hako.oci import hooks

STATE = {
    "ociVersion": "1.0.2",
    "id": "c1",
    "status": "creating",
    "pid": 7,
    "bundle": "/b",
    "annotations": {"é": "x" * 99},
}


def shell(script: str, **more: Any) -> dict[str, Any]:
    return {"path": "/bin/sh", "args": ["sh", "-c", script], **more}


def test_a_hook_gets_state_arguments_environment_and_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LEAK", "1")
    script = 'cat > state; env > env; echo "$0" $# > args; readlink /proc/$$/exe >> args'
    hook = {"path": "/bin/sh", "args": ["named", "-c", script, "zero", "one"], "env": ["A=b=c", "EMPTY="]}
    hooks.run([hook], STATE, where="prestart", cwd=str(tmp_path))
    assert json.loads((tmp_path / "state").read_text()) == STATE
    entries = set((tmp_path / "env").read_text().splitlines())
    assert {"A=b=c", "EMPTY="} <= entries
    assert not any(entry.startswith(("LEAK=", "PATH=", "HOME=")) for entry in entries)
    assert (tmp_path / "args").read_text().splitlines() == ["zero 1", os.path.realpath("/bin/sh")]


def test_without_arguments_a_hook_has_its_path(tmp_path: Path) -> None:
    program = tmp_path / "hook"
    program.write_text(f"#!/bin/sh\necho $# > {tmp_path}/said\n")
    program.chmod(0o755)
    hooks.run([{"path": str(program)}], STATE, where="prestart")
    assert (tmp_path / "said").read_text() == "0\n"


def test_hooks_run_in_order_until_one_fails(tmp_path: Path) -> None:
    said = tmp_path / "said"
    steps = [
        shell(f"echo {name} >> {said}; exit {status}") for name, status in (("a", 0), ("b", 0), ("c", 3), ("d", 0))
    ]
    with pytest.raises(HostError, match="error running hook #2: "):
        hooks.run(steps, STATE, where="createRuntime")
    assert said.read_text() == "a\nb\nc\n"


@pytest.mark.parametrize(
    ("hook", "message"),
    [
        (
            shell("echo out; echo err >&2; exit 3"),
            "error running hook #0: error running hook: exit status 3, stdout: out\n, stderr: err\n (prestart /bin/sh)",
        ),
        (shell("kill -9 $$"), "error running hook: signal: Killed, stdout: , stderr: "),
        ({"path": "/nonexistent"}, "error running hook #0: fork/exec /nonexistent: no such file or directory"),
        ({"path": "/"}, "fork/exec /: permission denied"),
        (shell("sleep 1000", timeout=1), "error running hook #0: hook ran past specified timeout of 1.0s"),
    ],
)
def test_failures_are_worded_as_runc_does(hook: dict[str, Any], message: str) -> None:
    with pytest.raises(HostError) as caught:
        hooks.run([hook], STATE, where="prestart")
    assert message in str(caught.value)


def test_a_timeout_ends_the_hooks_children_too(tmp_path: Path) -> None:
    child = tmp_path / "child"
    with pytest.raises(HostError, match="timeout"):
        hooks.run([shell(f"sleep 1000 & echo $! > {child}; wait", timeout=1)], STATE, where="prestart")
    wait_gone(int(child.read_text()))


def wait_gone(pid: int) -> None:
    """Wait for the end of somebody else's child."""
    deadline = time.monotonic() + 30
    while os.path.exists(f"/proc/{pid}"):
        with open(f"/proc/{pid}/stat", encoding="ascii") as file:
            if file.read().rpartition(")")[2].split()[0] == "Z":  # whoever adopted it has not looked yet
                return
        assert time.monotonic() < deadline
        time.sleep(0.01)


@contextlib.contextmanager
def ending(path: Path) -> Iterator[None]:
    """At the end, kill the process whose number is in the file ``path``."""
    try:
        yield
    finally:
        os.kill(int(path.read_text()), signal.SIGKILL)


def test_what_a_hook_leaves_in_the_background_is_not_waited_for(tmp_path: Path) -> None:
    child = tmp_path / "child"
    with ending(child):
        hooks.run([shell(f"sleep 1000 & echo $! > {child}")], STATE, where="prestart")
        assert os.path.exists(f"/proc/{int(child.read_text())}")


def test_output_is_read_but_not_kept_beyond_a_limit() -> None:
    with pytest.raises(HostError) as caught:
        hooks.run([shell("head -c 3000000 /dev/zero | tr '\\0' x; echo end >&2; exit 1")], STATE, where="prestart")
    assert 1000 < len(str(caught.value)) < 40_000
    assert "end" in str(caught.value)


def test_a_large_state_reaches_a_hook_that_does_not_read_it(tmp_path: Path) -> None:
    state = {**STATE, "annotations": {"a": "x" * (1 << 20)}}
    hooks.run([shell("exit 0"), shell(f"wc -c > {tmp_path}/size")], state, where="prestart")
    assert int((tmp_path / "size").read_text()) > 1 << 20


@pytest.mark.parametrize("where", ["poststart", "poststop"])
def test_after_start_and_stop_a_failure_is_a_warning(
    where: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    said = tmp_path / "said"
    with caplog.at_level(logging.WARNING, logger="hako"):
        hooks.run([shell("exit 4"), {"path": "/nonexistent"}, shell(f"touch {said}")], STATE, where=where)
    assert said.exists()
    assert "error running hook #0: error running hook: exit status 4" in caplog.text
    assert "error running hook #1: fork/exec /nonexistent" in caplog.text


def test_a_hook_can_be_put_into_namespaces_that_its_caller_keeps_out_of(tmp_path: Path) -> None:
    before, callers = os.readlink("/proc/self/ns/net"), threading.get_ident()
    threads: list[int] = []

    def enter() -> None:
        threads.append(threading.get_ident())
        syscalls.unshare(syscalls.CLONE_NEWNET)

    if os.geteuid() != 0:
        pytest.skip("needs root")
    hooks.run([shell(f"readlink /proc/self/ns/net > {tmp_path}/net")], STATE, where="createContainer", enter=enter)
    assert (tmp_path / "net").read_text().strip() != before
    assert os.readlink("/proc/self/ns/net") == before
    assert threads != [callers]


def test_namespaces_that_cannot_be_entered_fail_the_hook(tmp_path: Path) -> None:
    def enter() -> None:
        raise PermissionError(1, "Operation not permitted")

    with pytest.raises(HostError, match="hook #0: cannot enter the container's namespaces: Operation not permitted"):
        hooks.run([shell(f"touch {tmp_path}/said")], STATE, where="createContainer", enter=enter)
    assert not (tmp_path / "said").exists()


def test_no_hooks_are_nothing_to_do() -> None:
    hooks.run([], STATE, where="prestart")
