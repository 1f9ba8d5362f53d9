"""What containerd gives ``start`` on its standard input, and the answer it understands.

containerd before 2.3 sends the runtime's options alone and reads an address; later ones send parameters, the options
among them, and read a message. Both kinds of input are of the same shape, so what is in it decides.
"""

from __future__ import annotations

import os

from hako.errors import ConfigError
from hako.shim.bootstrap_messages import BootstrapParams, BootstrapResult, Options
from hako.shim.messages import Any as AnyMessage
from hako.wire.protobuf import ProtobufError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import TypeVar

    from hako.shim.call import Call
    from hako.wire.protobuf import Message

    M = TypeVar("M", bound=Message)

#: The version of the Task API that is served beside version 2.
_VERSION = 3
_PROTOCOL = "ttrpc"
_MAX_INPUT = 4 << 20
_OPTIONS_TYPE = Options.FULL_NAME


class Input:
    """What was read: the runtime's ``options``, and the parameters, if containerd is one that sends them."""

    def __init__(self, options: list[AnyMessage], params: BootstrapParams | None) -> None:
        self.options = options
        self.params = params

    @property
    def socket_dir(self) -> str:
        """Where containerd wants the socket; empty for the usual place."""
        return self.params.socket_dir if self.params is not None else ""

    @property
    def events(self) -> str:
        """Where containerd takes events, if it says so here."""
        return self.params.containerd_ttrpc_address if self.params is not None else ""

    def config_file(self) -> str | None:
        """The configuration file that the options name. Raises ConfigError for options of another kind."""
        return config_file(self.options)

    def answer(self, address: str) -> bytes:
        """What to print for a shim at ``address``."""
        if self.params is None:
            return address.encode()
        return BootstrapResult(version=_VERSION, address=address, protocol=_PROTOCOL).encode()


def read(call: Call, fd: int = 0) -> Input:
    """Read the input of ``call``. What is no message at all counts as nothing, as it does for containerd's shims."""
    data = _read_all(fd)
    if not data:
        return Input([], None)
    params = _decode(BootstrapParams, data)
    if params is not None and params.instance_id == call.id and params.namespace == call.namespace:
        return Input([entry.value for entry in params.extensions if entry.value is not None], params)
    options = _decode(AnyMessage, data)
    return Input([options] if options is not None else [], None)


def _decode(kind: type[M], data: bytes) -> M | None:
    try:
        return kind.decode(data)
    except ProtobufError:
        return None


def config_file(options: list[AnyMessage]) -> str | None:
    """The configuration file that a runtime's options name. Raises ConfigError."""
    for entry in options:
        if entry.type_url.rpartition("/")[2] != _OPTIONS_TYPE:
            continue
        try:
            found = Options.decode(entry.value)
        except ProtobufError as error:
            raise ConfigError(f"The runtime's options are damaged: {error}.") from error
        if found.config_body:
            raise ConfigError("hako reads its configuration from a file: name it by ConfigPath, not in the options.")
        return found.config_path or None
    return None


def _read_all(fd: int) -> bytes:
    data = b""
    try:
        if os.isatty(fd):
            return b""  # somebody tries it by hand
        while len(data) <= _MAX_INPUT and (piece := os.read(fd, 1 << 16)):
            data += piece
    except OSError:
        return b""
    return data
