"""What the guest is to mount, from mounts as snapshotters describe them."""

from __future__ import annotations

from typing import Any

import pytest

from hako.errors import ConfigError
from hako.linux import syscalls
from hako.storage.block import Directory, GuestMount, Plan, Wanted, for_guest

RO = syscalls.MS_RDONLY
BIND = syscalls.MS_BIND | syscalls.MS_REC


def mount(fstype: str, source: str = "/images/x", *options: str) -> dict[str, Any]:
    return {"type": fstype, "source": source, "options": list(options)}


def overlay(*options: str, transforms: str = "format/mkdir/") -> dict[str, Any]:
    return mount(f"{transforms}overlay", "overlay", *options)


def planned(*mounts: dict[str, Any]) -> Plan:
    plan = Plan("c1")
    assert plan.add_rootfs(list(mounts)) == f"/run/hako/disks/c1/{len(mounts) - 1}"
    return plan


LAYERED = (
    mount("ext4", "/s/rw", "rw", "loop"),
    mount("erofs", "/s/2", "ro", "loop"),
    mount("erofs", "/s/1", "ro", "loop"),
    overlay(
        "X-containerd.mkdir.path={{ mount 0 }}/upper:0711:1:2",
        "X-containerd.mkdir.path={{ mount 0 }}/work",
        "workdir={{ mount 0 }}/work",
        "upperdir={{mount 0}}/upper",
        "lowerdir={{ overlay 1 2 }}",
        "index=off",
    ),
)


def test_one_disk() -> None:
    plan = planned(mount("ext4", "/images/a", "loop", "noatime,nodev", "data=ordered", "defaults"))
    assert plan.disks == [Wanted("/images/a", False)]
    assert plan.mounts == [GuestMount("ext4", syscalls.MS_NOATIME | syscalls.MS_NODEV, "data=ordered", 0)]
    assert list(plan.modules) == ["ext4"]


def test_the_last_word_on_an_option_counts() -> None:
    assert planned(mount("ext4", "/a", "ro", "nodev", "rw", "dev")).mounts[0].flags == 0
    assert planned(mount("ext3", "/a", "rw", "ro")).disks == [Wanted("/a", True)]


def test_what_cannot_be_written_to_is_only_read() -> None:
    plan = planned(mount("erofs", "/a", "rw"))
    assert (plan.disks[0].readonly, plan.mounts[0].flags) == (True, RO)


def test_layers() -> None:
    plan = planned(*LAYERED)
    assert plan.disks == [Wanted("/s/rw", False), Wanted("/s/2", True), Wanted("/s/1", True)]
    made = (Directory("0/upper", 0o711, 1, 2), Directory("0/work"))
    used = ("0/work", "0/upper", "1", "2")
    data = "workdir=0/work,upperdir=0/upper,lowerdir=1:2,index=off"
    assert plan.mounts[3] == GuestMount("overlay", 0, data, source="overlay", make=made, inside=used)
    call = plan.mounts[3].params(["a", "b", "c"])
    assert call["make"][0] == {"path": "0/upper", "mode": 0o711, "uid": 1, "gid": 2}
    assert plan.mounts[1].params(["a", "b", "c"]) == {
        "type": "erofs", "source": "", "flags": RO, "data": "", "disk": "b",
    }  # fmt: skip


def test_numbers_count_from_the_list_that_they_are_in() -> None:
    plan = Plan("c1")
    plan.add_mount(mount("ext4", "/other"), "$.mounts[0]")
    assert plan.add_rootfs(list(LAYERED)) == "/run/hako/disks/c1/4"
    assert plan.mounts[4].inside == ("1/work", "1/upper", "2", "3")


def test_layers_are_listed_in_either_direction() -> None:
    plan = planned(mount("erofs", "/1"), mount("erofs", "/2"), overlay("lowerdir={{ overlay 1 0 }}"))
    assert plan.mounts[2].data == "lowerdir=1:0"


def test_a_directory_of_a_disk() -> None:
    bind = mount("format/mkdir/bind", "{{ mount 0 }}/fs", "X-containerd.mkdir.path={{ mount 0 }}/fs", "ro", "rbind")
    plan = planned(mount("ext4", "/a"), bind)
    assert plan.mounts[1] == GuestMount(
        "", BIND | RO, "", source="0/fs", make=(Directory("0/fs"),), inside=("0/fs",)
    )  # fmt: skip


def test_a_file_system_on_several_disks() -> None:
    plan = planned(mount("erofs", "/meta", "ro", "device=/1", "device=/2", "device=/1"))
    assert [disk.path for disk in plan.disks] == ["/meta", "/1", "/2"]
    assert plan.mounts[0].params(["m", "a", "b"])["devices"] == ["a", "b", "a"]


@pytest.mark.parametrize(
    ("mounts", "named"),
    [
        ([], "not an array"),
        ({}, "not an array"),
        ([1], r"\[0\]: not an object"),
        ([mount("ext4")] * 201, "1 to 200"),
        ([mount("ext4", "relative")], "relative"),
        ([mount("ext4", "")], "absolute path"),
        ([mount("nfs")], "as nfs"),
        ([mount("")], "as nothing"),
        ([mount("mkfs/ext4")], "mkfs/"),
        ([mount("ext4", "/a", "usrquota")], "usrquota is not known"),
        ([mount("ext4", "/a", "X-containerd.mkdir.path=/x")], "X-containerd"),
        ([{**mount("ext4"), "target": "sub"}], "target"),
        ([mount("erofs", "/a", "device=b")], "'b'"),
        ([mount("ext4"), overlay("lowerdir=/etc")], "/etc"),
        ([mount("ext4"), overlay("lowerdir={{ mount 0 }}/../../..")], r"\.\."),
        ([mount("ext4"), overlay("lowerdir={{ mount 1 }}")], "no earlier mount"),
        ([mount("ext4"), overlay("lowerdir={{ overlay 0 }}")], "no earlier mount"),
        ([mount("ext4"), overlay("lowerdir={{ mount 0 1 }}")], "no earlier mount"),
        ([mount("ext4"), overlay("lowerdir={{ source 0 }}")], "does not know what"),
        ([mount("ext4"), overlay("lowerdir={{ mount 0 }}", transforms="")], "not on one of the mounts"),
        ([mount("ext4"), overlay("upperdir={{ mount 0 }}")], "needs a lowerdir"),
        ([mount("ext4"), overlay("X-containerd.mkdir.path=/x", "lowerdir={{ mount 0 }}")], "'/x'"),
        ([mount("ext4"), overlay("X-containerd.mkdir.path={{ mount 0 }}/x:8", "lowerdir={{ mount 0 }}")], "mode"),
        ([mount("ext4"), overlay("X-containerd.mkdir.path={{ mount 0 }}/x:1:2:3:4", "lowerdir={{ mount 0 }}")], "mode"),
        ([mount("ext4"), mount("bind", "/etc", "rbind")], "/etc"),
    ],
)  # fmt: skip
def test_what_is_refused(mounts: Any, named: str) -> None:
    with pytest.raises(ConfigError, match=named):
        Plan("c1").add_rootfs(mounts)


@pytest.mark.parametrize(
    ("mounts", "expected"),
    [
        (LAYERED, True),
        ([mount("ext4")], True),
        ([mount("erofs"), mount("format/bind", "{{ mount 0 }}/x", "rbind")], True),
        ([mount("overlay", "overlay", "lowerdir=/a:/b", "upperdir=/c", "workdir=/d")], False),
        ([mount("bind", "/srv/root", "rbind", "ro")], False),
        ([mount("ext4", "/srv/root", "bind")], False),
        ([mount("erofs"), overlay("lowerdir={{ mount 0 }}", "upperdir=/host/upper", "workdir=/host/work")], False),
        ([mount("zfs", "pool/x")], False),
    ],
)
def test_which_are_for_the_guest(mounts: Any, expected: bool) -> None:
    assert for_guest(list(mounts)) is expected
