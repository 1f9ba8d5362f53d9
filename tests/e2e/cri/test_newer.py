"""A newer containerd: pods by runc, by hako with a container that stands for the pod, and by hako's sandbox service.

What is tested with the older one too is here in short; images as volumes that one does not have.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from conftest import Roots
from hako.ociimage.index import Image
from support import cri_messages as m
from support.containerd import PAUSE, Containerd
from support.cri import CallError
from support.machine import until
from support.pods import GET, Ctr, Node, Pod, fails

pytestmark = [
    pytest.mark.e2e,
    pytest.mark.slow,
    pytest.mark.parametrize("handler", ["runc", "hako", "hako-sandbox"], indirect=True, scope="module"),
]


@pytest.fixture(scope="module")
def node(roots: Roots, busybox_image: Image) -> Iterator[Node]:
    """The newer containerd instead of this Debian's."""
    with Containerd(f"{roots.base}-cri-new", busybox_image, "new", cri=True) as containerd, Node(containerd) as made:
        yield made


def test_life(node: Node, handler: str) -> None:
    with node.pod(handler, "life", labels={"app": "one"}) as pod:
        status = pod.status()
        assert (status.state, status.runtime_handler, status.created_at > 0) == (m.READY, handler, True)
        made = pod.start("main", "sh", "-c", "echo said; exit 7")
        assert made.until_exited().exit_code == 7
        made.check_said("said\n")
        other = pod.start("other")
        node.cri.stop_pod(pod.id)
        assert pod.status().state == m.NOT_READY
        assert other.status().state == m.EXITED
        assert node.machine.output("ls", "/run/netns") == ""
    assert node.cri.pods() == []


def test_containers_are_taken_to_their_pods_shim(node: Node, handler: str) -> None:
    """By containerd itself: with version 3 of the Task service, it runs no program for them."""
    with node.pod(handler, "taken") as pod:
        made = pod.start("main")
        tasks = Path(node.path(f"{node.containerd.base}/state"), "io.containerd.runtime.v2.task", "k8s.io")
        found = json.loads((tasks / made.id / "bootstrap.json").read_bytes())
        assert (found["version"], found["protocol"]) == (3, "ttrpc")
        assert (tasks / made.id / "sandbox").read_text() == pod.id
        assert not (tasks / made.id / "shim-binary-path").exists()


def test_what_a_pod_is_given(node: Node, handler: str) -> None:
    dns = m.DNSConfig(servers=["10.88.0.53"], searches=["a.example"])
    sysctls = {"kernel.shm_rmid_forced": "1", "net.ipv4.ip_unprivileged_port_start": "80"}
    with node.pod(handler, "given", hostname="node-7", dns_config=dns, sysctls=sysctls) as pod:
        made = pod.start("main")
        assert made.sh("hostname; cat /etc/hostname; echo $HOSTNAME").split() == ["node-7"] * 3
        assert made.sh("cat /etc/resolv.conf") == "search a.example\nnameserver 10.88.0.53"
        assert made.sh("cd /proc/sys; cat kernel/shm_rmid_forced net/ipv4/ip_unprivileged_port_start") == "1\n80"
        assert f"inet {pod.address}/16" in made.sh("ip -4 -o addr show eth0")


@pytest.mark.parametrize("pid", [m.CONTAINER, m.POD])
def test_sharing(node: Node, handler: str, pid: int) -> None:
    with node.pod(handler, f"sharing-{pid}", namespace_options=m.NamespaceOption(pid=pid)) as pod:
        one, two = pod.start("one", "sleep", "12345"), pod.start("two")
        names = ("ipc", "uts", "net", "pid", "mnt")
        own = [[made.sh(f"readlink /proc/self/ns/{name}") for made in (one, two)] for name in names]
        assert [first == second for first, second in own] == [True, True, True, pid == m.POD, False]
        assert ("sleep 12345" in two.sh("ps -o args")) is (pid == m.POD)
        one.sh("echo shared >/dev/shm/file")
        assert two.sh("cat /dev/shm/file") == "shared"
        # One that ends takes nothing of the others along.
        assert one.stop().exit_code == 137
        assert two.sh("cat /dev/shm/file; echo here") == "shared\nhere"


def test_processes_and_streams(pod: Pod, container: Ctr) -> None:
    done = container.exec("sh", "-c", "echo out; echo err >&2; exit 7")
    assert (done.stdout, done.stderr, done.exit_code) == (b"out\n", b"err\n", 7)
    with pod.cri.exec(container.id, "sh", tty=True, stdin=True) as it:
        it.resize(111, 33)
        it.write(b"sleep 0.5; stty size; exit 5\n")
        it.until(b"33 111")
        assert it.wait() == 5
    made = pod.start("attached", "sh", "-c", "read line; echo got $line; exit 4", stdin=True, stdin_once=True)
    with pod.cri.attach(made.id, stdin=True) as it:
        it.write(b"one\n")
        it.until(b"got one\n")
    assert made.until_exited().exit_code == 4
    made.remove()


@pytest.mark.parametrize("listen", ["127.0.0.1:9001", "0.0.0.0:9002"])
def test_forwarded_port(pod: Pod, listen: str) -> None:
    made = pod.serve("server", listen, "through")
    with pod.cri.port_forward(pod.id, int(listen.rpartition(":")[2])) as link:
        link.send(GET)
        assert link.read(10_000).endswith(b"\nthrough\n")
    made.stop()
    made.remove()


def test_limits_and_statistics(pod: Pod) -> None:
    made = pod.start("limited", memory_limit_in_bytes=64 << 20, cpu_period=100_000, cpu_quota=150_000)
    look = "cat /sys/fs/cgroup/memory.max /sys/fs/cgroup/memory/memory.limit_in_bytes 2>/dev/null | head -n 1"
    assert made.sh(look) == str(64 << 20)
    pod.cri.update(made.id, memory_limit_in_bytes=96 << 20)
    assert made.sh(look) == str(96 << 20)
    found = pod.cri.stats(made.id)
    assert found.cpu is not None
    assert found.cpu.usage_core_nano_seconds is not None
    assert found.cpu.usage_core_nano_seconds.value > 0
    assert found.memory is not None
    assert found.memory.working_set_bytes is not None
    assert found.memory.working_set_bytes.value > 0
    whole = pod.cri.pod_stats(pod.id).linux
    assert whole is not None
    assert whole.cpu is not None
    assert whole.cpu.usage_core_nano_seconds is not None
    assert whole.cpu.usage_core_nano_seconds.value > 0
    assert made.id in [stats.attributes.id for stats in whole.containers if stats.attributes]
    made.stop()
    made.remove()


def test_image_as_a_volume(pod: Pod) -> None:
    """The files of an image, which nobody can change."""
    image = m.Mount(container_path="/image", image=m.ImageSpec(image=PAUSE), readonly=True)
    made = pod.start("volume", mounts=[image])
    assert made.sh("/image/bin/busybox echo runs") == "runs"
    assert made.exec("touch", "/image/file").exit_code == 1
    made.stop()
    made.remove()


@pytest.mark.parametrize("kind", ["network", "pid", "ipc"])
def test_namespaces_of_the_host(node: Node, handler: str, kind: str) -> None:
    options = m.NamespaceOption(**{"pid": m.CONTAINER, kind: m.NODE})
    if (handler, kind) == ("hako-sandbox", "network"):
        pytest.skip("containerd 2.1 crashes before it asks a sandbox service for such a pod")
    if handler == "runc":
        with node.pod(handler, f"hosts-{kind}", namespace_options=options, hostname="") as pod:
            name = {"network": "net"}.get(kind, kind)
            process = node.containerd.pid if kind == "network" else "self"
            assert pod.start("main").sh(f"readlink /proc/self/ns/{name}") == os.readlink(f"/proc/{process}/ns/{name}")
    else:
        message = fails(node.run, handler, f"hosts-{kind}", namespace_options=options)
        assert {"network": "the host's network"}.get(kind, f"{kind} namespace") in message
        assert f"hosts-{kind}" not in [found.metadata.name for found in node.cri.pods() if found.metadata]


def test_containerd_comes_back(node: Node, handler: str) -> None:
    with node.pod(handler, "back") as pod:
        made = pod.start("main")
        boot = made.sh("cat /proc/sys/kernel/random/boot_id; cut -d' ' -f22 /proc/1/stat")
        node.containerd.kill()
        node.start_again()
        assert pod.status().state == m.READY
        assert made.sh("cat /proc/sys/kernel/random/boot_id; cut -d' ' -f22 /proc/1/stat") == boot
        assert pod.start("new").sh("echo works") == "works"
        assert made.stop().exit_code == 137


def test_sandbox_that_dies(node: Node, handler: str) -> None:
    if handler == "runc":
        pytest.skip("containerd 2.1 leaves runc's shim behind then")
    with node.pod(handler, "dying") as pod:
        made = pod.start("main")
        os.kill(pod.vm(), 9)
        until(lambda: pod.status().state == m.NOT_READY, "the pod is not ready")
        assert made.until_exited().exit_code == 137


def test_shim_that_dies(node: Node, handler: str) -> None:
    """All containers of the pod end, although containerd asks nobody to clean up after each of them."""
    if handler == "runc":
        pytest.skip("the containers of runc's pods have no VM that ends with the shim")
    with node.pod(handler, "killed") as pod:
        made, other = pod.start("main"), pod.start("other")
        vm = pod.vm()
        os.kill(pod.shim(), 9)
        assert made.until_exited().exit_code == 255
        assert other.until_exited().exit_code == 255
        until(lambda: _is_down(pod), "the pod is not ready")
        until(lambda: not os.path.exists(f"/proc/{vm}"), "the VM has ended", 10)
        other.remove()


def _is_down(pod: Pod) -> bool:
    try:
        return pod.status().state == m.NOT_READY
    except CallError:  # containerd asks the shim that has just gone
        return False
