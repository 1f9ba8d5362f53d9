"""Both ends of the connection whose throughput is measured, run here on the loopback interface."""

from __future__ import annotations

import contextlib
import pathlib
import socket
import sys
from collections.abc import Iterator

import pytest

from bench import commands, peer
from bench.model import BenchError
from bench.pieces import engines, files, streams

PEER = [sys.executable, "-IS", engines._PEER]


@pytest.fixture
def port() -> str:
    """A port that nobody listens on."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        return str(free.getsockname()[1])


@contextlib.contextmanager
def ends(port: str) -> Iterator[commands.Session]:
    """A connected pair; the one that connects is there first."""
    with commands.session([*PEER, "connect", "127.0.0.1", port]) as session, commands.Command([*PEER, "serve", port]):
        assert session.line() == "connected"
        yield session


def test_bytes_and_turns(port: str) -> None:
    with ends(port) as session:
        for line in ("turns 3", f"send {3 * peer._CHUNK + 1}", "receive 1", f"receive {5 << 20}", "send 0", "turns 1"):
            assert session.ask(line, "ok") > 0


def test_a_second_connection_is_answered_after_the_first(port: str) -> None:
    with ends(port) as session:
        session.ask("turns 1", "ok")
        session.close_input()
        assert session.command.ended(30)
        with commands.session([*PEER, "connect", "127.0.0.1", port]) as second:
            assert second.line() == "connected"
            second.ask("receive 100", "ok")


def test_bytes_that_do_not_come_are_missed(port: str) -> None:
    with (
        commands.session([*PEER, "connect", "127.0.0.1", port]) as session,
        socket.create_server(("127.0.0.1", int(port))) as listener,
    ):
        connection, _ = listener.accept()
        assert session.line() == "connected"
        session.send("receive 100")
        connection.recv(peer._REQUEST.size)
        connection.sendall(b"x" * 99)
        connection.close()
        with pytest.raises(BenchError, match="EOFError: the connection has ended"):
            session.line()


def test_the_program_is_given_to_containers_whole() -> None:
    loader, python, *options, text, role, port = files.python_argv(engines._PEER, "serve", "1")
    assert loader == files.loader(sys.executable)
    assert pathlib.Path(python).samefile(sys.executable)
    assert options == ["-ISc"]
    assert text == pathlib.Path(engines._PEER).read_text()
    assert (role, port) == ("serve", "1")


@pytest.mark.parametrize(
    ("rate", "seconds", "mib"), [(100.0, 1.0, 95), (0.1, 1.0, 1), (100.0, 0.001, 1), (1e6, 1.0, 512), (10.5, 1.0, 10)]
)
def test_what_is_sent_takes_about_as_long_as_is_wanted(rate: float, seconds: float, mib: int) -> None:
    assert streams.amount(rate, seconds) == mib << 20
