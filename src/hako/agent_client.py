"""The host's end of the agent connection, on asyncio: calls with time limits, raw streams with flow control.

What comes from the guest is hostile: a frame over the limits, an answer of the wrong shape or data beyond
a stream's credit ends the connection; nothing of it is used before its type is checked.
"""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable
from typing import Any

from hako.errors import HakoError, HypervisorError, ProtocolError, TimedOutError, from_wire
from hako.wire import calls, frames

_READ_SIZE = 256 << 10
#: Bytes that may wait for the guest before senders of stream data have to wait.
_HIGH_WATER = 512 << 10
#: A guest that lets more than this wait (calls and credit, which never wait) has stopped listening.
_MAX_QUEUED = 16 << 20
#: Longest text that is taken from an answer's field, in characters.
_MAX_TEXT = 1024
_LAST_NUMBER = (1 << 32) - 1
#: How long the reason of a lost connection is waited for.
_REASON_SECONDS = 1.0


class OutputStream:
    """A raw stream from the guest. Holds at most one window of data that nobody has taken yet."""

    def __init__(self, client: AgentClient, number: int) -> None:
        self.number = number
        self._client = client
        self._data = bytearray()
        self._held = 0
        self._owed = 0
        self._ended = False
        self._wake = asyncio.Event()

    def feed(self, data: bytes, *, end: bool) -> None:
        """Take what the guest sent. Raises ProtocolError when it is more than was granted."""
        if self._held + len(data) > calls.WINDOW:
            raise ProtocolError("The agent sent more of a process's output than it was allowed to.")
        if not self._ended:
            self._data += data
            self._held += len(data)
        self._ended = self._ended or end
        self._wake.set()

    async def read(self) -> bytes:
        """What has arrived; empty at the end. Reading grants nothing: see consumed()."""
        while not self._data:
            if self._ended:
                return b""
            self._wake.clear()
            await self._wake.wait()
        data, self._data = self._data, bytearray()
        return bytes(data)

    def consumed(self, count: int) -> None:
        """``count`` bytes have found their place: the guest may send as many more."""
        self._held -= count
        self._owed += count
        if self._owed >= calls.WINDOW // 4 and not self._ended:
            self._client.send(frames.encode(self.number, frames.CREDIT, self._owed.to_bytes(4, "big")))
            self._owed = 0

    def close(self) -> None:
        """Nobody wants more of it; the process gets SIGPIPE if it goes on writing."""
        if not self._ended:
            flags = frames.FLAG_REMOTE_CLOSED | frames.FLAG_NO_DATA
            self._client.send(frames.encode(self.number, frames.DATA, b"", flags))
        self._client.forget(self.number)


class InputStream:
    """A raw stream to the guest."""

    def __init__(self, client: AgentClient, number: int) -> None:
        self.number = number
        self._client = client
        self._credit = calls.WINDOW
        self._wake = asyncio.Event()
        self.closed = False

    def feed(self, _data: bytes, *, end: bool) -> None:
        """The guest's only word on an input: its process reads no more."""
        if end:
            self.closed = True
            self._client.forget(self.number)
            self._wake.set()

    def add_credit(self, count: int) -> None:
        """The guest has taken ``count`` bytes."""
        self._credit = min(self._credit + count, calls.WINDOW)
        self._wake.set()

    async def write(self, data: bytes) -> None:
        """Send all of ``data``, waiting for credit. Data for a process that reads no more is dropped."""
        view = memoryview(data)
        while view and not self.closed:
            if self._credit <= 0:
                self._wake.clear()
                await self._wake.wait()
                continue
            piece = view[: min(self._credit, calls.CHUNK)]
            self._credit -= len(piece)
            view = view[len(piece) :]
            await self._client.send_data(frames.encode(self.number, frames.DATA, bytes(piece)))

    async def wait_closed(self) -> None:
        """Wait until nothing more can be sent: the guest takes no more, or close() was called."""
        while not self.closed:
            self._wake.clear()
            await self._wake.wait()

    def close(self) -> None:
        """The end of the input."""
        if not self.closed:
            self.closed = True
            flags = frames.FLAG_REMOTE_CLOSED | frames.FLAG_NO_DATA
            self._client.send(frames.encode(self.number, frames.DATA, b"", flags))
            self._client.forget(self.number)
            self._wake.set()


class AgentClient:
    """One connection to the agent over ``sock``, which it owns from now on."""

    def __init__(self, sock: socket.socket) -> None:
        sock.setblocking(False)
        self._sock = sock
        self._loop = asyncio.get_running_loop()
        self._decoder = frames.Decoder(calls.MAX_CALL)
        self._next = 1
        self._calls: dict[int, asyncio.Future[dict[str, Any]]] = {}
        self._streams: dict[int, OutputStream | InputStream] = {}
        self._outgoing = bytearray()
        self._writing = False
        self._room = asyncio.Event()
        self._room.set()
        self._error: HakoError | None = None
        self.on_lost: Callable[[HakoError], None] | None = None
        self._loop.add_reader(sock, self._on_readable)

    def fail(self, error: HakoError) -> None:
        """End the connection: calls under way and to come raise ``error``, streams end. Only the first counts."""
        if self._error is not None:
            return
        self._error = error
        self._loop.remove_reader(self._sock)
        self._loop.remove_writer(self._sock)
        self._sock.close()
        self._room.set()
        for future in self._calls.values():
            if not future.done():
                future.set_exception(error)
        self._calls.clear()
        for stream in list(self._streams.values()):
            stream.feed(b"", end=True)
        self._streams.clear()
        if self.on_lost is not None:
            self.on_lost(error)

    def close(self) -> None:
        """End the connection for good."""
        self.on_lost = None
        self.fail(HypervisorError("The sandbox has been stopped."))

    async def call(self, method: str, params: dict[str, Any], timeout: float | None = 30.0) -> dict[str, Any]:
        """Call ``method``; ``timeout`` in seconds, None for as long as it takes.

        Raises what the agent reported, TimedOutError, or the error that ended the connection.
        """
        if self._error is not None:
            raise self._error
        number = self._take_number()
        try:
            request = calls.encode_request(method, params)
        except calls.CallError as error:
            raise from_wire(error.code, f"The agent in the VM cannot be asked: {error.message}.") from None
        future: asyncio.Future[dict[str, Any]] = self._loop.create_future()
        self._calls[number] = future
        self.send(frames.encode(number, frames.REQUEST, request))
        try:
            async with asyncio.timeout(timeout):
                return await future
        except TimeoutError:
            raise TimedOutError(f"The agent in the VM did not answer {method} within {timeout:g} s.") from None
        finally:
            self._calls.pop(number, None)

    def open_output(self) -> OutputStream:
        """A new stream for output; its number goes into the call that starts the process."""
        stream = OutputStream(self, self._take_number())
        self._streams[stream.number] = stream
        return stream

    def open_input(self) -> InputStream:
        """A new stream for input."""
        stream = InputStream(self, self._take_number())
        self._streams[stream.number] = stream
        return stream

    def forget(self, number: int) -> None:
        """Drop stream ``number``."""
        self._streams.pop(number, None)

    def _take_number(self) -> int:
        while True:
            number = self._next
            self._next = number + 2 if number + 2 <= _LAST_NUMBER else 1
            if number not in self._calls and number not in self._streams:
                return number

    def send(self, data: bytes) -> None:
        """Queue a frame."""
        if self._error is not None:
            return
        if len(self._outgoing) + len(data) > _MAX_QUEUED:
            # Not from within the caller, who may be in the middle of something.
            self._loop.call_soon(self.fail, ProtocolError("The agent in the VM does not listen any more."))
            return
        self._outgoing += data
        if not self._writing:
            self._flush()

    async def send_data(self, data: bytes) -> None:
        """Queue a frame of stream data, waiting while too much is queued already."""
        while len(self._outgoing) > _HIGH_WATER and self._error is None:
            self._room.clear()
            await self._room.wait()
        self.send(data)

    def _flush(self) -> None:
        try:
            while self._outgoing:
                del self._outgoing[: self._sock.send(self._outgoing)]
        except BlockingIOError:
            if not self._writing:
                self._writing = True
                self._loop.add_writer(self._sock, self._flush)
        except OSError:
            self._end()
            return
        else:
            if self._writing:
                self._writing = False
                self._loop.remove_writer(self._sock)
        if len(self._outgoing) <= _HIGH_WATER:
            self._room.set()

    def _end(self) -> None:
        """The VM is ending; its driver is about to tell why, which says more than the connection's end does."""
        self._loop.remove_reader(self._sock)
        self._loop.remove_writer(self._sock)
        self._writing = True  # and nothing is written any more
        self._loop.call_later(_REASON_SECONDS, self.fail, HypervisorError("The VM has closed its connection."))

    def _on_readable(self) -> None:
        try:
            data = self._sock.recv(_READ_SIZE)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        if not data:
            self._end()
            return
        try:
            for frame in self._decoder.feed(data):
                self._on_frame(frame)
        except (frames.FrameError, calls.MalformedError) as error:
            self.fail(ProtocolError(f"The agent in the VM broke the protocol: {error}."))
        except ProtocolError as error:
            self.fail(error)

    def _on_frame(self, frame: frames.Frame) -> None:
        if self._error is not None:
            return
        if frame.kind == frames.RESPONSE and frame.stream == 0:
            raise ProtocolError(f"The agent in the VM gave the connection up: {_reason(frame.data)}.")
        if frame.kind == frames.RESPONSE:
            future = self._calls.pop(frame.stream, None)
            if future is None or future.done():
                return
            try:
                future.set_result(calls.decode_response(frame.data))
            except calls.CallError as error:
                future.set_exception(from_wire(error.code, printable(error.message), error.exit_code))
            except calls.MalformedError as error:
                future.set_exception(ProtocolError(f"The agent in the VM broke the protocol: {error}."))
                raise
            return
        stream = self._streams.get(frame.stream)
        if frame.kind == frames.DATA and stream is not None:
            stream.feed(frame.data, end=bool(frame.flags & frames.FLAG_REMOTE_CLOSED))
        elif frame.kind == frames.CREDIT and isinstance(stream, InputStream) and len(frame.data) == 4:
            stream.add_credit(int.from_bytes(frame.data, "big"))


def _reason(data: bytes) -> str:
    try:
        calls.decode_response(data)
    except calls.CallError as error:
        return printable(error.message)
    return "it did not say why"


def printable(text: str) -> str:
    """``text`` from the guest, safe to be shown: no control characters, nothing that cannot be encoded."""
    return "".join(char if char.isprintable() else " " for char in text)


def field(result: dict[str, Any], name: str, kind: type, default: object = None) -> Any:
    """``result[name]`` if it is a ``kind`` (exactly; True is no number). Raises ProtocolError otherwise.

    A missing field gives ``default`` unless that is None. Numbers have at most 64 bits; text is made printable
    and cut to 1024 characters.
    """
    value = result.get(name, default)
    if type(value) is not kind or (isinstance(value, int) and not -(1 << 63) <= value < 1 << 64):
        raise ProtocolError(f"The agent's answer has no valid {name}.")
    return printable(value[:_MAX_TEXT]) if isinstance(value, str) else value
