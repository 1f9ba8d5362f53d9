"""``hako-runtime state``: what the container is, as the runtime specification has it."""

from __future__ import annotations

import json

from hako.runtime import containers, lifecycle
from hako.runtime.verbs import Call


def main(call: Call) -> int:
    """Print the state. Raises HakoError."""
    container = containers.find(call.root, call.args[0])
    print(json.dumps(lifecycle.state(container, containers.status(container)), indent=2))
    return 0
