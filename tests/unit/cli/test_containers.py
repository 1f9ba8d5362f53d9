"""Finding and listing containers: names, ids, prefixes, sandboxes with several containers."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from typing import Any

import pytest

from hako import paths, store
from hako.cli import containers, rmi, tables
from hako.cli.main import main
from hako.errors import ConfigError, NotFoundError, StateError
from hako.ociimage.index import image_dir
from hako.sandbox import records
from hako.sandbox.spec import SandboxSpec

NOW = time.time_ns()
ONE, TWO, MANY, EMPTY = "aaaa000000000001", "aaaa000000000002", "bbbb000000000003", "cccc000000000004"


def keep(sandbox_id: str, name: str, made: dict[str, dict[str, Any]]) -> None:
    """A stopped sandbox that was retained."""
    state = records.new_state(SandboxSpec(sandbox_id, name, 1 << 29, 1, retain=True))
    state.update(status="stopped", containers=made)
    directory = store.ensure_dir(records.data_dir(sandbox_id))
    store.write_json(f"{directory}/record.json", state)


def container(command: str, exit_status: int = 0, lower: str = "/nowhere") -> dict[str, Any]:
    """The record of a container that has ended."""
    return {
        "status": "stopped",
        "created_ns": NOW - 600 * 10**9,
        "started_ns": NOW - 600 * 10**9,
        "exited_ns": NOW - 180 * 10**9,
        "image": "busybox",
        "command": command.split(),
        "process": {},
        "mounts": [],
        "terminal": False,
        "lower": lower,
        "exit_status": exit_status,
        "oom": False,
        "error": "",
    }


@pytest.fixture(autouse=True)
def kept(tmp_path: object, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Four sandboxes of directories of their own."""
    monkeypatch.setenv("HAKO_STATE_ROOT", f"{tmp_path}/run")
    monkeypatch.setenv("HAKO_DATA_ROOT", f"{tmp_path}/data")
    keep(ONE, "web", {ONE: container("sleep 5", 7)})
    keep(TWO, "", {TWO: container("true", lower=f"{image_dir('sha256:' + 'ab' * 32)}/rootfs")})
    keep(MANY, "pod", {"app": container("serve"), "log": container("collect"), "lot": container("x")})
    keep(EMPTY, "void", {})
    yield
    assert paths.data_root() == f"{tmp_path}/data"


@pytest.mark.parametrize(
    ("ref", "found"),
    [
        ("web", ONE),
        (ONE, ONE),
        ("aaaa000000000001", ONE),
        ("pod/app", f"{MANY}/app"),
        ("bbbb/app", f"{MANY}/app"),
        ("pod/a", f"{MANY}/app"),
        (EMPTY, EMPTY),
    ],
)
def test_references(ref: str, found: str) -> None:
    assert containers.find(ref).id == found


@pytest.mark.parametrize(
    ("ref", "error", "wanted"),
    [
        ("aaaa", ConfigError, "aaaa could be any of 2 containers"),
        ("pod", ConfigError, "pod has 3 containers; name one of them: pod/app, pod/log, pod/lot"),
        ("pod/lo", ConfigError, "could be any of 2"),
        ("pod/none", NotFoundError, "There is no container none in pod"),
        ("pod/", NotFoundError, "There is no container"),
        ("", NotFoundError, "There is no container"),
        ("nobody", NotFoundError, "There is no container nobody"),
    ],
)
def test_references_that_mean_nothing(ref: str, error: type[Exception], wanted: str) -> None:
    with pytest.raises(error, match=wanted):
        containers.find(ref)


def test_what_does_not_run_is_refused_where_it_must_run() -> None:
    with pytest.raises(StateError, match="The container web is not running"):
        containers.find_running("web")
    with pytest.raises(StateError, match="void has no container"):
        containers.find_running("void")


def test_ps_shows_nothing_that_has_ended_unless_asked(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["ps"]) == 0
    assert capsys.readouterr().out.splitlines() == ["CONTAINER ID   IMAGE   COMMAND   CREATED   STATUS   PORTS   NAME"]
    assert main(["ps", "-a"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 7
    web = next(line for line in lines if line.endswith(" web"))
    assert web.split("   ")[0] == ONE[:12]
    assert "sleep 5" in web
    assert "10 minutes ago" in web
    assert "Exited (7) 3 minutes ago" in web
    assert any(line.startswith(f"{MANY[:12]}/app ") and line.endswith(" pod/app") for line in lines)


def test_ps_for_programs(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["ps", "-a", "-q", "--no-trunc"]) == 0
    ids = capsys.readouterr().out.split()
    assert set(ids) == {ONE, TWO, EMPTY, *(f"{MANY}/{name}" for name in ("app", "log", "lot"))}
    assert main(["ps", "-a", "--format", "json"]) == 0
    found = {entry["id"]: entry for entry in map(json.loads, capsys.readouterr().out.splitlines())}
    assert set(found) == set(ids)
    assert found[ONE]["exit_status"] == 7
    assert found[ONE]["command"] == ["sleep", "5"]
    assert found[ONE]["name"] == "web"


def test_inspect_is_one_array(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["inspect", "web", "pod/app"]) == 0
    web, app = json.loads(capsys.readouterr().out)
    assert (web["id"], web["exit_status"], web["status"]) == (ONE, 7, "stopped")
    assert web["exited"].endswith("Z")
    assert (app["name"], app["sandbox"]["id"]) == ("pod/app", MANY)


def test_rm_takes_several_and_goes_on_after_an_error(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["rm", "nobody", "web", "pod/app"]) == 125
    out, err = capsys.readouterr()
    assert out.split() == ["web"]
    assert len(err.splitlines()) == 2
    with pytest.raises(NotFoundError):
        containers.find("web")
    assert main(["rm", EMPTY]) == 0
    with pytest.raises(NotFoundError):
        containers.find(EMPTY)


def test_stopping_what_has_stopped_is_fine(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["stop", "web"]) == 0
    assert capsys.readouterr().out == "web\n"
    assert main(["kill", "web"]) == 125
    assert capsys.readouterr().err == "hako: The container web is not running.\n"


def test_images_of_kept_containers_are_in_use() -> None:
    assert rmi.in_use("sha256:" + "ab" * 32)
    assert not rmi.in_use("sha256:" + "cd" * 32)


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0, "0 seconds"), (1, "1 second"), (59.9, "59 seconds"), (60, "1 minute"), (119, "1 minute"),
        (120, "2 minutes"),
        (3600, "1 hour"), (5399, "1 hour"), (7199, "2 hours"), (7200, "2 hours"), (3 * 86400, "3 days"),
        (15 * 86400, "2 weeks"), (100 * 86400, "3 months"), (800 * 86400, "2 years"), (-5, "0 seconds"),
    ],
)  # fmt: skip
def test_durations(seconds: float, text: str) -> None:
    assert tables.duration(seconds) == text


def test_tables_cannot_be_forged_by_what_they_show() -> None:
    shown = tables.table(("A", "B"), [("x\n\x1b[2Jy", "long cell"), ("", "z")])
    assert shown.splitlines() == ["A         B", "x??[2Jy   long cell", "          z"]


def test_timestamps() -> None:
    assert tables.timestamp(1_769_860_800_000_000_005) == "2026-01-31T12:00:00.000000005Z"
    assert tables.timestamp(0) == ""


def test_a_stopped_sandbox_is_removed_with_all_its_containers(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["rm", "pod/app"]) == 125
    assert f"remove the whole with hako rm {MANY}." in capsys.readouterr().err
    assert main(["rm", MANY, "void"]) == 0
    assert {state["spec"]["id"] for state in records.list_states()} == {ONE, TWO}
