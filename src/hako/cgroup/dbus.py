"""Calling one method of systemd over D-Bus: what a client needs of the protocol to send a call and read its answer.

The connection is systemd's own socket, which its tools use when root does; no bus daemon is needed.
"""

from __future__ import annotations

import os
import struct
from collections.abc import Sequence
from typing import TYPE_CHECKING

from hako.errors import HostError

if TYPE_CHECKING:
    from socket import socket

SOCKET = "/run/systemd/private"
_PATH = "/org/freedesktop/systemd1"
_INTERFACE = "org.freedesktop.systemd1.Manager"

_CALL, _RETURN, _ERROR = 1, 2, 3
_FIELD_PATH, _FIELD_INTERFACE, _FIELD_MEMBER, _FIELD_SIGNATURE = 1, 2, 3, 8
_MAX_MESSAGE = 1 << 20

#: Name, type (``s``, ``b``, ``t``, ``au``) and value of a unit's property.
Property = tuple[str, str, "str | bool | int | Sequence[int]"]


class Writer:
    """A message's bytes, little endian, each value aligned to its size."""

    def __init__(self) -> None:
        self.data = bytearray()

    def align(self, size: int) -> None:
        """Fill up to a multiple of ``size``."""
        self.data += bytes(-len(self.data) % size)

    def integer(self, kind: str, value: int) -> None:
        """A number by its letter of struct, with its own alignment."""
        self.align(struct.calcsize(kind))
        self.data += struct.pack("<" + kind, value)

    def text(self, value: str) -> None:
        """A text."""
        data = value.encode()
        self.integer("I", len(data))
        self.data += data + b"\0"

    def signature(self, value: str) -> None:
        """The types of what follows, or of the body."""
        self.data += bytes([len(value)]) + value.encode() + b"\0"

    def value(self, kind: str, value: str | bool | int | Sequence[int]) -> None:
        """A value in a variant: its type and then itself."""
        self.signature(kind)
        if isinstance(value, str):
            self.text(value)
        elif isinstance(value, int):
            self.integer({"b": "I", "t": "Q"}[kind], value)
        else:
            self.integer("I", 4 * len(value))
            for number in value:
                self.integer("I", number)

    def properties(self, properties: Sequence[Property]) -> None:
        """A list of names with values."""
        self.integer("I", 0)
        place = len(self.data)
        self.align(8)  # of a structure; it does not count as part of the list
        start = len(self.data)
        for name, kind, value in properties:
            self.align(8)
            self.text(name)
            self.value(kind, value)
        struct.pack_into("<I", self.data, place - 4, len(self.data) - start)


def message(method: str, signature: str, body: Writer) -> bytes:
    """A call of the manager's ``method``."""
    fields = Writer()
    for number, kind, text in (
        (_FIELD_PATH, "o", _PATH),
        (_FIELD_INTERFACE, "s", _INTERFACE),
        (_FIELD_MEMBER, "s", method),
    ):
        fields.align(8)
        fields.data.append(number)
        fields.value(kind, text)
    fields.align(8)
    fields.data.append(_FIELD_SIGNATURE)
    fields.signature("g")
    fields.signature(signature)
    head = Writer()
    head.data += struct.pack("<cBBBIII", b"l", _CALL, 0, 1, len(body.data), 1, len(fields.data))
    head.data += fields.data
    head.align(8)
    return bytes(head.data + body.data)


def call(method: str, signature: str, body: Writer, *, seconds: float) -> None:
    """Call ``method`` of systemd's manager and wait for its answer. Raises HostError."""
    import socket

    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
            connection.settimeout(seconds)
            connection.connect(SOCKET)
            connection.sendall(b"\0AUTH EXTERNAL " + str(os.geteuid()).encode().hex().encode() + b"\r\nBEGIN\r\n")
            answer = _line(connection)
            if not answer.startswith(b"OK "):
                raise HostError(f"systemd does not let this user in: {answer.decode(errors='replace').strip()}.")
            connection.sendall(message(method, signature, body))
            reason = _answer(connection)
    except OSError as error:
        raise HostError(f"Cannot talk to systemd ({SOCKET}): {error.strerror or error}.") from error
    if reason is not None:
        raise HostError(f"systemd refused {method}: {reason.rstrip('.')}.")


def _line(connection: socket) -> bytes:
    line = b""
    while not line.endswith(b"\r\n") and len(line) < 1000:
        if not (piece := connection.recv(1)):
            break
        line += piece
    return line


def _answer(connection: socket) -> str | None:
    """None for success, or the reason why not. Signals that come before it are passed over."""
    while True:
        order, kind, _, _, length, _, fields = struct.unpack("<cBBBIII", _exactly(connection, 16))
        if order != b"l" or length > _MAX_MESSAGE or fields > _MAX_MESSAGE:
            raise HostError("systemd answered something that is not D-Bus.")
        _exactly(connection, fields + -fields % 8)
        body = _exactly(connection, length)
        if kind == _RETURN:
            return None
        if kind == _ERROR:
            (size,) = struct.unpack_from("<I", body) if len(body) >= 4 else (0,)
            return body[4 : 4 + size].decode(errors="replace") or "it gives no reason"


def _exactly(connection: socket, count: int) -> bytes:
    data = b""
    while len(data) < count:
        if not (piece := connection.recv(count - len(data))):
            raise HostError("systemd closed the connection before it had answered.")
        data += piece
    return data
