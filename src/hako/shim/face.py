"""What turns a sandbox process into a shim: made by ``start`` before the process is forked, at work after.

Imports next to nothing: ``start`` answers before the process has loaded what it needs.
"""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    import socket
    from collections.abc import Coroutine
    from typing import Any

    from hako.sandbox.engine import Engine
    from hako.shim.call import Call


class Face:
    """The shim of the container ``call.id`` with the config.json ``spec``, which listens already."""

    def __init__(self, call: Call, spec: dict[str, Any], listener: socket.socket, address: str) -> None:
        self.call = call
        self.spec = spec
        self.listener = listener
        self.address = address

    @property
    def fds(self) -> tuple[int, ...]:
        """Descriptors that the process needs."""
        return (self.listener.fileno(),)

    async def serve(self, engine: Engine, running: Coroutine[Any, Any, None]) -> None:
        """Serve containerd beside the engine, which ``running`` runs, and give back what the shim has."""
        import logging

        from hako.shim import shimlog

        shimlog.setup(self.call, engine.config.log.level)
        try:
            from hako.shim.shim import Shim

            await Shim(self, engine).run(running)
        except Exception:
            # containerd, which finds nobody at the socket, does not know more than that.
            logging.getLogger(__name__).exception("The shim of %s has failed", self.call.id)
            raise
