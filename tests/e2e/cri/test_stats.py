"""Statistics of containers and pods, which a kubelet schedules and evicts by."""

from __future__ import annotations

import pytest

from support import cri_messages as m
from support.pods import Ctr, Pod

pytestmark = [pytest.mark.e2e, pytest.mark.slow]

_BURN = "i=0; while [ $i -lt 20000 ]; do i=$((i + 1)); done"


def value(found: m.UInt64Value | None) -> int:
    assert found is not None
    return found.value


def cpu(stats: m.ContainerStats | m.LinuxPodSandboxStats) -> int:
    """Nanoseconds that have been used."""
    assert stats.cpu is not None
    return value(stats.cpu.usage_core_nano_seconds)


def memory(stats: m.ContainerStats | m.LinuxPodSandboxStats) -> int:
    """Bytes that are in use and could not be given back at once."""
    assert stats.memory is not None
    return value(stats.memory.working_set_bytes)


def linux(stats: m.PodSandboxStats) -> m.LinuxPodSandboxStats:
    assert stats.linux is not None
    return stats.linux


def test_processor_and_memory_of_a_container(pod: Pod, container: Ctr) -> None:
    before = pod.cri.stats(container.id)
    assert before.attributes is not None
    assert (before.attributes.id, before.attributes.metadata) == (container.id, container.config.metadata)
    assert cpu(before) > 0
    assert memory(before) > 0
    container.sh(f"head -c 30000000 /dev/zero >/dev/shm/held; {_BURN}")
    after = pod.cri.stats(container.id)
    assert cpu(after) > cpu(before)
    assert 25_000_000 < memory(after) - memory(before) < 60_000_000
    container.sh("rm /dev/shm/held")


def test_limit_in_statistics(pod: Pod) -> None:
    made = pod.start("limited", memory_limit_in_bytes=64 << 20)
    found = pod.cri.stats(made.id).memory
    assert found is not None
    assert 0 < value(found.available_bytes) <= 64 << 20
    assert value(found.available_bytes) + value(found.working_set_bytes) == 64 << 20
    assert value(found.page_faults) > 0
    made.stop()
    made.remove()


def test_list(pod: Pod, container: Ctr) -> None:
    other = pod.start("other", labels={"which": "other"})
    listed = {stats.attributes.id: stats for stats in pod.cri.list_stats(pod_sandbox_id=pod.id) if stats.attributes}
    assert set(listed) == {container.id, other.id}
    assert all(cpu(stats) > 0 and memory(stats) > 0 for stats in listed.values())
    (only,) = pod.cri.list_stats(label_selector={"which": "other"})
    assert only.attributes is not None
    assert only.attributes.id == other.id
    other.stop()
    other.remove()


def test_pod(pod: Pod, container: Ctr) -> None:
    before = linux(pod.cri.pod_stats(pod.id))
    with pod.node.serving(bytes(500_000)) as port:
        assert container.sh(f"nc -w 5 10.88.0.1 {port} </dev/null | wc -c") == "500000"
    container.sh(_BURN)
    after = linux(pod.cri.pod_stats(pod.id))
    assert cpu(after) > cpu(before) > 0
    assert memory(after) > 0
    assert [stats.attributes.id for stats in after.containers if stats.attributes] == [container.id]
    assert before.network is not None
    assert after.network is not None
    found = [usage.network.default_interface for usage in (before, after) if usage.network]
    received = [value(usage.rx_bytes) for usage in found if usage]
    assert received[1] - received[0] >= 500_000
    assert after.process is not None
    assert value(after.process.process_count) >= 1


def test_after_a_container_has_ended(pod: Pod) -> None:
    made = pod.start("ended", "true")
    made.until_exited()
    found = pod.cri.list_stats(pod_sandbox_id=pod.id)
    assert made.id not in [stats.attributes.id for stats in found if stats.attributes and stats.cpu]
    made.remove()
