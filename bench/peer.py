"""Both ends of a TCP connection, under the host's Python: ``serve PORT`` answers in a container, ``connect ADDRESS
PORT`` does on the host what each line of standard input says, and answers "ok".

Standard library only, and little of that.
"""

from __future__ import annotations

import socket
import struct
import sys
import time

_CHUNK = 1 << 18
#: What the host asks for: the first letter of its name, and how many bytes or turns.
_REQUEST = struct.Struct("!cQ")
_CONNECT_SECONDS = 60.0


def take(connection: socket.socket, size: int) -> None:
    """Read ``size`` bytes. Raises EOFError when there are fewer."""
    buffer = memoryview(bytearray(_CHUNK))
    while size:
        got = connection.recv_into(buffer, min(size, _CHUNK))
        if not got:
            raise EOFError("the connection has ended")
        size -= got


def give(connection: socket.socket, size: int) -> None:
    """Write ``size`` bytes."""
    data = memoryview(bytes(_CHUNK))
    while size:
        size -= connection.send(data[: min(size, _CHUNK)])


def serve(port: str) -> None:
    """Answer one connection after the other."""
    with socket.create_server(("", int(port))) as listener:
        while True:
            connection, _ = listener.accept()
            with connection:
                connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                while len(request := connection.recv(_REQUEST.size, socket.MSG_WAITALL)) == _REQUEST.size:
                    answer(connection, *_REQUEST.unpack(request))


def answer(connection: socket.socket, what: bytes, count: int) -> None:
    """The container's part of ``send``, ``receive`` or ``turns``."""
    if what == b"s":
        take(connection, count)
        give(connection, 1)
    elif what == b"r":
        give(connection, count)
    else:
        for _ in range(count):
            take(connection, 1)
            give(connection, 1)


def send(connection: socket.socket, count: int) -> None:
    """Bytes to the container, until it says that all have arrived."""
    give(connection, count)
    take(connection, 1)


def receive(connection: socket.socket, count: int) -> None:
    """Bytes from the container."""
    take(connection, count)


def turns(connection: socket.socket, count: int) -> None:
    """A byte to the container and one back, one after the other."""
    for _ in range(count):
        give(connection, 1)
        take(connection, 1)


WORK = {work.__name__: work for work in (send, receive, turns)}


def connect(address: str, port: str) -> None:
    """Connect as soon as somebody answers, say so, and answer each line."""
    deadline = time.monotonic() + _CONNECT_SECONDS
    while True:
        try:
            connection = socket.create_connection((address, int(port)), timeout=_CONNECT_SECONDS)
            break
        except OSError:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.05)
    with connection:
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        print("connected", flush=True)
        for line in iter(sys.stdin.readline, ""):
            name, count = line.split()
            connection.sendall(_REQUEST.pack(name[:1].encode(), int(count)))
            WORK[name](connection, int(count))
            print("ok", flush=True)


def main() -> None:
    """One of the two ends."""
    role, *words = sys.argv[1:]
    if role == "serve":
        serve(*words)
    else:
        connect(*words)


if __name__ == "__main__":
    main()
