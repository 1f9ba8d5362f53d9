"""``hako-runtime run``: create and start a container, and stay with it unless told to detach."""

from __future__ import annotations

from hako.cgroup.hurry import hurry
from hako.sandbox.early import Prepared

TYPE_CHECKING = False
if TYPE_CHECKING:
    from hako.runtime.verbs import Call


def main(call: Call) -> int:
    """Run it; returns the exit status of its process, or 0 when detached. Raises HakoError."""
    hurry()
    prepared = Prepared()
    # Loaded while the sandbox process loads its own modules.
    from hako.runtime import delete, foreground, start
    from hako.runtime.making import Making

    detach = call.options.get("detach") is True
    with Making(call, call.args[0], prepared, detach=detach) as making:
        making.make()
        start.start(call, making.container)
        making.finish()
        if detach:
            return 0
        assert making.standin is not None
        with making.foreground():
            status = foreground.wait(making.standin, making.terminal)
    if not call.options.get("keep"):
        delete.delete(call, making.container)
    return status
