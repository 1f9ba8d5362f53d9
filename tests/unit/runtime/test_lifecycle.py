"""Hooks after the start and the end of a container, and states in which it cannot be started."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from hako.runtime import containers
from hako.runtime.containers import Container
from hako.runtime.main import main

Captured = pytest.CaptureFixture[str]


@pytest.fixture(autouse=True)
def roots(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HAKO_STATE_ROOT", str(tmp_path / "state"))
    monkeypatch.setenv("HAKO_DATA_ROOT", str(tmp_path / "data"))


def add(root: Path, **hooks: list[dict[str, Any]]) -> None:
    """A container ``one`` with ``hooks``, of a sandbox that has ended."""
    containers.claim(str(root), "one")
    Container(
        root=str(root), id="one", bundle=str(root), rootfs="/b/rootfs", sandbox="s1", guest_id="one", created_ns=5,
        owner="root", oci_version="1.0.2", annotations={}, hooks=hooks, pid=1,
    ).save()  # fmt: skip


def shell(script: str) -> dict[str, Any]:
    return {"path": "/bin/sh", "args": ["sh", "-c", script]}


def test_a_poststop_hook_that_fails_is_reported_and_the_next_one_runs(tmp_path: Path, capsys: Captured) -> None:
    root, log = tmp_path / "root", tmp_path / "log"
    add(root, poststop=[shell("echo why >&2; exit 3"), shell(f"cat >{tmp_path}/said")])
    assert main(["--root", str(root), "--log", str(log), "--log-format", "json", "delete", "one"]) == 0
    entry = json.loads(log.read_text())
    assert entry["level"] == "warning"
    assert "error running hook #0: error running hook: exit status 3" in entry["msg"]
    assert "why" in entry["msg"]
    assert "error running hook #0" in capsys.readouterr().err
    assert json.loads((tmp_path / "said").read_text())["status"] == "stopped"
    assert main(["--root", str(root), "state", "one"]) == 1


def test_a_hook_that_fails_is_reported_without_a_log_too(tmp_path: Path, capsys: Captured) -> None:
    add(tmp_path / "root", poststop=[{"path": "/nonexistent"}])
    assert main(["--root", str(tmp_path / "root"), "delete", "one"]) == 0
    text = capsys.readouterr().err
    assert 'level=warning msg="error running hook #0: fork/exec /nonexistent: no such file or directory' in text


@pytest.mark.parametrize(
    ("status", "words"),
    [
        ("paused", "cannot start a container in the paused state"),
        ("running", "cannot start an already running container"),
        ("stopped", "cannot start a container that has stopped"),
    ],
)
def test_only_what_was_created_is_started(
    status: str, words: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Captured
) -> None:
    add(tmp_path / "root")
    monkeypatch.setattr(containers, "record_of", lambda _: {"status": status})
    monkeypatch.setattr(containers, "is_its", lambda _: True)
    assert main(["--root", str(tmp_path / "root"), "start", "one"]) == 1
    assert words in capsys.readouterr().err
