"""What containerd gives a shim's program on its standard input, and what it expects on the output.

Facts: containerd api/runtime/bootstrap/v1/bootstrap.proto, api/types/introspection.proto,
api/types/runtimeoptions/v1/api.proto.
"""

from __future__ import annotations

from hako.shim.messages import Any
from hako.wire import protobuf as pb


class LogLevel:
    """How much the shim shall log. Other numbers are in between."""

    TRACE = -8
    DEBUG = -4
    INFO = 0
    WARN = 4
    ERROR = 8
    FATAL = 10
    PANIC = 12


class Extension(pb.Message):
    """One more parameter, such as the runtime's options."""

    FULL_NAME = "containerd.runtime.bootstrap.v1.Extension"

    value: Any | None = pb.message(1, Any)


class BootstrapParams(pb.Message):
    """Input of ``start`` since containerd 2.3; ``log_level`` is a LogLevel."""

    FULL_NAME = "containerd.runtime.bootstrap.v1.BootstrapParams"

    instance_id: str = pb.text(1)
    namespace: str = pb.text(2)
    log_level: int = pb.enumeration(3)
    containerd_version: str = pb.text(4)
    containerd_ttrpc_address: str = pb.text(5)
    containerd_grpc_address: str = pb.text(6)
    containerd_binary: str = pb.text(7)
    extensions: list[Extension] = pb.messages(8, Extension)
    socket_dir: str = pb.text(9)


class BootstrapResult(pb.Message):
    """Output of ``start``; ``protocol`` is ttrpc or grpc."""

    FULL_NAME = "containerd.runtime.bootstrap.v1.BootstrapResult"

    version: int = pb.i32(1)
    address: str = pb.text(2)
    protocol: str = pb.text(3)
    capabilities: list[int] = pb.enumerations(4)
    metadata: dict[str, str] = pb.text_map(5)


class RuntimeRequest(pb.Message):
    """Ask about a runtime."""

    FULL_NAME = "containerd.types.RuntimeRequest"

    runtime_path: str = pb.text(1)
    options: Any | None = pb.message(2, Any)


class RuntimeVersion(pb.Message):
    """Version and source revision."""

    FULL_NAME = "containerd.types.RuntimeVersion"

    version: str = pb.text(1)
    revision: str = pb.text(2)


class RuntimeInfo(pb.Message):
    """Output of ``-info``; ``features`` holds the JSON of the OCI features document."""

    FULL_NAME = "containerd.types.RuntimeInfo"

    name: str = pb.text(1)
    version: RuntimeVersion | None = pb.message(2, RuntimeVersion)
    options: Any | None = pb.message(3, Any)
    features: Any | None = pb.message(4, Any)
    annotations: dict[str, str] = pb.text_map(5)


class Options(pb.Message):
    """Options of a runtime that is not runc."""

    FULL_NAME = "runtimeoptions.v1.Options"

    type_url: str = pb.text(1)
    config_path: str = pb.text(2)
    config_body: bytes = pb.binary(3)
