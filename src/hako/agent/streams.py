"""A process's standard streams: between its pipes or terminal and the channel, under flow control."""

from __future__ import annotations

import os
from collections import deque

from hako.agent.channel import Channel
from hako.agent.loop import READ, WRITE, Loop
from hako.wire.calls import CHUNK, WINDOW


class Output:
    """What a process writes, sent to the host while the host has granted credit.

    Without a stream number (nobody wants the output) nothing is read beyond what the host asked for: the
    caller connects such an output to /dev/null instead.
    """

    __slots__ = ("_channel", "_credit", "_fd", "_loop", "_number")

    def __init__(self, loop: Loop, channel: Channel, number: int, fd: int) -> None:
        os.set_blocking(fd, False)
        self._loop = loop
        self._channel = channel
        self._number = number
        self._fd = fd
        self._credit = WINDOW
        channel.add_stream(number, self)
        loop.watch(fd, READ, self._on_readable)

    def _on_readable(self, _events: int) -> None:
        if self._credit <= 0 or not self._channel.can_send(self):
            self._loop.watch(self._fd, 0, self._on_readable)
            return
        try:
            data = os.read(self._fd, min(CHUNK, self._credit))
        except BlockingIOError:
            return
        except OSError:  # EIO: the last process on the terminal has closed it.
            data = b""
        if data:
            self._credit -= len(data)
            self._channel.send_data(self._number, data)
        else:
            self._channel.send_data(self._number, b"", end=True)
            self._close()

    def _close(self) -> None:
        if self._fd >= 0:
            self._loop.forget(self._fd)
            os.close(self._fd)
            self._fd = -1
            self._channel.remove_stream(self._number)

    def on_credit(self, count: int) -> None:
        """The host can take ``count`` bytes more."""
        self._credit = min(self._credit + count, WINDOW)
        self.on_writable()

    def on_writable(self) -> None:
        """The channel has room again."""
        if self._fd >= 0:
            self._loop.watch(self._fd, READ, self._on_readable)

    def on_data(self, data: bytes, *, end: bool) -> None:
        """The host sends no data on an output; its end mark means that nobody reads it any more."""
        if end:
            self._close()

    def on_reset(self) -> None:
        """The host is gone: closing the pipe tells the process."""
        self._close()


class Input:
    """What the host sends to a process's standard input."""

    __slots__ = ("_channel", "_consumed", "_ended", "_fd", "_held", "_loop", "_number", "_parts")

    def __init__(self, loop: Loop, channel: Channel, number: int, fd: int) -> None:
        os.set_blocking(fd, False)
        self._loop = loop
        self._channel = channel
        self._number = number
        self._fd = fd
        self._parts: deque[memoryview] = deque()
        self._held = 0
        self._consumed = 0
        self._ended = False
        channel.add_stream(number, self)

    def on_data(self, data: bytes, *, end: bool) -> None:
        """Take ``data`` for the process; more than the window at once breaks the stream."""
        if self._held + len(data) > WINDOW:
            self._stop()
            return
        if data:
            self._parts.append(memoryview(data))
            self._held += len(data)
        self._ended = self._ended or end
        self._pump()

    def _on_writable(self, _events: int) -> None:
        self._pump()

    def _pump(self) -> None:
        while self._parts:
            part = self._parts[0]
            try:
                count = os.write(self._fd, part)
            except BlockingIOError:
                self._loop.watch(self._fd, WRITE, self._on_writable)
                break
            except OSError:  # EPIPE and kin: the process does not read any more.
                self._stop()
                return
            self._held -= count
            self._consumed += count
            if count == len(part):
                self._parts.popleft()
            else:
                self._parts[0] = part[count:]
        if self._consumed >= WINDOW // 2:
            self._channel.send_credit(self._number, self._consumed)
            self._consumed = 0
        if not self._parts:
            if self._ended:
                self._close()
            else:
                self._loop.watch(self._fd, 0, self._on_writable)

    def _stop(self) -> None:
        self._channel.send_data(self._number, b"", end=True)
        self._close()

    def _close(self) -> None:
        if self._fd >= 0:
            self._loop.forget(self._fd)
            os.close(self._fd)
            self._fd = -1
            self._parts.clear()
            self._channel.remove_stream(self._number)

    def on_credit(self, count: int) -> None:
        """Nothing flows to the host on an input."""

    def on_writable(self) -> None:
        """Nothing flows to the host on an input."""

    def on_reset(self) -> None:
        """The host is gone: the process sees the end of its input."""
        self._close()

    def close(self) -> None:
        """Stop, because the process has ended."""
        if self._fd >= 0:
            self._stop()
