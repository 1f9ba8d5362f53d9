"""The ttrpc client, and servers that are not what they should be."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest

from hako.errors import AgentError, ConfigError, HakoError, ProtocolError
from hako.shim.messages import Response, Status
from hako.shim.task_messages import StateRequest, StateResponse, WaitRequest, WaitResponse
from hako.shim.ttrpc import Client, ClosedError
from hako.wire import frames
from support.agentside import open_fds

SERVICE = "containerd.task.v2.Task"


def with_server(
    directory: Path, reply: Callable[[asyncio.StreamWriter], None] | None, body: Callable[[Client], Awaitable[None]]
) -> None:
    """Run ``body`` with a client of a server that sends ``reply`` when it has read something, or closes then."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read(1 << 20)
        if reply is not None:
            reply(writer)
            await reader.read()
        writer.close()

    async def main() -> None:
        path = str(directory / "bad.sock")
        server = await asyncio.start_unix_server(serve, path)
        client = await Client.connect(path)
        try:
            await asyncio.wait_for(body(client), 20)
        finally:
            await client.close()
            await asyncio.sleep(0.01)  # the server's side sees it
            server.close()

    before = open_fds()
    asyncio.run(main())
    assert open_fds() == before


def answer(status: Status | None = None, payload: bytes = b"", stream: int = 1, kind: int = frames.RESPONSE) -> bytes:
    return frames.encode(stream, kind, Response(status=status, payload=payload).encode())


@pytest.mark.parametrize(
    ("data", "kind", "text"),
    [
        (frames.encode(1, frames.RESPONSE, b"\xff"), ProtocolError, "State: the answer is malformed"),
        (answer(payload=b"\xff"), ProtocolError, "State: the answer is malformed"),
        (frames.HEADER.pack(5 << 20, 1, frames.RESPONSE, 0), ProtocolError, "the answer has 5242880 bytes"),
        (answer(Status(code=3, message="x")), ConfigError, "^x$"),
        (answer(Status(code=77, message="x" * 9999)), AgentError, "^x{4096}$"),
    ],
)
def test_answers_that_make_no_sense(data: bytes, kind: type[HakoError], text: str, tmp_path: Path) -> None:
    async def body(client: Client) -> None:
        with pytest.raises(kind, match=text):
            await client.call(SERVICE, "State", StateRequest(), StateResponse, timeout=10)

    with_server(tmp_path, lambda writer: writer.write(data), body)


def test_answers_for_others_are_ignored(tmp_path: Path) -> None:
    noise = answer(stream=3) + answer(stream=0) + answer(kind=frames.DATA) + frames.encode(1, 99, b"z")
    right = answer(Status(), StateResponse(id="x").encode())

    async def body(client: Client) -> None:
        assert (await client.call(SERVICE, "State", StateRequest(), StateResponse, timeout=10)).id == "x"

    with_server(tmp_path, lambda writer: writer.write(noise + right + right), body)


def test_a_server_that_goes_away(tmp_path: Path) -> None:
    async def body(client: Client) -> None:
        pending = [client.call(SERVICE, "Wait", WaitRequest(), WaitResponse) for _ in range(3)]
        found = await asyncio.gather(*pending, return_exceptions=True)
        assert [type(one) for one in found] == [ClosedError] * 3
        assert client.closed
        with pytest.raises(ClosedError):
            await client.call(SERVICE, "Wait", WaitRequest(), WaitResponse)

    with_server(tmp_path, None, body)


def test_nobody_is_there(tmp_path: Path) -> None:
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(str(tmp_path / "stale.sock"))
    listener.close()
    for name in ("missing.sock", "stale.sock", "x" * 200):
        with pytest.raises(ClosedError, match="Nobody answers at"):
            asyncio.run(Client.connect(str(tmp_path / name)))
