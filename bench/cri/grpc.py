"""A blocking gRPC client for UNIX sockets: one message there, one back, and a connection for each call.

The messages are bytes here; who calls knows what is in them. Source: grpc/grpc, doc/PROTOCOL-HTTP2.md.
"""

from __future__ import annotations

import socket
import time
import urllib.parse

import h2.connection
import h2.events
from h2.config import H2Configuration

#: Codes of google.rpc.Code that servers answer with, by name.
CODES = {
    "CANCELLED": 1, "UNKNOWN": 2, "INVALID_ARGUMENT": 3, "DEADLINE_EXCEEDED": 4, "NOT_FOUND": 5, "ALREADY_EXISTS": 6,
    "PERMISSION_DENIED": 7, "RESOURCE_EXHAUSTED": 8, "FAILED_PRECONDITION": 9, "ABORTED": 10, "OUT_OF_RANGE": 11,
    "UNIMPLEMENTED": 12, "INTERNAL": 13, "UNAVAILABLE": 14, "DATA_LOSS": 15,
}  # fmt: skip
_NAMES = {code: name for name, code in CODES.items()}
_PREFIX = 5  # bytes before each message: whether it is compressed, and its length


class CallError(Exception):
    """A call that the server answered with an error, or did not answer in time."""

    def __init__(self, method: str, code: int, message: str) -> None:
        super().__init__(f"{method}: {_NAMES.get(code, code)}: {message}")
        self.code = code
        self.message = message


def call(address: str, service: str, method: str, request: bytes, timeout: float) -> bytes:
    """The answer of ``service`` at the socket ``address`` to ``request``. Raises CallError, OSError.

    ``timeout`` in seconds is the server's too, which gives up then.
    """
    with socket.socket(socket.AF_UNIX) as link:
        link.settimeout(timeout)
        link.connect(address)
        exchange = _Exchange(link, method, timeout)
        exchange.send(f"/{service}/{method}", request)
        return exchange.receive()


class _Exchange:
    """One request and its answer."""

    def __init__(self, link: socket.socket, method: str, timeout: float) -> None:
        self._link = link
        self._method = method
        self._timeout = timeout
        self._deadline = time.monotonic() + timeout
        self._http = h2.connection.H2Connection(H2Configuration(client_side=True, header_encoding="utf-8"))
        self._headers: dict[str, str] = {}
        self._body = bytearray()
        self._ended = False

    def send(self, path: str, request: bytes) -> None:
        headers = [
            (":method", "POST"), (":scheme", "http"), (":path", path), (":authority", "localhost"), ("te", "trailers"),
            ("content-type", "application/grpc"), ("grpc-timeout", f"{int(self._timeout * 1000)}m"),
        ]  # fmt: skip
        self._http.initiate_connection()
        stream = self._http.get_next_available_stream_id()
        self._http.send_headers(stream, headers)
        body = b"\0" + len(request).to_bytes(4, "big") + request
        while body and not self._ended:
            size = min(self._http.local_flow_control_window(stream), self._http.max_outbound_frame_size, len(body))
            if size:
                self._http.send_data(stream, body[:size])
                body = body[size:]
                self._flush()
            else:
                self._take()
        if not self._ended:
            self._http.end_stream(stream)
            self._flush()

    def receive(self) -> bytes:
        while not self._ended:
            self._take()
        if self._headers.get(":status") != "200":
            raise CallError(self._method, CODES["UNAVAILABLE"], f"HTTP status {self._headers.get(':status')}")
        code = int(self._headers.get("grpc-status", CODES["UNKNOWN"]))
        if code:
            raise CallError(self._method, code, urllib.parse.unquote(self._headers.get("grpc-message", "")))
        if len(self._body) < _PREFIX or self._body[0] or len(self._body) != _PREFIX + int.from_bytes(self._body[1:5]):
            raise CallError(self._method, CODES["INTERNAL"], f"not one plain message: {bytes(self._body[:40])!r}")
        return bytes(self._body[_PREFIX:])

    def _take(self) -> None:
        """Read and digest what the server sends next."""
        left = self._deadline - time.monotonic()
        if left <= 0:
            raise CallError(self._method, CODES["DEADLINE_EXCEEDED"], f"no answer in {self._timeout} s")
        self._link.settimeout(left)
        try:
            data = self._link.recv(1 << 16)
        except TimeoutError:
            return
        if not data:
            raise CallError(self._method, CODES["UNAVAILABLE"], "the server has closed the connection")
        for event in self._http.receive_data(data):
            if isinstance(event, h2.events.ResponseReceived | h2.events.TrailersReceived):
                self._headers |= {str(name): str(value) for name, value in event.headers}
            elif isinstance(event, h2.events.DataReceived):
                self._body += event.data
                self._http.acknowledge_received_data(event.flow_controlled_length, event.stream_id)
            elif isinstance(event, h2.events.StreamReset | h2.events.ConnectionTerminated):
                raise CallError(self._method, CODES["UNAVAILABLE"], f"the server has given up: {event}")
            elif isinstance(event, h2.events.StreamEnded):
                self._ended = True
        self._flush()

    def _flush(self) -> None:
        self._link.sendall(self._http.data_to_send())
