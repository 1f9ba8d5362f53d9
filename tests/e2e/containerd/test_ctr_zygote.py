"""The process that stays between starts and makes the shims: what it is for, and that nothing depends on it."""

from __future__ import annotations

import os
import re
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from hako.sandbox import zygotes
from hako.wire import jsontext
from support import leaks
from support.ctr import Ctr
from support.machine import until

pytestmark = [
    pytest.mark.e2e,
    pytest.mark.slow,
    pytest.mark.parametrize("ctr", ["old-hako", "new-hako"], indirect=True),
]


def all_zygotes() -> list[int]:
    """Those that are at work."""
    try:
        names = os.listdir(zygotes.directory())
    except FileNotFoundError:
        return []
    found = [name.removesuffix(".sock") for name in names if name.endswith(".sock")]
    return [int(jsontext.loads(Path(zygotes.record_path(name)).read_bytes())["pid"]) for name in found]


@pytest.fixture
def none_yet(ctr: Ctr) -> Iterator[None]:
    """There is no zygote at the beginning and at the end."""
    leaks.stop_keepers()
    yield
    leaks.stop_keepers()
    assert all_zygotes() == []


@pytest.fixture
def one(ctr: Ctr, none_yet: None) -> int:
    """The zygote that a start has left."""
    assert ctr.run("true").status == 0
    until(all_zygotes, "there is a zygote")
    (found,) = all_zygotes()
    return found


def parent(pid: int) -> int:
    return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])


def test_it_makes_the_next_shims_which_are_like_others(ctr: Ctr, one: int) -> None:
    ctr.start("a", "sleep", "1000")
    ctr.start("b", "sleep", "1000")
    shims = ctr.shims()
    assert [parent(shim) for shim in shims] == [one, one]
    commands = [Path(f"/proc/{shim}/cmdline").read_text().rstrip("\0") for shim in shims]
    assert all(re.search(r" -namespace \S+ -id [ab] -address \S+ start *$", command) for command in commands)
    assert {Path(f"/proc/{shim}/comm").read_text() for shim in shims} == {"hako-sandbox\n"}
    for name in ("a", "b"):
        assert ctr.exec(name, "echo", name).stdout == f"{name}\n"
    for name in ("a", "b"):
        ctr("task", "kill", "--signal", "KILL", name)
        ctr.until_stopped(name)
        assert ctr.delete(name) == 137
    until(lambda: not ctr.shims(), "the shims have ended")
    assert all_zygotes() == [one]


def test_what_cannot_be_made_is_said_in_one_sentence(ctr: Ctr, one: int) -> None:
    done = ctr.run("true", options=("--annotation", "dev.hako.memory=plenty"), check=False)
    assert done.status != 0
    assert "dev.hako.memory" in done.stderr
    assert "Traceback" not in done.stderr
    assert all_zygotes() == [one]
    assert ctr.run("true").status == 0


def test_one_that_is_killed_takes_nothing_with_it(ctr: Ctr, one: int) -> None:
    # Long enough that it has made something ahead.
    time.sleep(1)
    ctr.start("a", "sleep", "1000")
    os.kill(one, signal.SIGKILL)
    assert ctr.exec("a", "echo", "here").stdout == "here\n"
    assert ctr.run("true").status == 0
    until(all_zygotes, "there is another zygote")
    assert all_zygotes() != [one]
    ctr("task", "kill", "--signal", "KILL", "a")
    ctr.until_stopped("a")
    assert ctr.delete("a") == 137


def test_there_is_none_where_it_is_not_wanted(ctr: Ctr, none_yet: None) -> None:
    drop_in = Path(os.path.dirname(os.environ["HAKO_CONFIG"]), "config.d", "zygote.toml")
    drop_in.write_text("[shim]\nzygote = false\n")
    try:
        assert ctr.run("echo", "made").stdout == "made\n"
        assert not os.path.exists(zygotes.directory()) or os.listdir(zygotes.directory()) == []
    finally:
        drop_in.unlink()
