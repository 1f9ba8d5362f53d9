"""What containerd gives ``start`` on its standard input, and the answer it understands.

Since 2.3 it sends parameters, the runtime's options among them, and reads a message. Before, it sends the options
alone; 2.0 to 2.2 read JSON, which offers version 3 of the Task service, and all others, as CRI-O does, an address. Both
kinds of input are of the same shape, so what is in it decides. Facts: containerd pkg/shim/util.go and
core/runtime/v2/shim.go.
"""

from __future__ import annotations

import os

from hako.errors import ConfigError
from hako.shim import caller
from hako.shim.bootstrap_messages import BootstrapParams, BootstrapResult, LogLevel, Options
from hako.shim.call import read_input
from hako.shim.messages import Any as AnyMessage
from hako.wire import jsontext
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

    def config_file(self) -> str | None:
        """The configuration file that the options name. Raises ConfigError for options of another kind."""
        return config_file(self.options)

    def answer(self, address: str, asking: int | None = None) -> bytes:
        """What to print for a shim at ``address``. ``asking`` is who has run ``start``, by default the parent."""
        if self.params is not None:
            return BootstrapResult(version=_VERSION, address=address, protocol=_PROTOCOL).encode()
        if caller.knows_task_v3(asking):
            return jsontext.dumps({"version": _VERSION, "address": address, "protocol": _PROTOCOL})
        return address.encode()


def read(call: Call, fd: int = 0) -> Input:
    """Read the input of ``call``; see parse(). Raises HostError when it cannot be read, and ConfigError."""
    return parse(call, read_input(fd))


def parse(call: Call, data: bytes) -> Input:
    """What the input of ``call`` says; what only the parameters say is added to ``call``.

    Raises ConfigError for what is neither, or is about another container.
    """
    if not data:
        return Input([], None)
    params = _decode(BootstrapParams, data)
    if params is None or not _is_sure(call, params):
        options = _decode(AnyMessage, data)
        if options is None:
            raise ConfigError("The standard input is no message of containerd's: neither parameters nor options.")
        return Input([options], None)
    if (params.instance_id, params.namespace) != (call.id, call.namespace):
        raise ConfigError(
            f"The parameters on standard input are for the container {params.instance_id!r} of the namespace "
            f"{params.namespace!r}, not for {call.id!r} of {call.namespace!r}."
        )
    if not os.path.isabs(params.socket_dir or "/"):
        raise ConfigError(f"The directory {params.socket_dir!r} for the shim's socket is not an absolute path.")
    call.events = call.events or params.containerd_ttrpc_address
    call.debug = call.debug or params.log_level <= LogLevel.DEBUG
    return Input([entry.value for entry in params.extensions if entry.value is not None], params)


def _is_sure(call: Call, params: BootstrapParams) -> bool:
    """Whether these are parameters indeed: options have two fields alone, which could be the id and the namespace."""
    if (params.instance_id, params.namespace) == (call.id, call.namespace):
        return True
    plain = BootstrapParams(instance_id=params.instance_id, namespace=params.namespace)
    return params.encode() != plain.encode()


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
