"""What a container uses, in the form of cgroups v2. Sizes are bytes, times microseconds where the name says so.

Facts: containerd/cgroups cgroup2/stats/metrics.proto.
"""

from __future__ import annotations

from hako.wire import protobuf as pb


class PidsStat(pb.Message):
    """How many processes there are, and may be."""

    FULL_NAME = "io.containerd.cgroups.v2.PidsStat"

    current: int = pb.u64(1)
    limit: int = pb.u64(2)


class PSIData(pb.Message):
    """How long something was waited for: percent of the last 10, 60 and 300 seconds, and microseconds in all."""

    FULL_NAME = "io.containerd.cgroups.v2.PSIData"

    avg10: float = pb.double(1)
    avg60: float = pb.double(2)
    avg300: float = pb.double(3)
    total: int = pb.u64(4)


class PSIStats(pb.Message):
    """Times in which some, and in which all processes waited."""

    FULL_NAME = "io.containerd.cgroups.v2.PSIStats"

    some: PSIData | None = pb.message(1, PSIData)
    full: PSIData | None = pb.message(2, PSIData)


class CPUStat(pb.Message):
    """Processor time."""

    FULL_NAME = "io.containerd.cgroups.v2.CPUStat"

    usage_usec: int = pb.u64(1)
    user_usec: int = pb.u64(2)
    system_usec: int = pb.u64(3)
    nr_periods: int = pb.u64(4)
    nr_throttled: int = pb.u64(5)
    throttled_usec: int = pb.u64(6)
    psi: PSIStats | None = pb.message(7, PSIStats)
    nr_bursts: int = pb.u64(8)
    burst_usec: int = pb.u64(9)


class MemoryStat(pb.Message):
    """Memory by use; counts of faults."""

    FULL_NAME = "io.containerd.cgroups.v2.MemoryStat"

    anon: int = pb.u64(1)
    file: int = pb.u64(2)
    kernel_stack: int = pb.u64(3)
    slab: int = pb.u64(4)
    sock: int = pb.u64(5)
    shmem: int = pb.u64(6)
    file_mapped: int = pb.u64(7)
    file_dirty: int = pb.u64(8)
    file_writeback: int = pb.u64(9)
    anon_thp: int = pb.u64(10)
    inactive_anon: int = pb.u64(11)
    active_anon: int = pb.u64(12)
    inactive_file: int = pb.u64(13)
    active_file: int = pb.u64(14)
    unevictable: int = pb.u64(15)
    slab_reclaimable: int = pb.u64(16)
    slab_unreclaimable: int = pb.u64(17)
    pgfault: int = pb.u64(18)
    pgmajfault: int = pb.u64(19)
    workingset_refault: int = pb.u64(20)
    workingset_activate: int = pb.u64(21)
    workingset_nodereclaim: int = pb.u64(22)
    pgrefill: int = pb.u64(23)
    pgscan: int = pb.u64(24)
    pgsteal: int = pb.u64(25)
    pgactivate: int = pb.u64(26)
    pgdeactivate: int = pb.u64(27)
    pglazyfree: int = pb.u64(28)
    pglazyfreed: int = pb.u64(29)
    thp_fault_alloc: int = pb.u64(30)
    thp_collapse_alloc: int = pb.u64(31)
    usage: int = pb.u64(32)
    usage_limit: int = pb.u64(33)
    swap_usage: int = pb.u64(34)
    swap_limit: int = pb.u64(35)
    max_usage: int = pb.u64(36)
    swap_max_usage: int = pb.u64(37)
    psi: PSIStats | None = pb.message(38, PSIStats)
    workingset_refault_anon: int = pb.u64(39)
    workingset_refault_file: int = pb.u64(40)
    workingset_activate_anon: int = pb.u64(41)
    workingset_activate_file: int = pb.u64(42)


class RdmaEntry(pb.Message):
    """RDMA resources of one device."""

    FULL_NAME = "io.containerd.cgroups.v2.RdmaEntry"

    device: str = pb.text(1)
    hca_handles: int = pb.u32(2)
    hca_objects: int = pb.u32(3)


class RdmaStat(pb.Message):
    """RDMA resources."""

    FULL_NAME = "io.containerd.cgroups.v2.RdmaStat"

    current: list[RdmaEntry] = pb.messages(1, RdmaEntry)
    limit: list[RdmaEntry] = pb.messages(2, RdmaEntry)


class IOEntry(pb.Message):
    """Bytes and operations of one block device."""

    FULL_NAME = "io.containerd.cgroups.v2.IOEntry"

    major: int = pb.u64(1)
    minor: int = pb.u64(2)
    rbytes: int = pb.u64(3)
    wbytes: int = pb.u64(4)
    rios: int = pb.u64(5)
    wios: int = pb.u64(6)


class IOStat(pb.Message):
    """Block devices."""

    FULL_NAME = "io.containerd.cgroups.v2.IOStat"

    usage: list[IOEntry] = pb.messages(1, IOEntry)
    psi: PSIStats | None = pb.message(2, PSIStats)


class HugeTlbStat(pb.Message):
    """Huge pages of one size."""

    FULL_NAME = "io.containerd.cgroups.v2.HugeTlbStat"

    current: int = pb.u64(1)
    max: int = pb.u64(2)
    pagesize: str = pb.text(3)
    failcnt: int = pb.u64(4)


class MemoryEvents(pb.Message):
    """How often a limit of memory was met."""

    FULL_NAME = "io.containerd.cgroups.v2.MemoryEvents"

    low: int = pb.u64(1)
    high: int = pb.u64(2)
    max: int = pb.u64(3)
    oom: int = pb.u64(4)
    oom_kill: int = pb.u64(5)
    oom_group_kill: int = pb.u64(6)


class NetworkStat(pb.Message):
    """One network interface, seen from the container."""

    FULL_NAME = "io.containerd.cgroups.v2.NetworkStat"

    name: str = pb.text(1)
    rx_bytes: int = pb.u64(2)
    rx_packets: int = pb.u64(3)
    rx_errors: int = pb.u64(4)
    rx_dropped: int = pb.u64(5)
    tx_bytes: int = pb.u64(6)
    tx_packets: int = pb.u64(7)
    tx_errors: int = pb.u64(8)
    tx_dropped: int = pb.u64(9)


class Metrics(pb.Message):
    """All figures of one cgroup."""

    FULL_NAME = "io.containerd.cgroups.v2.Metrics"

    pids: PidsStat | None = pb.message(1, PidsStat)
    cpu: CPUStat | None = pb.message(2, CPUStat)
    memory: MemoryStat | None = pb.message(4, MemoryStat)
    rdma: RdmaStat | None = pb.message(5, RdmaStat)
    io: IOStat | None = pb.message(6, IOStat)
    hugetlb: list[HugeTlbStat] = pb.messages(7, HugeTlbStat)
    memory_events: MemoryEvents | None = pb.message(8, MemoryEvents)
    network: list[NetworkStat] = pb.messages(9, NetworkStat)
