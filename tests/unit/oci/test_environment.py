"""Environment variables: which wins, and what a file may say."""

from __future__ import annotations

from pathlib import Path

import pytest

from hako.errors import ConfigError
from hako.oci import environment


@pytest.mark.parametrize(
    ("base", "extra", "expected"),
    [
        (["A=1", "B=2"], [], ["A=1", "B=2"]),
        (["A=1", "B=2"], ["A=3"], ["A=3", "B=2"]),
        (["A=1"], ["C=", "C=4"], ["A=1", "C=4"]),
        (["A=1"], ["MINE"], ["A=1", "MINE=from here"]),
        (["A=1", "B=2"], ["A"], ["B=2"]),
        (["A=1"], ["B=x=y"], ["A=1", "B=x=y"]),
    ],
)
def test_merge(base: list[str], extra: list[str], expected: list[str]) -> None:
    assert environment.merge(base, extra, {"MINE": "from here"}) == expected


@pytest.mark.parametrize("entry", ["=x", "", "A=\0"])
def test_merge_refuses(entry: str) -> None:
    with pytest.raises(ConfigError, match="not an environment variable"):
        environment.merge([], [entry], {})


def test_the_own_environment_is_the_default_client(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HAKO_TEST_MINE", "yes")
    assert environment.merge([], ["HAKO_TEST_MINE"]) == ["HAKO_TEST_MINE=yes"]


def test_defaults_do_not_replace() -> None:
    assert environment.defaults(["B=x"], [("A", "1"), ("B", "2")]) == ["A=1", "B=x"]


def test_read_file(tmp_path: Path) -> None:
    path = tmp_path / "env"
    path.write_bytes("\ufeff# comment\n\n  A=1\nB= spaced 'quoted' #kept\r\nC\n   # also\nD=\nÄ=ö\n".encode())
    assert environment.read_file(str(path)) == ["A=1", "B= spaced 'quoted' #kept", "C", "D=", "Ä=ö"]


@pytest.mark.parametrize(
    ("data", "sentence"),
    [
        (b"A=1\n=2\n", "line 2: '' is not the name"),
        (b"A B=1\n", "line 1: 'A B' is not the name"),
        (b"A=1\nB=\xff\n", "line 2: is not UTF-8"),
        (b"A=\0\n", "line 1"),
    ],
)
def test_read_file_names_the_line(tmp_path: Path, data: bytes, sentence: str) -> None:
    path = tmp_path / "env"
    path.write_bytes(data)
    with pytest.raises(ConfigError, match=sentence):
        environment.read_file(str(path))


def test_read_file_that_is_missing(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="No such file"):
        environment.read_file(str(tmp_path / "none"))
