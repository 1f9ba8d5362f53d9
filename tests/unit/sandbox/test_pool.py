"""The starter's side of the pool: who is in it, what fits, and that a sandbox is never started twice."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from hako import store
from hako.config.settings import Config
from hako.sandbox import pool
from hako.sandbox.spec import SandboxSpec
from hako.sandbox.trace import Trace
from support.agentside import open_fds

_CONFIG = Config({"pool.size": 1})
_SPEC = SandboxSpec("s1", "", 512 << 20, 1)


@pytest.fixture(autouse=True)
def own_roots(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setenv("HAKO_STATE_ROOT", str(tmp_path / "run"))
    monkeypatch.setenv("HAKO_DATA_ROOT", str(tmp_path / "data"))
    before = open_fds()
    yield
    assert open_fds() == before


@contextlib.contextmanager
def entry(warm_id: str = "w1", *, age: int = 0, **state: object) -> Iterator[None]:
    """A warm process in the pool, as far as its files say."""
    os.makedirs(pool.entry_dir(warm_id))
    lock = store.lock(os.path.join(pool.entry_dir(warm_id), "lock"))
    assert lock is not None
    wanted = pool.key(_CONFIG, pool.surroundings())
    made = pool.new_state(warm_id) | {"status": "ready", "pid": os.getpid(), "key": wanted}
    pool.write(made | {"created_ns": made["created_ns"] - age} | state)
    try:
        yield
    finally:
        os.close(lock)


@contextlib.contextmanager
def answering(answer: Callable[[socket.socket, list[int]], None], warm_id: str = "w1") -> Iterator[None]:
    """A warm process that does ``answer`` with the one connection it gets and the descriptors that came over it."""

    def serve() -> None:
        listener.setblocking(True)
        with contextlib.suppress(OSError), listener.accept()[0] as sock:
            _, fds, _, _ = socket.recv_fds(sock, pool.MAX_MESSAGE, 8)
            answer(sock, fds)
            for fd in fds:
                os.close(fd)

    with entry(warm_id):
        listener = pool.listen(warm_id)
        thread = threading.Thread(target=serve)
        thread.start()
        try:
            yield
        finally:
            listener.shutdown(socket.SHUT_RDWR)
            thread.join(20)
            listener.close()


@contextlib.contextmanager
def ends() -> Iterator[list[int]]:
    """Descriptors that stand for a sandbox's."""
    fds = [os.open("/dev/null", os.O_RDONLY) for _ in range(3)]
    yield fds
    for fd in fds:
        os.close(fd)  # they stayed the caller's


def offer(spec: SandboxSpec = _SPEC, config: Config = _CONFIG) -> bool:
    with ends() as fds:
        return pool.hand_over(spec, config, fds, Trace())


def test_it_is_taken_with_all_that_belongs_to_it() -> None:
    got: list[int] = []

    def take(sock: socket.socket, fds: list[int]) -> None:
        got.append(len(fds))
        assert pool.take(fds[-1])
        sock.send(pool.TAKEN)

    with answering(take):
        assert offer()
    assert got == [4]


def test_a_token_can_be_taken_once() -> None:
    read, write = os.pipe2(os.O_NONBLOCK)
    os.write(write, b"1")
    assert pool.take(read)
    assert not pool.take(read)
    os.close(read)
    os.close(write)


def test_one_that_refuses() -> None:
    with answering(lambda _sock, _fds: None):
        assert not offer()


def test_one_that_is_too_slow_finds_nothing_to_take() -> None:
    given_up = threading.Event()
    late: list[bool] = []

    def sleep(_sock: socket.socket, fds: list[int]) -> None:
        given_up.wait(20)
        late.append(pool.take(fds[-1]))

    with answering(sleep):
        assert not offer()
        given_up.set()
    assert late == [False]


def test_one_that_takes_it_late_but_in_time_is_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pool, "_ANSWER_SECONDS", 0.02)
    begun = threading.Event()

    def take(sock: socket.socket, fds: list[int]) -> None:
        assert pool.take(fds[-1])
        begun.wait(0.2)
        sock.send(pool.TAKEN)

    with answering(take):
        assert offer()


def test_one_that_dies_with_it_in_its_hands() -> None:
    with answering(lambda _sock, fds: assert_taken(fds)):
        assert not offer()


def assert_taken(fds: list[int]) -> None:
    assert pool.take(fds[-1])


def test_one_that_stops_with_it_in_its_hands_is_killed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pool, "_COMMITTED_SECONDS", 0.05)
    read, write = os.pipe()
    with entry():
        pid = os.fork()
        if pid == 0:
            try:
                listener = pool.listen("w1")
                listener.setblocking(True)
                os.write(write, b".")
                sock, _ = listener.accept()
                _, fds, _, _ = socket.recv_fds(sock, pool.MAX_MESSAGE, 8)
                pool.take(fds[-1])
                os.kill(os.getpid(), signal.SIGSTOP)
                sock.send(pool.TAKEN)
            finally:
                os._exit(0)
        assert os.read(read, 1) == b"."
        assert not offer()
        assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == -signal.SIGKILL
    os.close(read)
    os.close(write)


def test_the_next_one_is_asked() -> None:
    def take(sock: socket.socket, fds: list[int]) -> None:
        assert pool.take(fds[-1])
        sock.send(pool.TAKEN)

    with entry("gone"), entry("deaf"), answering(take, "w3"):
        pool.listen("deaf").close()
        assert offer()


def test_ten_starts_and_one_warm_one() -> None:
    taken: list[bool] = []

    def take(sock: socket.socket, fds: list[int]) -> None:
        if pool.take(fds[-1]):
            sock.send(pool.TAKEN)

    with answering(take):
        threads = [
            threading.Thread(target=lambda n=n: taken.append(offer(_SPEC._replace(id=f"s{n}")))) for n in range(10)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert sorted(taken) == [False] * 9 + [True]


@pytest.mark.parametrize(
    ("spec", "config"),
    [
        (_SPEC._replace(guest_image="abc"), _CONFIG),
        (_SPEC._replace(vcpus=10_000), _CONFIG),
        (_SPEC._replace(annotations={"dev.hako.template": "false"}), _CONFIG),
        (_SPEC._replace(annotations={"dev.hako.share-msize": "8k"}), _CONFIG),
        (_SPEC._replace(annotations={"dev.hako.no-such": "1"}), _CONFIG),
        (_SPEC._replace(labels={"x": "y" * pool.MAX_MESSAGE}), _CONFIG),
        (_SPEC, Config({"pool.size": 1, "guest.kernel": "/boot/vmlinuz"})),
        (_SPEC, Config({"pool.size": 1, "template.enabled": False})),
        (_SPEC, Config({"pool.size": 1, "sandbox.vcpus": 2})),
    ],
)
def test_what_does_not_fit_is_not_offered(spec: SandboxSpec, config: Config) -> None:
    with answering(lambda _sock, _fds: pytest.fail("it was asked")):
        assert not offer(spec, config)


@pytest.mark.parametrize(
    "values",
    [
        {"hypervisor.cpu_model": "max"},
        {"guest.cmdline_extra": "x"},
        {"share.cache": "none"},
        {"template.directory": "/elsewhere"},
        {"sandbox.memory": 128 << 20},
    ],
)
def test_what_makes_another_vm_makes_another_key(values: dict[str, object]) -> None:
    around = pool.surroundings()
    assert pool.key(Config(values), around) != pool.key(Config({}), around)


@pytest.mark.parametrize("values", [{"sandbox.memory": 4 << 30}, {"log.level": "debug"}, {"pool.max_age": 60.0}])
def test_what_makes_no_other_vm_makes_no_other_key(values: dict[str, object]) -> None:
    around = pool.surroundings()
    assert pool.key(Config(values), around) == pool.key(Config({}), around)


def test_another_guest_image_or_place_makes_another_key(tmp_path: Path) -> None:
    around = pool.surroundings()
    before = pool.key(_CONFIG, around)
    os.makedirs(tmp_path / "data" / "guest-images")
    os.symlink("another", tmp_path / "data" / "guest-images" / "default")
    after = pool.key(_CONFIG, around)
    assert len({before, after, pool.key(_CONFIG, [*around, 1])}) == 3


def test_the_living_are_listed_and_the_dead_removed() -> None:
    with entry("young"), entry("old", age=10**9), entry("making", age=10**8, status="starting"):
        with entry("dead"):
            pass
        os.makedirs(pool.entry_dir("half"))  # its clean-up was killed at the very end
        assert [found.id for found in pool.entries()] == ["old", "making", "young"]
        assert [found.ready for found in pool.entries()] == [True, False, True]
        assert sorted(os.listdir(pool.directory())) == ["making", "old", "young"]


@pytest.mark.parametrize("text", [b"", b"{", b"[]", b'{"created_ns": "yesterday"}', b"\xff"])
def test_one_whose_state_cannot_be_read_counts_and_is_not_taken(text: bytes) -> None:
    with entry():
        Path(pool.entry_dir("w1"), "state.json").write_bytes(text)
        assert [(found.id, found.ready) for found in pool.entries()] == [("w1", False)]
        assert not offer()


def test_there_is_no_pool() -> None:
    assert pool.entries() == []
    assert not offer()


def test_a_killed_one_and_its_sandbox_are_cleaned_up() -> None:
    from hako.sandbox import records

    os.close(records.claim(_SPEC))
    with entry():
        pass
    pool.clean_up("w1", "s1")
    assert not os.path.exists(records.run_dir("s1"))
    assert os.listdir(pool.directory()) == []


def test_messages_are_json(monkeypatch: pytest.MonkeyPatch) -> None:
    said: list[dict[str, object]] = []

    def keep(_sock: socket.socket, message: list[bytes], _fds: list[int]) -> int:
        said.append(json.loads(message[0]))
        raise BrokenPipeError

    monkeypatch.setattr(socket, "send_fds", keep)
    trace = Trace()
    trace.begin("fork", "command")
    with answering(lambda _sock, _fds: None), ends() as fds:
        assert not pool.hand_over(_SPEC, _CONFIG, fds, trace)
    assert said[0]["do"] == "adopt"
    assert said[0]["spec"] == _SPEC.to_json()
    assert [span[0] for span in said[0]["spans"]] == ["pool"]  # type: ignore[attr-defined]
    # Whoever goes on in the usual way still has its own.
    assert [span[0] for span in trace.spans] == ["fork"]
