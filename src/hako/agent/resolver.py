"""The guest's end of a relay for name servers: listens where the containers' resolv.conf points, and asks the host.

Imported when it is needed: few containers have a name server on the loopback of their network.

Memory is bounded: so many questions and connections at a time, one message for each. What exceeds it is dropped where
a client asks again by itself (UDP), or waits in the kernel.
"""

from __future__ import annotations

import errno
import os

from hako.agent import redirect
from hako.agent.channel import Channel
from hako.agent.loop import READ, WRITE, Loop
from hako.wire import calls, queries
from hako.wire.calls import CHUNK, WINDOW

TYPE_CHECKING = False
if TYPE_CHECKING:
    import socket
    from collections.abc import Callable
else:
    import _socket as socket  # socket itself brings enum and selectors

#: Header of a DNS message; what is shorter is none.
_SHORTEST = 12
_LONGEST = 0xFFFF
#: Clients that are connected by TCP; beyond, the one that came first has to go.
_MAX_CLIENTS = 64
_LAST_TOKEN = (1 << 32) - 1
#: Tries to find a port that is free for UDP and TCP.
_PORT_TRIES = 16


def parse(value: object) -> list[str]:
    """The addresses of a call. Raises CallError."""
    if not isinstance(value, list) or not 0 < len(value) <= queries.MAX_SERVERS:
        raise _bad(f"addresses: not a list of 1 to {queries.MAX_SERVERS}")
    for index, address in enumerate(value):
        try:
            packed = socket.inet_pton(socket.AF_INET, address)
        except (OSError, TypeError, ValueError):
            packed = b""
        if packed[:1] != b"\x7f":
            raise _bad(f"addresses[{index}]: not an IPv4 address of the loopback such as 127.0.0.11")
    return value


def _bad(text: str) -> calls.CallError:
    return calls.CallError(calls.INVALID_ARGUMENT, text)


class Relay:
    """Asks the host on stream ``asking`` what the guest's processes ask ``addresses``; is answered on ``answering``.

    Ends with either stream. Raises CallError when a stream's number is in use, OSError when the kernel refuses.
    """

    def __init__(self, loop: Loop, channel: Channel, addresses: list[str], asking: int, answering: int) -> None:
        self._channel = channel
        self._streams: list[int] = []
        self._asking = asking
        self._answering = answering
        self._credit = WINDOW
        self._consumed = 0
        self._decoder = queries.Decoder()
        self._token = 0
        self._questions: dict[int, Callable[[bytes], None]] = {}
        self._servers: list[_Server] = []
        self._links: list[int] = []
        self._full = False
        try:
            for number in (asking, answering):
                channel.add_stream(number, self)
                self._streams.append(number)
            for index, address in enumerate(addresses):
                self._servers.append(_Server(loop, self, index, address))
            self._links = redirect.install((server.address, server.port) for server in self._servers)
        except BaseException:
            self.close()
            raise

    def ask(self, server: int, protocol: int, data: bytes, answer: Callable[[bytes], None]) -> None:
        """Ask the host; ``answer`` is called once, maybe at once, with nothing when there is no answer."""
        message = queries.Message(self._new_token(), server, protocol, data).encode()
        room = len(self._questions) < queries.MAX_QUESTIONS and len(message) <= self._credit
        if not room or not self._channel.can_send(self):
            answer(b"")
            return
        self._questions[self._token] = answer
        self._credit -= len(message)
        for at in range(0, len(message), CHUNK):
            self._channel.send_data(self._asking, message[at : at + CHUNK])
        if len(self._questions) == queries.MAX_QUESTIONS:
            self._set_full(full=True)

    def _new_token(self) -> int:
        while True:
            self._token = (self._token + 1) & _LAST_TOKEN
            if self._token not in self._questions:
                return self._token

    def _set_full(self, *, full: bool) -> None:
        self._full = full
        for server in self._servers:
            server.listen(datagrams=not full)

    def on_data(self, data: bytes, *, end: bool) -> None:
        """Answers; the end of either stream is the end of the relay."""
        for message in self._decoder.feed(data):
            answer = self._questions.pop(message.token, None)
            if answer is not None:
                answer(message.data)
        if end:
            self.close()
            return
        self._consumed += len(data)
        if self._consumed >= WINDOW // 2:
            self._channel.send_credit(self._answering, self._consumed)
            self._consumed = 0
        if self._full and len(self._questions) < queries.MAX_QUESTIONS:
            self._set_full(full=False)

    def on_credit(self, count: int) -> None:
        """The host can take ``count`` bytes more of questions."""
        self._credit = min(self._credit + count, WINDOW)

    def on_writable(self) -> None:
        """The channel has room again; what found none is not kept."""

    def on_reset(self) -> None:
        """The host is gone."""
        self._close()

    def close(self) -> None:
        """Stop listening, and tell the host that nothing follows. Can be repeated."""
        for number in self._close():
            self._channel.send_data(number, b"", end=True)

    def _close(self) -> list[int]:
        """Give everything back; return the streams that were open."""
        for link in self._links:
            os.close(link)
        self._links.clear()
        for server in self._servers:
            server.close()
        self._servers.clear()
        self._questions.clear()
        streams, self._streams = self._streams, []
        for number in streams:
            self._channel.remove_stream(number)
        return streams


class _Server:
    """What stands for one name server: sockets for UDP and TCP at one port of its address. Raises OSError."""

    def __init__(self, loop: Loop, relay: Relay, index: int, address: str) -> None:
        self.address = socket.inet_aton(address)
        self._loop = loop
        self._relay = relay
        self._index = index
        self._clients: dict[_Client, None] = {}
        self._datagram, self._listener, self.port = _bind(address)
        loop.watch(self._listener.fileno(), READ, self._on_client)
        self.listen(datagrams=True)

    def listen(self, *, datagrams: bool) -> None:
        """Take questions by UDP, or leave them to the kernel's buffer."""
        self._loop.watch(self._datagram.fileno(), READ if datagrams else 0, self._on_datagram)

    def _on_datagram(self, _events: int) -> None:
        try:
            data, client = self._datagram.recvfrom(_LONGEST)
        except OSError:  # it has been dropped for a wrong checksum
            return

        def answer(data: bytes) -> None:
            if data:
                try:
                    self._datagram.sendto(data, client)
                except OSError:
                    return  # the client may have gone, and asks again if it has not

        if len(data) >= _SHORTEST:
            self._relay.ask(self._index, queries.UDP, data, answer)

    def _on_client(self, _events: int) -> None:
        try:
            fd, _ = self._listener._accept()  # type: ignore[attr-defined]  # what socket.accept() is made of
        except OSError:
            return
        if len(self._clients) >= _MAX_CLIENTS:
            next(iter(self._clients)).close()
        os.set_blocking(fd, False)
        self._clients[_Client(self._loop, self, fd)] = None

    def ask(self, data: bytes, answer: Callable[[bytes], None]) -> None:
        """Ask what has come by TCP."""
        self._relay.ask(self._index, queries.TCP, data, answer)

    def forget(self, client: _Client) -> None:
        """A client has gone."""
        self._clients.pop(client, None)

    def close(self) -> None:
        """Stop listening."""
        for sock in (self._datagram, self._listener):
            self._loop.forget(sock.fileno())
            sock.close()
        for client in list(self._clients):
            client.close()


def _bind(address: str) -> tuple[socket.socket, socket.socket, int]:
    """Sockets for UDP and TCP at one port, and the port. Raises OSError."""
    flags = socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC
    for attempt in range(_PORT_TRIES):
        datagram = socket.socket(socket.AF_INET, socket.SOCK_DGRAM | flags)
        listener = socket.socket(socket.AF_INET, socket.SOCK_STREAM | flags)
        try:
            datagram.bind((address, 0))
            port = int(datagram.getsockname()[1])
            listener.bind((address, port))
            listener.listen(_MAX_CLIENTS)
        except OSError as error:
            datagram.close()
            listener.close()
            if error.errno != errno.EADDRINUSE or attempt == _PORT_TRIES - 1:
                raise
        else:
            return datagram, listener, port
    raise AssertionError  # the last attempt has raised


class _Client:
    """One connection by TCP, whose questions are asked one after another."""

    def __init__(self, loop: Loop, server: _Server, fd: int) -> None:
        self._loop = loop
        self._server = server
        self._fd = fd
        self._question = bytearray()
        self._answer = b""
        loop.watch(fd, READ, self._on_ready)

    def _on_ready(self, _events: int) -> None:
        if self._answer:
            self._write()
            return
        try:
            data = os.read(self._fd, 2 + _LONGEST - len(self._question))
        except BlockingIOError:
            return
        except OSError:
            data = b""
        if not data:
            self.close()
            return
        self._question += data
        self._ask()

    def _ask(self) -> None:
        """Ask what has arrived, if it is complete."""
        end = 2 + int.from_bytes(self._question[:2], "big")
        if len(self._question) < 2 or len(self._question) < end:
            self._loop.watch(self._fd, READ, self._on_ready)
            return
        data = bytes(self._question[2:end])
        del self._question[:end]
        self._loop.watch(self._fd, 0, self._on_ready)
        if len(data) < _SHORTEST:
            self.close()
        else:
            self._server.ask(data, self._on_answer)

    def _on_answer(self, data: bytes) -> None:
        if self._fd < 0:
            return
        if not data:
            self.close()
            return
        self._answer = len(data).to_bytes(2, "big") + data
        self._write()

    def _write(self) -> None:
        try:
            self._answer = self._answer[os.write(self._fd, self._answer) :]
        except BlockingIOError:
            pass
        except OSError:
            self.close()
            return
        if self._answer:
            self._loop.watch(self._fd, WRITE, self._on_ready)
        else:
            self._ask()

    def close(self) -> None:
        """End the connection."""
        if self._fd >= 0:
            self._loop.forget(self._fd)
            os.close(self._fd)
            self._fd = -1
            self._server.forget(self)
