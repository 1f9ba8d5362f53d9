"""A warm process's own side: who may come in, what is done with what comes, and when it is of no use any more."""

from __future__ import annotations

import asyncio
import json
import os
import socket
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from hako import store
from hako.config.settings import Config
from hako.sandbox import pool, records, warm
from hako.sandbox.spec import SandboxSpec
from support.agentside import open_fds

_SPEC = SandboxSpec("s1", "", 512 << 20, 1)


@pytest.fixture(autouse=True)
def own_roots(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    monkeypatch.setenv("HAKO_STATE_ROOT", str(tmp_path / "run"))
    monkeypatch.setenv("HAKO_DATA_ROOT", str(tmp_path / "data"))
    monkeypatch.setenv("HAKO_CONFIG", str(tmp_path / "config.toml"))
    monkeypatch.setattr(warm, "template_key", lambda _config: "t1")
    (tmp_path / "config.toml").write_text("[pool]\nsize = 1\n")
    before = open_fds()
    yield tmp_path
    assert open_fds() == before


def living(body: Callable[[warm.Warm, socket.socket], Awaitable[None]]) -> None:
    """Run ``body`` with a warm process that is ready, and a connection to it."""

    async def main() -> None:
        os.makedirs(pool.entry_dir("w1"))
        lock = store.lock(os.path.join(pool.entry_dir("w1"), "lock"))
        guardian_read, guardian = os.pipe()
        one = warm.Warm("w1", Config({"pool.size": 1}), pool.surroundings(), -1, guardian)
        one._state |= {"status": "ready", "info": {"template": "t1"}}
        pool.write(one._state)
        door = warm.Door(pool.listen("w1"), one._on_message)
        with pool.connect("w1", 5) as sock:
            sock.setblocking(False)
            await asyncio.wait_for(body(one, sock), 20)
            door.close()
            door.part()
            assert await asyncio.get_running_loop().sock_recv(sock, 64) == b""
        assert lock is not None
        for fd in (lock, guardian, guardian_read):
            os.close(fd)

    asyncio.run(main())


async def tell(sock: socket.socket, message: bytes, fds: list[int] | None = None) -> bytes:
    """What a warm process answers; nothing when it ends the connection."""
    socket.send_fds(sock, [message], fds or [])
    return await asyncio.get_running_loop().sock_recv(sock, 64)


def offer(one: warm.Warm, **changes: Any) -> bytes:
    message = {"do": "adopt", "key": one._key, "spec": _SPEC.to_json(), "values": {}, "origins": {}, "spans": []}
    return json.dumps(message | changes).encode()


@pytest.mark.parametrize(
    "message",
    [b"x", b"{}", b"[]", b"null", b"\xff", b'{"do": 1}', b'{"do": "adopt"}', b'{"do": "dance"}', b" " * (190 << 10)],
)
def test_nonsense_ends_the_connection_and_nothing_else(message: bytes) -> None:
    async def body(one: warm.Warm, sock: socket.socket) -> None:
        fds = [os.open("/dev/null", os.O_RDONLY) for _ in range(3)]
        assert await tell(sock, message, fds) == b""
        assert not one._outcome.done()
        for fd in fds:
            os.close(fd)

    living(body)


@pytest.mark.parametrize(
    "changes",
    [
        {"key": "another"},
        {"spec": {}},
        {"spec": "s1"},
        {"values": 3},
        {"spans": 1},
        {"spec": _SPEC._asdict() | {"id": 7}},
    ],
)
@pytest.mark.parametrize("free", [True, False])
def test_what_is_not_for_it_is_left_to_others(changes: dict[str, Any], free: bool) -> None:
    async def body(one: warm.Warm, sock: socket.socket) -> None:
        read, write = os.pipe2(os.O_NONBLOCK)
        if free:
            os.write(write, b"1")
        fds = [os.open("/dev/null", os.O_RDONLY) for _ in range(3)]
        assert await tell(sock, offer(one, **(changes if free else {})), [*fds, read]) == b""
        assert pool.take(read) is free
        assert one.taken is None
        for fd in (*fds, read, write):
            os.close(fd)

    living(body)


def test_it_takes_a_sandbox_and_leaves_the_pool() -> None:
    async def body(one: warm.Warm, sock: socket.socket) -> None:
        lock = records.claim(_SPEC)
        listener, owner = socket.socket(socket.AF_UNIX), socket.socket(socket.AF_UNIX)
        read, write = os.pipe2(os.O_NONBLOCK)
        os.write(write, b"1")
        assert await tell(sock, offer(one), [lock, listener.fileno(), owner.fileno(), read]) == pool.TAKEN
        assert one.taken is not None
        assert one.taken.spec == _SPEC
        assert pool.entries() == []
        assert os.listdir(os.path.join(records.run_dir("s1"), records.WARM))
        one.taken.ends.close()
        for fd in (lock, read, write):
            os.close(fd)
        listener.close()
        owner.close()

    living(body)


def test_it_ends_when_it_is_told_to() -> None:
    async def body(one: warm.Warm, sock: socket.socket) -> None:
        sock.send(b'{"do": "end"}')
        await one._outcome
        assert one.taken is None
        assert not one.replace

    living(body)


def test_one_that_is_wanted_stays() -> None:
    async def body(one: warm.Warm, sock: socket.socket) -> None:
        assert await tell(sock, b'{"do": "check"}') == b"stays"
        assert not one._outcome.done()

    living(body)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ("[pool]\nsize = 0\n", "more than it should"),
        ('[pool]\nsize = 1\n[share]\nmsize = "8k"\n', "has changed"),
        ("[pool]\nsize = 1\nmax_age = 60\n", "old"),
        ("template", "another template"),
        ("gone", "not in the pool"),
    ],
)
def test_one_that_nobody_can_want_goes(
    own_roots: Path, monkeypatch: pytest.MonkeyPatch, change: str, reason: str
) -> None:
    async def body(one: warm.Warm, _sock: socket.socket) -> None:
        if change == "template":
            monkeypatch.setattr(warm, "template_key", lambda _config: "t2")
        elif change == "gone":
            store.remove_tree(pool.entry_dir("w1"))
        else:
            (own_roots / "config.toml").write_text(change)
            one._since -= 61 if "max_age" in change else 0
        assert reason in one._why_not()
        assert not await one._check()
        assert one._outcome.done()
        assert one.replace

    living(body)


def test_a_configuration_that_is_wrong_for_a_while_does_no_harm(own_roots: Path) -> None:
    async def body(one: warm.Warm, _sock: socket.socket) -> None:
        (own_roots / "config.toml").write_text("[pool")
        assert await one._check()

    living(body)
