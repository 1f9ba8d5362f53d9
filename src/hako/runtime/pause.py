"""``hako-runtime pause``: freeze all processes of a container."""

from __future__ import annotations

from hako.errors import StateError
from hako.runtime import containers
from hako.runtime.verbs import Call


def main(call: Call) -> int:
    """Freeze them. Raises HakoError."""
    container = containers.find(call.root, call.args[0])
    status = containers.status(container)
    if status not in ("running", "created"):
        raise StateError(f"cannot pause container {container.id} in the {status} state: container not running")
    containers.call(container, "Pause")
    return 0
