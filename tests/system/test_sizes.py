"""What a container asks for it really has, from its first moment, and while it runs."""

from __future__ import annotations

import time
from collections.abc import Iterator

import pytest

import hako
from conftest import RunHako
from hako import errors
from support import clones

pytestmark = [pytest.mark.system, pytest.mark.slow, pytest.mark.usefixtures("guest_image", "busybox_image")]

_SEE = "nproc; grep -c ^processor /proc/cpuinfo; awk '/MemTotal/ {print $2 * 1024}' /proc/meminfo"


def seen(text: str) -> tuple[int, int]:
    """vCPUs and bytes of memory, from what _SEE prints."""
    available, online, memory = map(int, text.split()[:3])
    assert available == online
    return online, memory


@pytest.mark.parametrize("driver", clones.DRIVERS)
def test_memory_and_processors_are_there_from_the_first_moment(run_hako: RunHako, driver: str) -> None:
    # Nine tenths of what was asked for are used, and two processors do something.
    use = (
        f"{_SEE}; yes | head -c 16m > /fill/p; for n in $(seq 1 56); do cat /fill/p; done > /fill/all && "
        "stat -c %s /fill/all; taskset -p -c 1 $$ > /dev/null && awk 'BEGIN {print \"on the second\"}'"
    )
    options = ["--memory", "1g", "--cpus", "2", "--tmpfs", "/fill:size=1g", *clones.with_driver(driver)]
    lines = run_hako("run", "--rm", *options, "busybox", "sh", "-c", use, timeout=240).stdout.split("\n")
    vcpus, memory = seen("\n".join(lines))
    assert vcpus == 2
    assert memory >= 1 << 30
    assert lines[3:5] == [str(56 * (16 << 20)), "on the second"]


@pytest.fixture(scope="module", params=clones.DRIVERS)
def sandbox(request: pytest.FixtureRequest, guest_image: object, busybox_image: object) -> Iterator[hako.Sandbox]:
    with hako.Sandbox(image="busybox", annotations={"dev.hako.share-driver": request.param}) as started:
        assert started.wait_ready()["template"]
        yield started


def see(container: hako.Container) -> tuple[int, int]:
    return seen(container.run(["sh", "-c", _SEE]).stdout)


def test_a_running_container_grows_and_shrinks(sandbox: hako.Sandbox) -> None:
    container = sandbox.create(["sleep", "1000"], memory="64m")
    vcpus, memory = see(container)
    assert (vcpus, memory < 512 << 20) == (1, True)
    container.update(memory="1g", cpus=2)
    assert see(container)[0] == 2
    assert see(container)[1] >= 1 << 30
    assert container.run(["cat", "/sys/fs/cgroup/memory.max"]).stdout.strip() == str(1 << 30)
    assert sandbox.state["info"]["memory"] >= 1 << 30
    container.update(memory="64m", cpus=1)
    # Processors are switched off; the guest gives up memory as it can.
    assert see(container)[0] == 1
    assert clones.until(lambda: see(container)[1] < 768 << 20)
    container.update(memory="512m")
    assert see(container)[1] >= 512 << 20
    container.delete(force=True)


def test_several_containers_have_room_for_all_their_limits(sandbox: hako.Sandbox) -> None:
    containers = [sandbox.create(["sleep", "1000"], memory="400m") for _ in range(3)]
    assert see(containers[0])[1] >= 1200 << 20
    for container in containers:
        container.delete(force=True)
    # Nobody waits for the guest to give memory up.
    deadline = time.monotonic() + 60
    while sandbox.state["info"]["memory"] >= 1200 << 20:
        assert time.monotonic() < deadline
        time.sleep(0.2)


def test_more_than_there_can_be_is_a_sentence_and_changes_nothing(sandbox: hako.Sandbox) -> None:
    container = sandbox.create(["sleep", "1000"], memory="64m")
    before = see(container)
    for limits, words in (({"memory": "100t"}, "cannot have"), ({"cpus": 250}, "cannot have 250 vCPUs")):
        with pytest.raises(errors.HakoError, match=words) as caught:
            container.update(**limits)
        assert "\n" not in str(caught.value)
        assert see(container) == before
    with pytest.raises(errors.HakoError, match="cannot have"):
        sandbox.create(["sleep", "1000"], memory="100t")
    assert container.run(["echo", "fine"]).stdout == "fine\n"
    container.delete(force=True)


def test_a_start_with_more_than_there_can_be_is_a_sentence(run_hako: RunHako) -> None:
    done = run_hako("run", "--rm", "--memory", "100t", "busybox", "true", check=False)
    assert done.returncode == 125
    assert done.stderr.startswith("hako: ")
    assert len(done.stderr.splitlines()) == 1


def test_a_cold_boot_has_its_sizes_too(run_hako: RunHako) -> None:
    options = ["--memory", "1g", "--cpus", "2", "--annotation", "dev.hako.template=false"]
    vcpus, memory = seen(run_hako("run", "--rm", *options, "busybox", "sh", "-c", _SEE).stdout)
    assert vcpus == 2
    assert memory >= 1 << 30
