"""Running commands: times, failures, and that none of them is left."""

from __future__ import annotations

import os
import pathlib
import time

import pytest

from bench import commands
from bench.model import BenchError


def python(code: str) -> list[str]:
    return ["/usr/bin/env", "python3", "-c", code]


def is_alive(pid: int) -> bool:
    return os.path.exists(f"/proc/{pid}")


def test_first_output_comes_before_the_end() -> None:
    done = commands.run(["sh", "-c", "echo early; sleep 0.2; echo late"])
    assert done.first is not None
    assert done.first < done.total
    assert done.total >= 0.2
    assert done.output == b"early\nlate\n"


def test_no_output_has_no_time() -> None:
    assert commands.run(["true"]).first is None


def test_a_failure_says_what_and_why() -> None:
    with pytest.raises(BenchError, match=r"sh -c .* failed with 3: no luck"):
        commands.run(["sh", "-c", "echo first >&2; echo no luck >&2; exit 3"])
    assert commands.run(["sh", "-c", "exit 3"], check=False).status == 3


def test_a_program_that_is_missing() -> None:
    with pytest.raises(BenchError, match="Cannot run no-such-program-here"):
        commands.run(["no-such-program-here"])


@pytest.mark.parametrize("script", ["exec sleep 1000", "exec >&-; exec sleep 1000", "trap '' TERM; exec sleep 1000"])
def test_what_takes_too_long_is_ended(script: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(commands, "_KILL_SECONDS", 0.3)
    with pytest.raises(BenchError, match=r"in time|did not end"), commands.Command(["sh", "-c", script]) as command:
        command.finish(0.2)
    assert not is_alive(command.process.pid)


def test_a_command_does_not_outlive_an_interrupt() -> None:
    class Interrupt(BaseException):
        pass

    with pytest.raises(Interrupt), commands.Command(["sleep", "1000"]) as command:
        raise Interrupt
    assert not is_alive(command.process.pid)


def test_commands_at_once_run_beside_each_other_and_failures_are_results(tmp_path: pathlib.Path) -> None:
    # Each of the first two waits for the other to have begun.
    script = f"cd {tmp_path}; : >begun$0; until [ -e begun$1 ]; do sleep 0.02; done"
    meeting = [["sh", "-c", script, "1", "2"], ["sh", "-c", script, "2", "1"]]
    found = commands.run_at_once([*meeting, ["sh", "-c", "echo why >&2; exit 4"]], timeout=60)
    assert [done.status for done in found if isinstance(done, commands.Done)] == [0, 0, 4]
    last = found[2]
    assert isinstance(last, commands.Done)
    assert last.error == "why"


def test_one_of_many_that_hangs_is_a_result_too() -> None:
    found = commands.run_at_once([["true"], ["sleep", "1000"]], timeout=0.5)
    assert isinstance(found[0], commands.Done)
    assert isinstance(found[1], BenchError)


def test_many_are_ended_together(tmp_path: pathlib.Path) -> None:
    # Told to end, each waits for all others to have been told too.
    script = f"cd {tmp_path}; " + (
        "trap ': >told$0; until [ $(ls told* | wc -l) = 4 ]; do sleep 0.02; done; : >ended$0; exit' TERM"
        "; : >ready$0; while :; do sleep 0.02; done"
    )
    running = [commands.Command(["sh", "-c", script, str(number)]) for number in range(4)]
    while len(list(tmp_path.glob("ready*"))) < 4:
        time.sleep(0.01)
    commands.end_all(running)
    assert len(list(tmp_path.glob("ended*"))) == 4
    assert not commands._running


def test_a_session_asks_and_is_answered() -> None:
    with commands.session(["cat"]) as session:
        assert session.ask("hello", "hello") > 0
        with pytest.raises(BenchError, match="was answered with: what"):
            session.ask("what", "that")
    assert not is_alive(session.command.process.pid)


def test_a_session_that_ends_says_why() -> None:
    with (
        commands.session(["sh", "-c", "read -r line; echo gone >&2; exit 1"]) as session,
        pytest.raises(BenchError, match="has ended: gone"),
    ):
        session.ask("hello", "hello")


def test_bytes_are_counted() -> None:
    with commands.session(["cat"]) as session:
        session.write(b"abcrest\n")
        session.count(3)
        assert session.line() == "rest"


def test_much_goes_there_and_back_at_once() -> None:
    data = os.urandom(1 << 20)
    with commands.session(["cat"]) as session:
        session.echo(data, 8)
        assert session.ask("still there", "still there")


def test_bytes_that_come_back_changed_are_noticed() -> None:
    with commands.session(["tr", "x", "y"]) as session, pytest.raises(BenchError, match="not those that went in"):
        session.echo(b"abcx" * (1 << 18), 4)


def test_a_process_that_does_not_read_does_not_hold_up_for_ever() -> None:
    with pytest.raises(BenchError, match="did nothing in time"), commands.session(["sleep", "1000"]) as session:
        session.write(bytes(1 << 20), timeout=0.2)
    assert not is_alive(session.command.process.pid)


def test_what_an_interrupt_leaves_running_is_ended() -> None:
    command = commands.Command(["sleep", "1000"])  # as if a signal had come before the with block
    commands.end_all()
    assert not is_alive(command.process.pid)
    commands.end_all()


def test_bytes_that_do_not_come_are_missed() -> None:
    with commands.session(["sh", "-c", "printf abc"]) as session, pytest.raises(BenchError, match="too early"):
        session.count(4)
