"""What becomes of a config.json's resources in the host's cgroups, on directories that stand for these."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from hako.cgroup import hierarchy, limits
from hako.cgroup.api import Cgroup, Overhead
from hako.cgroup.hierarchy import Hierarchy, Host
from hako.cgroup.path import CgroupPath
from hako.errors import ConfigError, HostError

MIB = 1 << 20
OVERHEAD = Overhead(memory=100 * MIB, pids=10, cpus=0.5)
PATH = CgroupPath("/x")
UNLIMITED = str((1 << 63) - 4096)

V1 = {
    "memory": {
        "memory.limit_in_bytes": UNLIMITED,
        "memory.memsw.limit_in_bytes": UNLIMITED,
        "memory.soft_limit_in_bytes": UNLIMITED,
        "memory.swappiness": "60",
    },
    "cpu": {"cpu.shares": "1024", "cpu.cfs_quota_us": "-1", "cpu.cfs_period_us": "100000"},
    "cpuset": {"cpuset.cpus": "0-3", "cpuset.mems": "0"},
    "pids": {"pids.max": "max"},
    "blkio": {
        "blkio.bfq.weight": "100",
        "blkio.bfq.weight_device": "",
        **dict.fromkeys(
            (f"blkio.throttle.{way}_{what}_device" for way in ("read", "write") for what in ("bps", "iops")), ""
        ),
    },
    "net_cls": {"net_cls.classid": "0"},
    "net_prio": {"net_prio.ifpriomap": ""},
    "rdma": {"rdma.max": ""},
    "freezer": {},
}
V2 = {
    "": {
        **dict.fromkeys(("memory.max", "memory.high", "memory.swap.max", "pids.max"), "max"),
        **dict.fromkeys(("memory.low", "memory.current"), "0"),
        "cpu.weight": "100",
        "cpu.max": "max 100000",
        **dict.fromkeys(("cpuset.cpus", "cpuset.mems", "io.max", "io.weight", "rdma.max"), ""),
    }
}


def host_with(root: Path, tree: dict[str, dict[str, str]]) -> Host:
    """A host whose cgroup ``/x`` exists with these files."""
    found = {}
    for controller, files in tree.items():
        mount = root / (controller or "unified")
        (mount / "x").mkdir(parents=True)
        for name, value in files.items():
            (mount / "x" / name).write_text(value)
        found[controller] = Hierarchy(str(mount), "/")
    return Host(found)


def changes(root: Path, tree: dict[str, dict[str, str]]) -> dict[str, str]:
    """The files that are not as they were made."""
    return {
        name: text
        for controller, files in tree.items()
        for name, value in files.items()
        if (text := (root / (controller or "unified") / "x" / name).read_text()) != value
    }


DEVICE = {"major": 8, "minor": 16}
ON_V1: list[tuple[dict[str, Any], dict[str, str]]] = [
    ({}, {}),
    ({"memory": None, "cpu": None, "pids": None, "blockIO": None}, {}),
    ({"memory": {"limit": 0, "swap": 0}, "cpu": {"shares": 0, "quota": 0}, "pids": {"limit": 0}}, {}),
    ({"memory": {"limit": 64 * MIB}}, {"memory.limit_in_bytes": str(164 * MIB)}),
    (
        {"memory": {"limit": 64 * MIB, "swap": 128 * MIB, "reservation": 32 * MIB, "swappiness": 0}},
        {
            "memory.limit_in_bytes": str(164 * MIB),
            "memory.memsw.limit_in_bytes": str(228 * MIB),
            "memory.soft_limit_in_bytes": str(132 * MIB),
            "memory.swappiness": "0",
        },
    ),
    ({"memory": {"limit": -1}}, {"memory.limit_in_bytes": "-1", "memory.memsw.limit_in_bytes": "-1"}),
    (
        {"memory": {"limit": 64 * MIB, "swap": -1}},
        {"memory.limit_in_bytes": str(164 * MIB), "memory.memsw.limit_in_bytes": "-1"},
    ),
    ({"memory": {"kernel": MIB, "kernelTCP": MIB, "disableOOMKiller": True}}, {}),
    ({"cpu": {"shares": 512}}, {"cpu.shares": "512"}),
    ({"cpu": {"quota": 50_000}}, {"cpu.cfs_quota_us": "100000"}),
    ({"cpu": {"quota": 5_000, "period": 10_000}}, {"cpu.cfs_quota_us": "10000", "cpu.cfs_period_us": "10000"}),
    ({"cpu": {"quota": -1, "period": 50_000}}, {"cpu.cfs_period_us": "50000"}),
    ({"cpu": {"cpus": "1", "mems": "0-1"}}, {"cpuset.cpus": "1", "cpuset.mems": "0-1"}),
    ({"cpu": {"realtimeRuntime": 5, "realtimePeriod": 10}}, {}),
    ({"pids": {"limit": 20}}, {"pids.max": "30"}),
    ({"pids": {"limit": -1}}, {}),
    ({"blockIO": {"weight": 300}}, {"blkio.bfq.weight": "300"}),
    ({"blockIO": {"weightDevice": [{**DEVICE, "weight": 200}]}}, {"blkio.bfq.weight_device": "8:16 200"}),
    (
        {
            "blockIO": {
                "throttleReadBpsDevice": [{**DEVICE, "rate": MIB}],
                "throttleWriteBpsDevice": [{**DEVICE, "rate": 2 * MIB}],
                "throttleReadIOPSDevice": [{**DEVICE, "rate": 5}],
                "throttleWriteIOPSDevice": [{**DEVICE, "rate": 0}],
            }
        },
        {
            "blkio.throttle.read_bps_device": f"8:16 {MIB}",
            "blkio.throttle.write_bps_device": f"8:16 {2 * MIB}",
            "blkio.throttle.read_iops_device": "8:16 5",
            "blkio.throttle.write_iops_device": "8:16 0",
        },
    ),
    (
        {"network": {"classID": 1_048_577, "priorities": [{"name": "eth0", "priority": 5}]}},
        {"net_cls.classid": "1048577", "net_prio.ifpriomap": "eth0 5"},
    ),
    ({"rdma": {"mlx5_1": {"hcaHandles": 3, "hcaObjects": 10}}}, {"rdma.max": "mlx5_1 hca_handle=3 hca_object=10"}),
    ({"devices": [{"allow": False, "access": "rwm"}], "hugepageLimits": [{"pageSize": "2MB", "limit": 1}]}, {}),
    ({"unified": {"memory.max": "1"}}, {}),
]


@pytest.mark.parametrize(("resources", "expected"), ON_V1)
def test_version_1(tmp_path: Path, resources: dict[str, Any], expected: dict[str, str]) -> None:
    Cgroup.create(PATH, resources, OVERHEAD, host=host_with(tmp_path, V1))
    assert changes(tmp_path, V1) == expected


ON_V2: list[tuple[dict[str, Any], dict[str, str]]] = [
    ({}, {}),
    (
        {"memory": {"limit": 64 * MIB, "swap": 96 * MIB, "reservation": 32 * MIB, "swappiness": 10}},
        {
            "memory.max": str(164 * MIB),
            "memory.swap.max": str(32 * MIB),
            "memory.low": str(132 * MIB),
        },
    ),
    ({"memory": {"limit": 64 * MIB, "swap": 64 * MIB}}, {"memory.max": str(164 * MIB), "memory.swap.max": "0"}),
    ({"memory": {"limit": 64 * MIB}}, {"memory.max": str(164 * MIB)}),
    ({"memory": {"limit": -1, "swap": -1}}, {}),
    ({"cpu": {"shares": 2}}, {"cpu.weight": "1"}),
    ({"cpu": {"shares": 1024}}, {"cpu.weight": "39"}),
    ({"cpu": {"shares": 262_144}}, {"cpu.weight": "10000"}),
    ({"cpu": {"quota": 50_000}}, {"cpu.max": "100000 100000"}),
    ({"cpu": {"quota": 5_000, "period": 10_000}}, {"cpu.max": "10000 10000"}),
    ({"cpu": {"period": 10_000}}, {"cpu.max": "max 10000"}),
    ({"cpu": {"cpus": "1", "mems": "0"}}, {"cpuset.cpus": "1", "cpuset.mems": "0"}),
    ({"pids": {"limit": 20}}, {"pids.max": "30"}),
    ({"blockIO": {"weight": 10}}, {"io.weight": "default 1"}),
    ({"blockIO": {"weight": 1000}}, {"io.weight": "default 10000"}),
    ({"blockIO": {"throttleReadIOPSDevice": [{**DEVICE, "rate": 5}]}}, {"io.max": "8:16 riops=5"}),
    ({"blockIO": {"throttleWriteBpsDevice": [{**DEVICE, "rate": 0}]}}, {"io.max": "8:16 wbps=max"}),
    ({"network": {"classID": 1, "priorities": [{"name": "eth0", "priority": 5}]}}, {}),
    (
        {"unified": {"memory.max": str(MIB), "memory.high": "max", "pids.max": "5", "cpu.max": "1000 10000"}},
        {"memory.max": str(101 * MIB), "pids.max": "15", "cpu.max": "6000 10000"},
    ),
    (
        {"unified": {"io.max": "8:0 rbps=1\n8:16 rbps=2", "cpu.weight": "7"}},
        {"io.max": "8:16 rbps=2", "cpu.weight": "7"},
    ),
    # The guest's alone: the host does not even have such files here.
    ({"unified": {"memory.oom.group": "1", "hugetlb.2MB.max": "0", "misc.max": "x 1"}}, {}),
]


@pytest.mark.parametrize(("resources", "expected"), ON_V2)
def test_version_2(tmp_path: Path, resources: dict[str, Any], expected: dict[str, str]) -> None:
    Cgroup.create(PATH, resources, OVERHEAD, host=host_with(tmp_path, V2))
    assert changes(tmp_path, V2) == expected


def test_a_weight_for_bfq_is_written_as_it_is(tmp_path: Path) -> None:
    tree = {"": {**V2[""], "io.bfq.weight": "100"}}
    Cgroup.create(PATH, {"blockIO": {"weight": 300}}, OVERHEAD, host=host_with(tmp_path, tree))
    assert changes(tmp_path, tree) == {"io.bfq.weight": "300"}


def test_version_2_leaves_a_vm_what_it_uses(tmp_path: Path) -> None:
    """The kernel would kill at once to reach a limit that is below that."""
    tree = {"": {**V2[""], "memory.current": str(500 * MIB)}}
    Cgroup.create(PATH, {"memory": {"limit": 64 * MIB}}, OVERHEAD, host=host_with(tmp_path, tree))
    assert changes(tmp_path, tree) == {"memory.max": str(516 * MIB)}


def test_version_2_takes_swap_alone(tmp_path: Path) -> None:
    group = Cgroup.create(PATH, {"memory": {"limit": 64 * MIB}}, OVERHEAD, host=host_with(tmp_path, V2))
    group.update({"memory": {"swap": 96 * MIB}})
    assert changes(tmp_path, V2)["memory.swap.max"] == str(32 * MIB)


def test_an_update_keeps_the_period(tmp_path: Path) -> None:
    for version, tree in (("1", V1), ("2", V2)):
        group = Cgroup.create(PATH, {"cpu": {"period": 50_000}}, OVERHEAD, host=host_with(tmp_path / version, tree))
        group.update({"cpu": {"quota": 50_000}})
    assert changes(tmp_path / "1", V1) == {"cpu.cfs_quota_us": "75000", "cpu.cfs_period_us": "50000"}
    assert changes(tmp_path / "2", V2) == {"cpu.max": "75000 50000"}


@pytest.mark.parametrize(
    ("resources", "place"),
    [
        ({"memory": []}, "memory: must be an object"),
        ({"memory": {"limit": "1g"}}, "memory.limit: must be a whole number"),
        ({"memory": {"limit": True}}, "memory.limit: must be a whole number"),
        ({"memory": {"swappiness": 101}}, "memory.swappiness: must be between 0 and 100"),
        ({"memory": {"swappiness": -1}}, "memory.swappiness: must be between 0 and 100"),
        ({"memory": {"limit": 2 * MIB, "swap": MIB}}, "memory.swap: is memory and swap together"),
        ({"cpu": {"cpus": 1}}, "cpu.cpus: must be a text"),
        ({"cpu": {"cpus": "0\0"}}, "cpu.cpus: must be a text"),
        ({"pids": {"limit": 1.5}}, "pids.limit: must be a whole number"),
        ({"blockIO": {"weightDevice": {}}}, "blockIO.weightDevice: must be a list of objects"),
        ({"blockIO": {"throttleReadBpsDevice": [1]}}, "blockIO.throttleReadBpsDevice: must be a list of objects"),
        (
            {"blockIO": {"throttleReadBpsDevice": [{"major": "8", "minor": 0}]}},
            "blockIO.throttleReadBpsDevice[0].major: must be a whole number",
        ),
        ({"network": {"priorities": [{"name": "a b", "priority": 1}]}}, "priorities[0].name: must be a name"),
        ({"rdma": {"x\n": {}}}, "must be a name without blanks"),
        ({"unified": {"../memory.max": "1"}}, "must be named as a file of cgroup version 2"),
        ({"unified": {"memory": "1"}}, "must be named as a file of cgroup version 2"),
        ({"unified": {"memory.max": 1}}, "must be a text"),
    ],
)
def test_resources_that_are_refused(resources: dict[str, Any], place: str) -> None:
    with pytest.raises(ConfigError) as caught:
        limits.parse(resources)
    assert place in str(caught.value)
    assert str(caught.value).startswith("$.linux.resources.")


@pytest.mark.parametrize("resources", [{"cpu": {"shares": 5}}, {"cpu": {"quota": 5000}}, {"network": {"classID": 1}}])
def test_a_limit_without_its_controller(tmp_path: Path, resources: dict[str, Any]) -> None:
    host = host_with(tmp_path, {"memory": V1["memory"]})
    Cgroup.create(PATH, {}, OVERHEAD, host=host)
    with pytest.raises(HostError, match=r"the host has no cgroup controller (cpu|net_cls);"):
        Cgroup.create(PATH, resources, OVERHEAD, host=host)


def test_nothing_stays_of_a_cgroup_that_cannot_be_made(tmp_path: Path) -> None:
    host = host_with(tmp_path, {"memory": {}, "pids": {}})
    with pytest.raises(HostError, match=r"Cannot set linux\.resources\.pids\.limit: .*/a/b/pids\.max: this kernel"):
        Cgroup.create(CgroupPath("/a/b"), {"pids": {"limit": 1}}, OVERHEAD, host=host)
    assert not (tmp_path / "memory" / "a").exists()
    assert not (tmp_path / "pids" / "a").exists()


def test_the_default_overhead_grows_with_the_guest() -> None:
    assert Overhead.for_guest(0) == Overhead()
    assert Overhead.for_guest(32 << 30).memory == Overhead().memory + (1 << 30)


def test_the_record_is_all_that_a_later_process_needs(tmp_path: Path) -> None:
    group = Cgroup.create(PATH, {"pids": {"limit": 1}}, OVERHEAD, host=host_with(tmp_path, V1))
    again = Cgroup.open(group.to_json())
    assert again.to_json() == group.to_json()
    again.update({"pids": {"limit": 2}})
    assert changes(tmp_path, V1) == {"pids.max": "12"}


def test_the_host_of_this_test_has_cgroups() -> None:
    found = hierarchy.read().hierarchies
    assert all(Path(entry.mount, "cgroup.procs").exists() for entry in found.values())
