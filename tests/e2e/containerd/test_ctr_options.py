"""How containerd's users choose and set up hako: names of the runtime, its configuration, annotations, networks."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from support.containerd import IMAGE
from support.ctr import Ctr

pytestmark = [pytest.mark.e2e, pytest.mark.slow]

with_hako = pytest.mark.parametrize("ctr", ["old-hako", "new-hako"], indirect=True)


@with_hako
def test_configuration_file(ctr: Ctr, tmp_path: Path) -> None:
    config = tmp_path / "config.toml"
    config.write_text("[sandbox]\nvcpus = 2\n")
    assert ctr.run("nproc", options=("--runtime-config-path", str(config))).stdout == "2\n"
    config.write_text("[sandbox]\nvcpus = 0\n")
    done = ctr.run("nproc", options=("--runtime-config-path", str(config)), check=False)
    assert done.status != 0
    assert "sandbox.vcpus" in done.stderr
    assert ctr.tasks() == {}


@with_hako
def test_version_of_the_task_service(ctr: Ctr, tmp_path: Path) -> None:
    """The newest that containerd understands, by what the shim says that it is asked."""
    config = tmp_path / "config.toml"
    config.write_text('[log]\nlevel = "debug"\n')
    log = Path(ctr.containerd.base, "log")
    before = log.stat().st_size
    ctr.start("asked", "sleep", "1000", options=("--runtime-config-path", str(config)))
    assert ctr.exec("asked", "echo", "more").stdout == "more\n"
    for command in ("pause", "resume", "metrics", "ps"):
        ctr("task", command, "asked")
    ctr("task", "kill", "--signal", "KILL", "asked")
    ctr.until_stopped("asked")
    assert ctr.delete("asked") == 137
    with open(log, "rb") as file:
        file.seek(before)
        calls = re.findall(r"(\S+)/(\w+) is called\n", file.read().decode(errors="replace"))
    version = 3 if ctr.containerd.has_sandbox_api else 2
    assert {service for service, _ in calls} == {f"containerd.task.v{version}.Task"}
    wanted = {"Create", "Start", "Exec", "Wait", "Pause", "Resume", "Stats", "Pids", "Kill", "Delete", "Shutdown"}
    assert wanted - {method for _, method in calls} == set()


@with_hako
def test_annotations(ctr: Ctr) -> None:
    assert ctr.run("nproc", options=("--annotation", "dev.hako.vcpus=2")).stdout == "2\n"
    done = ctr.run("nproc", options=("--annotation", "dev.hako.vcpus=none"), check=False)
    assert done.status != 0
    assert "dev.hako.vcpus" in done.stderr


@with_hako
def test_the_shims_path(ctr: Ctr) -> None:
    path = f"{ctr.containerd.base}/bin/containerd-shim-hako-v2"
    done = ctr("run", "--rm", "--runtime", path, IMAGE, "once", "echo", "by its path")
    assert done.stdout == "by its path\n"


@pytest.fixture
def namespace(ctr: Ctr) -> Iterator[str]:
    """A network namespace with the address 10.77.0.2 and a link to 10.77.0.1."""
    ip = """
        ip netns add pod && ip link add veth-out type veth peer name eth0 netns pod &&
        ip addr add 10.77.0.1/24 dev veth-out && ip link set veth-out up &&
        ip -n pod addr add 10.77.0.2/24 dev eth0 && ip -n pod link set eth0 up && ip -n pod link set lo up &&
        ip -n pod route add default via 10.77.0.1
    """
    machine = ctr.containerd.machine
    try:
        machine.output("sh", "-c", ip)
        yield "/run/netns/pod"
        ctr.clear()
    finally:
        # By itself the kernel would remove the link some time after the namespace.
        machine.run(machine.inside("ip", "link", "delete", "veth-out"), check=False)
        machine.output("ip", "netns", "delete", "pod")


def test_a_network_namespace(ctr: Ctr, namespace: str) -> None:
    script = (
        "ip -4 -o addr show eth0 | awk '{print $4}'; ip route | grep -c default; ping -c 1 -W 20 10.77.0.1 >/dev/null"
    )
    done = ctr.run("sh", "-c", script, options=("--with-ns", f"network:{namespace}"))
    assert done.stdout.split() == ["10.77.0.2/24", "1"]
    # The namespace belongs to whoever made it.
    assert "10.77.0.2/24" in ctr.containerd.machine.output("ip", "-n", "pod", "addr")


def test_a_network_namespace_that_is_not_there(ctr: Ctr) -> None:
    done = ctr.run("true", options=("--with-ns", "network:/run/netns/nobody"), check=False)
    assert done.status != 0
    assert "/run/netns/nobody" in done.stderr


def test_signals_for_all(ctr: Ctr) -> None:
    child = "trap 'echo child; exit' USR1; echo ready; while :; do sleep 0.1; done"
    script = f"trap 'echo parent' USR1; sh -c \"{child}\" & while :; do sleep 0.1; done"
    log = ctr.start("family", "sh", "-c", script)
    ctr.until_logged(log, "ready\n")
    ctr("task", "kill", "--all", "--signal", "USR1", "family")
    ctr.until_logged(log, "parent\n")
    ctr.until_logged(log, "child\n")


@with_hako
def test_what_is_known_of_the_container(ctr: Ctr) -> None:
    """The bundle is containerd's, and hako's own tools show the sandbox."""
    ctr.start("known", "sleep", "1000")
    bundle = Path(ctr.containerd.base, "state", "io.containerd.runtime.v2.task", ctr.containerd.namespace, "known")
    assert (bundle / "address").read_text().startswith("unix:///run/containerd/s/")
    config = json.loads((bundle / "config.json").read_text())
    assert config["process"]["args"] == ["sleep", "1000"]
    pid = ctr.tasks()["known"][0]
    assert "known" in Path(f"/proc/{pid}/cmdline").read_text()
    groups = Path(f"/proc/{pid}/cgroup").read_text()
    assert f"/{ctr.containerd.namespace}/known" in groups
    assert os.stat(bundle).st_mode & 0o077 == 0


@with_hako
def test_what_the_shim_has_open_is_its_own(ctr: Ctr) -> None:
    """A program that it starts, and that outlives it, would answer for it at its socket, or rather would not."""
    ctr.start("known", "sleep", "1000")
    (shim,) = ctr.shims()
    shared = []
    for entry in os.scandir(f"/proc/{shim}/fd"):
        flags = Path(f"/proc/{shim}/fdinfo/{entry.name}").read_text().split("flags:")[1].split()[0]
        if int(entry.name) > 2 and not int(flags, 8) & os.O_CLOEXEC:
            shared.append(os.readlink(entry.path))
    assert shared == []
