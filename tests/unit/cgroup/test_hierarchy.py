"""Finding the host's cgroup hierarchies, and making cgroups in them."""

from __future__ import annotations

from pathlib import Path

import pytest

from hako.cgroup import hierarchy
from hako.cgroup.hierarchy import Hierarchy
from hako.cgroup.path import CgroupPath

HYBRID = """\
24 1 0:22 / /proc rw - proc proc rw
31 23 0:28 / /sys/fs/cgroup rw,relatime - tmpfs tmpfs rw,mode=755
32 31 0:29 / /sys/fs/cgroup/cpu,cpuacct rw,relatime shared:5 master:1 - cgroup cgroup rw,cpu,cpuacct
35 31 0:32 / /sys/fs/cgroup/memory rw,relatime - cgroup cgroup rw,memory
40 31 0:37 / /sys/fs/cgroup/systemd rw,relatime - cgroup cgroup rw,xattr,name=systemd
41 31 0:38 / /sys/fs/cgroup/unified rw,relatime - cgroup2 cgroup2 rw
42 31 0:32 / /mnt/memory rw,relatime - cgroup cgroup rw,memory
"""
HYBRID_OWN = "4:memory:/user/me\n3:cpu,cpuacct:/\n2:freezer:/\n1:name=systemd:/user.slice\n0::/init.scope\n"
UNIFIED = """\
30 23 0:26 / /run/cilium/cgroupv2 rw - cgroup2 none rw
31 23 0:26 / /sys/fs/cgroup rw,nosuid shared:4 - cgroup2 cgroup2 rw,nsdelegate
"""
ABSOLUTE, RELATIVE = CgroupPath("/docker/x"), CgroupPath("a/x")


def test_version_1_with_the_unified_hierarchy_beside_it() -> None:
    host = hierarchy.find(HYBRID, HYBRID_OWN)
    assert host.hierarchies == {
        "cpu": Hierarchy("/sys/fs/cgroup/cpu,cpuacct", "/"),
        "cpuacct": Hierarchy("/sys/fs/cgroup/cpu,cpuacct", "/"),
        "memory": Hierarchy("/sys/fs/cgroup/memory", "/user/me"),
        "name=systemd": Hierarchy("/sys/fs/cgroup/systemd", "/user.slice"),
        "": Hierarchy("/sys/fs/cgroup/unified", "/init.scope"),
    }
    assert not host.is_unified
    assert host.directories(ABSOLUTE)["memory"] == "/sys/fs/cgroup/memory/docker/x"
    assert host.directories(ABSOLUTE)[""] == "/sys/fs/cgroup/unified/docker/x"
    assert host.directories(RELATIVE)["memory"] == "/sys/fs/cgroup/memory/user/me/a/x"
    assert host.directories(RELATIVE)["cpu"] == "/sys/fs/cgroup/cpu,cpuacct/a/x"


@pytest.mark.parametrize(
    ("own", "directory"),
    [("/", "/sys/fs/cgroup/a/x"), ("/user.slice/session.scope", "/sys/fs/cgroup/user.slice/a/x")],
)
def test_version_2_alone(own: str, directory: str) -> None:
    host = hierarchy.find(UNIFIED, f"0::{own}\n")
    assert host.is_unified
    assert host.directories(ABSOLUTE) == {"": "/sys/fs/cgroup/docker/x"}
    # Beside the runtime, which stands where no cgroup with limits can be below it.
    assert host.directories(RELATIVE) == {"": directory}


@pytest.mark.parametrize(
    ("root", "own", "seen"),
    [
        ("/docker/outer", "/docker/outer", "/"),
        ("/docker/outer", "/docker/outer/in", "/in"),
        ("/docker/outer", "/docker/outer2", "/docker/outer2"),
        ("/", "/../../elsewhere", "/"),
    ],
)
def test_inside_another_container(root: str, own: str, seen: str) -> None:
    mounts = f"9 1 0:1 {root} /sys/fs/cgroup/pids rw - cgroup cgroup rw,pids\n"
    assert hierarchy.find(mounts, f"8:pids:{own}\n").hierarchies["pids"].own == seen


def test_odd_mount_points() -> None:
    mounts = "9 1 0:1 / /sys/fs/cgroup/a\\040b\\134c rw - cgroup cgroup rw,pids\n"
    assert hierarchy.find(mounts, "8:pids:/\n").hierarchies["pids"].mount == "/sys/fs/cgroup/a b\\c"
    assert hierarchy.find("", "").hierarchies == {}
    # A colon can be part of a cgroup's name.
    assert hierarchy.find(mounts, "8:pids:/a:b\n").hierarchies["pids"].own == "/a:b"


def test_controllers_are_given_on_version_2(tmp_path: Path) -> None:
    (tmp_path / "cgroup.controllers").write_text("cpu memory pids\n")
    (tmp_path / "cgroup.subtree_control").write_text("cpu\n")
    made = hierarchy.make(str(tmp_path), f"{tmp_path}/a/b")
    assert made == [f"{tmp_path}/a", f"{tmp_path}/a/b"]
    assert (tmp_path / "cgroup.subtree_control").read_text() == "+memory +pids"
    assert hierarchy.make(str(tmp_path), f"{tmp_path}/a/b") == []
    hierarchy.remove(made)
    assert not (tmp_path / "a").exists()


def test_cpusets_of_version_1_begin_with_what_is_above(tmp_path: Path) -> None:
    for path, value in ((tmp_path, "0-3"), (tmp_path / "a", ""), (tmp_path / "a" / "b", ""), (tmp_path / "c", "2")):
        path.mkdir(exist_ok=True)
        for name in ("cpuset.cpus", "cpuset.mems", "cgroup.clone_children"):
            (path / name).write_text(value)
    hierarchy.make(str(tmp_path), f"{tmp_path}/a/b")
    hierarchy.make(str(tmp_path), f"{tmp_path}/c")
    assert [(tmp_path / name / "cpuset.cpus").read_text() for name in ("a", "a/b", "c")] == ["0-3", "0-3", "2"]
    assert (tmp_path / "a" / "b" / "cpuset.mems").read_text() == "0-3"
