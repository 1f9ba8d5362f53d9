"""What the containers of a pod share: network, IPC, host name, processes where that is asked for."""

from __future__ import annotations

from typing import NamedTuple

import pytest

from support import cri_messages as m
from support.machine import until
from support.pods import ASK, Ctr, Node, Pod

pytestmark = [pytest.mark.e2e, pytest.mark.slow]


class Pair(NamedTuple):
    """Two containers of a pod."""

    pod: Pod
    one: Ctr
    two: Ctr


@pytest.fixture(scope="module")
def pair(pod: Pod) -> Pair:
    return Pair(pod, pod.start("one"), pod.start("two"))


def namespace(container: Ctr, kind: str) -> str:
    return container.sh(f"readlink /proc/1/ns/{kind}")


def test_network(pair: Pair) -> None:
    server = pair.pod.serve("server", "127.0.0.1:8080", "served")
    assert pair.two.sh(f"{ASK}127.0.0.1 8080").endswith("\nserved")
    server.stop()
    server.remove()
    assert namespace(pair.one, "net") == namespace(pair.two, "net")


def test_shared_memory(pair: Pair) -> None:
    pair.one.sh("head -c 1000000 /dev/zero >/dev/shm/from-one")
    assert pair.two.sh("stat -c %s /dev/shm/from-one") == "1000000"
    assert namespace(pair.one, "ipc") == namespace(pair.two, "ipc")
    # containerd gives a pod 64 MiB of it.
    assert pair.one.exec("sh", "-c", "head -c 70000000 /dev/zero >/dev/shm/full").exit_code == 1
    pair.one.sh("rm /dev/shm/full")


def test_host_name(pair: Pair) -> None:
    assert {container.sh("hostname") for container in pair[1:]} == {pair.pod.name}
    assert namespace(pair.one, "uts") == namespace(pair.two, "uts")


def test_files_and_processes_are_their_own(pair: Pair) -> None:
    pair.one.sh("touch /tmp/mine")
    assert pair.two.exec("test", "-e", "/tmp/mine").exit_code == 1
    # A pod's containers have a namespace of processes each, because nothing else was asked for.
    assert pair.one.sh("cat /proc/1/comm") == "sh"
    assert namespace(pair.one, "pid") != namespace(pair.two, "pid")
    assert namespace(pair.one, "mnt") != namespace(pair.two, "mnt")


def test_shared_processes(node: Node, handler: str) -> None:
    with node.pod(handler, "together", namespace_options=m.NamespaceOption(pid=m.POD)) as pod:
        one = pod.start("one", "sleep", "12345")
        two = pod.start("two", "sleep", "54321")
        seen = two.sh("ps -o pid,args")
        assert "sleep 12345" in seen
        assert "sleep 54321" in seen
        # The first process is the pod's own, which has none of the containers'.
        first = next(line.split(None, 1) for line in seen.splitlines() if line.split()[0] == "1")
        assert first[1] not in ("sleep 12345", "sleep 54321")
        # They can signal each other, and the end of one is not the end of the other.
        two.sh("kill $(ps -o pid,args | awk '/sleep [1]2345/ {print $1}')")
        assert one.until_exited().exit_code == 143
        assert two.status().state == m.RUNNING


def test_what_a_container_leaves_in_shared_processes_ends_with_it(node: Node, handler: str) -> None:
    with node.pod(handler, "leaves", namespace_options=m.NamespaceOption(pid=m.POD)) as pod:
        watcher = pod.start("watcher")
        made = pod.start("leaver", "sh", "-c", "sleep 24680 & sleep 1; exit 3")
        assert made.until_exited().exit_code == 3
        until(lambda: "sleep 24680" not in watcher.sh("ps -o args"), "the rest has ended")


def test_processes_of_another_container(node: Node, handler: str, pair: Pair) -> None:
    """A debug container that sees the processes of one that it is told."""
    target = pair.pod.start("target", "sleep", "777")
    option = m.NamespaceOption(pid=m.TARGET, target_id=target.id)
    debugger = pair.pod.start("debugger", namespace_options=option)
    assert "sleep 777" in debugger.sh("ps -o args")
    assert namespace(debugger, "pid") == namespace(target, "pid")
    assert debugger.sh("cat /proc/1/cmdline | tr '\\0' ' '").strip() == "sleep 777"
    target.stop()
    # Its namespace has lost its first process, and all others are killed with it.
    assert debugger.until_exited().exit_code == 137
    for made in (debugger, target):
        made.remove()


def test_restart_of_one(pair: Pair) -> None:
    """A container that has ended is made again, as a kubelet does it; the others go on."""
    started = pair.one.sh("cut -d' ' -f22 /proc/1/stat")
    for attempt in range(3):
        made = pair.pod.start("restarted", "sh", "-c", f"echo {attempt}; exit {attempt}", attempt=attempt)
        assert made.until_exited().exit_code == attempt
        made.check_said(f"{attempt}\n")
        made.remove()
    assert pair.one.sh("cut -d' ' -f22 /proc/1/stat") == started
