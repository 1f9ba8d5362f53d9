"""``hako-runtime start``: let the process of a created container run."""

from __future__ import annotations

from hako.errors import StateError
from hako.runtime import containers
from hako.runtime.containers import Container
from hako.runtime.verbs import Call


def main(call: Call) -> int:
    """Start it. Raises HakoError."""
    start(call, containers.find(call.root, call.args[0]))
    return 0


def start(call: Call, container: Container) -> None:
    """Start a created container. Raises HakoError. Hooks that fail are reported as ``call`` asks for it."""
    status = containers.status(container)
    if status == "stopped":
        raise StateError("cannot start a container that has stopped")
    if status == "paused":
        raise StateError("cannot start a container in the paused state")
    if status != "created":
        raise StateError("cannot start an already running container")
    containers.call(container, "Start")
    if container.hooks.get("poststart"):
        from hako.runtime import lifecycle, reporting

        lifecycle.run_kept(container, "poststart", reporting.of(call).warning)
