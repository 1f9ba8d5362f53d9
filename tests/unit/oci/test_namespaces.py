"""Which namespaces of the host a config.json asks for: by leaving them out, or by a path that leads to them."""

from __future__ import annotations

from typing import Any

import pytest

from hako.errors import ConfigError
from hako.oci import namespaces
from support import enginespecs


def spec(*kinds: str, annotations: dict[str, str] | None = None, **paths: str) -> dict[str, Any]:
    entries = [{"type": kind} for kind in kinds] + [{"type": kind, "path": path} for kind, path in paths.items()]
    return {"linux": {"namespaces": entries}, "annotations": annotations or {}}


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (spec("pid", "ipc", "uts"), "use the host's network"),
        (spec("pid", "ipc", "uts", network="/proc/self/ns/net"), "use the host's network"),
        (spec("network", "ipc", "uts"), r"share the host's pid namespace.*--pid host, hostPID"),
        (spec("network", "pid", "uts"), "share the host's ipc namespace"),
        (spec("network", "pid", "ipc"), "share the host's uts namespace"),
        (spec("network", "ipc", "uts", pid="/proc/self/ns/pid"), "share the host's pid namespace"),
        ({}, "use the host's network"),
        (spec("ipc", annotations={namespaces.ANNOTATION: "true"}), "use the host's network"),
        (spec("network", annotations={namespaces.ANNOTATION: "yes"}), "share the host's pid namespace"),
        (enginespecs.load("podman-pid-host"), "share the host's pid namespace"),
    ],
)
def test_the_hosts_own_are_refused(given: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        namespaces.refuse_hosts(given)


@pytest.mark.parametrize(
    "given",
    [
        spec("pid", "ipc", "uts", "network"),
        spec("pid", "ipc", "uts", network="/run/netns/somewhere"),
        spec("network", ipc="/proc/4711/ns/ipc", uts="/proc/4711/ns/uts", pid="/proc/4711/ns/pid"),
        spec("network", annotations={namespaces.ANNOTATION: "true"}),
        *(enginespecs.load(name) for name in ("docker-run", "docker-joined", "podman-run", "podman-pod-member")),
    ],
)
def test_others_pass(given: dict[str, Any]) -> None:
    namespaces.refuse_hosts(given)


def test_paths_are_compared_only_where_that_is_asked_for() -> None:
    namespaces.refuse_hosts(spec("pid", "ipc", "uts", network="/proc/self/ns/net"), "")
