"""What containers may use, when they start and changed while they run, and the size of a pod's VM."""

from __future__ import annotations

import pytest

from support import cri_messages as m
from support.engines import differs
from support.machine import until
from support.pods import Ctr, Node, Pod, either

pytestmark = [pytest.mark.e2e, pytest.mark.slow]

_MIB = 1 << 20
_PERIOD = 100_000

SIZE = differs(
    "memory and processors that a pod's containers see",
    runc="the host's",
    hako="those of the VM, which grows and shrinks with what the containers may have",
    why="a VM has memory and processors of its own",
)


def memory_limit(container: Ctr) -> int:
    """Its limit in bytes, as it sees it itself: with cgroup v2, or v1."""
    files = "/sys/fs/cgroup/memory.max /sys/fs/cgroup/memory/memory.limit_in_bytes"
    return int(container.sh(f"cat {files} 2>/dev/null | head -n 1"))


def cpu_quota(container: Ctr) -> int:
    """Microseconds in a period."""
    files = "/sys/fs/cgroup/cpu.max /sys/fs/cgroup/cpu/cpu.cfs_quota_us"
    return int(container.sh(f"cat {files} 2>/dev/null | head -n 1").split()[0])


def total(container: Ctr) -> int:
    """Bytes of memory that its kernel has."""
    return int(container.sh("awk '/^MemTotal/ {print $2}' /proc/meminfo")) << 10


def processors(container: Ctr) -> int:
    return int(container.sh("grep -c ^processor /proc/cpuinfo"))


def takes(container: Ctr, size: int) -> bool:
    """Whether it can have ``size`` bytes of memory in use."""
    return container.exec("dd", "if=/dev/zero", "of=/dev/null", f"bs={size}", "count=1").exit_code == 0


def test_limits(pod: Pod) -> None:
    limits = {"memory_limit_in_bytes": 32 * _MIB, "cpu_period": _PERIOD, "cpu_quota": 150_000, "cpu_shares": 512}
    made = pod.start("limited", **limits, oom_score_adj=500)
    assert (memory_limit(made), cpu_quota(made)) == (32 * _MIB, 150_000)
    assert made.sh("cat /proc/1/oom_score_adj") == "500"
    assert takes(made, 15_000_000)
    assert not takes(made, 45_000_000)
    made.stop()
    made.remove()


def test_updated_limits(pod: Pod) -> None:
    made = pod.start("updated", memory_limit_in_bytes=32 * _MIB, cpu_period=_PERIOD, cpu_quota=120_000)
    pod.cri.update(made.id, memory_limit_in_bytes=128 * _MIB, cpu_period=_PERIOD, cpu_quota=150_000)
    assert (memory_limit(made), cpu_quota(made)) == (128 * _MIB, 150_000)
    assert takes(made, 45_000_000)
    pod.cri.update(made.id, memory_limit_in_bytes=32 * _MIB, cpu_period=_PERIOD, cpu_quota=50_000)
    assert (memory_limit(made), cpu_quota(made)) == (32 * _MIB, 50_000)
    pod.cri.update(made.id, cpu_period=_PERIOD, cpu_quota=200_000)
    assert (memory_limit(made), cpu_quota(made)) == (32 * _MIB, 200_000)
    assert not takes(made, 45_000_000)  # which can be the end of the container
    made.stop()
    made.remove()


def test_vm_follows(node: Node, handler: str) -> None:
    """A VM has what its containers may use, while they are there."""
    with node.pod(handler, "following") as pod:
        first = pod.start("first")
        host = (total(first), processors(first))
        made = pod.start("large", memory_limit_in_bytes=1024 * _MIB, cpu_period=_PERIOD, cpu_quota=2 * _PERIOD)
        if either(handler, SIZE, runc=True, hako=False):
            assert (total(made), processors(made)) == host
            return
        assert host[0] < 700 * _MIB
        assert total(made) >= 1024 * _MIB
        assert processors(made) >= 2
        pod.cri.update(made.id, memory_limit_in_bytes=1536 * _MIB, cpu_period=_PERIOD, cpu_quota=2 * _PERIOD)
        assert total(made) >= 1536 * _MIB
        pod.cri.update(made.id, memory_limit_in_bytes=256 * _MIB, cpu_period=_PERIOD, cpu_quota=_PERIOD)
        until(lambda: total(made) < 1024 * _MIB, "the VM shrinks")
        assert processors(made) == 1
        made.stop()
        made.remove()
        until(lambda: total(first) < 700 * _MIB, "the VM shrinks further")


def test_size_of_a_pod(node: Node, handler: str) -> None:
    """A kubelet tells what all containers of a pod together may use when it starts the pod."""
    resources = m.LinuxContainerResources(
        memory_limit_in_bytes=1024 * _MIB, cpu_period=_PERIOD, cpu_quota=2 * _PERIOD, cpu_shares=2048
    )
    with node.pod(handler, "sized", resources=resources) as pod:
        annotations = node.cri.pod_info(pod.id)["runtimeSpec"]["annotations"]
        assert annotations["io.kubernetes.cri.sandbox-memory"] == str(1024 * _MIB)
        made = pod.start("main")
        if either(handler, SIZE, runc=False, hako=True):
            assert total(made) >= 1024 * _MIB
            assert processors(made) >= 2


def test_limits_beyond_the_node(node: Node, handler: str) -> None:
    """Limits are no requests: they may be more than a node has, of one container, all together, and later."""
    much = {"memory_limit_in_bytes": 1 << 42, "cpu_period": _PERIOD, "cpu_quota": 100 * _PERIOD}
    with node.pod(handler, "beyond", resources=m.LinuxContainerResources(**much)) as pod:
        made = [pod.start(name, **much) for name in ("one", "two")]
        assert [(memory_limit(one), cpu_quota(one)) for one in made] == [(1 << 42, 100 * _PERIOD)] * 2
        pod.cri.update(made[0].id, memory_limit_in_bytes=1 << 41, cpu_period=_PERIOD, cpu_quota=90 * _PERIOD)
        assert (memory_limit(made[0]), cpu_quota(made[0])) == (1 << 41, 90 * _PERIOD)


def test_processors_by_number(pod: Pod) -> None:
    made = pod.start("pinned", cpuset_cpus="0")
    assert made.sh("echo runs") == "runs"
    pod.cri.update(made.id, cpuset_cpus="1")
    assert made.sh("echo runs") == "runs"
    made.stop()
    made.remove()
