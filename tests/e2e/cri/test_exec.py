"""Commands that are run in a pod's container: to their end, and with streams."""

from __future__ import annotations

import time

import pytest

from support import cri_messages as m
from support.machine import until
from support.pods import Ctr, Pod, fails

pytestmark = [pytest.mark.e2e, pytest.mark.slow]


def test_to_its_end(container: Ctr) -> None:
    done = container.exec("sh", "-c", "echo out; echo err >&2; exit 7")
    assert (done.stdout, done.stderr, done.exit_code) == (b"out\n", b"err\n", 7)


def test_much_output(container: Ctr) -> None:
    done = container.exec("sh", "-c", "head -c 3000000 /dev/zero | tr '\\0' x; head -c 100000 /dev/zero >&2")
    assert (len(done.stdout), len(done.stderr), done.exit_code) == (3_000_000, 100_000, 0)
    assert set(done.stdout) == {ord("x")}


def test_a_command_that_is_not_there(container: Ctr) -> None:
    assert "no-such-command" in fails(container.exec, "no-such-command")
    assert container.sh("echo still usable") == "still usable"


def test_time_limit(container: Ctr) -> None:
    started = time.monotonic()
    message = fails(container.exec, "sh", "-c", "sleep 567", timeout=1)
    assert "timeout 1s exceeded" in message
    assert time.monotonic() - started < 20
    assert "sleep 567" not in container.sh("ps -o args")


def test_environment_of_the_container(pod: Pod) -> None:
    made = pod.start("environment", envs=[m.KeyValue(key="GIVEN", value="a b")], working_dir="/var")
    assert made.sh("echo $GIVEN $HOSTNAME; pwd") == f"a b {pod.name}\n/var"
    made.remove()


def test_streams(container: Ctr) -> None:
    script = "read line; echo got $line; echo err >&2; exit 3"
    with container.cri.exec(container.id, "sh", "-c", script, stdin=True) as it:
        it.write(b"first\n")
        assert it.wait() == 3
        assert (it.stdout, it.stderr) == (b"got first\n", b"err\n")


def test_streams_without_input(container: Ctr) -> None:
    with container.cri.exec(container.id, "sh", "-c", "cat; head -c 1000000 /dev/zero") as it:
        assert it.wait() == 0
        assert (len(it.stdout), it.stderr) == (1_000_000, b"")


def test_end_of_input(container: Ctr) -> None:
    """Whoever goes away has said all: the command sees the end of its input."""
    script = "cat >/tmp/arrived; echo done >/tmp/ended"
    with container.cri.exec(container.id, "sh", "-c", script, stdin=True) as it:
        it.write(b"0123456789" * 30_000)
        until(lambda: container.sh("cat /tmp/arrived 2>/dev/null | wc -c") == "300000", "the input has arrived")
        assert container.exec("test", "-e", "/tmp/ended").exit_code == 1
    until(lambda: container.exec("test", "-e", "/tmp/ended").exit_code == 0, "the command has seen the end")


def test_terminal(container: Ctr) -> None:
    with container.cri.exec(container.id, "sh", tty=True, stdin=True) as it:
        it.resize(111, 33)
        it.write(b"tty; stty size; echo $((6 * 7))\n")
        it.until(b"\r\n42\r\n")
        assert b"/dev/pts/" in it.stdout
        assert b"33 111" in it.stdout
        it.resize(90, 20)
        it.write(b"sleep 1; stty size; exit 5\n")
        it.until(b"20 90")
        assert it.wait() == 5
        assert it.stderr == b""


def test_interrupting_at_a_terminal(container: Ctr) -> None:
    script = "trap 'exit 9' INT; echo ready; while :; do sleep 0.1; done"
    with container.cri.exec(container.id, "sh", "-c", script, tty=True, stdin=True) as it:
        it.until(b"ready")
        it.write(b"\x03")
        assert it.wait() == 9


def test_several_at_once(container: Ctr) -> None:
    """Their streams are their own."""
    scripts = [f"read a; echo {number} $a; exit {number}" for number in range(4)]
    links = [container.cri.exec(container.id, "sh", "-c", script, stdin=True) for script in scripts]
    for number, it in reversed(list(enumerate(links))):
        it.write(f"line {number}\n".encode())
    for number, it in enumerate(links):
        assert it.wait() == number
        assert it.stdout == f"{number} line {number}\n".encode()
        it.close()


def test_attach(pod: Pod) -> None:
    script = "while read line; do echo got $line; echo err $line >&2; done; echo end; exit 4"
    made = pod.start("attached", "sh", "-c", script, stdin=True, stdin_once=True)
    with pod.cri.attach(made.id, stdin=True) as it:
        it.write(b"one\n")
        it.until(b"got one\n")
        it.write(b"two\n")
        it.until(b"got two\n")
    # With stdin_once the first one who goes away takes the container's input along.
    assert made.until_exited().exit_code == 4
    made.check_said("got one\ngot two\nend\n")
    made.check_said("err one\nerr two\n", "stderr")
    made.remove()


def test_attach_again(pod: Pod) -> None:
    """Without stdin_once a container's input stays open for the next one who comes."""
    made = pod.start("again", "sh", "-c", "while read line; do echo got $line; done", stdin=True)
    for word in (b"one", b"two"):
        with pod.cri.attach(made.id, stdin=True) as it:
            it.write(word + b"\n")
            it.until(b"got " + word)
    assert made.status().state == m.RUNNING
    made.stop()
    made.remove()


def test_attach_to_a_terminal(pod: Pod) -> None:
    made = pod.start("terminal", "sh", stdin=True, tty=True)
    with pod.cri.attach(made.id, stdin=True, tty=True) as it:
        it.resize(77, 22)
        it.write(b"stty size; echo $((40 + 2))\n")
        it.until(b"\r\n42\r\n")
        assert b"22 77" in it.stdout
        it.write(b"exit 6\n")
        it.wait_closed()
    assert made.until_exited().exit_code == 6
    made.remove()


def test_attach_to_one_that_ends(pod: Pod) -> None:
    made = pod.start("ending", "sh", "-c", "read line; echo bye", stdin=True, stdin_once=True)
    with pod.cri.attach(made.id, stdin=True) as it:
        it.write(b"x\n")
        it.wait_closed()
        assert it.stdout == b"bye\n"
    made.remove()
