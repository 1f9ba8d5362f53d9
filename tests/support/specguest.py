"""One VM whose containers are made from a config.json, as engines make theirs."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import hako
from hako import ids
from hako.errors import HakoError
from hako.oci import capabilities
from hako.sandbox import capture, client, requests
from hako.sandbox.api import Container

Spec = dict[str, Any]
_SAFE = ["nosuid", "noexec", "nodev"]


class Guest:
    """One VM and a root file system for its containers."""

    def __init__(self, sandbox: hako.Sandbox, rootfs: Path) -> None:
        self.sandbox = sandbox
        self.rootfs = rootfs

    def spec(self, *args: str, **linux: Any) -> Spec:
        """A config.json as engines make them; ``linux`` adds to that section, and replaces."""
        names = capabilities.wanted([], [])
        mounts = [
            {"destination": "/proc", "type": "proc", "source": "proc", "options": _SAFE},
            {"destination": "/dev", "type": "tmpfs", "source": "tmpfs", "options": ["nosuid", "mode=755"]},
            {
                "destination": "/dev/pts",
                "type": "devpts",
                "source": "devpts",
                "options": ["newinstance", "ptmxmode=0666"],
            },
            {"destination": "/sys", "type": "sysfs", "source": "sysfs", "options": [*_SAFE, "ro"]},
            {"destination": "/sys/fs/cgroup", "type": "cgroup", "source": "cgroup", "options": [*_SAFE, "ro"]},
            {"destination": "/dev/mqueue", "type": "mqueue", "source": "mqueue", "options": _SAFE},
        ]
        return {
            "ociVersion": "1.2.0",
            "process": {
                "args": list(args),
                "cwd": "/",
                "env": ["PATH=/usr/sbin:/usr/bin:/sbin:/bin"],
                "user": {"uid": 0, "gid": 0},
                "capabilities": capabilities.for_process(names, 0),
            },
            "root": {"path": str(self.rootfs)},
            "hostname": "box",
            "mounts": mounts,
            "linux": {"namespaces": namespaces("pid", "ipc", "uts", "mount", "network"), **linux},
        }

    def shell(self, script: str, change: Callable[[Spec], None] | None = None, **linux: Any) -> str:
        """What ``script`` says in a container; ``change`` makes its spec another."""
        spec = self.spec("sh", "-c", script, **linux)
        if change is not None:
            change(spec)
        return self.run(spec)

    def run(self, spec: Spec, **more: Any) -> str:
        """Run a container to its end; return its output. A status other than 0 fails the test."""
        with capture.Pipes(None) as pipes, self.created(spec, pipes.child(), start=True, **more) as container:
            result = pipes.finish(container.main, 60)
        assert result.exit_status == 0, result.stdout + result.stderr
        return result.stdout

    @contextlib.contextmanager
    def created(self, spec: Spec, stdio: dict[str, int], *, start: bool, **more: Any) -> Iterator[Container]:
        """A container, deleted at the end."""
        fds = capture.named(stdio.get("stdin"), stdio.get("stdout"), stdio.get("stderr"))
        container_id = ids.new_id()
        # What this process has mounted since the sandbox was started is to be found, too.
        mounts = os.open("/proc/self/ns/mnt", os.O_RDONLY | os.O_CLOEXEC)
        try:
            params = requests.create(container_id, spec, lower=None, stdio=[*fds, "mounts"], start=start)
            client.call(self.sandbox.id, "Create", {**params, "strict": True, **more}, [*fds.values(), mounts])
        finally:
            os.close(mounts)
        container = Container(self.sandbox.id, container_id)
        try:
            yield container
        finally:
            container.delete(force=True)

    def refusal(self, spec: Spec) -> str:
        """The sentence with which a container is refused."""
        with pytest.raises(HakoError) as caught:
            self.run(spec)
        return str(caught.value)


def namespaces(*kinds: str) -> list[dict[str, str]]:
    return [{"type": kind} for kind in kinds]


def mount(spec: Spec, destination: str, kind: str, source: str, *options: str) -> None:
    spec["mounts"].append({"destination": destination, "type": kind, "source": source, "options": list(options)})
