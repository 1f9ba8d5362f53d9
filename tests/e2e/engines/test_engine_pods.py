"""Pods of podman, with runc and with hako, whose containers share one VM."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from support.engines import IMAGE, Box, differs
from support.machine import until

pytestmark = [
    pytest.mark.e2e,
    pytest.mark.slow,
    pytest.mark.parametrize("box", ["podman-runc", "podman-hako"], indirect=True),
]

KERNEL = differs(
    "kernel of a pod's containers",
    runc="the host's",
    hako="one for all containers of the pod, and for no other",
    why="every pod has its own VM",
)
_BOOT_ID = "cat /proc/sys/kernel/random/boot_id"
_SERVER = "echo served >/tmp/name; exec httpd -f -p 8080 -h /tmp"


def boot_id(box: Box, container: str) -> str:
    """What tells the kernel of a container from all others."""
    return box.output("exec", container, "sh", "-c", _BOOT_ID)


def check_pod(box: Box, server: str, client: str) -> None:
    """Two containers that share network and kernel, and nothing else."""

    def fetched() -> bool:
        script = "printf 'GET /name HTTP/1.0\\r\\n\\r\\n' | nc -w 5 127.0.0.1 8080"
        return box("exec", client, "sh", "-c", script, check=False).stdout.endswith("\r\n\r\nserved\n")

    until(fetched, "the neighbour is reached by the loopback")
    assert box("exec", client, "test", "-e", "/tmp/name", check=False).status == 1
    with open("/proc/sys/kernel/random/boot_id", encoding="ascii") as file:
        host = file.read().strip()
    kernels = {boot_id(box, server), boot_id(box, client)}
    assert len(kernels) == 1
    assert (kernels == {host}) is box.either(KERNEL, runc=True, hako=False)


def test_a_pod(box: Box) -> None:
    box("pod", "create", "--name", "team", "--hostname", "shared", "-p", "8090:8080")
    box.start("server", "--pod", "team", IMAGE, "sh", "-c", _SERVER)
    box.start("client", "--pod", "team", IMAGE, "sleep", "1000")
    check_pod(box, "server", "client")
    assert {box.output("exec", name, "hostname") for name in ("server", "client")} == {"shared"}
    # One of them ends, the other one goes on.
    box("stop", "-t", "0", "server")
    assert box.state("server")["ExitCode"] == 137
    assert box.output("exec", "client", "echo", "still here") == "still here"
    box("pod", "stop", "-t", "0", "team")
    assert box.state("client")["Status"] == "exited"
    box("pod", "start", "team")
    check_pod(box, "server", "client")


_POD = """
apiVersion: v1
kind: Pod
metadata:
  name: play
spec:
  restartPolicy: Never
  containers:
  - name: server
    image: localhost/busybox
    command: ["sh", "-c", "{server}"]
    volumeMounts: [{{name: data, mountPath: /data}}]
    resources: {{limits: {{memory: 64Mi}}}}
  - name: client
    image: localhost/busybox
    command: ["sleep", "1000"]
    env: [{{name: A, value: one}}]
    volumeMounts: [{{name: data, mountPath: /data, readOnly: true}}]
  volumes:
  - name: data
    hostPath: {{path: {path}, type: Directory}}
"""


def test_play_kube(box: Box, tmp_path: Path) -> None:
    (tmp_path / "in").write_text("from the host\n")
    box("play", "kube", "-", input=_POD.format(server=_SERVER, path=tmp_path))
    check_pod(box, "play-server", "play-client")
    assert box.output("exec", "play-client", "sh", "-c", "echo $A; cat /data/in") == "one\nfrom the host"
    assert box("exec", "play-client", "touch", "/data/x", check=False).status == 1
    box("play", "kube", "--down", "-", input=_POD.format(server=_SERVER, path=tmp_path))
    assert box.output("pod", "ps", "-q") == ""


def test_units_for_systemd(box: Box) -> None:
    box.start("unit", IMAGE, "sleep", "1000")
    unit = box.output("generate", "systemd", "--name", "unit")
    assert "ExecStart=/usr/bin/podman" in unit
    assert "start unit" in unit
    (found,) = json.loads(box.output("inspect", "unit"))
    assert f"PIDFile={found['ConmonPidFile']}" in unit
