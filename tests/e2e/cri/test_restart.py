"""containerd ends and comes back while pods run: they go on, and what ended meanwhile is known."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from support import cri_messages as m
from support.machine import until
from support.pods import Node, Pod

pytestmark = [pytest.mark.e2e, pytest.mark.slow]


@pytest.mark.parametrize("how", ["stop", "kill"])
def test_pods_go_on(node: Node, handler: str, how: str) -> None:
    with node.pod(handler, f"restart-{how}", labels={"how": how}) as pod:
        stays = pod.start("stays", "sh", "-c", "n=0; while :; do n=$((n + 1)); echo $n; sleep 0.1; done")
        source = pod.volume("empty-dir", "shared")
        script = "echo before; until test -e /volume/gone; do sleep 0.1; done; echo after; touch /volume/ended; exit 7"
        ends = pod.start("ends", "sh", "-c", script, mounts=[m.Mount(container_path="/volume", host_path=source)])
        ends.until_logged("before\n")
        boot = stays.sh("cat /proc/sys/kernel/random/boot_id; cut -d' ' -f22 /proc/1/stat")
        address = pod.address
        getattr(node.containerd, how)()
        Path(source, "gone").touch()
        until(Path(source, "ended").exists, "a container ends meanwhile")
        time.sleep(0.5)
        node.start_again()
        check_listing(pod)
        status = ends.until_exited()
        assert (status.exit_code, ends.text().splitlines()[0]) == (7, "before")
        # It is the same container in the same VM, which can be used as before.
        assert stays.sh("cat /proc/sys/kernel/random/boot_id; cut -d' ' -f22 /proc/1/stat") == boot
        assert pod.address == address
        count = len(stays.lines())
        until(lambda: len(stays.lines()) > count, "its output is logged again")
        with pod.cri.exec(stays.id, "sh", "-c", "read x; echo got $x", stdin=True) as it:
            it.write(b"line\n")
            assert it.wait() == 0
        assert pod.start("new").sh("echo works") == "works"
        assert stays.stop().exit_code == 137


def check_listing(pod: Pod) -> None:
    """The pod and its containers are listed as before, and are ready."""
    (found,) = pod.cri.pods(label_selector=pod.config.labels)
    assert (found.id, found.state, found.runtime_handler) == (pod.id, m.READY, pod.handler)
    names = {one.metadata.name: one.state for one in pod.cri.containers(pod_sandbox_id=pod.id) if one.metadata}
    assert set(names) == {"stays", "ends"}
    assert names["stays"] == m.RUNNING
