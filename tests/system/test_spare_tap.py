"""A tap that is made ahead, by a process whose forks may use it."""

from __future__ import annotations

import contextlib
import os

import pytest

from hako.linux import rtnetlink
from hako.network import namespace as namespaces
from hako.network import tap
from hako.network.tap import Tap
from support.netns import on_a_host_of_its_own, until

pytestmark = pytest.mark.system


def test_one_that_was_made_ahead_is_given_away_once() -> None:
    @on_a_host_of_its_own
    def body() -> None:
        tap.keep_spare(2)
        tap.keep_spare(2)
        spare = tap.spare_fds()
        assert len(spare) == 3  # two queues and a namespace
        with contextlib.closing(Tap.alone(1)) as other:  # not what is at hand
            assert not {*other.fds} & {*spare}
        with contextlib.closing(Tap.alone(2)) as first, contextlib.closing(Tap.alone(2)) as second:
            assert {*first.fds} < {*spare}
            assert not {*second.fds} & {*spare}
            assert first.has_home
            with namespaces.open_socket(spare[-1]) as kernel:
                assert "tap0" in {link.name for link in rtnetlink.links(kernel)}
        assert tap.spare_fds() == ()


def test_one_that_is_given_to_a_forked_process_stays_with_it() -> None:
    @on_a_host_of_its_own
    def body() -> None:
        tap.keep_spare(1)
        home = os.open(f"/proc/self/fd/{tap.spare_fds()[-1]}", os.O_RDONLY | os.O_CLOEXEC)
        ready, go = os.pipe(), os.pipe()
        child = os.fork()
        if child == 0:
            with contextlib.closing(Tap.alone(1)):
                os.write(ready[1], b"1")
                os.read(go[0], 1)
            os._exit(0)
        os.read(ready[0], 1)
        tap.give_spare_away()
        assert tap.spare_fds() == ()
        with namespaces.open_socket(home) as kernel:
            assert "tap0" in {link.name for link in rtnetlink.links(kernel)}
            os.write(go[1], b"1")
            os.waitpid(child, 0)
            until(lambda: "tap0" not in {link.name for link in rtnetlink.links(kernel)})
        for fd in (home, *ready, *go):
            os.close(fd)
