"""``hako-runtime list``: the containers of the root, as a table or as JSON."""

from __future__ import annotations

import sys

from hako.errors import ConfigError
from hako.runtime import containers, lifecycle
from hako.runtime.texts import table

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from hako.runtime.verbs import Call

_HEADER = ("ID", "PID", "STATUS", "BUNDLE", "CREATED", "OWNER")


def main(call: Call) -> int:
    """Print them."""
    found = containers.all_of(call.root)
    if call.options["quiet"]:
        text = "".join(f"{container.id}\n" for container in found)
    elif call.options["format"] == "table":
        text = table([_HEADER, *map(_row, map(_entry, found))])
    elif call.options["format"] == "json":
        from hako.wire import jsontext

        # Without containers that is null, which is how Go writes a list that was never filled.
        text = jsontext.dumps([_entry(container) for container in found] or None).decode() + "\n"
    else:
        raise ConfigError("invalid format option")
    sys.stdout.write(text)
    return 0


def _entry(container: containers.Container) -> dict[str, Any]:
    # Unlike in the state, root is named as the owner.
    return {**lifecycle.state(container, containers.status(container)), "owner": container.owner}


def _row(entry: dict[str, Any]) -> list[str]:
    return [str(entry[name.lower()]) for name in _HEADER]
