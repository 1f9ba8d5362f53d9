"""One call of the shim's program by containerd."""

from __future__ import annotations

import os

from hako.errors import ConfigError, HostError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, Self

_MAX_INPUT = 4 << 20


class Call:
    """One command line: what containerd says of the container, and whom to tell of events."""

    def __init__(
        self, *, namespace: str, id: str, address: str, publish_binary: str, bundle: str, debug: bool, events: str
    ) -> None:
        self.namespace = namespace
        self.id = id
        self.address = address  #: containerd's socket, of which the shim's own is derived
        self.publish_binary = publish_binary
        self.bundle = bundle
        self.debug = debug
        self.events = events  #: where containerd takes events

    @classmethod
    def from_options(cls, options: dict[str, Any]) -> Self:
        """What the command line's ``options``, and the environment, say."""
        return cls(
            namespace=options["namespace"],
            id=options["id"],
            address=options["address"],
            publish_binary=options["publish-binary"],
            bundle=os.path.abspath(options["bundle"] or os.curdir),
            debug=options["debug"],
            events=os.environ.get("TTRPC_ADDRESS", ""),
        )

    def to_json(self) -> dict[str, Any]:
        """As an object for JSON, and as keyword arguments."""
        return dict(vars(self))


def read_input(fd: int = 0) -> bytes:
    """What containerd gives the call on its standard input. Raises HostError, and ConfigError when it is too long."""
    data = b""
    try:
        if os.isatty(fd):
            return b""  # somebody tries it by hand
        while len(data) <= _MAX_INPUT and (piece := os.read(fd, 1 << 16)):
            data += piece
    except OSError as error:
        raise HostError(f"The standard input cannot be read: {error.strerror}.") from error
    if len(data) > _MAX_INPUT:
        raise ConfigError(
            f"The standard input has more than {_MAX_INPUT} bytes; no message of containerd's is so long."
        )
    return data
