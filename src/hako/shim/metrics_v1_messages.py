"""What a container uses, in the form of cgroups v1. Sizes are bytes, times nanoseconds.

Facts: containerd/cgroups cgroup1/stats/metrics.proto.
"""

from __future__ import annotations

from hako.wire import protobuf as pb


class HugetlbStat(pb.Message):
    """Huge pages of one size."""

    FULL_NAME = "io.containerd.cgroups.v1.HugetlbStat"

    usage: int = pb.u64(1)
    max: int = pb.u64(2)
    failcnt: int = pb.u64(3)
    pagesize: str = pb.text(4)


class PidsStat(pb.Message):
    """How many processes there are, and may be."""

    FULL_NAME = "io.containerd.cgroups.v1.PidsStat"

    current: int = pb.u64(1)
    limit: int = pb.u64(2)


class CPUUsage(pb.Message):
    """Processor time, in all and by mode and processor."""

    FULL_NAME = "io.containerd.cgroups.v1.CPUUsage"

    total: int = pb.u64(1)
    kernel: int = pb.u64(2)
    user: int = pb.u64(3)
    per_cpu: list[int] = pb.u64s(4)


class Throttle(pb.Message):
    """How often, and how long, a limit held processes back."""

    FULL_NAME = "io.containerd.cgroups.v1.Throttle"

    periods: int = pb.u64(1)
    throttled_periods: int = pb.u64(2)
    throttled_time: int = pb.u64(3)


class CPUStat(pb.Message):
    """Processor time."""

    FULL_NAME = "io.containerd.cgroups.v1.CPUStat"

    usage: CPUUsage | None = pb.message(1, CPUUsage)
    throttling: Throttle | None = pb.message(2, Throttle)


class MemoryEntry(pb.Message):
    """One kind of memory: limit, use, most use, and how often the limit was met."""

    FULL_NAME = "io.containerd.cgroups.v1.MemoryEntry"

    limit: int = pb.u64(1)
    usage: int = pb.u64(2)
    max: int = pb.u64(3)
    failcnt: int = pb.u64(4)


class MemoryStat(pb.Message):
    """Memory by use; counts of faults."""

    FULL_NAME = "io.containerd.cgroups.v1.MemoryStat"

    cache: int = pb.u64(1)
    rss: int = pb.u64(2)
    rss_huge: int = pb.u64(3)
    mapped_file: int = pb.u64(4)
    dirty: int = pb.u64(5)
    writeback: int = pb.u64(6)
    pg_pg_in: int = pb.u64(7)
    pg_pg_out: int = pb.u64(8)
    pg_fault: int = pb.u64(9)
    pg_maj_fault: int = pb.u64(10)
    inactive_anon: int = pb.u64(11)
    active_anon: int = pb.u64(12)
    inactive_file: int = pb.u64(13)
    active_file: int = pb.u64(14)
    unevictable: int = pb.u64(15)
    hierarchical_memory_limit: int = pb.u64(16)
    hierarchical_swap_limit: int = pb.u64(17)
    total_cache: int = pb.u64(18)
    total_rss: int = pb.u64(19)
    total_rss_huge: int = pb.u64(20)
    total_mapped_file: int = pb.u64(21)
    total_dirty: int = pb.u64(22)
    total_writeback: int = pb.u64(23)
    total_pg_pg_in: int = pb.u64(24)
    total_pg_pg_out: int = pb.u64(25)
    total_pg_fault: int = pb.u64(26)
    total_pg_maj_fault: int = pb.u64(27)
    total_inactive_anon: int = pb.u64(28)
    total_active_anon: int = pb.u64(29)
    total_inactive_file: int = pb.u64(30)
    total_active_file: int = pb.u64(31)
    total_unevictable: int = pb.u64(32)
    usage: MemoryEntry | None = pb.message(33, MemoryEntry)
    swap: MemoryEntry | None = pb.message(34, MemoryEntry)
    kernel: MemoryEntry | None = pb.message(35, MemoryEntry)
    kernel_tcp: MemoryEntry | None = pb.message(36, MemoryEntry)


class BlkIOEntry(pb.Message):
    """One figure of one block device."""

    FULL_NAME = "io.containerd.cgroups.v1.BlkIOEntry"

    op: str = pb.text(1)
    device: str = pb.text(2)
    major: int = pb.u64(3)
    minor: int = pb.u64(4)
    value: int = pb.u64(5)


class BlkIOStat(pb.Message):
    """Block devices, by figure."""

    FULL_NAME = "io.containerd.cgroups.v1.BlkIOStat"

    io_service_bytes_recursive: list[BlkIOEntry] = pb.messages(1, BlkIOEntry)
    io_serviced_recursive: list[BlkIOEntry] = pb.messages(2, BlkIOEntry)
    io_queued_recursive: list[BlkIOEntry] = pb.messages(3, BlkIOEntry)
    io_service_time_recursive: list[BlkIOEntry] = pb.messages(4, BlkIOEntry)
    io_wait_time_recursive: list[BlkIOEntry] = pb.messages(5, BlkIOEntry)
    io_merged_recursive: list[BlkIOEntry] = pb.messages(6, BlkIOEntry)
    io_time_recursive: list[BlkIOEntry] = pb.messages(7, BlkIOEntry)
    sectors_recursive: list[BlkIOEntry] = pb.messages(8, BlkIOEntry)


class RdmaEntry(pb.Message):
    """RDMA resources of one device."""

    FULL_NAME = "io.containerd.cgroups.v1.RdmaEntry"

    device: str = pb.text(1)
    hca_handles: int = pb.u32(2)
    hca_objects: int = pb.u32(3)


class RdmaStat(pb.Message):
    """RDMA resources."""

    FULL_NAME = "io.containerd.cgroups.v1.RdmaStat"

    current: list[RdmaEntry] = pb.messages(1, RdmaEntry)
    limit: list[RdmaEntry] = pb.messages(2, RdmaEntry)


class NetworkStat(pb.Message):
    """One network interface, seen from the container."""

    FULL_NAME = "io.containerd.cgroups.v1.NetworkStat"

    name: str = pb.text(1)
    rx_bytes: int = pb.u64(2)
    rx_packets: int = pb.u64(3)
    rx_errors: int = pb.u64(4)
    rx_dropped: int = pb.u64(5)
    tx_bytes: int = pb.u64(6)
    tx_packets: int = pb.u64(7)
    tx_errors: int = pb.u64(8)
    tx_dropped: int = pb.u64(9)


class CgroupStats(pb.Message):
    """Processes by what they do."""

    FULL_NAME = "io.containerd.cgroups.v1.CgroupStats"

    nr_sleeping: int = pb.u64(1)
    nr_running: int = pb.u64(2)
    nr_stopped: int = pb.u64(3)
    nr_uninterruptible: int = pb.u64(4)
    nr_io_wait: int = pb.u64(5)


class MemoryOomControl(pb.Message):
    """What happens, and has happened, when memory runs out."""

    FULL_NAME = "io.containerd.cgroups.v1.MemoryOomControl"

    oom_kill_disable: int = pb.u64(1)
    under_oom: int = pb.u64(2)
    oom_kill: int = pb.u64(3)


class Metrics(pb.Message):
    """All figures of one cgroup."""

    FULL_NAME = "io.containerd.cgroups.v1.Metrics"

    hugetlb: list[HugetlbStat] = pb.messages(1, HugetlbStat)
    pids: PidsStat | None = pb.message(2, PidsStat)
    cpu: CPUStat | None = pb.message(3, CPUStat)
    memory: MemoryStat | None = pb.message(4, MemoryStat)
    blkio: BlkIOStat | None = pb.message(5, BlkIOStat)
    rdma: RdmaStat | None = pb.message(6, RdmaStat)
    network: list[NetworkStat] = pb.messages(7, NetworkStat)
    cgroup_stats: CgroupStats | None = pb.message(8, CgroupStats)
    memory_oom_control: MemoryOomControl | None = pb.message(9, MemoryOomControl)
