"""The agent's side of the connection in this very process: its event loop is turned by hand."""

from __future__ import annotations

import os
import socket
from collections.abc import Callable
from typing import Any

from hako.agent.channel import Channel
from hako.agent.loop import Loop
from hako.wire import calls, frames


async def echo(method: str, params: dict[str, Any]) -> dict[str, Any]:
    """A handler of calls that tells what it was asked."""
    if method == "Fail":
        raise calls.CallError(calls.NOT_FOUND, "no such thing")
    return {"method": method, "params": params}


class Bench:
    """A Channel on one end of a socket pair, and a host that speaks frames on the other. A context manager."""

    def __init__(self, handler: Any = echo) -> None:
        self.host, self.port = socket.socketpair()
        self.host.setblocking(False)
        self.port.setblocking(False)
        self.loop = Loop()
        self.channel = Channel(self.loop, self.port.fileno(), handler)
        self.frames: list[frames.Frame] = []
        self._decoder = frames.Decoder()

    def __enter__(self) -> Bench:
        return self

    def __exit__(self, *_: object) -> None:
        self.channel._reset()
        self.loop.close()
        self.host.close()
        self.port.close()

    def run(self, until: Callable[[], object], seconds: float = 20.0) -> None:
        """Turn the loop until ``until()`` is true."""
        turn(self.loop, until, seconds)

    def settle(self, rounds: int = 3) -> None:
        """Turn the loop until nothing more happens by itself."""
        for _ in range(rounds):
            while self.loop._epoll.poll(0):
                self.loop._run_once()

    def send(self, data: bytes) -> None:
        """Send ``data`` to the agent, turning its loop while it does not take more."""
        view = memoryview(data)
        while view:
            try:
                view = view[self.host.send(view) :]
            except BlockingIOError:
                self.loop._run_once()

    def request(self, number: int, method: str, **params: Any) -> None:
        """Send a call."""
        self.send(frames.encode(number, frames.REQUEST, calls.encode_request(method, params)))

    def data(self, number: int, data: bytes = b"", *, end: bool = False) -> None:
        """Send stream data."""
        self.send(frames.encode(number, frames.DATA, data, frames.FLAG_REMOTE_CLOSED if end else 0))

    def credit(self, number: int, count: int) -> None:
        """Grant credit."""
        self.send(frames.encode(number, frames.CREDIT, count.to_bytes(4, "big")))

    def receive(self) -> list[frames.Frame]:
        """What has arrived by now, all of it since the start."""
        while True:
            try:
                data = self.host.recv(1 << 20)
            except BlockingIOError:
                return self.frames
            if not data:
                return self.frames
            self.frames += self._decoder.feed(data)

    def answer(self, number: int) -> dict[str, Any]:
        """Wait for the answer to call ``number``. Raises CallError."""
        found: list[frames.Frame] = []

        def arrived() -> bool:
            found[:] = [one for one in self.receive() if one.kind == frames.RESPONSE and one.stream == number]
            return bool(found)

        self.run(arrived)
        return calls.decode_response(found[0].data)

    def output(self, number: int) -> bytes:
        """The data that stream ``number`` has brought by now."""
        return b"".join(one.data for one in self.receive() if one.kind == frames.DATA and one.stream == number)

    def ended(self, number: int) -> bool:
        """Whether the agent has ended stream ``number``."""
        return any(
            one.kind == frames.DATA and one.stream == number and one.flags & frames.FLAG_REMOTE_CLOSED
            for one in self.receive()
        )


def turn(loop: Loop, until: Callable[[], object], seconds: float = 20.0) -> None:
    """Turn ``loop`` until ``until()`` is true. Fails after ``seconds``."""
    late: list[bool] = []
    loop.after(seconds, lambda: late.append(True))
    # Data can lie in the socket without any event to come: look again now and then.
    while not until():
        assert not late, "it did not happen in time"
        loop.after(0.01, lambda: None)
        loop._run_once()


def is_open(fd: int) -> bool:
    """Whether ``fd`` is a descriptor of this process."""
    return os.path.exists(f"/proc/self/fd/{fd}")


def open_fds() -> set[str]:
    """The descriptors of this process."""
    return set(os.listdir("/proc/self/fd"))
