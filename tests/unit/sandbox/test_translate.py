"""From the host's config.json to the guest's: what is passed on, changed and refused."""

from __future__ import annotations

import copy
from typing import Any

import pytest

from hako.errors import ConfigError
from hako.sandbox import translate
from hako.storage.tree import SharedTree


class Tree:
    """Notes the volumes it is asked for."""

    def __init__(self) -> None:
        self.volumes: list[tuple[str, str, bool]] = []

    def add_volume(self, container_id: str, source: str, *, readonly: bool) -> str:
        self.volumes.append((container_id, source, readonly))
        return f"{container_id}/volumes/{len(self.volumes) - 1}"


def to_guest(spec: dict[str, Any]) -> tuple[dict[str, Any], Tree]:
    tree = Tree()
    assert isinstance(tree, object)
    return translate.to_guest(spec, "c1", tree), tree  # type: ignore[arg-type]


def spec(**more: Any) -> dict[str, Any]:
    base: dict[str, Any] = {
        "ociVersion": "1.0.2",
        "process": {"args": ["true"], "cwd": "/"},
        "root": {"path": "/srv/rootfs", "readonly": True},
        "mounts": [
            {"destination": "/proc", "type": "proc", "source": "proc"},
            {"destination": "/data", "type": "bind", "source": "/srv/data", "options": ["rbind", "ro", "nosuid"]},
            {"destination": "/etc/hosts", "source": "/srv/hosts", "options": ["bind"]},
            {"destination": "/tmp", "type": "tmpfs", "source": "tmpfs", "options": ["size=1m"]},
        ],
        "linux": {
            "cgroupsPath": "/system.slice/x",
            "namespaces": [{"type": "pid"}, {"type": "network", "path": "/run/netns/x"}, {"type": "mount"}],
            "maskedPaths": ["/proc/kcore"],
        },
        "annotations": {"a": "b"},
    }
    return {**base, **more}


def test_what_is_changed_and_what_is_passed_on() -> None:
    guest, tree = to_guest(spec())
    shares = "/run/hako/shares/shared/c1"
    assert guest["root"] == {"path": f"{shares}/rootfs", "readonly": True}
    assert [(mount["destination"], mount["source"]) for mount in guest["mounts"]] == [
        ("/proc", "proc"),
        ("/data", f"{shares}/volumes/0"),
        ("/etc/hosts", f"{shares}/volumes/1"),
        ("/tmp", "tmpfs"),
    ]
    assert guest["mounts"][1]["options"] == ["rbind", "ro", "nosuid"]
    assert tree.volumes == [("c1", "/srv/data", True), ("c1", "/srv/hosts", False)]
    assert guest["linux"] == {"namespaces": [{"type": "pid"}, {"type": "mount"}], "maskedPaths": ["/proc/kcore"]}
    assert guest["process"] == spec()["process"]
    assert guest["annotations"] == {"a": "b"}


def test_the_input_is_not_changed() -> None:
    given = spec(hooks={})
    before = copy.deepcopy(given)
    guest, _ = to_guest(given)
    guest["process"]["args"].append("x")
    guest["mounts"][3]["options"].append("x")
    assert given == before


def test_a_spec_with_nothing_in_it() -> None:
    guest, tree = to_guest({"process": {"args": ["true"]}})
    assert guest["linux"] == {"namespaces": []}
    assert guest["root"]["readonly"] is False
    assert tree.volumes == []


@pytest.mark.parametrize("options", [None, [], ["rw"]])
def test_a_mount_is_a_bind_by_its_type_alone(options: list[str] | None) -> None:
    mount: dict[str, Any] = {"destination": "/d", "type": "bind", "source": "/s"}
    if options is not None:
        mount["options"] = options
    guest, tree = to_guest(spec(mounts=[mount]))
    assert tree.volumes == [("c1", "/s", False)]
    assert guest["mounts"][0]["type"] == "bind"


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"hooks": {"prestart": [{"path": "/x"}]}}, r"\$.hooks: hako does not run hooks"),
        (
            {"linux": {"namespaces": [{"type": "pid"}, {"type": "ipc", "path": "/proc/1/ns/ipc"}]}},
            r"namespaces\[1\].path.*ipc",
        ),
        ({"linux": {"namespaces": [{"type": "user", "path": "/proc/1/ns/user"}]}}, r"namespaces\[0\].path.*user"),
    ],
)
def test_what_a_vm_cannot_honour_is_refused(changed: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        to_guest(spec(**changed))


def test_the_tree_has_what_is_used_here() -> None:
    assert callable(SharedTree.add_volume)
