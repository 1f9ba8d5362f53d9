"""What the agent tells of a container's cgroup, out of files as kernels write them."""

from __future__ import annotations

from pathlib import Path

import pytest

from hako.agent import cgroups
from hako.sandbox import replies
from hako.wire.calls import MAX_DEVICES

PRESSURE = """\
some avg10=0.00 avg60=1.25 avg300=100.00 total=123456
full avg10=0.07 avg60=0.00 avg300=0.00 total=99
"""
NET_DEV = """\
Inter-|   Receive                                               |  Transmit
 face |bytes   packets errs drop fifo frame compressed multicast|bytes   packets errs drop fifo colls carrier compressed
    lo:    840      10    0    0    0     0          0         0     840      10    0    0    0     0       0          0
  eth0:1234567    9012    1    2    0     0          0         7 8765432    2109    3    4    0     0       0          0
"""


@pytest.fixture
def cgroup(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The directory of the container c."""
    monkeypatch.setattr(cgroups, "MOUNT", str(tmp_path))
    directory = tmp_path / "hako" / "c"
    directory.mkdir(parents=True)
    return directory


def test_what_a_kernel_without_anything_tells(cgroup: Path) -> None:
    assert cgroup.is_dir()
    stats = cgroups.stats("c")
    assert replies.stats(stats) == stats
    assert stats["memory"]["limit"] is None
    assert stats["io"] == {"rbytes": 0, "wbytes": 0, "rios": 0, "wios": 0, "devices": []}
    assert (stats["hugetlb"], stats["pressure"]) == ([], {"cpu": {}, "memory": {}, "io": {}})


def test_huge_pages(cgroup: Path) -> None:
    for name, text in (
        ("hugetlb.2MB.current", "4194304\n"),
        ("hugetlb.2MB.max", "8388608\n"),
        ("hugetlb.2MB.events", "max 3\n"),
        ("hugetlb.2MB.rsvd.current", "1\n"),
        ("hugetlb.1GB.current", "0\n"),
        ("hugetlb.1GB.max", "max\n"),
    ):
        (cgroup / name).write_text(text)
    stats = cgroups.stats("c")
    assert stats["hugetlb"] == [
        {"page": "1GB", "current": 0, "limit": None, "failures": 0},
        {"page": "2MB", "current": 4194304, "limit": 8388608, "failures": 3},
    ]
    assert replies.stats(stats) == stats


def test_pressure_and_swap(cgroup: Path) -> None:
    (cgroup / "io.pressure").write_text(PRESSURE)
    (cgroup / "cpu.pressure").write_text("some avg10=12.34 avg60=x total\nodd avg10=1.00\n")
    (cgroup / "memory.swap.max").write_text("0\n")
    stats = cgroups.stats("c")
    assert stats["pressure"] == {
        "cpu": {"some": {"avg10": 1234, "avg60": 0, "avg300": 0, "total": 0}},
        "memory": {},
        "io": {
            "some": {"avg10": 0, "avg60": 125, "avg300": 10000, "total": 123456},
            "full": {"avg10": 7, "avg60": 0, "avg300": 0, "total": 99},
        },
    }
    assert stats["memory"]["swap_limit"] == 0
    assert replies.stats(stats) == stats


def test_devices(cgroup: Path) -> None:
    (cgroup / "io.stat").write_text("254:0 rbytes=4096 wbytes=0 rios=1 wios=0 dbytes=5 dios=6\n8:0\nodd rbytes=1\n")
    rest = {"wbytes": 0, "wios": 0}
    assert cgroups.stats("c")["io"]["devices"] == [
        {"major": 254, "minor": 0, "rbytes": 4096, "rios": 1, **rest},
        {"major": 8, "minor": 0, "rbytes": 0, "rios": 0, **rest},
    ]
    (cgroup / "io.stat").write_text("".join(f"7:{minor} rbytes=1\n" for minor in range(MAX_DEVICES + 1)))
    stats = cgroups.stats("c")
    assert len(stats["io"]["devices"]) == stats["io"]["rbytes"] == MAX_DEVICES
    assert replies.stats(stats) == stats


def test_interfaces() -> None:
    assert cgroups._interfaces(NET_DEV) == [
        {
            "name": "eth0",
            "rx_bytes": 1234567, "rx_packets": 9012, "rx_errors": 1, "rx_dropped": 2,
            "tx_bytes": 8765432, "tx_packets": 2109, "tx_errors": 3, "tx_dropped": 4,
        }
    ]  # fmt: skip
    many = NET_DEV + "".join(f"veth{number}: {'0 ' * 16}\n" for number in range(MAX_DEVICES))
    assert len(cgroups._interfaces(many)) == MAX_DEVICES
    assert cgroups._interfaces("") == []


def test_the_interfaces_of_this_machine_are_told(cgroup: Path) -> None:
    assert cgroup.is_dir()
    told = {entry["name"] for entry in cgroups.stats("c")["network"]}
    names = {line.split(":")[0].strip() for line in Path("/proc/net/dev").read_text().splitlines()[2:]}
    assert told == set(sorted(names - {"lo"})[:MAX_DEVICES])
