"""One call of the shim's program by containerd."""

from __future__ import annotations

import os

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any


class Call:
    """One command line: what containerd says of the container, and whom to tell of events."""

    def __init__(self, options: dict[str, Any]) -> None:
        self.namespace: str = options["namespace"]
        self.id: str = options["id"]
        self.address: str = options["address"]  #: containerd's socket, of which the shim's own is derived
        self.publish_binary: str = options["publish-binary"]
        self.bundle: str = os.path.abspath(options["bundle"] or os.curdir)
        self.debug: bool = options["debug"]
        self.events: str = os.environ.get("TTRPC_ADDRESS", "")  #: where containerd takes events
