"""Mounts of a container's root as containerd describes them."""

from __future__ import annotations

import os
import pathlib

import pytest

from hako.errors import ConfigError, HostError
from hako.linux import syscalls
from hako.storage import mountlist
from hako.storage.mountlist import Mount
from hako.threads import in_thread_of_its_own


@pytest.mark.parametrize(
    ("options", "flags", "data"),
    [
        ([], 0, []),
        (["ro", "nosuid"], syscalls.MS_RDONLY | syscalls.MS_NOSUID, []),
        (["ro", "rw"], 0, []),
        (["rw", "ro"], syscalls.MS_RDONLY, []),
        (["rbind", "ro"], syscalls.MS_BIND | syscalls.MS_REC | syscalls.MS_RDONLY, []),
        (["index=off", "lowerdir=/a:/b", "defaults"], 0, ["index=off", "lowerdir=/a:/b"]),
    ],
)
def test_options(options: list[str], flags: int, data: list[str]) -> None:
    mount = Mount("overlay", "overlay", options)
    assert (mount.flags(), mount.data()) == (flags, data)


@pytest.mark.parametrize(
    ("value", "reason"),
    [
        ("x", r"\$\.rootfs: not a list"),
        ([{}] * 65, "at most 64"),
        ([1], r"\$\.rootfs\[0\]: not an object"),
        ([{"type": 1}], "must be texts"),
        ([{"source": "a\0b"}], "must be texts"),
        ([{"options": "ro"}], r"\.options: not a list of texts"),
        ([{"options": [1]}], r"\.options: not a list of texts"),
    ],
)
def test_what_is_no_list_of_mounts_is_refused(value: object, reason: str) -> None:
    with pytest.raises(ConfigError, match=reason):
        mountlist.parse(value)


def test_parse() -> None:
    assert mountlist.parse([{"type": "bind", "source": "/a", "options": ["ro"]}]) == [Mount("bind", "/a", ["ro"])]


def in_own_mounts(work: object) -> None:
    def enter() -> None:
        syscalls.unshare(syscalls.CLONE_NEWNS)
        syscalls.mount("", "/", flags=syscalls.MS_PRIVATE | syscalls.MS_REC)
        work()  # type: ignore[operator]

    in_thread_of_its_own(enter)


@pytest.mark.skipif(os.geteuid() != 0, reason="mounting needs root")
@pytest.mark.parametrize("count", [2, 120])
def test_layers_are_mounted_however_many(count: int, tmp_path: pathlib.Path) -> None:
    layers = [tmp_path / f"snapshots-with-a-long-name-{number}" / "fs" for number in range(count)]
    for number, layer in enumerate(layers):
        layer.mkdir(parents=True)
        (layer / f"file{number}").touch()
    point = tmp_path / "point"
    point.mkdir()

    def work() -> None:
        lower = ":".join(map(str, layers))
        mountlist.mount(Mount("overlay", "overlay", ["index=off", f"lowerdir={lower}"]), str(point))
        assert {f"file{number}" for number in range(count)} == set(os.listdir(point))

    in_own_mounts(work)
    assert not os.listdir(point)


@pytest.mark.skipif(os.geteuid() != 0, reason="mounting needs root")
def test_a_mount_that_fails_is_named(tmp_path: pathlib.Path) -> None:
    def work() -> None:
        with pytest.raises(HostError, match=r"Cannot mount the container's root \(nosuchfs /x\)"):
            mountlist.mount(Mount("nosuchfs", "/x"), str(tmp_path))

    in_own_mounts(work)
