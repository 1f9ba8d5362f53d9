"""Zygotes: found by those whom they can stand in for, ended when nobody wants them, and never in anybody's way."""

from __future__ import annotations

import contextlib
import fcntl
import os
import signal
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from hako.linux import surroundings
from hako.sandbox import zygotes
from hako.wire import jsontext
from support import leaks
from support.children import wait_end
from support.machine import until

_KIND = "test"
#: Forked processes answer with what they were told and who they are.
_MODULE = '''
"""A zygote for tests."""
import os
from hako.sandbox import zygote
from hako.wire import jsontext

zygote._DELAY_SECONDS, zygote._QUIET_SECONDS, zygote._CHECK_SECONDS = 0.0, 0.05, 0.1


class Work:
    made = 0
    loaded = False

    def load(self):
        import hako_module_for_tests

        self.loaded = True

    def prepare(self):
        self.made += 1
        open(os.path.join(os.path.dirname(__file__), "prepared"), "w").close()

    def forked(self):
        self.made = -1

    def live(self, connection, request):
        said = {"told": request, "pid": os.getpid(), "zygote": os.getppid(), "made": self.made, "loaded": self.loaded}
        said["files"] = sorted(os.listdir("/proc/self/fd"))
        connection.sendall(jsontext.dumps(said))


def main():
    zygote.main(Work())
'''


@pytest.fixture(autouse=True)
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A directory of the test's own, with the zygote's module; nothing of it is left running."""
    monkeypatch.setenv("HAKO_STATE_ROOT", str(tmp_path / "state"))
    spawned: list[int] = []
    spawn = os.posix_spawn
    monkeypatch.setattr(os, "posix_spawn", lambda *args, **more: spawned.append(spawn(*args, **more)) or spawned[-1])
    (tmp_path / "zygote_for_tests.py").write_text(_MODULE)
    (tmp_path / "hako_module_for_tests.py").write_text("")
    yield tmp_path
    zygotes.stop_all()
    for process in spawned:
        with contextlib.suppress(ChildProcessError):
            os.waitpid(process, 0)
    assert leaks.wait_gone(str(tmp_path), 5, keepers=True) == {}
    assert not os.path.exists(zygotes.directory()) or os.listdir(zygotes.directory()) == []


def begin(root: Path, keep: float = 3600) -> None:
    """Have a zygote."""
    code = f"import sys; sys.path.insert(0, {str(root)!r}); from zygote_for_tests import main; main()"
    zygotes.start(_KIND, code, keep)


def start(root: Path, keep: float = 3600) -> None:
    """Have a zygote, and wait until it is at work."""
    begin(root, keep)
    until(lambda: os.path.exists(zygotes.socket_path(zygotes.name(_KIND))), "the zygote listens")


def ask(request: object = "anything") -> dict[str, object]:
    connection = zygotes.connect(_KIND)
    assert connection is not None
    with contextlib.closing(connection):
        connection.sendall(jsontext.dumps(request) + b"\n")
        said = b""
        while piece := connection.recv(1 << 16):
            said += piece
    return dict(jsontext.loads(said))


def pid() -> int:
    """The zygote's process."""
    record = Path(zygotes.record_path(zygotes.name(_KIND))).read_bytes()
    return int(jsontext.loads(record)["pid"])


def test_there_is_none_at_first() -> None:
    assert zygotes.connect(_KIND) is None


def test_each_who_asks_has_a_process_of_its_own(root: Path) -> None:
    start(root)
    first, second = ask({"a": 1}), ask({"b": [2]})
    assert (first["told"], second["told"]) == ({"a": 1}, {"b": [2]})
    assert len({first["pid"], second["pid"], pid()}) == 3
    assert first["zygote"] == second["zygote"] == pid()
    assert first["loaded"] is second["loaded"] is True


def test_what_it_has_made_ahead_is_the_next_ones(root: Path) -> None:
    start(root)
    until((root / "prepared").exists, "it has made something ahead")
    assert ask()["made"] == 1
    assert ask()["made"] in (-1, 0)  # no time in between, or just enough


def test_a_process_that_is_told_nothing_ends(root: Path) -> None:
    start(root)
    connection = zygotes.connect(_KIND)
    assert connection is not None
    children = Path(f"/proc/{pid()}/task/{pid()}/children")
    (child,) = children.read_text().split()
    connection.close()
    until(lambda: not os.path.exists(f"/proc/{child}"), "the process has ended, and is buried")


def test_only_one_at_a_time(root: Path) -> None:
    start(root)
    first = pid()
    start(root)
    assert pid() == first


def test_others_than_those_it_can_stand_in_for_find_none(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    start(root)
    with monkeypatch.context() as patch:
        patch.setattr(surroundings, "describe", lambda: b"elsewhere")
        assert zygotes.connect(_KIND) is None
    with monkeypatch.context() as patch:
        patch.setenv("HAKO_DATA_ROOT", "/elsewhere")
        assert zygotes.connect(_KIND) is None
    assert zygotes.connect("another kind") is None
    assert ask()["told"] == "anything"


def test_it_ends_when_it_is_not_used(root: Path) -> None:
    start(root, keep=0.5)
    process = pid()
    assert ask()["zygote"] == process
    wait_end(process)
    assert os.listdir(zygotes.directory()) == []
    assert zygotes.connect(_KIND) is None


def test_it_ends_when_its_files_are_gone(root: Path) -> None:
    start(root)
    process = pid()
    for name in os.listdir(zygotes.directory()):
        os.unlink(os.path.join(zygotes.directory(), name))
    wait_end(process)


def test_it_is_of_no_use_when_the_program_has_changed(root: Path) -> None:
    start(root)
    process = pid()
    (root / "hako_module_for_tests.py").write_text("# another version\n")
    assert zygotes.connect(_KIND) is None
    wait_end(process)
    assert os.listdir(zygotes.directory()) == []
    start(root)
    assert pid() != process


def test_one_that_was_killed_is_replaced(root: Path) -> None:
    start(root)
    process = pid()
    os.kill(process, signal.SIGKILL)
    wait_end(process)
    assert zygotes.connect(_KIND) is None
    os.unlink(zygotes.socket_path(zygotes.name(_KIND)))  # which start() here waits for
    start(root)
    assert ask()["zygote"] == pid() != process


def test_one_that_hangs_is_as_good_as_none(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    start(root)
    os.kill(pid(), signal.SIGSTOP)
    try:
        with monkeypatch.context() as patch:
            patch.setattr(zygotes, "_PATIENCE", 0.1)
            assert zygotes.connect(_KIND) is None
    finally:
        os.kill(pid(), signal.SIGCONT)
    assert ask()["told"] == "anything"  # and whoever gave up has got nothing


def test_all_are_ended_also_one_that_has_only_just_been_started(root: Path) -> None:
    begin(root)
    zygotes.stop_all()
    assert os.listdir(zygotes.directory()) == []
    assert leaks.wait_gone(str(root), 5, keepers=True) == {}
    zygotes.stop_all()


def test_another_process_with_the_number_in_a_record_is_left_alone(root: Path) -> None:
    start(root)
    process = pid()
    os.kill(process, signal.SIGKILL)
    wait_end(process)
    bystander = os.posix_spawn("/bin/sleep", ["sleep", "60"], {})
    lock = os.open(zygotes.lock_path(zygotes.name(_KIND)), os.O_RDWR)
    fcntl.flock(lock, fcntl.LOCK_EX)
    Path(zygotes.record_path(zygotes.name(_KIND))).write_text(f'{{"pid": {bystander}, "started": 1}}')
    threading.Timer(0.2, os.close, [lock]).start()
    zygotes.stop_all()
    os.kill(bystander, signal.SIGKILL)
    assert os.waitstatus_to_exitcode(os.waitpid(bystander, 0)[1]) == -signal.SIGKILL
    assert os.listdir(zygotes.directory()) == []


def test_a_forked_process_has_nothing_of_the_zygotes(root: Path) -> None:
    start(root)
    # Its own connection, and the directory that it is reading, besides the standard streams.
    assert len(ask()["files"]) == 5  # type: ignore[arg-type]


def test_a_socket_with_a_long_name(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HAKO_STATE_ROOT", str(root / "state" / ("x" * 120)))
    start(root)
    assert ask()["told"] == "anything"
    zygotes.stop_all()


def test_who_says_nothing_holds_nobody_up(root: Path) -> None:
    start(root)
    silent = zygotes.connect(_KIND)
    assert silent is not None
    assert ask()["told"] == "anything"
    silent.close()
