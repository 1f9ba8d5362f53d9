"""The agent's event loop: futures, timers, descriptors and children.

Children are reaped in a process of its own, or the test runner's would be too.
"""

from __future__ import annotations

import os
import signal
import traceback
from collections.abc import Callable, Iterator

import pytest

from hako.agent.loop import READ, WRITE, Future, Loop
from support.agentside import turn


@pytest.fixture
def loop() -> Iterator[Loop]:
    made = Loop()
    yield made
    made.close()


@pytest.fixture
def pipe() -> Iterator[tuple[int, int]]:
    read, write = os.pipe2(os.O_NONBLOCK)
    yield read, write
    os.close(read)
    os.close(write)


def in_child(body: Callable[[Loop], None]) -> None:
    """Run ``body`` in a child process whose loop reaps children."""
    pid = os.fork()
    if pid == 0:
        status = 1
        try:
            loop = Loop()
            loop.start()
            body(loop)
            status = 0
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(status)
    assert os.waitpid(pid, 0)[1] == 0, "it failed in the child; see standard error"


def start(*argv: str) -> int:
    return os.posix_spawn("/bin/sh", ["sh", "-c", *argv], {"PATH": "/usr/bin:/bin"})


def test_a_future_gives_its_first_value_to_all_who_wait(loop: Loop) -> None:
    future, seen = Future(), list[object]()

    async def wait() -> None:
        seen.append(await future)

    loop.spawn(wait())
    loop.spawn(wait())
    assert seen == []
    future.set("first")
    future.set("second")
    assert seen == ["first", "first"]
    loop.spawn(wait())
    assert seen == ["first"] * 3


def test_callbacks_run_at_once_when_the_value_is_there() -> None:
    future, called = Future(), list[int]()
    future.on_done(lambda: called.append(1))
    assert called == []
    future.set(None)
    future.on_done(lambda: called.append(2))
    assert called == [1, 2]


def test_timers_run_in_time_and_once(loop: Loop) -> None:
    called: list[str] = []
    loop.after(0.02, lambda: called.append("late"))
    loop.after(0.0, lambda: called.append("soon"))
    turn(loop, lambda: "late" in called)
    assert called == ["soon", "late"]


def test_sleep(loop: Loop) -> None:
    done = loop.sleep(0.001)
    loop.run(done)
    assert done.done


def test_run_ends_with_its_future(loop: Loop) -> None:
    future = Future()
    loop.after(0.001, lambda: future.set(7))
    loop.run(future)
    assert future.value == 7


def test_descriptors_are_watched_suspended_and_forgotten(loop: Loop, pipe: tuple[int, int]) -> None:
    read, write = pipe
    seen: list[int] = []
    loop.watch(read, READ, seen.append)
    loop.watch(write, 0, seen.append)  # not watched at all
    os.write(write, b"x")
    loop._run_once()
    assert seen == [READ]
    loop.watch(read, 0, seen.append)
    loop.watch(write, WRITE, lambda events: seen.append(events << 8))
    loop._run_once()
    assert seen == [READ, WRITE << 8]
    loop.forget(write)
    loop.forget(write)
    loop.watch(read, READ, seen.append)
    loop._run_once()
    assert seen[2:] == [READ]
    loop.forget(read)


def test_a_handler_may_forget_another_that_is_ready_too(loop: Loop) -> None:
    pairs = [os.pipe2(os.O_NONBLOCK) for _ in range(2)]
    seen: list[int] = []

    def only_one(fd: int) -> Callable[[int], None]:
        def handler(_events: int) -> None:
            seen.append(fd)
            for read, _ in pairs:
                loop.forget(read)

        return handler

    for read, write in pairs:
        loop.watch(read, READ, only_one(read))
        os.write(write, b"x")
    loop._run_once()
    assert len(seen) == 1
    for fd in (fd for pair in pairs for fd in pair):
        os.close(fd)


@pytest.mark.parametrize(
    ("script", "status"),
    [("exit 0", 0), ("exit 3", 3), ("exit 255", 255), ("kill -9 $$", 137), ("kill -15 $$", 143)],
)
def test_the_status_of_a_child(script: str, status: int) -> None:
    def body(loop: Loop) -> None:
        future = loop.child(start(script))
        turn(loop, lambda: future.done)
        assert future.value == status

    in_child(body)


def test_an_adopted_child_that_ended_before_anybody_asked() -> None:
    def body(loop: Loop) -> None:
        loop.hold_exits()
        orphan = start("exit 5")
        other = loop.child(start("exit 0"))
        turn(loop, lambda: other.done and orphan in loop._unclaimed)
        assert loop.adopted(orphan).value == 5
        loop.release_exits()

    in_child(body)


def test_an_adopted_child_that_ends_later() -> None:
    def body(loop: Loop) -> None:
        pid = start("exec sleep 60")
        loop.hold_exits()
        future = loop.adopted(pid)
        loop.release_exits()
        assert not future.done
        os.kill(pid, signal.SIGKILL)
        turn(loop, lambda: future.done)
        assert future.value == 137

    in_child(body)


def test_statuses_nobody_wants_are_not_kept() -> None:
    """A number is used again one day: what an earlier process with it did is not the later one's status."""

    def body(loop: Loop) -> None:
        stranger = start("exit 9")
        known = loop.child(start("exit 0"))
        turn(loop, lambda: known.done and not os.path.exists(f"/proc/{stranger}"))
        assert loop._unclaimed == {}
        loop.hold_exits()
        loop.hold_exits()
        loop._claim(stranger, 9)
        loop.release_exits()
        assert loop._unclaimed == {stranger: 9}
        fresh = loop.child(stranger)
        assert not fresh.done
        loop._claim(stranger, 0)
        loop._claim(stranger + 1, 9)
        loop.release_exits()
        assert (fresh.value, loop._unclaimed) == (0, {})

    in_child(body)


def test_held_statuses_are_bounded(loop: Loop) -> None:
    loop.hold_exits()
    for pid in range(1, 10_000):
        loop._claim(pid, 0)
    assert len(loop._unclaimed) == 4096
    assert 9_999 in loop._unclaimed


def test_many_children_at_once() -> None:
    def body(loop: Loop) -> None:
        futures = [loop.child(start(f"exit {number}")) for number in range(40)]
        turn(loop, lambda: all(future.done for future in futures))
        assert [future.value for future in futures] == list(range(40))

    in_child(body)
