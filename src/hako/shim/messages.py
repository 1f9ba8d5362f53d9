"""Messages that several of containerd's services share, and those of ttrpc itself.

Facts: google/protobuf/{any,empty,timestamp}.proto, google/rpc/status.proto, containerd/ttrpc request.proto,
containerd api/types/mount.proto. A module ``X_messages`` of this package has the messages of one service.
"""

from __future__ import annotations

from hako.wire import protobuf as pb

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import TypeVar

    M = TypeVar("M", bound=pb.Message)

_NANO = 1_000_000_000


class Empty(pb.Message):
    """Nothing."""

    FULL_NAME = "google.protobuf.Empty"


class Any(pb.Message):
    """Another message, or something else that has a type URL, such as JSON."""

    FULL_NAME = "google.protobuf.Any"

    type_url: str = pb.text(1)
    value: bytes = pb.binary(2)

    @classmethod
    def pack(cls, message: pb.Message) -> Any:
        """``message`` in an Any. Its type URL is the name alone, as containerd writes it. Raises ProtobufError."""
        return cls(type_url=message.FULL_NAME, value=message.encode())

    def unpack(self, kind: type[M]) -> M | None:
        """The message inside, or None when it is of another kind. Raises ProtobufError."""
        return kind.decode(self.value) if self.holds(kind) else None

    def holds(self, kind: type[pb.Message]) -> bool:
        """Whether the type URL, with or without what stands before its last slash, names ``kind``."""
        return self.type_url.rpartition("/")[2] == kind.FULL_NAME


class Timestamp(pb.Message):
    """A moment: seconds since 1970 and nanoseconds, 0 to 999999999."""

    FULL_NAME = "google.protobuf.Timestamp"

    seconds: int = pb.i64(1)
    nanos: int = pb.i32(2)

    @classmethod
    def of(cls, seconds: float) -> Timestamp:
        """The moment ``seconds``, as time.time() gives it."""
        return cls.of_ns(round(seconds * _NANO))

    @classmethod
    def of_ns(cls, nanoseconds: int) -> Timestamp:
        """The moment ``nanoseconds``, as time.time_ns() gives it."""
        whole, nanos = divmod(nanoseconds, _NANO)
        return cls(seconds=whole, nanos=nanos)


class Mount(pb.Message):
    """A mount to make: file system type, source, where below the root, options as in fstab."""

    FULL_NAME = "containerd.types.Mount"

    type: str = pb.text(1)
    source: str = pb.text(2)
    target: str = pb.text(3)
    options: list[str] = pb.texts(4)


class Status(pb.Message):
    """How a call ended: a gRPC status code, 0 for success, and what went wrong."""

    FULL_NAME = "google.rpc.Status"

    code: int = pb.i32(1)
    message: str = pb.text(2)
    details: list[Any] = pb.messages(3, Any)


class KeyValue(pb.Message):
    """One entry of a request's metadata; keys are lower case and may come more than once."""

    FULL_NAME = "ttrpc.KeyValue"

    key: str = pb.text(1)
    value: str = pb.text(2)


class Request(pb.Message):
    """One call, as ttrpc carries it. ``timeout_nano`` is 0 for a call without a limit."""

    FULL_NAME = "ttrpc.Request"

    service: str = pb.text(1)
    method: str = pb.text(2)
    payload: bytes = pb.binary(3)
    timeout_nano: int = pb.i64(4)
    metadata: list[KeyValue] = pb.messages(5, KeyValue)


class Response(pb.Message):
    """One answer, as ttrpc carries it."""

    FULL_NAME = "ttrpc.Response"

    status: Status | None = pb.message(1, Status)
    payload: bytes = pb.binary(2)
