"""Netlink: messages, attributes and one request at a time to the kernel's routing socket. Shared by host and guest.

What the requests mean is in rtnetlink.py and tc.py. Formats and numbers are the kernel's (include/uapi/linux/
netlink.h, rtnetlink.h). All lengths that arrive are checked; bytes that are no netlink are an OSError with EBADMSG.
"""

from __future__ import annotations

import _socket
import errno
import os
import struct
import sys

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator
    from types import TracebackType

AF_NETLINK = 16
NETLINK_ROUTE = 0

NLMSG_ERROR = 2
NLMSG_DONE = 3

NLM_F_REQUEST = 0x01
NLM_F_MULTI = 0x02
NLM_F_ACK = 0x04
NLM_F_DUMP_INTR = 0x10
NLM_F_CAPPED = 0x100
NLM_F_ACK_TLVS = 0x200
NLM_F_REPLACE = 0x100
NLM_F_EXCL = 0x200
NLM_F_DUMP = 0x300
NLM_F_CREATE = 0x400
NLM_F_APPEND = 0x800

NLA_F_NESTED = 0x8000
_NLA_TYPE = 0x3FFF

_SOL_NETLINK = 270
_NETLINK_CAP_ACK = 10
_NETLINK_EXT_ACK = 11
_NLMSGERR_ATTR_MSG = 1

_HEADER = struct.Struct("=IHHII")
_ATTRIBUTE = struct.Struct("=HH")
_INT = struct.Struct("=i")
#: The kernel puts no more than 32 KiB into a part of a dump; other messages are far smaller.
_RECEIVE = 64 << 10
#: Messages one dump may have: no sane namespace has so many links, addresses or routes.
_MAX_DUMP = 1 << 20
_DUMP_TRIES = 10


class Message:
    """One netlink message: ``kind`` and ``flags`` of its header, its ``sequence`` number, and what follows."""

    __slots__ = ("flags", "kind", "payload", "sequence")

    def __init__(self, kind: int, flags: int, sequence: int, payload: bytes) -> None:
        self.kind = kind
        self.flags = flags
        self.sequence = sequence
        self.payload = payload


def malformed(text: str) -> OSError:
    """The error for bytes that are not what they must be."""
    return OSError(errno.EBADMSG, f"netlink: {text}")


def attribute(kind: int, data: bytes) -> bytes:
    """One attribute, padded."""
    size = _ATTRIBUTE.size + len(data)
    if size > 0xFFFF:
        raise OSError(errno.EMSGSIZE, f"netlink: an attribute of {len(data)} bytes")
    return _ATTRIBUTE.pack(size, kind) + data + bytes(-size % 4)


def attribute_u32(kind: int, value: int) -> bytes:
    """An attribute that is a 32-bit number."""
    return attribute(kind, struct.pack("=I", value))


def attribute_text(kind: int, value: str) -> bytes:
    """An attribute that is a text ending with a zero."""
    return attribute(kind, os.fsencode(value) + b"\0")


def nested(kind: int, *attributes: bytes) -> bytes:
    """An attribute made of attributes."""
    return attribute(kind | NLA_F_NESTED, b"".join(attributes))


def each_attribute(data: bytes) -> Iterator[tuple[int, bytes]]:
    """The attributes in ``data``, in order: number and content. Raises OSError (EBADMSG)."""
    offset = 0
    while offset < len(data):
        if len(data) - offset < _ATTRIBUTE.size:
            raise malformed(f"{len(data) - offset} bytes where an attribute should be")
        size, kind = _ATTRIBUTE.unpack_from(data, offset)
        if size < _ATTRIBUTE.size or size > len(data) - offset:
            raise malformed(f"an attribute of {size} bytes where {len(data) - offset} are left")
        yield kind & _NLA_TYPE, data[offset + _ATTRIBUTE.size : offset + size]
        offset += -(-size // 4) * 4


def attributes(data: bytes) -> dict[int, bytes]:
    """The attributes in ``data`` by number; of several with one number the last. Raises OSError (EBADMSG)."""
    return dict(each_attribute(data))


def number(data: bytes) -> int:
    """The unsigned number of 1, 2, 4 or 8 bytes, in the machine's order, that an attribute holds."""
    if len(data) not in (1, 2, 4, 8):
        raise malformed(f"a number of {len(data)} bytes")
    return int.from_bytes(data, sys.byteorder)


def text(data: bytes) -> str:
    """The text that an attribute holds, up to its zero."""
    return os.fsdecode(data.split(b"\0", 1)[0])


def fixed(layout: struct.Struct, data: bytes) -> tuple[tuple[int, ...], bytes]:
    """The numbers of the fixed part ``layout`` at the start of ``data``, and the attributes after it."""
    if len(data) < layout.size:
        raise malformed(f"{len(data)} bytes where at least {layout.size} should be")
    return layout.unpack_from(data), data[-(-layout.size // 4) * 4 :]


def encode(kind: int, flags: int, sequence: int, payload: bytes) -> bytes:
    """One message."""
    return _HEADER.pack(_HEADER.size + len(payload), kind, flags, sequence, 0) + payload


def decode(data: bytes) -> Iterator[Message]:
    """The messages in the datagram ``data``. Raises OSError (EBADMSG)."""
    offset = 0
    while offset < len(data):
        if len(data) - offset < _HEADER.size:
            raise malformed(f"{len(data) - offset} bytes where a message should be")
        size, kind, flags, sequence, _ = _HEADER.unpack_from(data, offset)
        if size < _HEADER.size or size > len(data) - offset:
            raise malformed(f"a message of {size} bytes where {len(data) - offset} are left")
        yield Message(kind, flags, sequence, data[offset + _HEADER.size : offset + size])
        offset += -(-size // 4) * 4


def error_of(message: Message, what: str) -> OSError | None:
    """The error in a message of the kind NLMSG_ERROR, with the kernel's own words where it has any; None for success.

    ``what`` says what was asked for and becomes the error's ``filename``.
    """
    payload = message.payload
    if len(payload) < _INT.size + _HEADER.size:
        raise malformed(f"an error of {len(payload)} bytes")
    code = -_INT.unpack_from(payload)[0]
    if code == 0:
        return None
    if code < 0:
        raise malformed(f"the error number {code}")
    words = os.strerror(code)
    if message.flags & NLM_F_ACK_TLVS:
        size = _HEADER.unpack_from(payload, _INT.size)[0]
        start = _HEADER.size if message.flags & NLM_F_CAPPED else max(size, _HEADER.size)
        said = attributes(payload[_INT.size + -(-start // 4) * 4 :]).get(_NLMSGERR_ATTR_MSG)
        words = f"{words}: {text(said).rstrip('.')}" if said else words
    return OSError(code, words, what)


class Netlink:
    """A routing socket in the network namespace that the calling thread is in when it is made.

    Afterwards it works on that namespace from anywhere, one thread at a time. ``groups`` is a mask of multicast
    groups to listen to. ``timeout`` is the seconds to wait for the kernel, which lets one caller at a time change
    the network. Close it, or use it as a context manager. Every method raises OSError.
    """

    def __init__(self, groups: int = 0, timeout: float = 60) -> None:
        self._sequence = 0
        kind = _socket.SOCK_RAW | _socket.SOCK_CLOEXEC
        self._socket = _socket.socket(AF_NETLINK, kind, NETLINK_ROUTE)
        try:
            self._socket.settimeout(timeout)
            self._socket.bind((0, groups))
            for option in (_NETLINK_EXT_ACK, _NETLINK_CAP_ACK):
                try:
                    self._socket.setsockopt(_SOL_NETLINK, option, 1)
                except OSError as error:
                    if error.errno != errno.ENOPROTOOPT:  # kernels before 4.12
                        raise
        except BaseException:
            self._socket.close()
            raise

    def __enter__(self) -> Netlink:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close the socket."""
        self._socket.close()

    def fileno(self) -> int:
        """The socket's descriptor, -1 when it is closed."""
        return self._socket.fileno()

    def request(self, kind: int, flags: int, payload: bytes, what: str) -> list[Message]:
        """Ask the kernel for one thing and wait until it is done; return what it answered beside its consent.

        ``what`` goes into errors, which have the kernel's number and words.
        """
        sequence = self._send(kind, flags | NLM_F_ACK, payload)
        answers: list[Message] = []
        for message in self._receive():
            if message.sequence != sequence:
                continue  # the rest of a request that was given up, or an event
            if message.kind == NLMSG_ERROR:
                failed = error_of(message, what)
                if failed is not None:
                    raise failed
                return answers
            answers.append(message)
        raise AssertionError("unreachable")

    def dump(self, kind: int, payload: bytes, what: str) -> list[Message]:
        """All objects of a sort. Asks again when they changed while they were being listed."""
        for _ in range(_DUMP_TRIES):
            messages, consistent = self._dump(kind, payload, what)
            if consistent:
                return messages
        raise OSError(errno.EAGAIN, "it keeps changing while it is being listed", what)

    def _dump(self, kind: int, payload: bytes, what: str) -> tuple[list[Message], bool]:
        sequence = self._send(kind, NLM_F_DUMP, payload)
        found: list[Message] = []
        consistent = True
        for message in self._receive():
            if message.sequence != sequence:
                continue
            consistent = consistent and not message.flags & NLM_F_DUMP_INTR
            if message.kind == NLMSG_ERROR:
                raise error_of(message, what) or malformed("a list that ends with consent")
            if message.kind == NLMSG_DONE:
                code = -_INT.unpack_from(message.payload)[0] if len(message.payload) >= _INT.size else 0
                if code > 0:
                    raise OSError(code, os.strerror(code), what)
                return found, consistent
            found.append(message)
            if len(found) > _MAX_DUMP:
                raise malformed("a list without end")
        raise AssertionError("unreachable")

    def drain(self) -> list[Message]:
        """The events that have arrived for the socket's groups, without waiting.

        Raises OSError with ENOBUFS when some were lost: look at the whole again then.
        """
        events: list[Message] = []
        waiting = self._socket.gettimeout()
        self._socket.settimeout(0)
        try:
            while True:
                events += decode(self._datagram())
        except BlockingIOError:
            return events
        finally:
            self._socket.settimeout(waiting)

    def _send(self, kind: int, flags: int, payload: bytes) -> int:
        self._sequence = self._sequence % 0x7FFFFFFF + 1
        self._socket.sendto(encode(kind, flags | NLM_F_REQUEST, self._sequence, payload), (0, 0))
        return self._sequence

    def _receive(self) -> Iterator[Message]:
        while True:
            yield from decode(self._datagram())

    def _datagram(self) -> bytes:
        """The next datagram of the kernel's; those of other processes, which anybody can send, are dropped."""
        while True:
            data, _, status, sender = self._socket.recvmsg(_RECEIVE)
            if status & _socket.MSG_TRUNC:
                raise malformed(f"a datagram of more than {_RECEIVE} bytes")
            if sender[0] == 0:
                return data
