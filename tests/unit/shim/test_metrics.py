"""What the guest measures, in the forms of containerd's metrics."""

from __future__ import annotations

import copy
import mmap
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hako.cgroup import hierarchy
from hako.cgroup.usage import Usage
from hako.sandbox import replies
from hako.shim import metrics
from hako.shim import metrics_v1_messages as v1
from hako.shim import metrics_v2_messages as v2
from hako.shim.messages import Any as AnyMessage

MAX = (1 << 64) - 1
#: What a kernel shows in memory.limit_in_bytes when there is none; seen with pages of 4 KiB.
UNLIMITED_V1 = 9223372036854771712
INTERFACE = {
    "name": "eth0", "rx_bytes": 11, "rx_packets": 12, "rx_errors": 13, "rx_dropped": 14,
    "tx_bytes": 15, "tx_packets": 16, "tx_errors": 17, "tx_dropped": 18,
}  # fmt: skip
STATS: dict[str, Any] = {
    "cpu": {
        "usage_usec": 7, "user_usec": 4, "system_usec": 3, "nr_periods": 2, "nr_throttled": 1, "throttled_usec": 9,
        "core_sched.force_idle_usec": 5,
    },
    "memory": {
        "usage": 1000, "limit": 4096, "peak": 2000, "swap": 10, "swap_limit": 50, "swap_peak": 20,
        "stat": {
            "anon": 300, "file": 600, "kernel": 90, "sock": 8, "inactive_file": 500, "active_file": 100, "pgfault": 77,
            "pgmajfault": 6, "file_mapped": 40, "workingset_refault_anon": 1, "some_new_line": 1,
        },
        "events": {"max": 3, "oom": 2, "oom_kill": 1},
    },
    "pids": {"current": 5, "limit": 100},
    "io": {
        "rbytes": 1, "wbytes": 2, "rios": 3, "wios": 4,
        "devices": [{"major": 254, "minor": 16, "rbytes": 1, "wbytes": 2, "rios": 3, "wios": 4}],
    },
    "hugetlb": [{"page": "2MB", "current": 2 << 20, "limit": 4 << 20, "failures": 1}],
    "pressure": {
        "cpu": {"some": {"avg10": 125, "avg60": 7, "avg300": 10000, "total": 99}},
        "memory": {},
        "io": {},
    },
    "network": [INTERFACE],
}  # fmt: skip
NOTHING: dict[str, Any] = {
    "cpu": {},
    "memory": {
        "usage": 0, "limit": None, "peak": None, "swap": None, "swap_limit": None, "swap_peak": None,
        "stat": {}, "events": {},
    },
    "pids": {"current": 0, "limit": None},
    "io": {"rbytes": 0, "wbytes": 0, "rios": 0, "wios": 0, "devices": []},
    "hugetlb": [],
    "pressure": {"cpu": {}, "memory": {}, "io": {}},
    "network": [],
}  # fmt: skip

#: The answer of containerd 1.6's shim for a container of runc with a limit of 32 MiB, on a host of v1.
CONTROL = (
    "120208011a180a1408e09281061880ade2042208c79ab60499f8ca01120022b7010880e0c0021080a003288080c002389d05"
    "40880548d207500158808003608020688080c002708060800180808010880180e0ffffffffffff7f900180e0c002980180a0"
    "03b0018080c002c0019d05c8018805d001d207d80101e001808003e8018020f0018080c002f80180608a020f088080801010"
    "80c0ed021880e0c4039202140880e0ffffffffffff7f1080c0ed021880e0c4039a02120880e0ffffffffffff7f1080a01818"
    "80c029a2020a0880e0ffffffffffff7f2a004a00"
)


def two(stats: dict[str, Any]) -> v2.Metrics:
    found = metrics.of_container(stats, unified=True)
    assert isinstance(found, v2.Metrics)
    return found


def one(stats: dict[str, Any]) -> v1.Metrics:
    found = metrics.of_container(stats, unified=False)
    assert isinstance(found, v1.Metrics)
    return found


def test_these_are_answers_of_a_sandbox() -> None:
    assert replies.stats(STATS) == STATS
    assert replies.stats(NOTHING) == NOTHING


def test_version_2() -> None:
    found = two(STATS)
    psi = v2.PSIStats(some=v2.PSIData(avg10=1.25, avg60=0.07, avg300=100.0, total=99))
    assert found == v2.Metrics(
        pids=v2.PidsStat(current=5, limit=100),
        cpu=v2.CPUStat(
            usage_usec=7, user_usec=4, system_usec=3, nr_periods=2, nr_throttled=1, throttled_usec=9, psi=psi
        ),
        memory=v2.MemoryStat(
            anon=300, file=600, sock=8, inactive_file=500, active_file=100, pgfault=77, pgmajfault=6, file_mapped=40,
            workingset_refault_anon=1,
            usage=1000, usage_limit=4096, max_usage=2000, swap_usage=10, swap_limit=50, swap_max_usage=20,
        ),
        io=v2.IOStat(usage=[v2.IOEntry(major=254, minor=16, rbytes=1, wbytes=2, rios=3, wios=4)]),
        hugetlb=[v2.HugeTlbStat(current=2 << 20, max=4 << 20, pagesize="2MB", failcnt=1)],
        memory_events=v2.MemoryEvents(max=3, oom=2, oom_kill=1),
        network=[v2.NetworkStat(**INTERFACE)],  # type: ignore[arg-type]
    )  # fmt: skip
    packed = AnyMessage.pack(found)
    assert packed.type_url == "io.containerd.cgroups.v2.Metrics"
    assert packed.unpack(v2.Metrics) == found


def test_version_1() -> None:
    found = one(STATS)
    stat = {
        "cache": 600, "rss": 300, "mapped_file": 40, "pg_fault": 77, "pg_maj_fault": 6, "inactive_file": 500,
        "active_file": 100,
    }  # fmt: skip
    device = {"major": 254, "minor": 16}
    assert found == v1.Metrics(
        hugetlb=[v1.HugetlbStat(usage=2 << 20, max=2 << 20, failcnt=1, pagesize="2MB")],
        pids=v1.PidsStat(current=5, limit=100),
        cpu=v1.CPUStat(
            usage=v1.CPUUsage(total=7000, kernel=3000, user=4000),
            throttling=v1.Throttle(periods=2, throttled_periods=1, throttled_time=9000),
        ),
        memory=v1.MemoryStat(
            **stat,
            **{f"total_{name}": value for name, value in stat.items()},
            hierarchical_memory_limit=4096,
            hierarchical_swap_limit=4096 + 50,
            usage=v1.MemoryEntry(limit=4096, usage=1000, max=2000, failcnt=3),
            swap=v1.MemoryEntry(limit=4096 + 50, usage=1010, max=2020),
            kernel=v1.MemoryEntry(limit=UNLIMITED_V1, usage=90),
            kernel_tcp=v1.MemoryEntry(limit=UNLIMITED_V1, usage=8),
        ),
        blkio=v1.BlkIOStat(
            io_service_bytes_recursive=[
                v1.BlkIOEntry(op="Read", value=1, **device),
                v1.BlkIOEntry(op="Write", value=2, **device),
            ],
            io_serviced_recursive=[
                v1.BlkIOEntry(op="Read", value=3, **device),
                v1.BlkIOEntry(op="Write", value=4, **device),
            ],
        ),
        network=[v1.NetworkStat(**INTERFACE)],  # type: ignore[arg-type]
        memory_oom_control=v1.MemoryOomControl(oom_kill=1),
    )
    packed = AnyMessage.pack(found)
    assert packed.type_url == "io.containerd.cgroups.v1.Metrics"
    assert packed.unpack(v1.Metrics) == found


@pytest.mark.skipif(mmap.PAGESIZE != 4096, reason="the numbers are those of pages of 4 KiB")
def test_what_is_not_limited() -> None:
    found = two(NOTHING)
    assert found.pids == v2.PidsStat(limit=MAX)
    assert found.memory == v2.MemoryStat(usage_limit=MAX)
    assert two({**NOTHING, "memory": {**NOTHING["memory"], "swap": 0}}).memory == v2.MemoryStat(
        usage_limit=MAX, swap_limit=MAX
    )
    # As of runc: every message is there, and its numbers are 0.
    former = one(NOTHING)
    assert former.pids == v1.PidsStat(current=0, limit=0)
    assert former.memory is not None
    assert former.memory.usage == v1.MemoryEntry(limit=UNLIMITED_V1)
    assert former.memory.swap == v1.MemoryEntry()
    assert former.cpu == v1.CPUStat(usage=v1.CPUUsage(), throttling=v1.Throttle())
    swap = {**NOTHING["memory"], "usage": 7, "limit": 100, "swap": 1, "swap_limit": None}
    former = one({**NOTHING, "memory": swap})
    assert former.memory is not None
    assert former.memory.swap == v1.MemoryEntry(limit=UNLIMITED_V1, usage=8, max=8)
    assert former.memory.hierarchical_memory_limit == 100


def test_the_form_is_the_hosts() -> None:
    expected = v2.Metrics if hierarchy.read().is_unified else v1.Metrics
    assert isinstance(metrics.of_container(NOTHING), expected)
    assert isinstance(metrics.of_sandbox([]), expected)


numbers = st.integers(min_value=0, max_value=MAX)
tables = st.dictionaries(
    st.sampled_from(["psi", "usage", "usage_usec", "anon", "max", "total", "name", "pagesize", "limit"]), numbers
)


@given(tables, numbers | st.none(), numbers, st.booleans())
def test_no_figure_of_a_guest_is_too_large(
    table: dict[str, int], number: int | None, other: int, unified: bool
) -> None:
    stats = copy.deepcopy(STATS)
    stats["cpu"] = stats["memory"]["stat"] = stats["memory"]["events"] = table
    for name in ("limit", "swap_limit", "swap", "peak", "swap_peak"):
        stats["memory"][name] = number
    stats["memory"]["usage"] = stats["pids"]["current"] = stats["io"]["devices"][0]["rbytes"] = other
    stats = replies.stats(stats)
    for found in (
        metrics.of_container(stats, unified=unified),
        metrics.of_sandbox([stats, stats], Usage(1 << 80, 1 << 80, 1 << 80), unified=unified),
    ):
        assert type(found).decode(found.encode()) == found


# --- sandboxes ---


def test_a_sandbox_is_the_sum_of_its_containers() -> None:
    other = copy.deepcopy(STATS)
    other["cpu"] = {"usage_usec": 100, "nr_periods": 1}
    other["memory"] |= {"swap": None, "peak": None, "stat": {"anon": 1}}
    other["io"]["devices"].append({"major": 8, "minor": 0, "rbytes": 5, "wbytes": 0, "rios": 1, "wios": 0})
    found = metrics.of_sandbox([STATS, other], unified=True)
    assert isinstance(found, v2.Metrics)
    assert found.pids == v2.PidsStat(current=10, limit=200)
    assert found.cpu == v2.CPUStat(
        usage_usec=107, user_usec=4, system_usec=3, nr_periods=3, nr_throttled=1, throttled_usec=9
    )
    assert found.memory is not None
    assert (found.memory.usage, found.memory.usage_limit, found.memory.anon) == (2000, 8192, 301)
    assert (found.memory.max_usage, found.memory.swap_usage, found.memory.swap_limit) == (2000, 10, 100)
    assert found.io == v2.IOStat(
        usage=[
            v2.IOEntry(major=254, minor=16, rbytes=2, wbytes=4, rios=6, wios=8),
            v2.IOEntry(major=8, minor=0, rbytes=5, rios=1),
        ]
    )
    assert found.hugetlb == [v2.HugeTlbStat(current=4 << 20, max=8 << 20, pagesize="2MB", failcnt=2)]
    assert len(found.network) == 1, "they share it"


def test_a_sandbox_without_limit_for_all_of_its_containers() -> None:
    found = metrics.of_sandbox([STATS, NOTHING], unified=True)
    assert isinstance(found, v2.Metrics)
    assert found.memory is not None
    assert found.pids is not None
    assert (found.memory.usage_limit, found.memory.swap_limit, found.pids.limit) == (MAX, MAX, MAX)


def test_what_the_vm_uses_on_the_host_counts() -> None:
    found = metrics.of_sandbox([STATS], Usage(cpu_usec=50, memory=90000, inactive_file=4000), unified=True)
    assert isinstance(found, v2.Metrics)
    assert found.cpu == v2.CPUStat(
        usage_usec=50, user_usec=4, system_usec=46, nr_periods=2, nr_throttled=1, throttled_usec=9
    )
    assert found.memory is not None
    assert (found.memory.usage, found.memory.inactive_file, found.memory.max_usage) == (90000, 4000, 90000)
    assert found.memory.anon == 300 + 89000
    less = metrics.of_sandbox([STATS], Usage(cpu_usec=1, memory=1, inactive_file=0), unified=True)
    assert less == metrics.of_sandbox([STATS], unified=True)


def test_a_sandbox_without_containers() -> None:
    found = metrics.of_sandbox([], Usage(5, 6, 0), unified=False)
    assert isinstance(found, v1.Metrics)
    assert found.cpu is not None
    assert found.cpu.usage == v1.CPUUsage(total=5000, kernel=5000)
    assert found.memory is not None
    assert found.memory.usage == v1.MemoryEntry(limit=metrics._UNLIMITED_V1, usage=6, max=6)


def test_answers_are_not_changed() -> None:
    before = copy.deepcopy(STATS)
    metrics.of_sandbox([STATS, STATS], Usage(1 << 30, 1 << 30, 1), unified=True)
    assert before == STATS


@pytest.mark.skipif(mmap.PAGESIZE != 4096, reason="the numbers are those of pages of 4 KiB")
def test_the_same_container_looks_the_same_under_runc() -> None:
    control = v1.Metrics.decode(bytes.fromhex(CONTROL))
    assert control.encode().hex() == CONTROL
    stat = {
        "file": 5255168, "anon": 53248, "file_dirty": 5242880, "pgfault": 978, "pgmajfault": 1, "inactive_anon": 49152,
        "active_anon": 4096, "inactive_file": 5242880, "active_file": 12288, "kernel": 397312,
    }  # fmt: skip
    memory = {"usage": 5988352, "limit": 33554432, "peak": 7417856, "swap": 0, "stat": stat}
    ours = one(
        {
            **NOTHING,
            "cpu": {"usage_usec": 12601, "user_usec": 10000, "system_usec": 0},
            "memory": {**NOTHING["memory"], **memory},
            "pids": {"current": 1, "limit": None},
        }
    )
    # What v2 does not count, and a rest of less than a microsecond.
    for message, names in (
        (control.memory, ("pg_pg_in", "pg_pg_out", "total_pg_pg_in", "total_pg_pg_out")),
        (control.memory and control.memory.kernel, ("max",)),
        (control.cpu and control.cpu.usage, ("total",)),
    ):
        for name in names:
            assert getattr(message, name)
            setattr(message, name, 0)
    assert control.cpu is not None
    assert control.cpu.usage is not None
    control.cpu.usage.total, control.cpu.usage.per_cpu = 12601000, []
    assert ours == control
