"""A process that goes into a cgroup, leaves it for a while, and starts others that are to be born there."""

from __future__ import annotations

import asyncio
import threading

import pytest

from hako.cgroup import api, home
from hako.cgroup.joining import Joining


class Place:
    """Plays the cgroup, and records where the process is."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.where = "home"
        monkeypatch.setattr(home, "remember", lambda: None)
        monkeypatch.setattr(home, "enter", lambda _: self._go("home"))
        monkeypatch.setattr(api.Cgroup, "open", staticmethod(lambda _: self))

    def _go(self, where: str) -> None:
        self.where = where

    def add(self, _pid: int) -> None:
        self._go("container's")

    def to_json(self) -> dict[str, object]:
        return {"path": "/x", "made": self.where == "container's"}


@pytest.fixture
def place(monkeypatch: pytest.MonkeyPatch) -> Place:
    return Place(monkeypatch)


def go_outside(joining: Joining) -> tuple[threading.Event, threading.Thread]:
    """Have a thread that is outside until the event is set."""
    is_outside, come_back = threading.Event(), threading.Event()

    def away() -> None:
        with joining.outside():
            is_outside.set()
            assert come_back.wait(10)

    thread = threading.Thread(target=away)
    thread.start()
    assert is_outside.wait(10)
    return come_back, thread


def test_outside_for_a_while(place: Place) -> None:
    joining = Joining({"path": "/x"})
    joining.wait()
    assert place.where == "container's"
    with joining.outside():
        assert place.where == "home"
    assert place.where == "container's"


def test_the_record_is_that_of_the_cgroup_with_the_process_in_it(place: Place) -> None:
    """systemd makes the cgroup for its first process."""
    joining = Joining({"path": "/x"})
    joining.wait()
    assert joining.record == {"path": "/x", "made": True}
    assert place.where == "container's"


def test_nothing_is_started_while_the_process_is_outside(place: Place) -> None:
    joining = Joining({"path": "/x"})
    come_back, away = go_outside(joining)

    async def start() -> str:
        async with joining.inside():
            return place.where

    async def main() -> str:
        starting = asyncio.create_task(start())
        done, _ = await asyncio.wait([starting], timeout=0.1)
        assert not done
        come_back.set()
        return await starting

    assert asyncio.run(main()) == "container's"
    away.join()


def test_a_start_that_is_given_up_keeps_nobody_inside(place: Place) -> None:
    joining = Joining({"path": "/x"})

    async def main() -> None:
        async with joining.inside():
            waiting = asyncio.create_task(joining.inside().__aenter__())
            await asyncio.sleep(0.05)
            waiting.cancel()
            await asyncio.wait([waiting])

    asyncio.run(main())
    with joining.outside():
        assert place.where == "home"


def test_for_good(place: Place) -> None:
    joining = Joining({"path": "/x"})
    come_back, away = go_outside(joining)

    leaving = threading.Thread(target=joining.leave)
    leaving.start()  # it waits, or whoever comes back would do so after it
    come_back.set()
    away.join()
    leaving.join()
    assert place.where == "home"


def test_whoever_was_moved_does_not_move(place: Place) -> None:
    joining = Joining({"path": "/x"}, done=True)
    joining.wait()
    assert place.where == "home"
    joining.leave()
    assert place.where == "home"


def test_without_a_cgroup_nothing_moves(place: Place) -> None:
    joining = Joining({})
    with joining.outside():
        joining.wait()
    joining.leave()
    assert place.where == "home"
