"""The control socket: calls with descriptors, hostile clients, and no descriptor left behind whatever happens."""

from __future__ import annotations

import array
import asyncio
import os
import socket
import threading
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from hako.errors import AgentError, CommandError, ConfigError, HakoError, NotFoundError, ProtocolError, StateError
from hako.sandbox import client, serving
from hako.sandbox.control import MAX_FDS, Connection, ControlServer, Fds
from hako.wire import calls, frames
from support.agentside import open_fds
from support.hostside import until

NAMES = ("stdin", "stdout", "stderr")


async def handler(_connection: Connection, method: str, params: dict[str, Any], fds: Fds) -> dict[str, Any]:
    """Does what the method's name says."""
    if method == "Echo":
        return {"params": params}
    if method == "Write":
        for name, fd in fds.take(params.get("stdio", []), NAMES).items():
            os.write(fd, name.encode())
            os.close(fd)
        return {}
    if method == "Keep":
        await asyncio.Event().wait()
    if method == "Big":
        return {"text": "x" * calls.MAX_CALL}
    if method == "State":
        raise StateError("it is stopped")
    if method == "Command":
        raise CommandError("no such command", exit_code=127)
    raise ZeroDivisionError("by zero")


Body = Callable[[str, ControlServer], Awaitable[None]]


def run(root: Path, monkeypatch: pytest.MonkeyPatch, body: Body) -> None:
    """Serve a sandbox named ``s`` below ``root`` while ``body`` runs; all descriptors must be closed at the end."""
    monkeypatch.setenv("HAKO_STATE_ROOT", str(root))
    path = client.socket_path("s")
    os.makedirs(os.path.dirname(path), exist_ok=True)
    before = open_fds()

    async def main() -> None:
        Path(path).unlink(missing_ok=True)
        server = ControlServer(client.listen(path), handler)
        try:
            await asyncio.wait_for(body("s", server), 30)
        finally:
            server.close()
        await asyncio.sleep(0.01)  # cancelled tasks get their turn

    asyncio.run(main())
    assert open_fds() == before


async def call(method: str, params: dict[str, Any] | None = None, fds: list[int] | None = None) -> dict[str, Any]:
    return await asyncio.to_thread(client.call, "s", method, params or {}, fds)


def request(number: int, method: str, **params: Any) -> bytes:
    return frames.encode(number, frames.REQUEST, calls.encode_request(method, params))


def send_with_fds(sock: socket.socket, data: bytes, fds: list[int]) -> None:
    sock.sendmsg([data], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", fds))])


def test_round_trip(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async def body(_name: str, _server: ControlServer) -> None:
        assert await call("Echo", {"a": [1, "ü"]}) == {"params": {"a": [1, "ü"]}}
        many = await asyncio.gather(*(call("Echo", {"n": n}) for n in range(20)))
        assert [one["params"]["n"] for one in many] == list(range(20))

    run(tmp_path, monkeypatch, body)


def test_descriptors_come_along_in_order(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async def body(_name: str, _server: ControlServer) -> None:
        pipes = [os.pipe() for _ in NAMES]
        await call("Write", {"stdio": list(NAMES)}, [write for _, write in pipes])
        for name, (read, write) in zip(NAMES, pipes, strict=True):
            os.close(write)
            assert os.read(read, 100) == name.encode()
            assert os.read(read, 100) == b"", "the sandbox has closed its copy"
            os.close(read)

    run(tmp_path, monkeypatch, body)


@pytest.mark.parametrize(
    "stdio", [["stdin"], ["stdin", "stdin"], ["stdin", "other"], "stdin", [1, 2], [["stdin"], "stdout"], {}]
)
def test_descriptors_that_do_not_fit_their_names(
    stdio: object, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def body(_name: str, _server: ControlServer) -> None:
        with open("/dev/null", "rb") as one, open("/dev/null", "rb") as two, pytest.raises(ConfigError, match="stdio"):
            await call("Write", {"stdio": stdio}, [one.fileno(), two.fileno()])

    run(tmp_path, monkeypatch, body)


@pytest.mark.parametrize(
    ("method", "kind", "text"),
    [
        ("State", StateError, "it is stopped"),
        ("Command", CommandError, "no such command"),
        ("Big", AgentError, "more than the limit"),
        ("Crash", AgentError, "Crash: ZeroDivisionError: by zero"),
    ],
)
def test_errors(method: str, kind: type[HakoError], text: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async def body(_name: str, _server: ControlServer) -> None:
        with pytest.raises(kind, match=text) as raised:
            await call(method)
        if kind is CommandError:
            assert raised.value.exit_code == 127

    run(tmp_path, monkeypatch, body)


def test_a_call_that_is_too_long(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async def body(_name: str, _server: ControlServer) -> None:
        with pytest.raises((AgentError, calls.CallError), match="the call Echo has"):
            await call("Echo", {"text": "x" * calls.MAX_CALL})

    run(tmp_path, monkeypatch, body)


def test_there_is_no_such_sandbox(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HAKO_STATE_ROOT", str(tmp_path))
    before = open_fds()
    with pytest.raises(NotFoundError, match="Sandbox missing is not running"):
        client.call("missing", "State", {})
    assert open_fds() == before


def test_the_socket_is_for_its_owner_only(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async def body(name: str, _server: ControlServer) -> None:
        assert os.stat(client.socket_path(name)).st_mode & 0o777 == 0o600

    run(tmp_path, monkeypatch, body)


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root")
def test_other_users_are_turned_away(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async def body(name: str, server: ControlServer) -> None:
        path = client.socket_path(name)
        for directory in [*Path(path).parents][:-1]:
            if directory.is_relative_to(tmp_path):
                os.chmod(directory, 0o777)
        os.chmod(path, 0o666)
        pid = os.fork()
        if pid == 0:
            status = 1
            try:
                os.chdir(os.path.dirname(path))
                os.setresuid(65534, 65534, 65534)
                sock = socket.socket(socket.AF_UNIX)
                sock.connect("control.sock")
                sock.sendall(request(1, "Echo"))
                status = 0 if sock.recv(100) == b"" else 2
            except ConnectionError:
                status = 0
            finally:
                os._exit(status)
        _, code = await asyncio.to_thread(os.waitpid, pid, 0)
        assert code == 0
        assert server._connections == set()

    run(tmp_path, monkeypatch, body)


def test_paths_may_be_long(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    deep = tmp_path / ("d" * 100) / ("e" * 100)

    async def body(_name: str, _server: ControlServer) -> None:
        assert await call("Echo") == {"params": {}}

    run(deep, monkeypatch, body)


def test_a_client_that_goes_away_cancels_its_calls_and_closes_its_descriptors(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def body(name: str, server: ControlServer) -> None:
        read, write = os.pipe()
        with client.connect(name) as sock:
            send_with_fds(sock, request(1, "Keep", fds=1), [write])
            os.close(write)
            await until(lambda: server._connections and next(iter(server._connections)).tasks)
        assert await asyncio.to_thread(os.read, read, 1) == b""
        os.close(read)
        await until(lambda: not server._connections)

    run(tmp_path, monkeypatch, body)


def test_descriptors_of_a_call_that_never_ran(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Request and rubbish arrive together: the call is cancelled before its first step."""

    async def body(name: str, server: ControlServer) -> None:
        for _ in range(20):
            read, write = os.pipe()
            with client.connect(name) as sock:
                send_with_fds(sock, request(1, "Keep", fds=1) + b"\xff" * 20, [write])
                os.close(write)
                assert await asyncio.to_thread(sock.recv, 100) == b""
            assert await asyncio.to_thread(os.read, read, 1) == b""
            os.close(read)

    run(tmp_path, monkeypatch, body)


@pytest.mark.parametrize("claimed", [-1, 2, "1", True, None, 1.0])
def test_a_number_of_descriptors_that_is_wrong_ends_the_connection(
    claimed: object, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def body(name: str, _server: ControlServer) -> None:
        read, write = os.pipe()
        with client.connect(name) as sock:
            send_with_fds(sock, request(1, "Echo", fds=claimed), [write])
            os.close(write)
            assert await asyncio.to_thread(sock.recv, 100) == b""
        assert await asyncio.to_thread(os.read, read, 1) == b""
        os.close(read)

    run(tmp_path, monkeypatch, body)


def test_stray_descriptors_are_limited(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async def body(name: str, server: ControlServer) -> None:
        with client.connect(name) as sock, open("/dev/null", "rb") as null:
            before = len(open_fds())
            for _ in range(50):
                try:
                    send_with_fds(sock, b"\0", [null.fileno()] * MAX_FDS)
                except OSError:
                    break
                await asyncio.sleep(0.001)
            else:
                pytest.fail("it takes any number of descriptors")
            await until(lambda: not server._connections)
            assert len(open_fds()) <= before

    run(tmp_path, monkeypatch, body)


def test_more_descriptors_than_fit_one_message(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async def body(name: str, server: ControlServer) -> None:
        with client.connect(name) as sock, open("/dev/null", "rb") as null:
            send_with_fds(sock, request(1, "Echo", fds=0), [null.fileno()] * (MAX_FDS + 5))
            assert await asyncio.to_thread(sock.recv, 100) == b""

    run(tmp_path, monkeypatch, body)


def test_a_client_that_takes_no_answers_is_not_listened_to(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(serving, "_MAX_ANSWERS", 1 << 20)

    async def body(name: str, server: ControlServer) -> None:
        with client.connect(name) as sock:
            piece = request(1, "Echo", text="x" * 50_000)
            sending = threading.Thread(target=lambda: [sock.sendall(piece) for _ in range(400)])
            sending.start()
            await until(lambda: server._connections)
            (connection,) = server._connections
            await until(lambda: connection._deaf)
            await asyncio.sleep(0.05)
            assert len(connection._outgoing) < 3 << 20
            decoder, answers = frames.Decoder(), 0
            while answers < 400:
                answers += len(decoder.feed(await asyncio.to_thread(sock.recv, 1 << 20)))
            sending.join()

    run(tmp_path, monkeypatch, body)


def test_a_server_that_is_out_of_descriptors_goes_on_later(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(serving, "_ACCEPT_PAUSE", 0.02)
    tries = 0

    class Exhausted:
        """A listener whose first clients cannot be taken."""

        def __init__(self, listener: socket.socket) -> None:
            self.listener = listener

        def accept(self) -> Any:
            nonlocal tries
            tries += 1
            if tries <= 3:
                raise OSError(24, "Too many open files")
            return self.listener.accept()

        def __getattr__(self, name: str) -> Any:
            return getattr(self.listener, name)

    async def body(name: str, server: ControlServer) -> None:
        server._listener = Exhausted(server._listener)  # type: ignore[assignment]
        assert await call("Echo") == {"params": {}}
        assert tries == 4

    run(tmp_path, monkeypatch, body)


def test_a_sandbox_process_that_breaks_the_protocol() -> None:
    for data, kind in (
        (b"\xff" * 20, ProtocolError),
        (frames.encode(1, frames.RESPONSE, b"{"), ProtocolError),
        (b"", NotFoundError),
    ):
        ours, theirs = socket.socketpair()
        theirs.sendall(data)
        theirs.shutdown(socket.SHUT_WR)
        with ours, theirs, pytest.raises(kind):
            client.exchange(ours, "State", {})


client_frames = st.builds(
    frames.encode,
    stream=st.integers(0, 9),
    kind=st.integers(0, 5),
    data=st.binary(max_size=40)
    | st.sampled_from(
        [b'{"method":"Echo","params":{}}', b'{"method":"Keep","params":{"fds":1}}', b'{"method":"Crash","params":{}}']
    ),
    flags=st.integers(0, 7),
)


@settings(max_examples=80, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.tuples(client_frames | st.binary(min_size=1, max_size=60), st.integers(0, 3)), max_size=8))
def test_any_bytes_with_any_descriptors(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, sent: list[tuple[bytes, int]]
) -> None:
    """The server serves the next client, and no descriptor is lost."""

    async def body(name: str, _server: ControlServer) -> None:
        with client.connect(name) as sock, open("/dev/null", "rb") as null:
            for data, count in sent:
                try:
                    send_with_fds(sock, data, [null.fileno()] * count) if count else sock.sendall(data)
                except OSError:
                    break
            await asyncio.sleep(0)
            assert await call("Echo") == {"params": {}}

    run(tmp_path, monkeypatch, body)
