"""A blocking WebSocket client, as far as the streaming servers of container engines need one.

Source: RFC 6455.
"""

from __future__ import annotations

import base64
import contextlib
import hashlib
import os
import socket
from collections.abc import Callable
from urllib.parse import urlsplit

_GUID = b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11"
_CONTINUATION, _TEXT, _BINARY, _CLOSE, _PING, _PONG = 0, 1, 2, 8, 9, 10


class WebSocket:
    """One connection; ``receive`` and ``send`` may be called by one thread each."""

    def __init__(self, url: str, protocol: str, connect: Callable[[tuple[str, int]], socket.socket]) -> None:
        """Connect to ``url`` (http:// or ws://) by ``connect``, and agree on the subprotocol ``protocol``."""
        parts = urlsplit(url)
        assert parts.hostname, url
        self._link = connect((parts.hostname, parts.port or 80))
        self._buffer = b""
        self._closing = False
        try:
            self._handshake(parts.netloc, parts.path + (f"?{parts.query}" if parts.query else ""), protocol)
        except BaseException:
            self._link.close()
            raise

    def _handshake(self, host: str, target: str, protocol: str) -> None:
        key = base64.b64encode(os.urandom(16))
        lines = [
            f"GET {target} HTTP/1.1", f"Host: {host}", "Upgrade: websocket", "Connection: Upgrade",
            f"Sec-WebSocket-Key: {key.decode()}", "Sec-WebSocket-Version: 13", f"Sec-WebSocket-Protocol: {protocol}",
            f"Origin: http://{host}", "", "",
        ]  # fmt: skip
        self._link.sendall("\r\n".join(lines).encode())
        while b"\r\n\r\n" not in self._buffer:
            self._read_more()
        head, _, self._buffer = self._buffer.partition(b"\r\n\r\n")
        status, *rest = head.decode().split("\r\n")
        headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in rest)}
        if status.split()[1] != "101":
            raise ConnectionError(f"{status}: {self._buffer[:500].decode(errors='replace')}")
        accepted = base64.b64encode(hashlib.sha1(key + _GUID).digest()).decode()
        if headers.get("sec-websocket-accept") != accepted or headers.get("sec-websocket-protocol") != protocol:
            raise ConnectionError(f"the server has not agreed: {headers}")

    def send(self, data: bytes) -> None:
        """Send one binary message."""
        self._send(_BINARY, data)

    def receive(self) -> bytes | None:
        """The next message; None once the server has closed the connection. Raises TimeoutError, see set_timeout()."""
        message = b""
        while True:
            try:
                opcode, final, data = self._frame()
            except ConnectionError:
                return None
            if opcode in (_CONTINUATION, _TEXT, _BINARY):
                message += data
                if final:
                    return message
            elif opcode == _PING:
                self._send(_PONG, data)
            elif opcode == _CLOSE:
                if not self._closing:
                    self._closing = True
                    self._send(_CLOSE, data[:2])
                return None

    def set_timeout(self, seconds: float) -> None:
        """How long send and receive wait."""
        self._link.settimeout(seconds)

    def close(self) -> None:
        """Say good-bye and close the connection."""
        if not self._closing:
            self._closing = True
            with contextlib.suppress(OSError):  # the server was quicker
                self._send(_CLOSE, (1000).to_bytes(2, "big"))
        self._link.close()

    def _send(self, opcode: int, data: bytes) -> None:
        size = len(data)
        if size < 126:
            head = bytes((0x80 | opcode, 0x80 | size))
        elif size < 1 << 16:
            head = bytes((0x80 | opcode, 0x80 | 126)) + size.to_bytes(2, "big")
        else:
            head = bytes((0x80 | opcode, 0x80 | 127)) + size.to_bytes(8, "big")
        mask = os.urandom(4)
        pad = (mask * (size // 4 + 1))[:size]
        masked = (int.from_bytes(data, "big") ^ int.from_bytes(pad, "big")).to_bytes(size, "big")
        self._link.sendall(head + mask + masked)

    def _frame(self) -> tuple[int, bool, bytes]:
        while (whole := self._parse()) is None:  # what has arrived stays in the buffer when time runs out
            self._read_more()
        return whole

    def _parse(self) -> tuple[int, bool, bytes] | None:
        if len(self._buffer) < 2:
            return None
        first, size, start = self._buffer[0], self._buffer[1] & 0x7F, 2
        if size >= 126:
            start = 4 if size == 126 else 10
            size = int.from_bytes(self._buffer[2:start], "big") if len(self._buffer) >= start else 1 << 64
        if len(self._buffer) < start + size:
            return None
        data, self._buffer = self._buffer[start : start + size], self._buffer[start + size :]
        return first & 0xF, bool(first & 0x80), data

    def _read_more(self) -> None:
        data = self._link.recv(1 << 16)
        if not data:
            raise ConnectionError("the server has closed the connection")
        self._buffer += data
