"""ttrpc over real sockets: concurrent calls, hostile clients and servers, and nothing left behind."""

from __future__ import annotations

import asyncio
import os
import socket
import threading
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from hako.errors import AgentError, HakoError, NotFoundError, StateError, TimedOutError
from hako.sandbox import serving
from hako.shim.messages import Empty, KeyValue, Request, Response
from hako.shim.task_messages import ShutdownRequest, StateRequest, StateResponse, WaitRequest, WaitResponse
from hako.shim.ttrpc import Client, ClosedError, Method, Server
from hako.wire import calls, frames
from support.agentside import open_fds
from support.hostside import until

SERVICE = "containerd.task.v2.Task"


class Handlers:
    """A service whose methods do what their requests say."""

    def __init__(self) -> None:
        self.waiting = 0
        self.cancelled = 0
        self.release = asyncio.Event()

    async def state(self, request: StateRequest) -> StateResponse:
        if request.id == "missing":
            raise NotFoundError("there is no such container")
        if request.id == "odd":
            raise StateError("/\udcff")
        if request.id == "crash":
            raise ZeroDivisionError("by zero")
        if request.id == "slow":
            raise TimeoutError("something else took too long")
        if request.id == "interrupted":
            raise asyncio.CancelledError
        if request.id.startswith("big"):
            return StateResponse(bundle="x" * int(request.id[3:]))
        if request.id == "wrong":
            return StateResponse(pid=-1)
        return StateResponse(id=request.id, pid=7)

    async def wait(self, _request: WaitRequest) -> WaitResponse:
        self.waiting += 1
        try:
            await self.release.wait()
        except asyncio.CancelledError:
            self.cancelled += 1
            raise
        finally:
            self.waiting -= 1
        return WaitResponse(exit_status=3)

    def services(self) -> dict[str, dict[str, Method]]:
        return {SERVICE: {"State": Method(StateRequest, self.state), "Wait": Method(WaitRequest, self.wait)}}


class Place:
    """A server at a socket in ``directory``, and its handlers."""

    def __init__(self, directory: Path) -> None:
        self.path = str(directory / "t.sock")
        Path(self.path).unlink(missing_ok=True)
        self.handlers = Handlers()
        listener = socket.socket(socket.AF_UNIX)
        listener.bind(self.path)
        listener.listen(16)
        self.server = Server(listener, self.handlers.services())

    def connect(self) -> socket.socket:
        """A plain client that waits at most ten seconds for each answer."""
        sock = socket.socket(socket.AF_UNIX)
        sock.settimeout(10)
        sock.connect(self.path)
        return sock


Body = Callable[[Place], Awaitable[None]]


def run(directory: Path, body: Body) -> None:
    before = open_fds()

    async def main() -> None:
        place = Place(directory)
        try:
            await asyncio.wait_for(body(place), 30)
        finally:
            place.server.close()
        await asyncio.sleep(0.01)  # cancelled tasks get their turn

    asyncio.run(main())
    assert open_fds() == before


def request(number: int, container: str = "a", method: str = "State", flags: int = 0, **more: int) -> bytes:
    payload = StateRequest(id=container).encode()
    call = Request(service=SERVICE, method=method, payload=payload, **more)
    return frames.encode(number, frames.REQUEST, call.encode(), flags)


async def answers(sock: socket.socket, count: int) -> list[tuple[int, int, str]]:
    """The next ``count`` answers: stream, status code and its message, or the id in the answer."""
    decoder, found = frames.Decoder(), list[tuple[int, int, str]]()
    while len(found) < count:
        data = await asyncio.to_thread(sock.recv, 1 << 20)
        assert data, "the server has closed the connection"
        for frame in decoder.feed(data):
            assert (frame.kind, frame.flags) == (frames.RESPONSE, 0)
            response = Response.decode(frame.data)
            if response.status is not None and response.status.code:
                found.append((frame.stream, response.status.code, response.status.message))
            else:
                found.append((frame.stream, 0, StateResponse.decode(response.payload).id))
    return found


def test_calls_run_beside_each_other(tmp_path: Path) -> None:
    async def body(place: Place) -> None:
        client = await Client.connect(f"unix://{place.path}")
        waits = [
            asyncio.create_task(client.call(SERVICE, "Wait", WaitRequest(id="a"), WaitResponse)) for _ in range(50)
        ]
        states = await asyncio.gather(
            *(client.call(SERVICE, "State", StateRequest(id=f"c{n}"), StateResponse) for n in range(50))
        )
        assert [one.id for one in states] == [f"c{n}" for n in range(50)]
        await until(lambda: place.handlers.waiting == 50)
        assert not any(one.done() for one in waits)
        place.handlers.release.set()
        assert {one.exit_status for one in await asyncio.gather(*waits)} == {3}
        await client.close()

    run(tmp_path, body)


@pytest.mark.parametrize(
    ("container", "kind", "code", "text"),
    [
        ("missing", NotFoundError, 5, "^there is no such container$"),
        ("odd", StateError, 9, r"^/\?$"),
        ("crash", AgentError, 13, "Task/State: ZeroDivisionError: by zero"),
        ("slow", AgentError, 13, "TimeoutError: something else took too long"),
        ("wrong", AgentError, 13, r"ProtobufError: StateResponse.pid: -1 is not between 0 and"),
        ("big5000000", AgentError, 8, "more than the limit of 4194304"),
    ],
)
def test_errors(container: str, kind: type[HakoError], code: int, text: str, tmp_path: Path) -> None:
    async def body(place: Place) -> None:
        client = await Client.connect(place.path)
        with pytest.raises(kind, match=text) as raised:
            await client.call(SERVICE, "State", StateRequest(id=container), StateResponse)
        assert raised.value.grpc_code == code
        assert (await client.call(SERVICE, "State", StateRequest(id="b"), StateResponse)).id == "b"
        await client.close()

    run(tmp_path, body)


def test_a_handler_whose_own_work_was_cancelled_is_answered_for(tmp_path: Path) -> None:
    async def body(place: Place) -> None:
        with place.connect() as sock:
            sock.sendall(request(1, "interrupted"))
            assert await answers(sock, 1) == [(1, 14, f"{SERVICE}/State was interrupted")]

    run(tmp_path, body)


def test_services_and_methods_that_do_not_exist(tmp_path: Path) -> None:
    async def body(place: Place) -> None:
        client = await Client.connect(place.path)
        for service, method, text in (
            ("other.Service", "State", "other.Service/State: there is no such service"),
            (SERVICE, "Other", "there is no such method"),
            ("", "", "no such service"),
        ):
            with pytest.raises(AgentError, match=text) as raised:
                await client.call(service, method, Empty(), Empty)
            assert raised.value.grpc_code == 12
        place.server.add(
            {SERVICE: {"Shutdown": Method(ShutdownRequest, _nothing)}, "new": {"X": Method(Empty, _nothing)}}
        )
        await client.call(SERVICE, "Shutdown", ShutdownRequest(id="a", now=True), Empty)
        await client.call("new", "X", Empty(), Empty)
        assert (await client.call(SERVICE, "State", StateRequest(id="a"), StateResponse)).pid == 7
        await client.close()

    run(tmp_path, body)


async def _nothing(_request: object) -> Empty:
    return Empty()


def test_a_bad_request_fails_alone(tmp_path: Path) -> None:
    async def body(place: Place) -> None:
        with place.connect() as sock:
            undecodable = Request(service=SERVICE, method="State", payload=b"\xff\xff").encode()
            sock.sendall(
                request(5)
                + request(5)
                + request(3)
                + request(8)
                + request(0)
                + frames.encode(7, frames.REQUEST, b"\xff")
                + frames.encode(9, frames.REQUEST, undecodable)
                + frames.encode(11, frames.REQUEST, b"")
                + frames.encode(5, frames.DATA, b"x")
                + frames.encode(13, frames.RESPONSE, b"x")
                + frames.encode(13, frames.CREDIT, b"x")
                + frames.encode(13, 77, b"x")
                + request(13, flags=frames.FLAG_REMOTE_OPEN)
                + request(15, flags=frames.FLAG_REMOTE_CLOSED)
            )
            found = await answers(sock, 11)
            assert sorted((stream, code) for stream, code, _ in found) == [
                (0, 3), (3, 3), (5, 0), (5, 3), (5, 3), (7, 3), (8, 3), (9, 3), (11, 12), (13, 12), (15, 0),
            ]  # fmt: skip
            texts = {(stream, code): text for stream, code, text in found}
            assert "odd numbers" in texts[8, 3]
            assert "5 has been used" in texts[3, 3]
            assert "the request is malformed" in texts[7, 3]
            assert "Task/State: the request is malformed" in texts[9, 3]
            assert "not a streaming method" in texts[13, 12]

    run(tmp_path, body)


def test_a_message_that_is_too_long_fails_alone(tmp_path: Path) -> None:
    async def body(place: Place) -> None:
        with place.connect() as sock:
            long = frames.encode(1, frames.REQUEST, bytes(frames.MAX_DATA + 1))
            longest = Request(service=SERVICE, method="State", payload=StateRequest(id="b").encode())
            longest.metadata = [KeyValue(key="k", value="")]
            longest.metadata = [KeyValue(key="k", value="v" * (frames.MAX_DATA - len(longest.encode()) - 8))]
            assert frames.MAX_DATA - 8 < len(longest.encode()) <= frames.MAX_DATA
            sending = asyncio.to_thread(
                sock.sendall, request(1) + long + frames.encode(3, frames.REQUEST, longest.encode()) + request(5)
            )
            _, found = await asyncio.gather(sending, answers(sock, 4))
            assert sorted(found) == [
                (1, 0, "a"),
                (1, 8, "a message of 4194305 bytes exceeds the limit of 4194304"),
                (3, 0, "b"),
                (5, 0, "a"),
            ]

    run(tmp_path, body)


def test_a_call_whose_time_is_up(tmp_path: Path) -> None:
    async def body(place: Place) -> None:
        with place.connect() as sock:
            sock.sendall(
                request(1, method="Wait", timeout_nano=50_000_000) + request(3, method="Wait", timeout_nano=-1)
            )
            found = await answers(sock, 2)
            assert sorted(found) == [
                (1, 4, f"{SERVICE}/Wait took longer than 0.05 s"),
                (3, 4, f"{SERVICE}/Wait took longer than -1e-09 s"),
            ]
            assert place.handlers.cancelled == 2
        client = await Client.connect(place.path)
        with pytest.raises(TimedOutError, match=r"Wait|took longer"):
            await client.call(SERVICE, "Wait", WaitRequest(id="a"), WaitResponse, timeout=0.05)
        assert (await client.call(SERVICE, "State", StateRequest(id="a"), StateResponse, timeout=10)).pid == 7
        await until(lambda: place.handlers.cancelled == 3)
        await client.close()

    run(tmp_path, body)


def test_a_client_that_goes_away_cancels_its_calls(tmp_path: Path) -> None:
    async def body(place: Place) -> None:
        with place.connect() as sock, place.connect() as other:
            sock.sendall(request(1, method="Wait") + request(3, method="Wait"))
            other.sendall(request(1, method="Wait"))
            await until(lambda: place.handlers.waiting == 3)
            sock.close()
            await until(lambda: place.handlers.cancelled == 2)
            place.handlers.release.set()
            assert await answers(other, 1) == [(1, 0, "")]

    run(tmp_path, body)


def test_draining_waits_for_calls_under_way(tmp_path: Path) -> None:
    async def body(place: Place) -> None:
        with place.connect() as sock:
            sock.sendall(request(1, method="Wait"))
            await until(lambda: place.handlers.waiting)
            await place.server.drain(0.01)
            assert place.handlers.waiting == 1
            draining = asyncio.create_task(place.server.drain(20))
            place.handlers.release.set()
            await draining
            assert place.handlers.waiting == 0
            assert await answers(sock, 1) == [(1, 0, "")]

    run(tmp_path, body)


def test_clients_are_given_time_to_go(tmp_path: Path) -> None:
    async def body(place: Place) -> None:
        await asyncio.wait_for(place.server.let_go(20), 5)
        with place.connect() as sock:
            sock.sendall(request(1))
            assert await answers(sock, 1) == [(1, 0, "a")]
            await place.server.let_go(0.01)  # nobody waits for one who stays for good
            letting_go = asyncio.create_task(place.server.let_go(20))
            await asyncio.sleep(0.02)
            assert not letting_go.done()
        await asyncio.wait_for(letting_go, 5)

    run(tmp_path, body)


def test_there_is_a_limit_of_calls_at_a_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(calls, "MAX_CALLS", 3)

    async def body(place: Place) -> None:
        with place.connect() as sock:
            sock.sendall(b"".join(request(number, method="Wait") for number in (1, 3, 5, 7)))
            assert await answers(sock, 1) == [(7, 8, "more than 3 calls at a time")]
            place.handlers.release.set()
            assert sorted(await answers(sock, 3)) == [(1, 0, ""), (3, 0, ""), (5, 0, "")]
            sock.sendall(request(9))
            assert await answers(sock, 1) == [(9, 0, "a")]

    run(tmp_path, body)


def test_a_client_that_takes_no_answers_is_not_listened_to(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(serving, "_MAX_ANSWERS", 1 << 20)

    async def body(place: Place) -> None:
        with place.connect() as sock:
            count = 200
            # Padded, so that few of them fit in the socket: the server stops reading, and the client must wait.
            pad = [KeyValue(key="pad", value="x" * 20_000)]
            call = Request(service=SERVICE, method="State", payload=StateRequest(id="big50000").encode(), metadata=pad)
            pieces = [frames.encode(2 * n + 1, frames.REQUEST, call.encode()) for n in range(count)]
            sending = threading.Thread(target=lambda: [sock.sendall(piece) for piece in pieces])
            sending.start()
            await until(lambda: place.server._connections)
            (connection,) = place.server._connections
            await until(lambda: connection._deaf)
            await asyncio.sleep(0.05)
            assert len(connection._outgoing) < 3 << 20
            decoder, found = frames.Decoder(), 0
            while found < count:
                found += len(decoder.feed(await asyncio.to_thread(sock.recv, 1 << 20)))
            sending.join()

    run(tmp_path, body)


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root")
@pytest.mark.parametrize("ids", [(65534, 65534), (0, 65534), (65534, 0)])
def test_other_users_and_groups_are_turned_away(ids: tuple[int, int], tmp_path: Path) -> None:
    async def body(place: Place) -> None:
        for directory in [*Path(place.path).parents][:-1]:
            if directory.is_relative_to(tmp_path):
                os.chmod(directory, 0o777)
        os.chmod(place.path, 0o666)
        pid = os.fork()
        if pid == 0:
            status = 1
            try:
                os.chdir(os.path.dirname(place.path))
                os.setresgid(ids[1], ids[1], ids[1])
                os.setresuid(ids[0], ids[0], ids[0])
                sock = socket.socket(socket.AF_UNIX)
                sock.connect("t.sock")
                sock.sendall(request(1))
                status = 0 if sock.recv(100) == b"" else 2
            except ConnectionError:
                status = 0
            finally:
                os._exit(status)
        _, code = await asyncio.to_thread(os.waitpid, pid, 0)
        assert code == 0
        assert place.server._connections == set()
        with place.connect() as sock:
            sock.sendall(request(1))
            assert await answers(sock, 1) == [(1, 0, "a")]

    run(tmp_path, body)


some_requests = st.builds(
    lambda number, container, method, flags, timeout: request(number, container, method, flags, timeout_nano=timeout),
    st.integers(0, 9),
    st.sampled_from(["a", "missing", "crash", "interrupted", "wrong", "big100000"]),
    st.sampled_from(["State", "Wait", "Other"]),
    st.integers(0, 7),
    st.sampled_from([0, 1, 1_000_000]),
)
some_frames = st.builds(
    frames.encode,
    stream=st.integers(0, 9),
    kind=st.integers(0, 5),
    data=st.binary(max_size=40),
    flags=st.integers(0, 7),
)
too_long = st.builds(lambda number: frames.HEADER.pack(frames.MAX_DATA + 9, number, 1, 0), st.integers(0, 9))


@settings(max_examples=80, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(some_requests | some_frames | too_long | st.binary(min_size=1, max_size=60), max_size=8))
def test_any_bytes(tmp_path: Path, sent: list[bytes]) -> None:
    """The server serves the next client, and nothing of the last one stays."""

    async def body(place: Place) -> None:
        with place.connect() as sock:
            for data in sent:
                sock.sendall(data)
                await asyncio.sleep(0)
            client = await Client.connect(place.path)
            assert (await client.call(SERVICE, "State", StateRequest(id="z"), StateResponse)).id == "z"
            await client.close()
        await until(lambda: not place.server._connections)
        assert place.handlers.waiting == 0

    run(tmp_path, body)


def test_a_client_that_is_closed_ends_its_calls(tmp_path: Path) -> None:
    async def body(place: Place) -> None:
        client = await Client.connect(place.path)
        pending = asyncio.create_task(client.call(SERVICE, "Wait", WaitRequest(), WaitResponse))
        await until(lambda: place.handlers.waiting)
        await client.close()
        with pytest.raises(ClosedError, match="has been closed"):
            await pending
        await until(lambda: place.handlers.cancelled == 1)
        await client.close()

    run(tmp_path, body)


def test_a_request_that_is_too_long(tmp_path: Path) -> None:
    async def body(place: Place) -> None:
        client = await Client.connect(place.path)
        with pytest.raises(AgentError, match="State: the request has 4194") as raised:
            await client.call(SERVICE, "State", StateRequest(id="x" * frames.MAX_DATA), StateResponse)
        assert raised.value.grpc_code == 8
        longest = StateRequest(id="x" * (frames.MAX_DATA - 100))
        assert (await client.call(SERVICE, "State", longest, StateResponse)).id == longest.id
        await client.close()

    run(tmp_path, body)
