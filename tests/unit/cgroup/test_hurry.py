"""Having the kernel begin what a later move waits for. Nothing moves, and nothing is said when that cannot be done."""

from __future__ import annotations

import threading
from pathlib import Path

import pytest

from hako.cgroup import hierarchy, hurry
from hako.cgroup.hierarchy import Hierarchy, Host
from hako.errors import HostError


def finished(monkeypatch: pytest.MonkeyPatch) -> threading.Event:
    """Set when the thread has done its work, whatever came of it."""
    done = threading.Event()
    move = hurry._move_nowhere

    def observed() -> None:
        try:
            move()
        finally:
            done.set()

    monkeypatch.setattr(hurry, "_move_nowhere", observed)
    return done


def test_the_process_is_moved_to_where_it_is(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "here").mkdir()
    (tmp_path / "here" / "cgroup.procs").write_text("")
    host = Host({"pids": Hierarchy(str(tmp_path), "/here"), "memory": Hierarchy(str(tmp_path), "/elsewhere")})
    monkeypatch.setattr(hierarchy, "read", lambda: host)
    done = finished(monkeypatch)
    hurry.hurry()
    assert done.wait(10)
    assert (tmp_path / "here" / "cgroup.procs").read_text() == "0"


@pytest.mark.parametrize("failure", [HostError("No cgroup file system is mounted."), OSError(), None])
def test_nothing_is_said(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capfd: pytest.CaptureFixture[str], failure: Exception | None
) -> None:
    def read() -> Host:
        if failure is not None:
            raise failure
        return Host({"pids": Hierarchy(str(tmp_path), "/nowhere")})

    monkeypatch.setattr(hierarchy, "read", read)
    done = finished(monkeypatch)
    hurry.hurry()
    assert done.wait(10)
    assert capfd.readouterr() == ("", "")
