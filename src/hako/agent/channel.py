"""The agent's end of the host connection: frames in and out of the virtio-serial port, calls, raw streams.

Memory is bounded: a process's output is read only while its stream has credit and the port keeps up, and
the host may send no more than a stream's window ahead. Answers overtake stream data, never each other.
A host that asks without taking the answers is not listened to until it does.
"""

from __future__ import annotations

import os

from hako.agent.loop import READ, WRITE, Future, Loop
from hako.wire import calls
from hako.wire.frames import (
    CREDIT,
    DATA,
    FLAG_NO_DATA,
    FLAG_REMOTE_CLOSED,
    REQUEST,
    RESPONSE,
    Decoder,
    Frame,
    FrameError,
    encode,
)

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections import deque
    from collections.abc import Callable, Coroutine
    from typing import Any, Protocol

    Handler = Callable[[str, dict[str, Any]], Coroutine[Future, None, dict[str, Any]]]

    class Stream(Protocol):
        """What the channel tells a raw stream."""

        def on_data(self, data: bytes, *, end: bool) -> None: ...

        def on_credit(self, count: int) -> None: ...

        def on_writable(self) -> None: ...

        def on_reset(self) -> None: ...
else:
    from _collections import deque  # collections itself brings operator and reprlib


#: The port takes 32 KiB a write; holding more than a few of those gains nothing.
_HIGH_WATER = 256 << 10
#: While more than this waits to be sent in answers, no further calls are read.
_MAX_ANSWERS = 1 << 20
_READ_SIZE = 64 << 10
_RETRY_SECONDS = 0.05


class Channel:
    """One connection to the host at a time, over the file descriptor of the port."""

    def __init__(self, loop: Loop, fd: int, handler: Handler) -> None:
        self._loop = loop
        self._fd = fd
        self._handler = handler
        self._decoder = Decoder(calls.MAX_CALL)
        self._urgent: deque[bytes] = deque()
        self._data: deque[bytes] = deque()
        self._current = memoryview(b"")
        self._urgent_size = 0
        self._data_size = 0
        self._streams: dict[int, Stream] = {}
        self._waiting: deque[Stream] = deque()
        self._calls = 0
        #: Counts connections: what was asked on one is not answered on the next.
        self._connection = 0
        self._broken = False
        self._listening = True
        self._blocked = False
        self._watch()

    def add_stream(self, number: int, stream: Stream) -> None:
        """Give stream ``number`` (chosen by the host) to ``stream``. Raises CallError when it is taken."""
        if number in self._streams:
            raise calls.CallError(calls.INVALID_ARGUMENT, f"stream {number} is in use")
        self._streams[number] = stream

    def remove_stream(self, number: int) -> None:
        """Forget stream ``number``; frames for it are dropped from now on."""
        self._streams.pop(number, None)

    def can_send(self, stream: Stream) -> bool:
        """Whether there is room for stream data; if not, ``stream.on_writable`` is called when there is."""
        if self._data_size < _HIGH_WATER:
            return True
        if stream not in self._waiting:
            self._waiting.append(stream)
        return False

    def send_data(self, number: int, data: bytes, *, end: bool = False) -> None:
        """Queue stream data; ``end`` says that nothing follows."""
        flags = (FLAG_REMOTE_CLOSED if end else 0) | (0 if data else FLAG_NO_DATA)
        frame = encode(number, DATA, data, flags)
        self._data.append(frame)
        self._data_size += len(frame)
        self._send()

    def send_credit(self, number: int, count: int) -> None:
        """Let the host send ``count`` bytes more on stream ``number``."""
        self._send_urgent(encode(number, CREDIT, count.to_bytes(4, "big")))

    def _send_urgent(self, frame: bytes) -> None:
        self._urgent.append(frame)
        self._urgent_size += len(frame)
        self._send()

    def _send(self) -> None:
        if self._blocked:
            self._watch()
        else:
            self._flush()

    def _watch(self) -> None:
        wanted = READ if self._listening and self._urgent_size < _MAX_ANSWERS else 0
        self._loop.watch(self._fd, wanted | WRITE if self._blocked else wanted, self._on_ready)

    def _on_ready(self, events: int) -> None:
        if events & WRITE:
            self._flush()
        if events & ~WRITE:
            self._receive()

    def _receive(self) -> None:
        try:
            data = os.read(self._fd, _READ_SIZE)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        if not data:
            self._pause()
        elif not self._broken:
            try:
                for frame in self._decoder.feed(data):
                    self._on_frame(frame)
            except FrameError as error:
                self._give_up(str(error))

    def _pause(self) -> None:
        """The host's end is closed, which the port reports for as long as it lasts: look again in a moment."""
        self._reset()
        self._listening = False
        self._watch()
        self._loop.after(_RETRY_SECONDS, self._listen)

    def _listen(self) -> None:
        self._listening = True
        self._watch()

    def _give_up(self, why: str) -> None:
        """The host does not speak the protocol: say so on stream 0, and hear nothing until it has closed its end."""
        self._reset()
        self._broken = True
        error = calls.CallError(calls.INVALID_ARGUMENT, why)
        self._send_urgent(encode(0, RESPONSE, calls.encode_error(error)))

    def _reset(self) -> None:
        """Forget everything of the connection so far; the host that comes next starts with a clean one."""
        self._connection += 1
        self._broken = False
        self._decoder = Decoder(calls.MAX_CALL)
        streams, self._streams = self._streams, {}
        for stream in streams.values():
            stream.on_reset()
        self._urgent.clear()
        self._data.clear()
        self._current = memoryview(b"")
        self._urgent_size = self._data_size = 0
        self._waiting.clear()
        self._blocked = False

    def _on_frame(self, frame: Frame) -> None:
        if frame.kind == REQUEST:
            self._loop.spawn(self._serve(frame))
            return
        stream = self._streams.get(frame.stream)
        if stream is None:
            return
        if frame.kind == DATA:
            stream.on_data(frame.data, end=bool(frame.flags & FLAG_REMOTE_CLOSED))
        elif frame.kind == CREDIT and len(frame.data) == 4:
            stream.on_credit(int.from_bytes(frame.data, "big"))

    async def _serve(self, frame: Frame) -> None:
        connection = self._connection
        self._calls += 1
        try:
            if self._calls > calls.MAX_CALLS or self._urgent_size > _MAX_ANSWERS:
                raise calls.CallError(calls.RESOURCE_EXHAUSTED, "too many calls, or answers to them, are under way")
            method, params = calls.decode_request(frame.data)
            answer = calls.encode_result(await self._handler(method, params))
        except calls.CallError as error:
            answer = calls.encode_error(error)
        except calls.MalformedError as error:
            answer = calls.encode_error(calls.CallError(calls.INVALID_ARGUMENT, str(error)))
        except Exception as error:
            answer = calls.encode_error(calls.CallError(calls.INTERNAL, f"{type(error).__name__}: {error}"))
        self._calls -= 1
        if connection == self._connection:
            self._send_urgent(encode(frame.stream, RESPONSE, answer))

    def _flush(self) -> None:
        """Send what is queued, answers first, as far as the port takes it."""
        while self._current or self._next_frame():
            try:
                self._current = self._current[os.write(self._fd, self._current) :]
            except BlockingIOError:
                self._blocked = True
                self._watch()
                return
            except OSError:  # the host's end has just been closed; reading reports it
                self._current = memoryview(b"")
        self._blocked = False
        self._watch()
        waiting, self._waiting = self._waiting, deque()
        for stream in waiting:
            stream.on_writable()

    def _next_frame(self) -> bool:
        if self._urgent:
            frame = self._urgent.popleft()
            self._urgent_size -= len(frame)
        elif self._data:
            frame = self._data.popleft()
            self._data_size -= len(frame)
        else:
            return False
        self._current = memoryview(frame)
        return True
