"""How the time stamp counter's frequency is measured and remembered."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from hako.hypervisor import tsc


@pytest.fixture(autouse=True)
def data_root(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    monkeypatch.setenv("HAKO_DATA_ROOT", str(tmp_path / "data"))
    return tmp_path / "data"


@pytest.fixture
def measured(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """What measuring finds, taken from the end of the list."""
    answers = [2_222_222, 1_111_111]
    monkeypatch.setattr(tsc, "measure", answers.pop)
    return answers


def test_measurements_agree() -> None:
    first, second = tsc.measure(), tsc.measure()
    assert 100_000 < first < 10_000_000
    assert abs(first - second) <= first // 10_000


def test_it_is_measured_once(measured: list[int]) -> None:
    assert [tsc.frequency_khz(), tsc.frequency_khz()] == [1_111_111, 1_111_111]


@pytest.mark.parametrize("content", ["", "{", "[]", '{"boot": "another", "khz": 5}', '{"boot": 1, "khz": "fast"}'])
def test_anew_when_what_is_remembered_is_of_no_use(measured: list[int], data_root: Path, content: str) -> None:
    os.makedirs(data_root / "cache")
    (data_root / "cache/tsc.json").write_text(content)
    assert tsc.frequency_khz() == 1_111_111
    assert json.loads((data_root / "cache/tsc.json").read_text())["khz"] == 1_111_111


def test_without_a_place_to_remember_it(measured: list[int], data_root: Path) -> None:
    data_root.write_text("a file where a directory should be")
    assert [tsc.frequency_khz(), tsc.frequency_khz()] == [1_111_111, 2_222_222]


def test_zero_where_memory_cannot_be_executed(monkeypatch: pytest.MonkeyPatch) -> None:
    import mmap

    def refuse(*args: object, **options: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(mmap, "mmap", refuse)
    assert tsc.measure() == 0
