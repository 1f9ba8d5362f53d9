"""Sandboxes on disk: claiming names, finding, and cleaning up after those that died, whatever they left."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from hako import store
from hako.errors import ConfigError, ExistsError, HostError, NotFoundError
from hako.sandbox import records
from hako.sandbox.records import STATE_VERSION
from hako.sandbox.spec import SandboxSpec
from support.agentside import open_fds


@pytest.fixture(autouse=True)
def own_roots(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setenv("HAKO_STATE_ROOT", str(tmp_path / "run"))
    monkeypatch.setenv("HAKO_DATA_ROOT", str(tmp_path / "data"))
    before = open_fds()
    yield
    assert open_fds() == before


def spec(sandbox_id: str = "s1", name: str = "", *, retain: bool = False) -> SandboxSpec:
    return SandboxSpec(sandbox_id, name, 256 << 20, 1, retain=retain)


def dead(sandbox_id: str = "s1", name: str = "", *, retain: bool = False) -> None:
    """A sandbox whose process is gone and has cleaned up nothing."""
    os.close(records.claim(spec(sandbox_id, name, retain=retain)))


def kept(sandbox_id: str, name: str = "") -> None:
    """A sandbox that ended properly and left a record."""
    dead(sandbox_id, name, retain=True)
    assert records.reap(sandbox_id)


def exists(sandbox_id: str) -> tuple[bool, bool]:
    return os.path.exists(records.run_dir(sandbox_id)), os.path.exists(records.data_dir(sandbox_id))


def in_children(count: int, body: Callable[[int], None]) -> list[int]:
    """Run ``body`` in that many processes at once; their exit statuses."""
    pids = []
    for number in range(count):
        pid = os.fork()
        if pid == 0:
            status = 1
            try:
                body(number)
                status = 0
            except SystemExit as end:
                status = int(end.code or 0)
            except BaseException:
                traceback.print_exc()
            finally:
                os._exit(status)
        pids.append(pid)
    return [os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid in pids]


def test_a_network_that_cannot_be_taken_back_keeps_nobody_from_cleaning_up(tmp_path: Path) -> None:
    os.close(records.claim(spec()._replace(network="bridge")))
    notes = tmp_path / "data" / "cni" / "attachments"
    notes.mkdir(parents=True)
    (notes / "s1.json").write_text('{"version": 99}')
    assert records.reap("s1")
    assert exists("s1") == (False, False)
    assert (notes / "s1.json").exists(), "the version that wrote it may know what to do"


def test_a_claimed_sandbox_is_alive_and_complete() -> None:
    lock = records.claim(spec(name="web"))
    assert records.is_alive("s1")
    state = records.read("s1")
    assert (state["status"], state["pid"], state["spec"]["name"]) == ("starting", os.getpid(), "web")
    assert not records.reap("s1")
    assert exists("s1") == (True, True)
    assert sorted(os.listdir(os.path.dirname(records.run_dir("s1")))) == ["s1"]
    os.close(lock)
    assert not records.is_alive("s1")


@pytest.mark.parametrize(
    ("taken", "wanted", "message"),
    [
        (("s1", "web"), ("s2", "web"), "The name web is in use by sandbox s1"),
        (("s1", ""), ("s1", ""), "The id s1 is in use by sandbox s1"),
        (("s1", "web"), ("s1", "other"), "The id s1 is in use by sandbox s1"),
    ],
)
@pytest.mark.parametrize("alive", [True, False])
def test_names_and_ids_are_taken_by_the_living_and_the_kept(
    taken: tuple[str, str], wanted: tuple[str, str], message: str, alive: bool
) -> None:
    lock = -1
    if alive:
        lock = records.claim(spec(*taken))
    else:
        kept(*taken)
    with pytest.raises(ExistsError, match=message):
        records.claim(spec(*wanted))
    if lock >= 0:
        os.close(lock)


def test_what_died_and_kept_nothing_takes_no_name() -> None:
    dead("s1", "web")
    os.close(records.claim(spec("s2", "web")))
    assert exists("s1") == (False, False)


def test_two_without_a_name_do_not_clash() -> None:
    os.close(records.claim(spec("s1", retain=True)))
    os.close(records.claim(spec("s2", retain=True)))


def test_of_many_who_want_one_name_one_gets_it() -> None:
    def body(number: int) -> None:
        try:
            records.claim(spec(f"s{number}", "web", retain=True))
        except ExistsError:
            sys.exit(7)

    statuses = in_children(12, body)
    # A winner's end gives up its lock, but not its name: the record keeps it.
    assert sorted(statuses) == [0] + [7] * 11


def test_looking_while_sandboxes_are_being_made_destroys_none() -> None:
    def body(number: int) -> None:
        if number % 2:
            for _ in range(200):
                records.list_states()
        else:
            for round_ in range(10):
                sandbox_id = f"s{number}-{round_}"
                lock = records.claim(spec(sandbox_id))
                assert records.is_alive(sandbox_id)
                records.finish(records.read(sandbox_id))
                os.close(lock)

    assert in_children(6, body) == [0] * 6
    assert records.list_states() == []
    assert os.listdir(os.path.dirname(records.run_dir("x"))) == []


def test_those_who_look_do_not_hinder_each_other_or_the_reaper() -> None:
    dead()
    looking = store.lock(os.path.join(records.run_dir("s1"), "lock"), shared=True)
    assert looking is not None
    assert not records.is_alive("s1")

    def let_go() -> None:
        os.close(looking)

    real = store.lock
    calls = 0

    def lock(path: str, **options: Any) -> int | None:
        nonlocal calls
        calls += 1
        if calls == 4:
            let_go()
        return real(path, **options)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(store, "lock", lock)
        assert records.reap("s1")


def test_finding() -> None:
    for sandbox_id, name in (("abc1", "web"), ("abc2", "db"), ("web", "other")):
        kept(sandbox_id, name)
    assert records.find("db")["spec"]["id"] == "abc2"
    assert records.find("abc1")["spec"]["name"] == "web"
    with pytest.raises(ConfigError, match="abc could be any of 2"):
        records.find("abc")
    for missing in ("", "x", "abc1x", "../abc1", "d"):  # the beginning of a name is not enough, that of an id is
        with pytest.raises(NotFoundError, match="hako ps -a"):
            records.find(missing)


def test_states_are_listed_oldest_first() -> None:
    for sandbox_id in ("s3", "s1", "s2"):
        kept(sandbox_id)
    assert [state["spec"]["id"] for state in records.list_states()] == ["s3", "s1", "s2"]


def test_a_dead_sandbox_is_cleaned_up_when_it_is_read() -> None:
    dead(retain=True)
    state = records.read("s1")
    assert (state["status"], state["pid"], state["error"]) == ("stopped", 0, "the sandbox process was killed")
    assert exists("s1") == (False, True)
    dead("s2")
    with pytest.raises(NotFoundError):
        records.read("s2")
    assert exists("s2") == (False, False)


def test_containers_of_a_dead_sandbox_are_stopped() -> None:
    lock = records.claim(spec(retain=True))
    state = records.read("s1")
    state["containers"] = {"a": {"status": "running"}, "b": {"status": "stopped", "exit_status": 3}}
    records.write(state)
    os.close(lock)
    after = records.read("s1")["containers"]
    assert (after["a"]["status"], after["a"]["exit_status"]) == ("stopped", 137)
    assert after["b"] == {"status": "stopped", "exit_status": 3}


def test_of_many_reapers_one_does_the_work() -> None:
    for round_ in range(5):
        sandbox_id = f"s{round_}"
        dead(sandbox_id, retain=True)

        def body(_number: int, sandbox_id: str = sandbox_id) -> None:
            sys.exit(7 if records.reap(sandbox_id) else 0)

        assert sorted(in_children(8, body)) == [0] * 7 + [7]
        assert records.read(sandbox_id)["status"] == "stopped"


def test_the_same_id_again_is_not_reaped_by_one_who_waited() -> None:
    """A reaper that opened the lock of an earlier sandbox must not take the next one for dead."""
    dead()
    path = os.path.join(records.run_dir("s1"), "lock")
    stale = os.open(path, os.O_RDWR)
    assert records.reap("s1")
    lock = records.claim(spec())
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(records, "_take_lock", lambda _id: stale)
        assert not records.reap("s1")
    assert records.is_alive("s1")
    os.close(lock)


def test_finish_keeps_or_removes() -> None:
    for retain in (False, True):
        sandbox_id = f"s{retain}"
        lock = records.claim(spec(sandbox_id, retain=retain))
        Path(records.data_dir(sandbox_id), "layer").mkdir()
        Path(records.run_dir(sandbox_id), "shared").mkdir()
        records.finish(records.read(sandbox_id))
        os.close(lock)
        assert exists(sandbox_id) == (False, retain)
    assert records.read("sTrue")["status"] == "stopped"
    records.remove(records.read("sTrue"))
    assert exists("sTrue") == (False, False)


def test_finish_of_one_that_was_removed_meanwhile() -> None:
    lock = records.claim(spec(retain=True))
    state = records.read("s1")
    records.remove(state)
    records.finish(state)
    os.close(lock)
    assert exists("s1") == (False, False)


def test_a_full_disk_keeps_no_dead_sandbox_alive(monkeypatch: pytest.MonkeyPatch) -> None:
    dead(retain=True)

    def full(path: str, _value: object) -> None:
        raise HostError(f"Cannot write {path}: No space left on device.")

    monkeypatch.setattr(store, "write_json", full)
    with pytest.raises(HostError, match="No space left"):
        records.reap("s1")
    assert exists("s1") == (False, True)
    with pytest.raises(HostError, match="No space left"):
        records.claim(spec("s2"))
    assert exists("s2") == (False, False)
    assert os.listdir(os.path.dirname(records.run_dir("s2"))) == []


DAMAGED: list[object] = [
    b"",
    b"{",
    b"[]",
    b"\xff\xfe",
    {},
    {"version": STATE_VERSION},
    {"version": STATE_VERSION, "spec": {}},
    *({"_drop": key} for key in ("spec", "status", "created_ns", "pid", "vm_pid", "error", "containers")),
    *({"_set": (key, None)} for key in ("spec", "status", "created_ns", "pid", "vm_pid", "error", "containers")),
    {"_set": ("containers", {"a": 5})},
    {"_set": ("containers", {"a": {}})},
    {"_set": ("created_ns", "yesterday")},
]


@pytest.mark.parametrize("damage", DAMAGED)
def test_a_damaged_state_hinders_nobody(damage: Any) -> None:
    kept("good")
    dead("bad", retain=True)
    path = Path(records.run_dir("bad"), "state.json")
    if isinstance(damage, bytes):
        path.write_bytes(damage)
    else:
        state = json.loads(path.read_bytes())
        if "_drop" in damage:
            del state[damage["_drop"]]
        elif "_set" in damage:
            state.update([damage["_set"]])
        else:
            state = damage
        path.write_text(json.dumps(state))
    assert [state["spec"]["id"] for state in records.list_states()] == ["good"]
    with pytest.raises(NotFoundError):
        records.read("bad")
    assert exists("bad") == (False, False)
    os.close(records.claim(spec("bad")))


def test_what_another_version_made_is_not_touched() -> None:
    dead("other", "web")
    path = Path(records.run_dir("other"), "state.json")
    path.write_text(json.dumps({**json.loads(path.read_bytes()), "version": STATE_VERSION + 1}))
    with pytest.raises(NotFoundError, match="another version of hako"):
        records.read("other")
    assert not records.reap("other")
    assert records.list_states() == []
    assert exists("other") == (True, True)


@pytest.mark.parametrize("left", ["empty", "no lock", "no state", "file"])
def test_left_over_directories(left: str) -> None:
    path = Path(records.run_dir("s1"))
    if left == "file":
        path.parent.mkdir(parents=True)
        path.write_bytes(b"what is this")
    else:
        path.mkdir(parents=True)
    if left == "no lock":
        (path / "console.log").write_bytes(b"x")
    if left == "no state":
        (path / "lock").touch()
    assert records.list_states() == []
    with pytest.raises(NotFoundError):
        records.read("s1")
    assert path.exists() == (left == "file")


def test_a_data_directory_without_a_record_is_used_again() -> None:
    Path(records.data_dir("s1"), "old").mkdir(parents=True)
    os.close(records.claim(spec(retain=True)))
    assert os.listdir(records.data_dir("s1")) == []


def test_strange_names_are_no_sandboxes() -> None:
    kept("s1")
    for name in (".hidden", "-x", "a b"):
        Path(records.data_dir(name)).mkdir()
    assert len(records.list_states()) == 1
    with pytest.raises(ConfigError):
        records.read("../s1")


@pytest.mark.parametrize(("tag", "killed"), [("guest=s1", True), ("guest=other", False)])
def test_a_vm_that_outlived_its_sandbox_is_killed_if_it_is_really_that(tag: str, killed: bool) -> None:
    process = subprocess.Popen([sys.executable, "-c", "import sys; sys.stdin.read()", tag], stdin=subprocess.PIPE)
    while tag.encode() not in Path(f"/proc/{process.pid}/cmdline").read_bytes():
        assert process.poll() is None
    try:
        lock = records.claim(spec())
        state = records.read("s1")
        state["vm_pid"] = process.pid
        records.write(state)
        os.close(lock)
        assert records.reap("s1")
        if killed:
            assert process.wait(10) == -signal.SIGKILL
        else:
            assert process.poll() is None
    finally:
        process.kill()
        process.communicate()


def test_a_lock_is_inherited_by_a_forked_process() -> None:
    lock = records.claim(spec())
    read, write = os.pipe()
    pid = os.fork()
    if pid == 0:
        os.close(write)
        os.read(read, 1)
        os._exit(0)
    os.close(read)
    os.close(lock)
    assert records.is_alive("s1")
    os.close(write)
    os.waitpid(pid, 0)
    assert not records.is_alive("s1")
    with contextlib.suppress(NotFoundError):
        records.read("s1")
