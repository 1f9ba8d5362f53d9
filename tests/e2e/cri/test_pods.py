"""The life of pods, and what they are given: names, addresses, resolver."""

from __future__ import annotations

import os

import pytest

from support import cri_messages as m
from support import leaks
from support.engines import differs
from support.machine import until
from support.pods import Ctr, Node, Pod, either, fails

pytestmark = [pytest.mark.e2e, pytest.mark.slow]

KERNEL = differs(
    "kernel of a pod",
    runc="the host's",
    hako="one for all its containers, and for no other pod",
    why="every pod has its own VM",
)
HOSTS = differs(
    "pods that ask for the host's network, processes or IPC",
    runc="run",
    hako="refused, with the reason",
    why="a VM has a kernel and a network of its own",
)


def boot_id() -> str:
    """What tells the host's kernel from all others."""
    with open("/proc/sys/kernel/random/boot_id", encoding="ascii") as file:
        return file.read().strip()


def test_the_runtime_is_ready(node: Node) -> None:
    assert node.cri.version().runtime_name == "containerd"
    assert node.cri.conditions() == {"RuntimeReady": True, "NetworkReady": True}


def test_life_of_a_pod(node: Node, handler: str) -> None:
    with node.pod(handler, "life", labels={"app": "one"}, annotations={"note": "two"}) as pod:
        status = pod.status()
        assert (status.state, status.runtime_handler) == (m.READY, handler)
        assert (status.labels, status.annotations) == ({"app": "one"}, {"note": "two"})
        assert status.metadata == pod.config.metadata
        assert pod.address.startswith("10.88.")
        assert [found.id for found in node.cri.pods(label_selector={"app": "one"})] == [pod.id]
        assert node.cri.pods(label_selector={"app": "two"}) == []
        made = pod.start("main")
        (found,) = node.cri.containers(pod_sandbox_id=pod.id)
        assert (found.id, found.state) == (made.id, m.RUNNING)
        # Stopping a pod stops its containers, and may be done again.
        node.cri.stop_pod(pod.id)
        node.cri.stop_pod(pod.id)
        assert pod.status().state == m.NOT_READY
        assert made.status().state == m.EXITED
        assert leaks_of(pod) == []
        gone = pod.id
    assert node.cri.pods(id=gone) == []
    assert node.cri.containers(pod_sandbox_id=gone) == []
    assert "not found" in fails(node.cri.pod_status, gone)
    node.cri.remove_pod(gone)  # again, which is no error


def leaks_of(pod: Pod) -> list[str]:
    """Processes whose command line or environment names the pod, once they have had the time to go."""
    ours = [str(pid) for pid in leaks.wait_gone(f"/run/containerd/{pod.id}", 5)]
    return [*ours, *pod.node.machine.output("ls", "/run/netns").split()] if ours else []


def test_its_kernel(node: Node, handler: str, container: Ctr) -> None:
    script = "cat /proc/sys/kernel/random/boot_id"
    found = container.sh(script)
    assert (found == boot_id()) is either(handler, KERNEL, runc=True, hako=False)
    with node.pod(handler, "other") as pod:
        assert (pod.start("main").sh(script) == found) is either(handler, KERNEL, runc=True, hako=False)


def test_host_name(node: Node, handler: str) -> None:
    with node.pod(handler, "named", hostname="node-7") as pod:
        made = pod.start("main")
        script = "hostname; cat /etc/hostname; cat /proc/sys/kernel/hostname; echo $HOSTNAME"
        assert made.sh(script).split() == ["node-7"] * 4


def test_resolver(node: Node, handler: str) -> None:
    dns = m.DNSConfig(servers=["10.88.0.53", "1.2.3.4"], searches=["a.example", "b.example"], options=["ndots:5"])
    with node.pod(handler, "resolver", dns_config=dns) as pod:
        wanted = "search a.example b.example\nnameserver 10.88.0.53\nnameserver 1.2.3.4\noptions ndots:5"
        assert pod.start("main").sh("cat /etc/resolv.conf") == wanted


@pytest.mark.parametrize("kind", ["network", "pid", "ipc"])
def test_namespaces_of_the_host(node: Node, handler: str, kind: str) -> None:
    options = m.NamespaceOption(**{"pid": m.CONTAINER, kind: m.NODE})
    if either(handler, HOSTS, runc=True, hako=False):
        # A kubelet names no pod that is on the host's network.
        with node.pod(handler, f"hosts-{kind}", namespace_options=options, hostname="") as pod:
            made = pod.start("main")
            # The node's network is the one that its containerd is in.
            process = node.containerd.pid if kind == "network" else "self"
            name = {"network": "net"}.get(kind, kind)
            assert made.sh(f"readlink /proc/self/ns/{name}") == os.readlink(f"/proc/{process}/ns/{name}")
    else:
        before = node.machine.output("ls", "/run/netns")
        message = fails(node.run, handler, f"hosts-{kind}", namespace_options=options)
        assert {"network": "the host's network"}.get(kind, f"{kind} namespace") in message
        assert "the host" in message
        assert f"hosts-{kind}" not in [found.metadata.name for found in node.cri.pods() if found.metadata]
        assert node.machine.output("ls", "/run/netns") == before


def test_many_one_after_the_other(node: Node, handler: str) -> None:
    addresses = set()
    for number in range(20):
        with node.pod(handler, f"quick-{number}") as pod:
            assert pod.shell("main", f"echo {number}") == f"{number}\n"
            addresses.add(pod.address)
    assert len(addresses) == 20


def test_same_name_again(node: Node, handler: str) -> None:
    """A pod's sandbox is made again, with the next attempt, after the former one has gone."""
    with node.pod(handler, "again") as first:
        first.start("main")
        metadata = first.config.metadata
        assert metadata is not None
        assert "reserved" in fails(node.cri.run_pod, first.config, handler)
        node.cri.stop_pod(first.id)
        metadata.attempt = 1
        second = node.cri.run_pod(first.config, handler)
        assert {found.state for found in node.cri.pods() if found.metadata == metadata} == {m.READY}
        node.cri.stop_pod(second)
        node.cri.remove_pod(second)


@pytest.mark.parametrize("victim", ["sandbox", "shim", "vm"])
def test_sandbox_that_dies(node: Node, handler: str, victim: str) -> None:
    """What the sandbox is made of is killed: the pod is not ready, and its containers have ended."""
    if handler == "runc" and victim != "sandbox":
        pytest.skip("runc has no VM, and its shim leaves a socket behind when it is killed")
    with node.pod(handler, f"dying-{victim}") as pod:
        made = [pod.start(name) for name in ("one", "two")]
        victims = {"sandbox": lambda: node.cri.pod_info(pod.id)["pid"], "shim": pod.shim, "vm": pod.vm}
        os.kill(victims[victim](), 9)
        until(lambda: pod.status().state == m.NOT_READY, "the pod is not ready")
        if handler == "hako":
            # containerd, and not the shim, ends what the shim cannot speak for any more.
            assert {one.until_exited().exit_code for one in made} == {255 if victim == "shim" else 137}
        # A kubelet makes the next sandbox of the same pod.
        assert pod.config.metadata is not None
        pod.config.metadata.attempt = 1
        second = node.cri.run_pod(pod.config, handler)
        assert node.cri.pod_status(second).state == m.READY
        node.cri.stop_pod(second)
        node.cri.remove_pod(second)
