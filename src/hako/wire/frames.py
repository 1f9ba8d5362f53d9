"""ttrpc frames: a 10-byte header and data. Sans-IO, standard library only, shared by host and guest.

Header, big endian: u32 data length, u32 stream id, u8 type, u8 flags. Facts: containerd/ttrpc PROTOCOL.md.
Types 1 to 3 and their flags are ttrpc's; type 4 (credit) is hako's own, for flow control of raw streams.
docs/agent-protocol.md describes how hako uses them.
"""

from __future__ import annotations

import struct

HEADER = struct.Struct(">IIBB")

REQUEST = 1
RESPONSE = 2
DATA = 3
CREDIT = 4

FLAG_REMOTE_CLOSED = 1
FLAG_REMOTE_OPEN = 2
FLAG_NO_DATA = 4

#: ttrpc's own limit for one frame's data.
MAX_DATA = 4 << 20

_KNOWN = (REQUEST, RESPONSE, DATA, CREDIT)


class FrameError(Exception):
    """The peer sent bytes that are not frames within the limits."""


class Frame:
    """One frame: ``stream`` id, ``kind`` (type), ``flags`` and ``data``.

    ``dropped`` is the length of data that was too long to be kept; ``data`` is empty then.
    """

    __slots__ = ("data", "dropped", "flags", "kind", "stream")

    def __init__(self, stream: int, kind: int, flags: int, data: bytes, dropped: int = 0) -> None:
        self.stream = stream
        self.kind = kind
        self.flags = flags
        self.data = data
        self.dropped = dropped

    def __repr__(self) -> str:
        return f"Frame(stream={self.stream}, kind={self.kind}, flags={self.flags}, data={self.data[:32]!r})"

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Frame):
            return NotImplemented
        mine = (self.stream, self.kind, self.flags, self.data, self.dropped)
        return mine == (other.stream, other.kind, other.flags, other.data, other.dropped)

    __hash__ = None  # type: ignore[assignment]


def encode(stream: int, kind: int, data: bytes = b"", flags: int = 0) -> bytes:
    """The bytes of one frame."""
    return HEADER.pack(len(data), stream, kind, flags) + data


class Decoder:
    """Turns bytes, in pieces of any size, into frames.

    Holds at most one incomplete frame, so never more than ``max_data`` bytes plus a header plus the
    piece just fed. Any input gives frames or FrameError, nothing else; after FrameError, which also
    takes the frames of the same piece with it, the connection is of no use and the decoder holds
    nothing. Frames of unknown type are dropped, as ttrpc asks. With ``tolerant``, as ttrpc asks too, a frame that is
    too long is no error: it is given without its data as soon as its header has come, and its data is dropped.
    """

    def __init__(self, max_data: int = MAX_DATA, *, tolerant: bool = False) -> None:
        self._buffer = bytearray()
        self._max_data = max_data
        self._tolerant = tolerant
        self._to_drop = 0

    @property
    def pending(self) -> int:
        """Bytes held of a frame that is not complete yet."""
        return len(self._buffer)

    def feed(self, data: bytes) -> list[Frame]:
        """Add ``data`` and return the frames now complete. Raises FrameError."""
        buffer = self._buffer
        buffer += data
        frames: list[Frame] = []
        start = 0
        size = len(buffer)
        while True:
            if self._to_drop:
                dropped = min(self._to_drop, size - start)
                self._to_drop -= dropped
                start += dropped
            if size - start < HEADER.size:
                break
            length, stream, kind, flags = HEADER.unpack_from(buffer, start)
            if length > self._max_data:
                if not self._tolerant:
                    buffer.clear()
                    raise FrameError(f"a frame of {length} bytes exceeds the limit of {self._max_data}")
                if kind in _KNOWN:
                    frames.append(Frame(stream, kind, flags, b"", length))
                self._to_drop = length
                start += HEADER.size
                continue
            end = start + HEADER.size + length
            if size < end:
                break
            if kind in _KNOWN:
                frames.append(Frame(stream, kind, flags, bytes(buffer[start + HEADER.size : end])))
            start = end
        del buffer[:start]
        return frames
