"""Questions to name servers and their answers, as they travel between guest and host. Sans-IO, shared by both.

Header, big endian: u32 token, u8 server, u8 protocol, u16 length; then ``length`` bytes of DNS message. The guest asks
with a token that it has not in use; the host answers each question once, with the same header but for the length,
which is 0 when there is no answer. docs/agent-protocol.md describes it.
"""

from __future__ import annotations

import struct

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator

HEADER = struct.Struct(">IBBH")
#: How the client asked, and how the server is to be asked. The kernel's numbers of the protocols.
UDP, TCP = 17, 6
#: Name servers of one relay. A resolv.conf has no more that count.
MAX_SERVERS = 3
#: Questions of one relay that are not answered yet.
MAX_QUESTIONS = 128


class Message:
    """One question or answer: ``data`` is the DNS message, ``server`` its place among the relay's."""

    __slots__ = ("data", "protocol", "server", "token")

    def __init__(self, token: int, server: int, protocol: int, data: bytes) -> None:
        self.token = token
        self.server = server
        self.protocol = protocol
        self.data = data

    def encode(self) -> bytes:
        """The bytes of the message; ``data`` has at most 65535."""
        return HEADER.pack(self.token, self.server, self.protocol, len(self.data)) + self.data


class Decoder:
    """Turns bytes, in pieces of any size, into messages. Holds less than one message that is not complete."""

    def __init__(self) -> None:
        self._buffer = bytearray()

    def feed(self, data: bytes) -> Iterator[Message]:
        """Add ``data`` and give the messages that are complete now; take them all."""
        self._buffer += data
        while len(self._buffer) >= HEADER.size:
            token, server, protocol, length = HEADER.unpack_from(self._buffer)
            end = HEADER.size + length
            if len(self._buffer) < end:
                return
            message = Message(token, server, protocol, bytes(self._buffer[HEADER.size : end]))
            del self._buffer[:end]
            yield message
