"""Filling and draining the pool: never too many, never when memory is short, never again and again in vain."""

from __future__ import annotations

import contextlib
import json
import os
import socket
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from hako.config.settings import Config
from hako.errors import HostError
from hako.sandbox import pool, refill
from support.agentside import open_fds

_MEMORY = "MemTotal: 8388608 kB\nMemFree: 1 kB\nMemAvailable: {} kB\n"


class Made:
    """Stands in for the processes: holds the locks of those that were started."""

    def __init__(self) -> None:
        self.locks: dict[str, int] = {}

    def launch(self, warm_id: str, lock: int, _namespace: int | None) -> None:
        self.locks[warm_id] = os.dup(lock)

    def ready(self) -> None:
        """All of them get ready."""
        for warm_id in list(self.locks):
            with contextlib.suppress(HostError):  # several threads write the same file here
                pool.write(pool.new_state(warm_id) | {"status": "ready"})

    def end(self, warm_id: str) -> None:
        """One of them is gone."""
        os.close(self.locks.pop(warm_id))


@pytest.fixture
def made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Made]:
    monkeypatch.setenv("HAKO_STATE_ROOT", str(tmp_path / "run"))
    monkeypatch.setenv("HAKO_DATA_ROOT", str(tmp_path / "data"))
    monkeypatch.setattr(refill, "_MEMINFO", str(tmp_path / "meminfo"))
    monkeypatch.setattr(os, "cpu_count", lambda: 4)
    (tmp_path / "meminfo").write_text(_MEMORY.format(6 << 20))
    before = open_fds()
    stand_in = Made()
    monkeypatch.setattr(refill, "_launch", stand_in.launch)
    yield stand_in
    for warm_id in list(stand_in.locks):
        stand_in.end(warm_id)
    assert open_fds() == before


def config(size: int) -> Config:
    return Config({"pool.size": size})


def fill_to_the_end(made: Made, size: int) -> None:
    while refill.fill(config(size)):
        made.ready()


def test_as_many_as_are_wanted_a_few_at_a_time(made: Made) -> None:
    assert len(refill.fill(config(5))) == 2
    assert len(refill.fill(config(5))) == 2  # they are under way
    assert len(made.locks) == 2
    fill_to_the_end(made, 5)
    assert len(made.locks) == len(pool.entries()) == 5


def test_none_are_wanted(made: Made, tmp_path: Path) -> None:
    assert refill.fill(config(0)) == []
    assert not (tmp_path / "run").exists()


def test_many_at_once_make_no_more(made: Made) -> None:
    def work() -> None:
        for _ in range(5):
            refill.fill(config(3))
            made.ready()

    threads = [threading.Thread(target=work) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    fill_to_the_end(made, 3)
    assert len(made.locks) == 3


def test_the_dead_make_room(made: Made) -> None:
    fill_to_the_end(made, 2)
    gone = next(iter(made.locks))
    made.end(gone)
    fill_to_the_end(made, 2)
    assert len(made.locks) == 2
    assert not os.path.exists(pool.entry_dir(gone))


def test_what_killed_ones_left_is_removed(made: Made) -> None:
    os.makedirs(os.path.join(pool.directory(), ".new-abc"))
    refill.fill(config(1))
    assert not os.path.exists(os.path.join(pool.directory(), ".new-abc"))


@pytest.mark.parametrize(("available", "count"), [((1 << 20) + (192 << 10), 1), ((1 << 20) + (191 << 10), 0), (0, 0)])
def test_memory_is_left_to_others(made: Made, tmp_path: Path, available: int, count: int) -> None:
    (tmp_path / "meminfo").write_text(_MEMORY.format(available))
    assert len(refill.fill(config(2))) == count
    if not count:
        with pytest.raises(HostError, match="too little free memory"):
            refill.fill(config(2), asked=True)


def test_failures_are_followed_by_longer_and_longer_rests(made: Made, monkeypatch: pytest.MonkeyPatch) -> None:
    os.makedirs(pool.directory())
    now = 1000.0
    monkeypatch.setattr(refill.time, "time", lambda: now)
    rests = []
    for _ in range(9):
        refill.remember_failure("no luck")
        assert refill.last_failure() == "no luck"
        failed = now
        while not refill.fill(config(1)):
            now += 1
        rests.append(now - failed)
        made.end(next(iter(made.locks)))
    assert rests == [10, 20, 40, 80, 160, 320, 600, 600, 600]
    refill.forget_failures()
    assert refill.last_failure() == ""


def test_a_user_need_not_rest(made: Made) -> None:
    os.makedirs(pool.directory())
    refill.remember_failure("no luck")
    assert refill.fill(config(1)) == []
    assert len(refill.fill(config(1), asked=True)) == 1


@pytest.mark.parametrize("text", ["", "[]", '{"count": "many", "time": 1}', '{"count": 1}'])
def test_a_damaged_record_of_failures_is_none(made: Made, text: str) -> None:
    os.makedirs(pool.directory())
    Path(pool.directory(), "failed.json").write_text(text)
    assert len(refill.fill(config(1))) == 1


def test_a_process_that_cannot_be_started_leaves_nothing(made: Made, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise OSError(11, "Resource temporarily unavailable")

    monkeypatch.setattr(refill, "_launch", refuse)
    with pytest.raises(HostError, match="Resource temporarily unavailable"):
        refill.fill(config(1))
    assert os.listdir(pool.directory()) == ["lock"]
    refill.fill_quietly(None)


@contextlib.contextmanager
def listening(made: Made, warm_id: str, heard: list[object], *, gone: bool) -> Iterator[None]:
    """The process ``warm_id``, which keeps what it is told, answers or is ``gone``."""
    with contextlib.suppress(FileNotFoundError):
        os.unlink(os.path.join(pool.entry_dir(warm_id), "warm.sock"))
    listener = pool.listen(warm_id)
    listener.setblocking(True)

    def serve() -> None:
        sock, _ = listener.accept()
        heard.append(json.loads(sock.recv(1024))["do"])
        if gone:
            made.end(warm_id)
        else:
            sock.send(b"stays")
        sock.close()

    thread = threading.Thread(target=serve)
    thread.start()
    yield
    thread.join(20)
    listener.close()


def test_all_are_asked_and_the_end_of_those_that_go_is_waited_for(made: Made) -> None:
    fill_to_the_end(made, 2)
    one, two = sorted(made.locks)
    heard: list[object] = []
    with listening(made, one, heard, gone=True), listening(made, two, heard, gone=False):
        refill.check()
    assert heard == ["check"] * 2
    assert [entry.id for entry in pool.entries()] == [two]
    with listening(made, two, heard, gone=True):
        assert refill.drain() == 1
    assert heard[2:] == ["end"]
    assert os.listdir(pool.directory()) == ["lock"]


def test_there_is_nothing_to_drain(made: Made) -> None:
    assert refill.drain() == 0
    refill.check()


def test_one_that_does_not_listen_is_killed(made: Made, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(refill, "_END_SECONDS", 0.1)
    fill_to_the_end(made, 1)
    (warm_id,) = made.locks
    read, write = os.pipe()
    pid = os.fork()
    if pid == 0:
        os.close(write)
        os.read(read, 1)  # until it is killed, or the test has ended
        os._exit(0)
    os.close(read)
    pool.write(pool.new_state(warm_id) | {"status": "ready", "pid": pid})
    made.end(warm_id)  # the child has a copy
    assert refill.drain() == 1
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == -9
    os.close(write)
    assert os.listdir(pool.directory()) == ["lock"]


def test_sockets_are_for_root_alone(made: Made) -> None:
    fill_to_the_end(made, 1)
    (warm_id,) = made.locks
    listener = pool.listen(warm_id)
    assert os.stat(os.path.join(pool.entry_dir(warm_id), "warm.sock")).st_mode & 0o777 == 0o600
    assert os.stat(pool.directory()).st_mode & 0o777 == 0o700
    assert listener.type == socket.SOCK_SEQPACKET
    listener.close()
