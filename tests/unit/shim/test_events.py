"""Events reach containerd in order, whatever becomes of containerd meanwhile."""

from __future__ import annotations

import asyncio
import logging
import socket
import sys
import time
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest

from hako.errors import ConfigError, HypervisorError
from hako.shim import events
from hako.shim.event_messages import SERVICE, Event, ForwardRequest, TaskCreate, TaskExit, TaskOOM, TaskStart
from hako.shim.events import Publisher
from hako.shim.messages import Any, Empty, Mount, Request
from hako.shim.ttrpc import Method, Server
from hako.wire import frames
from support.agentside import open_fds
from support.hostside import until


class Containerd:
    """The part of containerd that takes events; it can be stopped and started again."""

    def __init__(self, directory: Path) -> None:
        self.path = str(directory / "containerd.sock.ttrpc")
        self.taken: list[str] = []
        self.refuse: dict[str, Exception] = {}
        self.hang = False
        self.requests: list[ForwardRequest] = []
        self._server: Server | None = None

    def start(self) -> None:
        Path(self.path).unlink(missing_ok=True)
        listener = socket.socket(socket.AF_UNIX)
        listener.bind(self.path)
        listener.listen(16)
        self._server = Server(listener, {SERVICE: {"Forward": Method(ForwardRequest, self._forward)}})

    def stop(self) -> None:
        if self._server is not None:
            self._server.close()
            self._server = None

    async def _forward(self, request: ForwardRequest) -> Empty:
        assert request.envelope is not None
        assert request.envelope.event is not None
        if self.hang:
            await asyncio.Event().wait()
        event = request.envelope.event.unpack(TaskOOM)
        name = event.container_id if event is not None else request.envelope.topic
        if name in self.refuse:
            raise self.refuse[name]
        self.requests.append(request)
        self.taken.append(name)
        return Empty()


Body = Callable[[Containerd, Publisher], Awaitable[None]]


def run(directory: Path, monkeypatch: pytest.MonkeyPatch, body: Body) -> None:
    monkeypatch.setattr(events, "_DELAYS", (0.01, 0.02))

    async def main() -> None:
        containerd = Containerd(directory)
        publisher = Publisher(containerd.path, "moby")
        try:
            await asyncio.wait_for(body(containerd, publisher), 30)
        finally:
            await publisher.close()
            containerd.stop()
        await asyncio.sleep(0.01)

    before = open_fds()
    asyncio.run(main())
    assert open_fds() == before


def named(*numbers: int) -> list[str]:
    return [f"c{number}" for number in numbers]


def publish(publisher: Publisher, *numbers: int) -> None:
    for name in named(*numbers):
        publisher.publish(TaskOOM(container_id=name))


def test_an_event_as_containerd_sees_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async def body(containerd: Containerd, publisher: Publisher) -> None:
        containerd.start()
        before = time.time()
        event = TaskCreate(container_id="c", bundle="/b", rootfs=[Mount(type="overlay")], pid=5)
        publisher.publish(event)
        assert await publisher.drain(10)
        (request,) = containerd.requests
        envelope = request.envelope
        assert envelope is not None
        assert (envelope.namespace, envelope.topic) == ("moby", "/tasks/create")
        assert envelope.event == Any(type_url="containerd.events.TaskCreate", value=event.encode())
        assert envelope.timestamp is not None
        assert before - 1 < envelope.timestamp.seconds + envelope.timestamp.nanos / 1e9 < time.time() + 1

    run(tmp_path, monkeypatch, body)


def test_the_call_says_which_namespace_it_is_about(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async def body(containerd: Containerd, publisher: Publisher) -> None:
        seen: list[Request] = []

        async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            decoder = frames.Decoder()
            while data := await reader.read(1 << 16):
                for frame in decoder.feed(data):
                    seen.append(Request.decode(frame.data))
                    writer.write(frames.encode(frame.stream, frames.RESPONSE))
            writer.close()

        server = await asyncio.start_unix_server(serve, containerd.path)
        publish(publisher, 1)
        assert await publisher.drain(10)
        await publisher.close()
        await asyncio.sleep(0.01)
        server.close()
        (call,) = seen
        assert (call.service, call.method) == ("containerd.services.events.ttrpc.v1.Events", "Forward")
        assert [(one.key, one.value) for one in call.metadata] == [("containerd-namespace-ttrpc", "moby")]
        assert call.timeout_nano == 5_000_000_000

    run(tmp_path, monkeypatch, body)


def test_order(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async def body(containerd: Containerd, publisher: Publisher) -> None:
        containerd.start()
        publish(publisher, *range(500))
        assert containerd.taken == []
        assert await publisher.drain(10)
        assert containerd.taken == named(*range(500))

    run(tmp_path, monkeypatch, body)


def test_events_wait_for_containerd(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async def body(containerd: Containerd, publisher: Publisher) -> None:
        publish(publisher, *range(10))
        assert not await publisher.drain(0.05)
        containerd.start()
        assert await publisher.drain(10)
        assert containerd.taken == named(*range(10))

    run(tmp_path, monkeypatch, body)


@pytest.mark.parametrize("seen", [True, False])
def test_containerd_restarts(seen: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whether or not the publisher has noticed before its next event."""

    async def body(containerd: Containerd, publisher: Publisher) -> None:
        containerd.start()
        for number in range(5):
            publish(publisher, 2 * number)
            assert await publisher.drain(10)
            containerd.stop()
            if seen:
                await until(lambda: publisher._client is None or publisher._client.closed)
                publish(publisher, 2 * number + 1)
                await asyncio.sleep(0.03)
                containerd.start()
            else:
                containerd.start()
                publish(publisher, 2 * number + 1)
            assert await publisher.drain(10)
        assert containerd.taken == named(*range(10))

    run(tmp_path, monkeypatch, body)


def test_containerd_stops_while_it_takes_an_event(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async def body(containerd: Containerd, publisher: Publisher) -> None:
        containerd.hang = True
        containerd.start()
        publish(publisher, 1, 2)
        await asyncio.sleep(0.05)
        containerd.stop()
        containerd.hang = False
        containerd.start()
        assert await publisher.drain(10)
        assert containerd.taken == named(1, 2)

    run(tmp_path, monkeypatch, body)


def test_containerd_hangs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(events, "_TRY_SECONDS", 0.05)

    async def body(containerd: Containerd, publisher: Publisher) -> None:
        containerd.hang = True
        containerd.start()
        publish(publisher, 1, 2)
        assert not await publisher.drain(0.2)
        containerd.hang = False
        assert await publisher.drain(10)
        assert containerd.taken == named(1, 2)

    run(tmp_path, monkeypatch, body)


def test_an_event_that_is_refused_is_dropped_in_the_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    async def body(containerd: Containerd, publisher: Publisher) -> None:
        containerd.start()
        containerd.refuse["c2"] = ConfigError("no such namespace")
        publish(publisher, 1, 2, 3)
        assert await publisher.drain(10)
        assert containerd.taken == named(1, 3)

    run(tmp_path, monkeypatch, body)
    assert "Dropped the event /tasks/oom, which containerd does not take: no such namespace" in caplog.text


def test_containerd_that_is_not_ready_yet_is_waited_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async def body(containerd: Containerd, publisher: Publisher) -> None:
        containerd.start()
        containerd.refuse["c1"] = HypervisorError("starting")
        publish(publisher, 1, 2)
        await asyncio.sleep(0.3)  # many more tries than a refused event has
        assert containerd.taken == []
        containerd.refuse.clear()
        assert await publisher.drain(10)
        assert containerd.taken == named(1, 2)

    run(tmp_path, monkeypatch, body)


def test_the_queue_is_bounded_and_keeps_what_is_new(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(events, "_MAX_QUEUED", 3)

    async def body(containerd: Containerd, publisher: Publisher) -> None:
        publish(publisher, 0)
        await asyncio.sleep(0.05)  # it is on its way, and no longer in the queue
        publish(publisher, *range(1, 8))
        containerd.start()
        assert await publisher.drain(10)
        assert containerd.taken == named(0, 5, 6, 7)

    run(tmp_path, monkeypatch, body)
    assert caplog.text.count("Dropped the event /tasks/oom") == 4


def test_closing_gives_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async def body(containerd: Containerd, publisher: Publisher) -> None:
        publish(publisher, 1)
        await asyncio.sleep(0.02)
        await publisher.close()
        publish(publisher, 2)
        containerd.start()
        await asyncio.sleep(0.05)
        assert containerd.taken == []
        await publisher.close()

    run(tmp_path, monkeypatch, body)


# Without a ttrpc address.

_PROGRAM = """
import os, sys
if os.path.exists({stop!r}):
    sys.exit("containerd is not there")
with open({log!r}, "ab") as log:
    log.write(repr((sys.argv[1:], sys.stdin.buffer.read())).encode() + b"\\n")
"""


def through_program(tmp_path: Path, published: list[Event]) -> list[tuple[list[str], bytes]]:
    """What a program that takes events has seen of ``published``."""
    script, log = tmp_path / "publish.py", tmp_path / "log"
    script.write_text(_PROGRAM.format(log=str(log), stop=str(tmp_path / "stop")))

    async def main() -> None:
        publisher = Publisher("", "k8s.io", [sys.executable, "-IS", str(script), "--address", "/a.sock"])
        for event in published:
            publisher.publish(event)
        assert await publisher.drain(20)
        await publisher.close()

    asyncio.run(main())
    return [eval(line) for line in log.read_text().splitlines()] if log.exists() else []


def test_events_through_the_program(tmp_path: Path) -> None:
    published: list[Event] = [TaskStart(container_id="c", pid=3), TaskExit(container_id="c", id="c", exit_status=1)]
    seen = through_program(tmp_path, published)
    assert [argv for argv, _ in seen] == [
        ["--address", "/a.sock", "publish", "--topic", topic, "--namespace", "k8s.io"]
        for topic in ("/tasks/start", "/tasks/exit")
    ]
    assert [Any.decode(data) for _, data in seen] == [Any.pack(event) for event in published]


def test_the_program_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    monkeypatch.setattr(events, "_DELAYS", (0.01,))
    (tmp_path / "stop").touch()
    assert through_program(tmp_path, [TaskOOM(container_id="c")]) == []
    assert "containerd is not there" in caplog.text


def test_nobody_wants_events(caplog: pytest.LogCaptureFixture) -> None:
    async def main() -> None:
        publisher = Publisher("", "default")
        publisher.publish(TaskOOM(container_id="c"))
        assert await publisher.drain(0)
        await publisher.close()

    with caplog.at_level(logging.DEBUG):
        asyncio.run(main())
    assert not [record for record in caplog.records if record.name.startswith("hako")]
