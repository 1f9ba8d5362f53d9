"""``hako-runtime resume``: let the frozen processes of a container go on."""

from __future__ import annotations

from hako.errors import StateError
from hako.runtime import containers
from hako.runtime.verbs import Call


def main(call: Call) -> int:
    """Thaw them. Raises HakoError."""
    container = containers.find(call.root, call.args[0])
    if containers.status(container) != "paused":
        raise StateError("container not paused")
    containers.call(container, "Resume")
    return 0
