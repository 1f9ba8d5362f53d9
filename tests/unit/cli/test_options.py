"""Values on command lines: volumes, environment, signals, CPUs."""

from __future__ import annotations

import signal
from pathlib import Path

import pytest

from hako.cli import options
from hako.errors import ConfigError


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working directory, with a directory and a file in it."""
    (tmp_path / "data").mkdir()
    (tmp_path / "file").write_text("x")
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize(
    ("text", "source", "destination", "readonly"),
    [
        ("./data:/d", "data", "/d", False),
        ("./data:/d:ro", "data", "/d", True),
        ("./data:/d:rw", "data", "/d", False),
        ("./data/../file:/etc/f:ro", "file", "/etc/f", True),
        (".:/d", "", "/d", False),
    ],
)
def test_volumes(here: Path, text: str, source: str, destination: str, readonly: bool) -> None:
    found = options.parse_volume(text)
    assert found == (str(here / source), destination, readonly)


def test_an_absolute_volume(here: Path) -> None:
    assert options.parse_volume(f"{here}/data:/d:ro") == (f"{here}/data", "/d", True)


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("/data", "no anonymous volumes"),
        ("data:/d", "no named volumes; write ./data"),
        ("./data:/d:wr", "'wr' is not an option of a volume"),
        ("./data:/d:ro:z", "too many colons"),
        ("./data:d", "must be absolute"),
        ("./data:", "must be absolute"),
        (":/d", "the source is missing"),
        ("./gone:/d", "does not exist"),
    ],
)
def test_wrong_volumes(here: Path, text: str, wanted: str) -> None:
    with pytest.raises(ConfigError, match=wanted) as caught:
        options.parse_volume(text)
    assert text in str(caught.value)


def test_environment(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FROM_CALLER", "mine")
    monkeypatch.delenv("NOT_THERE", raising=False)
    (here / "env").write_text("# a comment\n\nA=file\n  B=two words=\nFROM_CALLER\nNOT_THERE\n")
    found = options.parse_env(["A=word", "C=", "NOT_THERE"], ["env"])
    assert found == {"A": "word", "B": "two words=", "FROM_CALLER": "mine", "C": ""}


@pytest.mark.parametrize("word", ["", "=x", "A B=1", "A\t"])
def test_wrong_variables(word: str) -> None:
    with pytest.raises(ConfigError, match="is not a variable: write NAME=VALUE"):
        options.parse_env([word], [])


def test_wrong_environment_files(here: Path) -> None:
    (here / "binary").write_bytes(b"A=\xff\n")
    (here / "bad").write_text("A=1\n=2\n")
    for file, wanted in (("gone", "No such file"), ("binary", "UTF-8"), ("bad", "bad: '=2' is not a variable")):
        with pytest.raises(ConfigError, match=wanted):
            options.parse_env([], [file])


@pytest.mark.parametrize(
    ("text", "number"),
    [("KILL", 9), ("SIGTERM", 15), ("int", 2), ("9", 9), ("64", 64), ("RTMIN+3", signal.SIGRTMIN + 3)],
)
def test_signals(text: str, number: int) -> None:
    assert options.parse_signal(text) == number


@pytest.mark.parametrize("text", ["", "0", "65", "FOO", "SIG", "SIG_IGN", "TERM+1", "RTMIN+99", "-9", "RTMIN+"])
def test_wrong_signals(text: str) -> None:
    with pytest.raises(ConfigError, match="is not a signal"):
        options.parse_signal(text)


@pytest.mark.parametrize(("text", "cpus"), [("1", 1.0), ("0.5", 0.5), ("2.25", 2.25)])
def test_cpus(text: str, cpus: float) -> None:
    assert options.parse_cpus(text) == cpus


@pytest.mark.parametrize("text", ["0", "-1", "nan", "inf", "many", "", "1000"])
def test_wrong_cpus(text: str) -> None:
    with pytest.raises(ConfigError, match="is not a number of CPUs"):
        options.parse_cpus(text)
