"""Translating a config.json without a sandbox."""

from __future__ import annotations

import os
import stat
from typing import Any

from hako.oci import check
from hako.sandbox import translate
from hako.sandbox.translate import GuestSpec
from hako.storage.sources import Source, look

SHARES = "/run/hako/shares/shared"


class Tree:
    """Notes the volumes it is asked for; sources that are not on this host are directories."""

    def __init__(self) -> None:
        self.volumes: list[tuple[str, str, bool, bool]] = []

    def look(self, source: str) -> Source:
        if os.path.exists(source):
            return look(source)
        if source.endswith("/shm"):
            return Source(source, stat.S_IFDIR | 0o1777, (0, 0), (0, 0), "tmpfs", 77, 64 << 20)
        return Source(source, stat.S_IFDIR | 0o755, (0, 0), (0, 0), "ext4", 1, 1 << 40)

    def has_mounts_below(self, source: str) -> bool:
        return source.endswith("/tree")

    def add_volume(self, container_id: str, source: str, *, readonly: bool, recursive: bool, deep: bool) -> str:
        self.volumes.append((container_id, source, readonly, recursive))
        return f"{container_id}/volumes/{len(self.volumes) - 1}"


def to_guest(spec: dict[str, Any], **options: Any) -> tuple[GuestSpec, Tree]:
    tree = Tree()
    assert isinstance(tree, object)
    return translate.translate(check.check(spec), "c1", tree, **options), tree  # type: ignore[arg-type]


def spec(**more: Any) -> dict[str, Any]:
    base: dict[str, Any] = {
        "ociVersion": "1.2.0",
        "process": {"args": ["true"], "cwd": "/"},
        "root": {"path": "/srv/rootfs", "readonly": True},
        "mounts": [
            {"destination": "/proc", "type": "proc", "source": "proc"},
            {"destination": "/dev", "type": "tmpfs", "source": "tmpfs"},
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


def linux(*more_namespaces: str, **more: Any) -> dict[str, Any]:
    """A spec whose linux section has ``more``."""
    kinds = ("pid", "mount", "ipc", "uts", "network", *more_namespaces)
    return spec(mounts=[], linux={"namespaces": [{"type": kind} for kind in kinds], **more})


#: Device rules that allow everything.
ALL_DEVICES = [{"allow": True, "access": "rwm"}]


def device(path: str, kind: str, major: int, minor: int) -> dict[str, Any]:
    return {"path": path, "type": kind, "major": major, "minor": minor, "fileMode": 0o20666, "uid": 1, "gid": 2}
