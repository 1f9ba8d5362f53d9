"""``hako pool`` as far as it goes without virtual machines."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from hako import store
from hako.cli import completion
from hako.cli import pool as verb
from hako.errors import ConfigError, HostError
from hako.sandbox import pool


@pytest.fixture(autouse=True)
def own_roots(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("HAKO_STATE_ROOT", str(tmp_path / "run"))
    monkeypatch.setenv("HAKO_DATA_ROOT", str(tmp_path / "data"))
    monkeypatch.setenv("HAKO_CONFIG", str(tmp_path / "config.toml"))
    (tmp_path / "config.toml").write_text("")
    return tmp_path


@pytest.fixture
def one() -> Iterator[str]:
    """A pool with one warm process: this one."""
    os.makedirs(pool.entry_dir("w1"))
    lock = store.lock(os.path.join(pool.entry_dir("w1"), "lock"))
    assert lock is not None
    info = {"template": "0123456789abcdef", "share": "9p", "memory": 512 << 20}
    pool.write(pool.new_state("w1") | {"status": "ready", "pid": os.getpid(), "info": info})
    yield "w1"
    os.close(lock)


def test_list(one: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert verb.main(["list"]) == 0
    header, row = capsys.readouterr().out.splitlines()
    assert header.split()[:2] == ["ID", "PID"]
    assert row.split()[:3] == [one, str(os.getpid()), "ready"]
    assert "0123456789ab" in row
    assert verb.main(["list", "-q"]) == 0
    assert capsys.readouterr().out == "w1\n"
    assert verb.main(["list", "--format", "json"]) == 0
    (found,) = json.loads(capsys.readouterr().out)
    assert found["id"] == one
    assert found["pss"] > 1 << 20


def test_an_empty_pool(capsys: pytest.CaptureFixture[str]) -> None:
    assert verb.main(["list"]) == 0
    assert len(capsys.readouterr().out.splitlines()) == 1
    assert verb.main(["list", "--format", "json"]) == 0
    assert capsys.readouterr().out == "[]\n"
    assert verb.main(["drain"]) == 0
    assert capsys.readouterr().err == "0 virtual machines ended.\n"


def test_a_pool_that_is_switched_off_cannot_be_filled() -> None:
    with pytest.raises(HostError, match=r"pool\.size"):
        verb.main(["fill"])


@pytest.mark.parametrize("words", [[], ["empty"], ["list", "--all"], ["drain", "x"], ["list", "--format", "xml"]])
def test_wrong_words(words: list[str]) -> None:
    with pytest.raises(ConfigError, match="hako pool"):
        verb.main(words)


@pytest.mark.parametrize("size", ["-1", "1001", '"2"', "1.5"])
def test_a_wrong_size_is_refused(own_roots: Path, size: str) -> None:
    (own_roots / "config.toml").write_text(f"[pool]\nsize = {size}\n")
    with pytest.raises(ConfigError, match=r"pool\.size"):
        verb.main(["fill"])


def test_completion_knows_it() -> None:
    assert {"list", "fill", "drain"} <= set(completion.words_of("pool"))
