"""Runtimes by their own commands: runc as it is, and a program that stands where hako-runtime is looked for."""

from __future__ import annotations

import json
import os
import pathlib
import shutil
from collections.abc import Iterator

import pytest

from bench import commands
from bench.targets import runc
from bench.targets.base import IDLE, PREFIX
from bench.targets.hako import Hako
from bench.targets.runc import LIFE, HakoRuntime, Runc
from hako.ociimage.index import Image


@pytest.fixture(autouse=True)
def places(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Directories of the test's own."""
    for name in ("_RUN", "_WORK"):
        (tmp_path / name).mkdir()
        monkeypatch.setattr(runc, name, str(tmp_path / name))


@pytest.fixture
def hako(tmp_path: pathlib.Path, busybox_image: Image) -> Hako:
    """A hako with Debian's runc in the place of its hako-runtime."""
    for name in ("hako", "hako-runtime"):
        (tmp_path / name).write_text(f'#!/bin/sh\nexec {shutil.which("runc")} "$@"\n')
        (tmp_path / name).chmod(0o755)
    found = Hako(str(tmp_path / "hako"))
    found.image_root = busybox_image.rootfs
    return found


@pytest.fixture
def runtime(hako: Hako) -> Iterator[HakoRuntime]:
    """A runtime that is ready."""
    found = HakoRuntime(hako)
    found.prepare()
    yield found
    found.close()


@pytest.mark.skipif(os.geteuid() != 0, reason="runc needs root")
def test_a_whole_life_leaves_no_container(runtime: HakoRuntime, tmp_path: pathlib.Path) -> None:
    name = runtime.new_name()
    statuses = []
    for argv in runtime.life(name):
        commands.run(argv, output=False)
        listed = json.loads(commands.run(runtime._argv("list", "--format", "json")).output) or []
        statuses += [each["status"] for each in listed]
    assert statuses == ["created", "running"], LIFE
    runtime.close()
    assert not list(tmp_path.glob(f"_*/{PREFIX}*"))


@pytest.mark.skipif(os.geteuid() != 0, reason="runc needs root")
def test_it_is_measured_like_runc(runtime: HakoRuntime) -> None:
    box = runtime.start(IDLE)
    assert runtime.time(runtime.exec_argv(box, ["true"])) > 0
    assert json.loads(commands.run(runtime.state_argv(box)).output)["status"] == "running"
    assert runtime.versions()["hako"] == Runc("/").versions()["runc"]


def test_it_is_found_beside_its_hako(hako: Hako, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert HakoRuntime(hako).command == str(tmp_path / "hako-runtime")
    monkeypatch.setenv("PATH", str(tmp_path))
    assert HakoRuntime(Hako("hako")).command == str(tmp_path / "hako-runtime")
    (tmp_path / "hako-runtime").unlink()
    assert HakoRuntime(hako).missing() == "There is no hako-runtime beside hako; `make install` installs both."


def test_each_removes_only_what_its_own_kind_has_left(hako: Hako, tmp_path: pathlib.Path) -> None:
    def left() -> set[str]:
        return {path.name for path in tmp_path.glob(f"_*/{PREFIX}*")}

    names = {f"{PREFIX}-99999999{suffix}" for suffix in ("", "-runtime", "-docker")}
    names.add(f"{PREFIX}-{os.getpid()}-runtime")
    for name in names:
        (tmp_path / "_WORK" / name).mkdir()
        (tmp_path / "_RUN" / name).mkdir()
    HakoRuntime(hako).sweep()
    assert left() == names - {f"{PREFIX}-99999999-runtime"}
    Runc("/").sweep()
    assert left() == {f"{PREFIX}-99999999-docker", f"{PREFIX}-{os.getpid()}-runtime"}
