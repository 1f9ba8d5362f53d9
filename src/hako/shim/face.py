"""What turns a sandbox process into a shim: described by ``start``, made and at work in the process.

Imports next to nothing, for it is loaded before the process is forked.
"""

from __future__ import annotations

from hako.shim.call import Call

TYPE_CHECKING = False
if TYPE_CHECKING:
    import socket
    from collections.abc import Coroutine
    from typing import Any

    from hako.sandbox.engine import Engine


class Face:
    """The shim of the container ``call.id`` with the config.json ``spec``, which listens already."""

    def __init__(self, call: Call, spec: dict[str, Any], listener: socket.socket, address: str) -> None:
        self.call = call
        self.spec = spec
        self.listener = listener
        self.address = address
        #: A pod's VM, of which the Sandbox API tells more later, cannot start yet.
        self.begins = bool(spec)

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


def serve(connection: int) -> None:
    """Be the process that ``start`` has forked, until it is told what for; see hako.sandbox.early."""
    from hako.sandbox import daemon

    daemon.serve_prepared(connection, _make)


def describe(call: Call, spec: dict[str, Any], address: str) -> dict[str, Any]:
    """What the process is told of its face, besides the listening socket."""
    return {"call": call.to_json(), "spec": spec, "address": address}


def _make(told: dict[str, Any], fds: list[int]) -> Face:
    import socket

    return Face(Call(**told["call"]), told["spec"], socket.socket(fileno=fds[0]), told["address"])
