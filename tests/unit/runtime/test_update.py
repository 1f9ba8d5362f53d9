"""``hako-runtime update``: what the flags and files ask for, as an OCI resources object."""

from __future__ import annotations

import io
import json
import sys
from pathlib import Path
from typing import Any

import pytest

from hako.errors import ConfigError
from hako.runtime import containers, flags, update
from hako.runtime.containers import Container
from hako.runtime.main import main
from hako.runtime.verbs import VERBS

Updates = list[dict[str, Any]]


@pytest.mark.parametrize(
    ("words", "wanted"),
    [
        ([], {}),
        (["--memory", "512m"], {"memory": {"limit": 512 << 20}}),
        (["--memory", "1073741824"], {"memory": {"limit": 1 << 30}}),
        (["--memory=-1"], {"memory": {"limit": -1}}),
        (["--memory", "1g", "--memory-swap", "-1", "--memory-reservation", "1.5m"],
         {"memory": {"limit": 1 << 30, "swap": -1, "reservation": 3 << 19}}),
        (["--cpu-quota", "50000", "--cpu-period", "100000"], {"cpu": {"quota": 50000, "period": 100000}}),
        (["--cpu-quota", "-1"], {"cpu": {"quota": -1}}),
        (["--cpu-share", "512", "--cpuset-cpus", "0-1", "--cpuset-mems", "0"],
         {"cpu": {"shares": 512, "cpus": "0-1", "mems": "0"}}),
        (["--cpu-rt-period", "5", "--cpu-rt-runtime", "4"], {"cpu": {"realtimePeriod": 5, "realtimeRuntime": 4}}),
        (["--cpu-idle", "0"], {"cpu": {"idle": 0}}),
        (["--pids-limit", "10"], {"pids": {"limit": 10}}),
        (["--pids-limit=-1"], {"pids": {"limit": -1}}),
        (["--blkio-weight", "100"], {"blockIO": {"weight": 100}}),
        (["--kernel-memory", "5m", "--kernel-memory-tcp", "5m"], {}),  # of no effect, as with runc
    ],
)  # fmt: skip
def test_flags_are_resources(words: list[str], wanted: dict[str, Any]) -> None:
    assert update.from_flags(flags.parse(VERBS["update"].flags, words)[0]) == wanted


@pytest.mark.parametrize(
    ("words", "reason"),
    [
        (["--memory", "much"], "--memory 'much' is not a size"),
        (["--memory-swap=-2"], "--memory-swap '-2' is not a size"),
        (["--cpu-quota", "half"], 'invalid value for cpu-quota: "half" is not a whole number'),
        (["--cpu-share", "1.5"], 'invalid value for cpu-share: "1.5" is not a whole number'),
        (["--cpu-share", "-1"], r"\$\.linux\.resources\.cpu\.shares: must be between 0"),
        (["--cpu-period", "99999999999999999999"], "invalid value for cpu-period"),
    ],
)
def test_wrong_values_are_named(words: list[str], reason: str) -> None:
    with pytest.raises(ConfigError, match=reason):
        update.from_flags(flags.parse(VERBS["update"].flags, words)[0])


@pytest.fixture
def updates(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Updates:
    """What reaches the container ``one``, which is in the root ``tmp_path``/root."""
    root = str(tmp_path / "root")
    container = Container(
        root=root, id="one", bundle="/b", rootfs="/b/rootfs", sandbox="0" * 16, guest_id="one", created_ns=1,
        owner="root", oci_version="1.0.2", annotations={}, hooks={},
    )  # fmt: skip
    containers.claim(root, "one")
    container.save()
    done: Updates = []
    monkeypatch.setattr(containers, "status", lambda _: "running")
    monkeypatch.setattr(containers, "update", lambda _, resources: done.append(resources))
    monkeypatch.chdir(tmp_path)
    return done


def test_a_file_takes_the_place_of_the_flags(updates: Updates, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    resources = {"memory": {"limit": 1 << 28}, "cpu": {"idle": 1}, "unified": {"memory.high": "1"}}
    (tmp_path / "wanted.json").write_text(json.dumps(resources))
    assert main(["--root", "root", "update", "--resources", "wanted.json", "--memory", "5m", "one"]) == 0
    with open(tmp_path / "wanted.json", encoding="utf-8") as file:
        monkeypatch.setattr(sys, "stdin", file)
        assert main(["--root", "root", "update", "-r", "-", "one"]) == 0
    assert updates == [resources, resources]
    assert main(["--root", "root", "update", "--pids-limit", "7", "one"]) == 0
    assert updates[2:] == [{"pids": {"limit": 7}}]
    assert main(["--root", "root", "update", "one"]) == 0
    assert len(updates) == 3


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b'{"memory":', "The resources in standard input are not valid JSON: "),
        (b"", "The resources in standard input are not valid JSON: "),
        (b"\xff", "The resources in standard input are not valid JSON: "),
        (b"[" * 100_000, "The resources in standard input are not valid JSON: "),
        (b"[]", "$.linux.resources: must be an object"),
        (b"null", "$.linux.resources: must be an object"),
        (b'{"memory": "x"}', "$.linux.resources.memory: must be an object, not a text."),
        (b'{"memory": {"limit": 1.5}}', "$.linux.resources.memory.limit: must be a whole number"),
        (b'{"pids": {"limit": true}}', "$.linux.resources.pids.limit: must be a whole number"),
    ],
)
def test_files_that_are_no_resources(
    content: bytes, reason: str, updates: Updates, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with io.TextIOWrapper(io.BytesIO(content)) as stdin:
        monkeypatch.setattr(sys, "stdin", stdin)
        assert main(["--root", "root", "update", "-r", "-", "one"]) == 1
    err = capsys.readouterr().err
    assert reason in err
    assert len(err.splitlines()) == 1
    assert not updates


def test_what_cannot_be_updated(
    updates: Updates, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["--root", "root", "update", "-r", "missing.json", "one"]) == 1
    assert "Cannot read the resources in missing.json: No such file or directory." in capsys.readouterr().err
    assert main(["--root", "root", "update", "--memory", "5m", "two"]) == 1
    assert "container does not exist" in capsys.readouterr().err
    monkeypatch.setattr(containers, "status", lambda _: "stopped")
    assert main(["--root", "root", "update", "--memory", "5m", "one"]) == 1
    assert "container not running" in capsys.readouterr().err
    assert not updates
