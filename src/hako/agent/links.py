"""One connection in the guest that goes on to the host: a stream socket and two raw streams, under flow control.

Each direction ends by itself, as with any stream socket: the end of what a peer sends becomes an end mark, an end mark
becomes ``shutdown``. Imported when it is needed.
"""

from __future__ import annotations

from hako.agent.channel import Channel
from hako.agent.loop import READ, WRITE, Loop
from hako.wire import calls
from hako.wire.calls import CHUNK, WINDOW

TYPE_CHECKING = False
if TYPE_CHECKING:
    import socket
    from collections.abc import Callable
else:
    import _socket as socket  # socket itself brings enum and selectors

#: epoll's word for a peer that is gone in both directions or an error; it reports these unasked.
_GONE = 0x10 | 0x08


class _Outgoing:
    """The stream to the host, as the channel sees it."""

    __slots__ = ("_link",)

    def __init__(self, link: Link) -> None:
        self._link = link

    def on_data(self, _data: bytes, *, end: bool) -> None:
        """The host's only word on it is that nobody there takes any more."""
        if end:
            self._link.refuse()

    def on_credit(self, count: int) -> None:
        """The host can take ``count`` bytes more."""
        self._link.grant(count)

    def on_writable(self) -> None:
        """The channel has room again."""
        self._link.grant(0)

    def on_reset(self) -> None:
        """The host is gone."""
        self._link.drop()


class _Incoming:
    """The stream from the host, as the channel sees it."""

    __slots__ = ("_link",)

    def __init__(self, link: Link) -> None:
        self._link = link

    def on_data(self, data: bytes, *, end: bool) -> None:
        """What the host sends."""
        self._link.take(data, end=end)

    def on_credit(self, _count: int) -> None:
        """Nothing flows to the host on this stream."""

    def on_writable(self) -> None:
        """Nothing flows to the host on this stream."""

    def on_reset(self) -> None:
        """The host is gone."""
        self._link.drop()


class Link:
    """Two streams that wait for a socket, then carry what it sends and receives.

    ``incoming`` is the number of the stream from the host, ``outgoing`` of the one to it. ``on_closed`` is called once,
    when nothing flows any more, or never will. Raises CallError when a number is in use.
    """

    def __init__(self, loop: Loop, channel: Channel, incoming: int, outgoing: int) -> None:
        self.on_closed: Callable[[], None] = lambda: None
        self._loop = loop
        self._channel = channel
        self._socket: socket.socket | None = None
        self._incoming, self._outgoing = incoming, outgoing
        #: Whether each of them is open.
        self._receiving = self._sending = True
        self._held = bytearray()
        self._ended = False
        self._consumed = 0
        self._credit = WINDOW
        self._outgoing_stream = _Outgoing(self)
        channel.add_stream(incoming, _Incoming(self))
        try:
            channel.add_stream(outgoing, self._outgoing_stream)
        except calls.CallError:
            channel.remove_stream(incoming)
            raise

    @property
    def closed(self) -> bool:
        """Whether nothing flows any more."""
        return not (self._receiving or self._sending)

    def connect(self, connected: socket.socket) -> None:
        """Begin with the socket, which is owned from now on."""
        if self.closed:
            connected.close()
            return
        connected.setblocking(False)
        self._socket = connected
        if not self._sending:
            _shut(connected, socket.SHUT_RD)
        self._pump()

    # --- to the host ---

    def grant(self, count: int) -> None:
        """The host can take ``count`` bytes more, or the channel has room."""
        self._credit = min(self._credit + count, WINDOW)
        self._watch()

    def refuse(self) -> None:
        """The host takes no more: the peer learns it when it sends."""
        if self._sending:
            self._stop_sending(tell=False)
            if self._socket is not None:
                _shut(self._socket, socket.SHUT_RD)
            elif self._receiving:
                self._stop_receiving(tell=True)  # without a socket yet, there need not be one
            self._watch()

    def _send(self) -> bool:
        """Send what the peer has sent; False when it cannot be done now."""
        assert self._socket is not None
        if self._credit <= 0 or not self._channel.can_send(self._outgoing_stream):
            return False
        try:
            data = self._socket.recv(min(CHUNK, self._credit))
        except BlockingIOError:
            return True
        except OSError:
            data = b""
        if data:
            self._credit -= len(data)
            self._channel.send_data(self._outgoing, data)
        else:
            self._stop_sending(tell=True)
        return True

    def _stop_sending(self, *, tell: bool) -> None:
        self._sending = False
        if tell:
            self._channel.send_data(self._outgoing, b"", end=True)
        self._channel.remove_stream(self._outgoing)

    # --- from the host ---

    def take(self, data: bytes, *, end: bool) -> None:
        """Take ``data`` for the peer; more than the window, or anything after the end, breaks the link."""
        if self._ended or len(self._held) + len(data) > WINDOW:
            self.close()
            return
        self._held += data
        self._ended = end
        if self._socket is not None:
            self._pump()
        elif end and not self._sending:
            self.close()

    def _pump(self) -> None:
        assert self._socket is not None
        while self._held and self._receiving:
            try:
                count = self._socket.send(self._held)
            except BlockingIOError:
                break
            except OSError:  # EPIPE and kin: the peer takes no more; what it has sent is still there.
                self._stop_receiving(tell=True)
                break
            del self._held[:count]
            self._consumed += count
        if self._receiving and self._consumed >= WINDOW // 2:
            self._channel.send_credit(self._incoming, self._consumed)
            self._consumed = 0
        if self._receiving and self._ended and not self._held:
            _shut(self._socket, socket.SHUT_WR)
            self._stop_receiving(tell=False)
        self._watch()

    def _stop_receiving(self, *, tell: bool) -> None:
        self._receiving = False
        self._held.clear()
        if tell:
            self._channel.send_data(self._incoming, b"", end=True)
        self._channel.remove_stream(self._incoming)

    # --- both ---

    def _watch(self) -> None:
        """Wait for what can be done next; close when that is nothing."""
        if self.closed:
            self.close()
        elif self._socket is not None:
            wanted = READ if self._sending and self._credit > 0 else 0
            self._loop.watch(self._socket.fileno(), wanted | (WRITE if self._held else 0) | _GONE, self._on_ready)

    def _on_ready(self, events: int) -> None:
        if events & WRITE and self._held:
            self._pump()
        if self._socket is None:
            return
        if not self._sending:
            if events & _GONE:
                self.close()  # the peer takes no more either
        elif events & (READ | _GONE) and not self._send():
            # Also a peer that is gone waits until there is room for the rest of what it has sent.
            self._loop.watch(self._socket.fileno(), WRITE if self._held else 0, self._on_ready)
        else:
            self._watch()

    def close(self) -> None:
        """End both directions and tell the host. Can be repeated."""
        if self._sending:
            self._stop_sending(tell=True)
        if self._receiving:
            self._stop_receiving(tell=True)
        self._release()

    def drop(self) -> None:
        """The host is gone: end both directions. Can be repeated."""
        self._sending = self._receiving = False
        self._release()

    def _release(self) -> None:
        if self._socket is not None:
            self._loop.forget(self._socket.fileno())
            self._socket.close()
            self._socket = None
        on_closed, self.on_closed = self.on_closed, lambda: None
        on_closed()


def _shut(connected: socket.socket, how: int) -> None:
    try:
        connected.shutdown(how)
    except OSError:
        pass  # the peer is gone already
