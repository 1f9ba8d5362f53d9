"""Many clones, one after the other and at once: none fails, nothing is left, nothing that stays grows."""

from __future__ import annotations

import os
import resource
import time

import pytest

from conftest import Roots, RunHako
from hako.template import keeper
from support import clones, leaks
from support.machine import until

pytestmark = [
    pytest.mark.system,
    pytest.mark.slow,
    pytest.mark.soak,
    pytest.mark.timeout(1800),
    pytest.mark.usefixtures("guest_image", "busybox_image"),
]

_IN_A_ROW = 200
_AT_ONCE = 30


def _key(run_hako: RunHako, driver: str) -> str:
    run_hako("run", "-d", "--rm", "--name", "first", *clones.with_driver(driver), "busybox", "sleep", "1000")
    found = run_hako("inspect", "first").stdout
    run_hako("rm", "-f", "first")
    (name,) = [name for name in os.listdir(keeper.directory()) if name.removesuffix(".json") in found]
    return name.removesuffix(".json")


def _nothing_is_left(roots: Roots) -> None:
    assert leaks.wait_gone(roots.base, 20) == {}
    assert leaks.mounts(roots.base) == []
    assert leaks.files(roots.state) == []
    for root in (roots.state, roots.data):
        assert os.listdir(os.path.join(root, "sandboxes")) == []


def _resident(pid: int) -> int:
    with open(f"/proc/{pid}/statm", encoding="ascii") as file:
        return int(file.read().split()[1]) * resource.getpagesize()


def _wait_for_first_look(holder: int) -> None:
    """Return when a keeper has looked for the first time whether it is still wanted: that touches a page or two."""

    def faults_of_children() -> int:
        with open(f"/proc/{holder}/stat", encoding="ascii") as file:
            return int(file.read().rpartition(")")[2].split()[8])  # cminflt, proc_pid_stat(5): of those that have ended

    before = faults_of_children()
    until(lambda: faults_of_children() > before, "the keeper has woken up", 90)
    time.sleep(2)  # it looks now


@pytest.mark.parametrize("driver", clones.DRIVERS)
def test_two_hundred_clones_in_a_row(run_hako: RunHako, roots: Roots, driver: str) -> None:
    key = _key(run_hako, driver)
    holder, before = keeper.pid_of(key), clones.checksum(key)
    assert holder is not None
    _wait_for_first_look(holder)
    resident, fds = _resident(holder), len(os.listdir(f"/proc/{holder}/fd"))

    def start(number: int) -> str:
        return run_hako("run", "--rm", *clones.with_driver(driver), "busybox", "echo", str(number)).stdout

    done = clones.each(list(range(_IN_A_ROW)), start, at_once=2)
    assert done == [f"{number}\n" for number in range(_IN_A_ROW)]
    assert keeper.pid_of(key) == holder
    assert clones.checksum(key) == before
    assert _resident(holder) <= resident
    assert len(os.listdir(f"/proc/{holder}/fd")) == fds
    _nothing_is_left(roots)


@pytest.mark.parametrize("driver", clones.DRIVERS)
def test_thirty_clones_at_once(run_hako: RunHako, hako_cmd: list[str], roots: Roots, driver: str) -> None:
    key = _key(run_hako, driver)
    before = clones.checksum(key)
    argv = [*hako_cmd, "run", "-i", "--rm", *clones.with_driver(driver), "busybox", "cat"]
    with clones.alive([argv] * _AT_ONCE) as children:
        for number, child in enumerate(children):
            assert child.stdin is not None
            child.stdin.write(f"{number}\n")
            child.stdin.flush()
        for number, child in enumerate(children):
            assert child.stdout is not None
            assert child.stdout.readline() == f"{number}\n", child.communicate()[1]
        # All of them live now, and all are clones of the one template.
        assert len(run_hako("ps", "-q").stdout.split()) == _AT_ONCE
        for child in children:
            child.communicate(timeout=120)
            assert child.returncode == 0
    assert clones.checksum(key) == before
    _nothing_is_left(roots)
