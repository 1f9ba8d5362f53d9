"""A process's standard streams: between its pipes or terminal and the channel, under flow control."""

from __future__ import annotations

import os

from hako.agent.channel import Channel
from hako.agent.loop import READ, WRITE, Loop
from hako.wire.calls import CHUNK, WINDOW, CallError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable


class _End:
    """What both directions share: owns the agent's end ``fd`` of a pipe or terminal and stream ``number``."""

    __slots__ = ("_channel", "_fd", "_loop", "_number")

    def __init__(self, loop: Loop, channel: Channel, number: int, fd: int) -> None:
        self._loop = loop
        self._channel = channel
        self._number = number
        self._fd = fd
        try:
            channel.add_stream(number, self)  # type: ignore[arg-type]
        except CallError:
            os.close(fd)
            raise
        os.set_blocking(fd, False)

    def _close(self) -> None:
        if self._fd >= 0:
            self._loop.forget(self._fd)
            os.close(self._fd)
            self._fd = -1
            self._channel.remove_stream(self._number)

    def close(self) -> None:
        """Stop, telling the host that nothing follows."""
        if self._fd >= 0:
            self._channel.send_data(self._number, b"", end=True)
            self._close()


class Output(_End):
    """What a process writes, sent to the host from start() on, while the host has granted credit.

    ``on_abandoned`` is called when the host does not want any more of it.
    """

    __slots__ = ("_credit", "_on_abandoned")

    def __init__(
        self, loop: Loop, channel: Channel, number: int, fd: int, on_abandoned: Callable[[], None] | None = None
    ) -> None:
        super().__init__(loop, channel, number, fd)
        self._credit = 0
        self._on_abandoned = on_abandoned

    def start(self) -> None:
        """The process runs: what crun itself wrote into the pipe while it failed never got here."""
        self.on_credit(WINDOW)

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
            self.close()

    def on_credit(self, count: int) -> None:
        """The host can take ``count`` bytes more."""
        self._credit = min(self._credit + count, WINDOW)
        self.on_writable()

    def on_writable(self) -> None:
        """The channel has room again."""
        if self._fd >= 0 and self._credit > 0:
            self._loop.watch(self._fd, READ, self._on_readable)

    def on_data(self, _data: bytes, *, end: bool) -> None:
        """The host sends no data on an output; its end mark means that nobody reads it any more."""
        if end:
            self.on_reset()

    def on_reset(self) -> None:
        """Nobody reads it any more: closing the pipe tells the process, by SIGPIPE."""
        self._close()
        if self._on_abandoned is not None:
            self._on_abandoned()


class Input(_End):
    """What the host sends to a process's standard input."""

    __slots__ = ("_consumed", "_ended", "_held")

    def __init__(self, loop: Loop, channel: Channel, number: int, fd: int) -> None:
        self._held = bytearray()
        self._consumed = 0
        self._ended = False
        super().__init__(loop, channel, number, fd)

    def on_data(self, data: bytes, *, end: bool) -> None:
        """Take ``data`` for the process; more than the window, or anything after the end, breaks the stream."""
        if self._ended or len(self._held) + len(data) > WINDOW:
            self.close()
            return
        self._held += data
        self._ended = end
        self._pump()

    def _on_writable(self, _events: int) -> None:
        self._pump()

    def _pump(self) -> None:
        while self._held:
            try:
                count = os.write(self._fd, self._held)
            except BlockingIOError:
                break
            except OSError:  # EPIPE and kin: the process does not read any more.
                self.close()
                return
            del self._held[:count]
            self._consumed += count
        if self._consumed >= WINDOW // 2:
            self._channel.send_credit(self._number, self._consumed)
            self._consumed = 0
        if self._ended and not self._held:
            self._close()
        else:
            self._loop.watch(self._fd, WRITE if self._held else 0, self._on_writable)

    def on_credit(self, _count: int) -> None:
        """Nothing flows to the host on an input."""

    def on_writable(self) -> None:
        """Nothing flows to the host on an input."""

    def on_reset(self) -> None:
        """The host is gone: the process sees the end of its input."""
        self._close()
