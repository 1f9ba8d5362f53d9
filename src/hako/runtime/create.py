"""``hako-runtime create``: a container that is ready, and waits for ``start``."""

from __future__ import annotations

from hako.cgroup.hurry import hurry
from hako.sandbox.early import Prepared

TYPE_CHECKING = False
if TYPE_CHECKING:
    from hako.runtime.verbs import Call


def main(call: Call) -> int:
    """Make the container. Raises HakoError."""
    hurry()
    prepared = Prepared()
    # Loaded while the sandbox process loads its own modules.
    from hako.runtime.making import Making

    with Making(call, call.args[0], prepared, detach=True) as making:
        making.make()
        making.finish()
    return 0
