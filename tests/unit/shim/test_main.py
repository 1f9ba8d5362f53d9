"""The shim's command line: what is wrong is said in one sentence, for containerd shows all that is printed."""

from __future__ import annotations

import io
import json
import os
import pathlib
import subprocess
import sys

import pytest

from hako.shim import main
from hako.shim.bootstrap_messages import RuntimeInfo
from hako.shim.task_messages import DeleteResponse
from hako.version import __version__
from support import source

_CODE = "import sys; sys.path.append({!r}); sys.argv[0] = 'shim'; from hako.shim.main import command; command()"


def shim(*words: str, cwd: pathlib.Path, roots: pathlib.Path | None = None) -> subprocess.CompletedProcess[bytes]:
    env = {"PATH": os.environ["PATH"]}
    if roots is not None:
        env |= {"HAKO_STATE_ROOT": f"{roots}/run", "HAKO_DATA_ROOT": f"{roots}/data"}
    argv = [sys.executable, "-c", _CODE.format(source.SOURCE), *words]
    return subprocess.run(
        argv, stdin=subprocess.DEVNULL, capture_output=True, cwd=cwd, env=env, timeout=60, check=False
    )


def refusal(*words: str, cwd: pathlib.Path) -> str:
    done = shim(*words, cwd=cwd)
    assert done.returncode == 1
    assert done.stdout == b""
    text = done.stderr.decode()
    assert text.startswith("containerd-shim-hako-v2: ")
    assert text.count("\n") == 1
    return text


def test_version(tmp_path: pathlib.Path) -> None:
    done = shim("-v", cwd=tmp_path)
    assert done.returncode == 0
    assert __version__ in done.stdout.decode()


def test_info(tmp_path: pathlib.Path) -> None:
    info = RuntimeInfo.decode(shim("-info", cwd=tmp_path).stdout)
    assert info.name == "io.containerd.hako.v2"
    assert info.version is not None
    assert info.version.version == __version__
    assert info.features is not None
    assert "hooks" in json.loads(info.features.value)


@pytest.mark.parametrize(
    ("words", "reason"),
    [
        ([], "containerd runs this program as"),
        (["frobnicate"], "containerd runs this program as"),
        (["-frobnicate", "start"], "frobnicate"),
        (["-namespace", "n", "start"], "-id ''"),
        (["-namespace", "../n", "-id", "c", "start"], "-namespace '../n'"),
        (["-namespace", "n", "-id", "a/b", "delete"], "-id 'a/b'"),
    ],
)
def test_what_is_wrong_is_said(words: list[str], reason: str, tmp_path: pathlib.Path) -> None:
    assert reason in refusal(*words, cwd=tmp_path)


def test_a_bundle_with_a_bad_config_is_refused(tmp_path: pathlib.Path) -> None:
    (tmp_path / "config.json").write_text("{")
    assert "is not JSON" in refusal("-namespace", "n", "-id", "c", "start", cwd=tmp_path)


def test_a_container_of_a_pod_that_is_not_there(tmp_path: pathlib.Path) -> None:
    annotations = {"io.kubernetes.cri.container-type": "container", "io.kubernetes.cri.sandbox-id": "gone"}
    spec = {
        "ociVersion": "1.0.2",
        "root": {"path": "rootfs"},
        "process": {"args": ["true"], "cwd": "/"},
        "annotations": annotations,
    }
    (tmp_path / "config.json").write_text(json.dumps(spec))
    text = refusal("-namespace", "n", "-id", "c", "-address", str(tmp_path), "start", cwd=tmp_path)
    assert "The pod gone, which the container c is to join, is not running." in text


def test_delete_where_there_is_nothing(tmp_path: pathlib.Path) -> None:
    """Twice, because containerd may do so."""
    for _ in range(2):
        words = ("-namespace", "n", "-id", "c", "-address", str(tmp_path), "-bundle", str(tmp_path), "delete")
        done = shim(*words, cwd=tmp_path, roots=tmp_path)
        assert done.stderr == b""
        answer = DeleteResponse.decode(done.stdout)
        assert answer.exit_status == 137
        assert answer.exited_at is not None
        assert answer.exited_at.seconds > 1_700_000_000


def test_an_unexpected_failure_is_one_line_too(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(_words: list[str]) -> int:
        raise KeyError("x")

    monkeypatch.setattr(main, "_run", fail)
    stderr = io.StringIO()
    monkeypatch.setattr(sys, "stderr", stderr)
    assert main.main([]) == 1
    assert stderr.getvalue() == "containerd-shim-hako-v2: KeyError: 'x'\n"
