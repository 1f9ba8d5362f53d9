"""What is kept in memory between starts: found again, given back in time, and never mistaken for something else."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from hako.errors import HostError
from hako.linux import processes
from hako.template import keeper, memory
from hako.template.keeper import Held
from support import leaks
from support.children import wait_end

_KEY = "0123456789abcdef" * 2


@pytest.fixture(autouse=True)
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A directory of the test's own; nothing of it is left running."""
    monkeypatch.setenv("HAKO_STATE_ROOT", str(tmp_path))
    yield tmp_path
    keeper.stop_all()
    assert leaks.wait_gone(str(tmp_path), 5, keepers=True) == {}


@contextlib.contextmanager
def held(seed: int = 0, key: str = _KEY, *, sealed: bool = True) -> Iterator[Held]:
    """A template in memory, as loading one gives it."""
    with contextlib.ExitStack() as stack:
        fds = []
        for name, data in ((f"hako-template-{key}", b"memory %d" % seed), ("hako-state", b"state %d" % seed)):
            fds.append(memory.new(name, 4096))
            stack.callback(os.close, fds[-1])
            os.pwrite(fds[-1], data, 0)
            if sealed:
                memory.seal(fds[-1])
        yield Held(*fds)


def start(seed: int = 0, idle: float = 3600, namespace: int | None = None) -> int:
    with held(seed) as one:
        keeper.start(_KEY, one, idle, namespace)
    pid = keeper.pid_of(_KEY)
    assert pid is not None
    return pid


def read() -> bytes | None:
    """What is kept, None when nothing is."""
    found = keeper.find(_KEY)
    if found is None:
        return None
    with contextlib.closing(found):
        assert memory.is_sealed(found.memory)
        assert memory.is_sealed(found.state)
        assert os.read(found.state, 100).startswith(b"state")
        return os.pread(found.memory, 100, 0).rstrip(b"\0")


def test_what_is_kept_is_found_by_many_and_read_from_the_beginning_by_each() -> None:
    before = set(os.listdir("/proc/self/fd"))
    start(5)
    found = [keeper.find(_KEY) for _ in range(3)]
    for one in found:
        assert one is not None
        assert os.read(one.state, 7) == b"state 5"
        one.close()
    assert read() == b"memory 5"
    assert set(os.listdir("/proc/self/fd")) == before


def test_nothing_is_kept_of_another() -> None:
    start()
    assert keeper.find("f" * 32) is None
    assert keeper.pid_of("f" * 32) is None
    keeper.stop("f" * 32)
    assert read() is not None


def test_a_new_one_replaces_the_old() -> None:
    old = start(1)
    new = start(2)
    assert old != new
    assert read() == b"memory 2"
    assert not os.path.exists(f"/proc/{old}")


def test_stopping_gives_the_memory_back_though_it_sleeps(root: Path) -> None:
    pid = start()
    keeper.stop(_KEY)
    assert not os.path.exists(f"/proc/{pid}")
    assert read() is None
    assert os.listdir(root / "templates") == []
    wait_for(lambda: not holders())
    keeper.stop(_KEY)


def holders() -> list[int]:
    """The processes that have the template open."""
    found = []
    for name in os.listdir("/proc"):
        with contextlib.suppress(OSError):
            if name.isdigit() and any(
                f"hako-template-{_KEY}" in os.readlink(f"/proc/{name}/fd/{fd}") for fd in os.listdir(f"/proc/{name}/fd")
            ):
                found.append(int(name))
    return found


def test_only_the_keeper_itself_has_it_open() -> None:
    pid = start()
    # The sleep it starts has the memory too, until it has become another program.
    wait_for(lambda: children(pid) and holders() == [pid])
    os.kill(pid, signal.SIGKILL)
    wait_end(pid)
    wait_for(lambda: not holders())
    os.killpg(pid, signal.SIGKILL)  # the sleep of a keeper that could not end it


def children(pid: int) -> list[int]:
    with open(f"/proc/{pid}/task/{pid}/children", encoding="ascii") as file:
        return [int(word) for word in file.read().split()]


def wait_for(condition: Callable[[], object]) -> None:
    deadline = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_a_killed_keeper_is_none_and_can_be_followed() -> None:
    pid = start(1)
    os.killpg(pid, signal.SIGKILL)
    wait_end(pid)
    assert keeper.pid_of(_KEY) is None
    assert read() is None
    start(2)
    assert read() == b"memory 2"


def test_it_ends_when_its_record_is_removed(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(keeper, "_PERIOD", 0.05)
    pid = start()
    assert read() is not None
    os.unlink(root / "templates" / f"{_KEY}.json")
    wait_end(pid)


def test_it_ends_when_nobody_has_used_it_for_long(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(keeper, "_PERIOD", 0.05)
    pid = start(idle=60)
    record = root / "templates" / f"{_KEY}.json"
    os.utime(record, (time.time() - 59, time.time() - 59))
    # This is a use, after which it stays.
    assert read() is not None
    assert time.time() - record.stat().st_mtime < 30
    os.utime(record, (time.time() - 130, time.time() - 130))
    wait_end(pid)
    assert read() is None


def test_another_process_with_the_same_number_is_not_mistaken(root: Path) -> None:
    record = root / "templates" / f"{_KEY}.json"
    record.parent.mkdir(mode=0o700)
    with subprocess.Popen(["sleep", "1000"]) as innocent:
        try:
            for started in (0, 1, "x", None, processes.started(innocent.pid) + 1):
                record.write_text(json.dumps({"pid": innocent.pid, "started": started}))
                assert keeper.find(_KEY) is None
                assert keeper.pid_of(_KEY) is None
                keeper.stop(_KEY)
                assert innocent.poll() is None
            # The right process, which holds nothing.
            record.write_text(json.dumps({"pid": innocent.pid, "started": processes.started(innocent.pid)}))
            assert keeper.find(_KEY) is None
        finally:
            record.unlink()
            innocent.kill()


@pytest.mark.parametrize(
    "text", ["", "{", "[]", "{}", '{"pid": -1}', '{"pid": 0, "started": 0}', '{"pid": "1", "started": 1}',
             '{"pid": true, "started": 1}', '{"pid": 99999999999, "started": 0}', '{"pid": 1.5, "started": 0}'],
)  # fmt: skip
def test_any_record_is_a_keeper_or_none(root: Path, text: str) -> None:
    record = root / "templates" / f"{_KEY}.json"
    record.parent.mkdir(mode=0o700)
    record.write_text(text)
    assert keeper.find(_KEY) is None
    keeper.stop(_KEY)
    assert not record.exists()


def test_files_that_could_be_changed_are_not_taken() -> None:
    with held(sealed=False) as one:
        keeper.start(_KEY, one, 3600)
    assert keeper.find(_KEY) is None


def test_what_has_another_name_is_not_taken() -> None:
    with held(key="f" * 32) as one:
        keeper.start(_KEY, one, 3600)
    assert keeper.find(_KEY) is None


def test_it_outlives_whoever_started_it_and_has_nothing_else_of_his(root: Path) -> None:
    code = f"""
import os, sys
sys.path[:0] = {sys.path!r}
from hako.linux import processes
from hako.template import keeper, memory
fds = [memory.new(name, 4096) for name in ("hako-template-{_KEY}", "hako-state")]
os.pwrite(fds[0], b"memory 9", 0)
os.pwrite(fds[1], b"state 9", 0)
for fd in fds: memory.seal(fd)
os.set_inheritable(os.open("/dev/zero", os.O_RDONLY), False)
keeper.start("{_KEY}", keeper.Held(*fds), 3600)
"""
    # Its pipes are at their end when it ends: the keeper does not hold them.
    subprocess.run([sys.executable, "-c", code], check=True, timeout=30, capture_output=True)
    assert read() == b"memory 9"
    pid = keeper.pid_of(_KEY)
    targets = {os.readlink(f"/proc/{pid}/fd/{fd}").split(" ")[0] for fd in os.listdir(f"/proc/{pid}/fd")}
    assert targets == {"/dev/null", f"/memfd:hako-template-{_KEY}", "/memfd:hako-state"}
    assert os.getsid(pid or 0) == pid


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root")
def test_it_lives_in_the_namespace_that_it_was_given() -> None:
    ours = os.open("/proc/self/ns/mnt", os.O_RDONLY)
    try:
        pid = start(3, namespace=ours)
        wait_for(lambda: b"nsenter" not in Path(f"/proc/{pid}/cmdline").read_bytes())
        assert os.readlink(f"/proc/{pid}/ns/mnt") == os.readlink("/proc/self/ns/mnt")
        assert read() == b"memory 3"
        wait_for(lambda: children(pid))
        assert not any("mnt:" in os.readlink(f"/proc/{pid}/fd/{fd}") for fd in os.listdir(f"/proc/{pid}/fd"))
    finally:
        os.close(ours)


def test_a_missing_shell_is_a_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> int:
        raise FileNotFoundError(2, "No such file or directory")

    monkeypatch.setattr(os, "posix_spawn", refuse)
    before = set(os.listdir("/proc/self/fd"))
    with held() as one, pytest.raises(HostError, match="Cannot start /bin/sh to keep a template in memory"):
        keeper.start(_KEY, one, 3600)
    assert set(os.listdir("/proc/self/fd")) == before


def test_all_can_be_ended() -> None:
    keys = [f"{number}" * 32 for number in range(3)]
    for key in keys:
        with held(key=key) as one:
            keeper.start(key, one, 3600)
    assert all(keeper.pid_of(key) for key in keys)
    keeper.stop_all()
    assert not any(keeper.pid_of(key) for key in keys)
