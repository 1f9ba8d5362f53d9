"""What the installer does to a node, and that it undoes all of it."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from support.kubeapi import KubeApi
from support.nodeconfigs import CONFIGS, NodeConfig
from support.nodetree import NodeTree

CONFIG = "/etc/containerd/config.toml"
READY = {"dev.hako/install": "true", "dev.hako/runtime": "ready"}
#: The others differ for engine_config.py alone, and are tested there.
SOME = ("1 without a file", "1 of Debian", "2 without a file", "2 with imports", "2 importing conf.d")


@pytest.fixture
def api(tmp_path: Path) -> Iterator[KubeApi]:
    with KubeApi(tmp_path) as made:
        yield made


@pytest.fixture
def node(tmp_path: Path, api: KubeApi) -> NodeTree:
    """A node with containerd 1.6 as Debian has it."""
    made = NodeTree(tmp_path, api)
    made.write(CONFIG, CONFIGS["1 of Debian"].text or "")
    return made


@pytest.mark.parametrize("config", [CONFIGS[name] for name in SOME], ids=SOME)
def test_install_and_remove_leave_nothing(tmp_path: Path, api: KubeApi, config: NodeConfig) -> None:
    node = NodeTree(tmp_path, api, major=config.major)
    if config.text is not None:
        node.write(CONFIG, config.text)
    before, labels = node.files(), dict(api.labels)
    assert "hako is ready on worker-1." in node.run("install")
    assert api.labels == READY
    assert node.said("restarts") == ["containerd"]
    node.run("remove")
    assert node.said("restarts") == ["containerd", "containerd"]
    assert node.files() == before
    assert api.labels == labels
    assert node.said("scripts") == ["install", "uninstall"]


def test_again_nothing_is_restarted(node: NodeTree) -> None:
    before = node.files()
    node.run("install")
    installed = node.files()
    node.run("install")
    assert node.files() == installed
    assert node.said("restarts") == ["containerd"]
    node.run("remove")
    node.run("remove")
    assert node.said("restarts") == ["containerd", "containerd"]
    assert node.files() == before


def test_the_installation_is_a_unit_and_needs_no_package_index(node: NodeTree) -> None:
    node.run("install")
    units = node.said("units")
    names = [word for word in units if word.startswith("hako-node-")]
    assert names == ["hako-node-install", "hako-node-image", "hako-node-template"]
    assert "PIP_NO_INDEX=1" in units
    assert (node.root / "usr/local/lib/hako-node/wheels/one.whl").exists()


def test_crio_gets_a_drop_in(tmp_path: Path, api: KubeApi) -> None:
    node = NodeTree(tmp_path, api, engine="crio")
    before = node.files()
    node.run("install")
    assert (node.root / "etc/crio/crio.conf.d/50-hako.conf").exists()
    assert node.said("restarts") == ["crio"]
    node.run("remove")
    assert node.files() == before


def test_the_pod_can_be_left_to_the_shim(tmp_path: Path, api: KubeApi) -> None:
    node = NodeTree(tmp_path, api, major=2)
    node.run("install", HAKO_SANDBOXER="shim")
    assert 'sandboxer = "shim"' in (node.root / "etc/containerd/conf.d/hako.toml").read_text()


def test_a_hako_that_was_there_before_stays(node: NodeTree) -> None:
    node.write("/usr/local/lib/hako/env-1/complete", "")
    for name in ("hako", "containerd-shim-hako-v2"):
        node.write(f"/usr/local/bin/{name}", "#!/bin/sh\n")
        (node.root / "usr/local/bin" / name).chmod(0o755)
    before = node.files()
    node.run("install")
    node.run("install")
    node.run("remove")
    assert node.files() == before
    assert node.said("scripts") == []


def test_pods_that_run_are_ended_before_hako_goes(node: NodeTree) -> None:
    before = node.files()
    node.run("install")
    node.set("pods", "0a1b2c\n3d4e5f\n")
    assert "Ending 2 containers ..." in node.run("remove")
    assert node.files() == before


@pytest.mark.parametrize(
    ("trouble", "said", "restarts"),
    [
        ("no-mirror", "hako could not be installed.", 0),
        ("no-vm", "A VM did not start", 0),
        ("refuses", "does not accept the runtime handler", 0),
        ("broken", "did not start with the runtime handler", 2),
    ],
)
def test_a_failure_leaves_the_engine_as_it_was(
    node: NodeTree, api: KubeApi, trouble: str, said: str, restarts: int
) -> None:
    config = (node.root / CONFIG.lstrip("/")).read_bytes()
    node.set(trouble)
    assert said in node.run("install", status=1)
    assert (node.root / CONFIG.lstrip("/")).read_bytes() == config
    assert node.said("restarts") == ["containerd"] * restarts
    assert (Path(node.root).parent / "control" / "active-containerd").exists()
    assert "dev.hako/runtime" not in api.labels
    node.unset(trouble)
    node.run("install")
    assert api.labels == READY


def test_a_configuration_that_cannot_be_changed_is_told(node: NodeTree) -> None:
    node.write(CONFIG, "version = 1\n")
    assert "is of version 1. Convert it" in node.run("install", status=1)
    assert node.said("restarts") == []


def test_a_node_without_an_engine_is_told(node: NodeTree) -> None:
    node.unset("active-containerd")
    assert "Neither containerd nor crio runs" in node.run("install", status=1)


def test_a_node_that_cannot_be_marked_is_not_ready(node: NodeTree, api: KubeApi) -> None:
    api.broken = 403
    assert "was answered with 403" in node.run("install", status=1)


def ended(node: NodeTree, change: Callable[[], None]) -> str:
    """What the pod says that runs until it is ready, and is ended after ``change``."""
    with node.start("run") as process:
        try:
            deadline = time.monotonic() + 60
            while not node.ready.exists():
                assert process.poll() is None, process.communicate()[0]
                assert time.monotonic() < deadline
                time.sleep(0.02)
            change()
            process.send_signal(signal.SIGTERM)
            said, _ = process.communicate(timeout=60)
        except BaseException:
            process.kill()
            raise
    assert process.returncode == 0, said
    return said


def test_hako_stays_when_a_pod_makes_way_for_the_next(node: NodeTree, api: KubeApi) -> None:
    assert "This pod ends; hako stays." in ended(node, lambda: None)
    assert api.labels == READY
    assert node.said("scripts") == ["install"]


def test_hako_stays_when_the_server_does_not_answer(node: NodeTree, api: KubeApi) -> None:
    assert "so it stays" in ended(node, lambda: setattr(api, "broken", 500))
    assert node.said("scripts") == ["install"]


@pytest.mark.parametrize("reason", ["no DaemonSet", "being deleted", "no label"])
def test_hako_goes_when_it_is_not_wanted_any_more(node: NodeTree, api: KubeApi, reason: str) -> None:
    before = node.files()

    def change() -> None:
        match reason:
            case "no DaemonSet":
                api.daemonset = False
            case "being deleted":
                api.deleting = True
            case _:
                del api.labels["dev.hako/install"]

    assert "hako is removed from worker-1." in ended(node, change)
    assert node.files() == before
    assert "dev.hako/runtime" not in api.labels
    assert not node.ready.exists()


def test_nothing_of_the_pod_stays(node: NodeTree) -> None:
    ended(node, lambda: None)
    mark = f"ROOT={node.root}".encode()
    left = []
    for pid in filter(str.isdigit, os.listdir("/proc")):
        try:
            environment = Path(f"/proc/{pid}/environ").read_bytes()
        except OSError:
            continue
        left += [pid] if mark in environment.split(b"\0") else []
    assert left == []


def test_an_unknown_verb_is_refused(node: NodeTree) -> None:
    assert "usage: " in node.run("reinstall", status=1)
