"""Servers for tests of connections: each one is served in a thread of its own, and none is left at the end."""

from __future__ import annotations

import contextlib
import os
import socket
import threading
from collections.abc import Callable, Iterator

_SECONDS = 60

Body = Callable[[socket.socket], None]


@contextlib.contextmanager
def unix_server(path: str, body: Body) -> Iterator[str]:
    """A server at ``path``, for everybody, that does ``body`` with each connection."""
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(path)
        os.chmod(path, 0o666)
        listener.listen(256)
        with _serving(listener, body):
            yield path


@contextlib.contextmanager
def tcp_server(body: Body, address: str = "127.0.0.1") -> Iterator[int]:
    """A server at a free port of ``address`` that does ``body`` with each connection; the port."""
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    with socket.create_server((address, 0), family=family, backlog=256) as listener, _serving(listener, body):
        yield listener.getsockname()[1]


@contextlib.contextmanager
def _serving(listener: socket.socket, body: Body) -> Iterator[None]:
    threads: list[threading.Thread] = []

    def one(connected: socket.socket) -> None:
        with connected, contextlib.suppress(OSError):
            body(connected)

    def serve() -> None:
        with contextlib.suppress(OSError):
            while True:
                connected, _ = listener.accept()
                connected.settimeout(_SECONDS)
                threads.append(threading.Thread(target=one, args=(connected,)))
                threads[-1].start()

    accepting = threading.Thread(target=serve)
    accepting.start()
    try:
        yield
    finally:
        listener.shutdown(socket.SHUT_RDWR)
        for thread in [accepting, *threads]:
            thread.join()


def echo(connected: socket.socket) -> None:
    """Send back what comes, and end when that ends."""
    while data := connected.recv(1 << 16):
        connected.sendall(data)
    connected.shutdown(socket.SHUT_WR)
