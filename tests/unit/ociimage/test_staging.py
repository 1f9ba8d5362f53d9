"""Directories in the making: locked while their maker lives, removed when it is dead."""

from __future__ import annotations

import os
import stat
from pathlib import Path

import pytest

from hako.errors import HostError
from hako.ociimage import staging


@pytest.fixture
def images(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("HAKO_DATA_ROOT", str(tmp_path))
    return tmp_path / "images"


def test_a_living_maker_keeps_its_directory(images: Path) -> None:
    with staging.staging() as mine, staging.staging() as other:
        assert mine != other
        staging.clean()
        assert os.path.isdir(mine)
    assert not os.path.exists(mine)
    assert not os.path.exists(other)


def test_what_the_dead_left_goes(images: Path) -> None:
    staging.images_dir()
    for name in (".new-dead", ".del-dead", "keep"):
        (images / name / "inner").mkdir(parents=True)
    (images / ".new-file").write_text("not a directory")
    with staging.staging():
        assert not (images / ".new-dead").exists()
        assert not (images / ".del-dead").exists()
        assert (images / "keep" / "inner").exists()


def test_an_error_inside_removes_the_directory(images: Path) -> None:
    with pytest.raises(RuntimeError), staging.staging() as path:
        raise RuntimeError
    assert not os.path.exists(path)


def test_only_root_may_enter(images: Path) -> None:
    images.mkdir(mode=0o755)
    staging.images_dir()
    assert stat.S_IMODE(images.stat().st_mode) == 0o700


def test_a_directory_that_cannot_be_made(images: Path) -> None:
    images.write_text("in the way")
    with pytest.raises(HostError, match="images"), staging.staging():
        pytest.fail("there is no place for it")


def test_deep_trees_are_removed(images: Path) -> None:
    place = staging.images_dir()
    depth = os.open(place, os.O_RDONLY)
    try:
        for _ in range(1500):  # more levels than Python's stack has
            os.mkdir("d", dir_fd=depth)
            inner = os.open("d", os.O_RDONLY, dir_fd=depth)
            os.close(depth)
            depth = inner
    finally:
        os.close(depth)
    staging.remove_tree(os.path.join(place, "d"))
    assert not os.path.exists(os.path.join(place, "d"))


def test_a_pull_lock_is_one_of_a_fixed_set(images: Path) -> None:
    for number in range(200):
        with staging.pull_lock(f"image-{number}"):
            pass
    assert len(os.listdir(images)) <= 32
