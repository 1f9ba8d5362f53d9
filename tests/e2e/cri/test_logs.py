"""Logs of containers in the form that Kubernetes reads: time, stream, whether the line is whole, and text."""

from __future__ import annotations

import os
import re

import pytest

from support.machine import until
from support.pods import Pod

pytestmark = [pytest.mark.e2e, pytest.mark.slow]

_TIME = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d+(Z|[+-]\d\d:\d\d)")


def test_both_streams(pod: Pod) -> None:
    made = pod.start("streams", "sh", "-c", "echo one; sleep 0.3; echo two >&2; sleep 0.3; printf three")
    made.until_exited()
    made.check_said("one\nthree")
    made.check_said("two\n", "stderr")
    lines = made.lines()
    assert [line[1:] for line in lines] == [("stdout", "F", "one"), ("stderr", "F", "two"), ("stdout", "P", "three")]
    assert all(_TIME.fullmatch(line.time) for line in lines)
    assert [line.time for line in lines] == sorted(line.time for line in lines)
    made.remove()


def test_a_terminal_has_one_stream(pod: Pod) -> None:
    made = pod.start("terminal", "sh", "-c", "tty; echo one; echo two >&2", tty=True)
    made.until_exited()
    made.until_logged("two")
    assert {line.stream for line in made.lines()} == {"stdout"}
    words = made.text().split()
    assert words[0].startswith("/dev/pts/")
    assert words[1:] == ["one", "two"]
    made.remove()


def test_long_lines(pod: Pod) -> None:
    """A line that is longer than containerd's limit comes in parts."""
    made = pod.start("long", "sh", "-c", "head -c 50000 /dev/zero | tr '\\0' x; echo; echo short")
    made.until_exited()
    made.check_said("x" * 50_000 + "\nshort\n")
    assert [line.tag for line in made.lines()] == ["P", "P", "P", "F", "F"]
    made.remove()


def test_much_output(pod: Pod) -> None:
    # containerd writes line by line, and runc's shim drops what has not been taken two seconds after the end.
    made = pod.start("much", "sh", "-c", "for n in $(seq 500); do printf '%01000d\\n' $n; done")
    made.until_exited()
    made.check_said("".join(f"{number:01000}\n" for number in range(1, 501)))
    made.remove()


def test_reopened(pod: Pod) -> None:
    """A kubelet that rotates logs moves the file away, and has the next lines written into a new one."""
    made = pod.start("rotated", "sh", "-c", "n=0; while :; do n=$((n + 1)); echo line $n; sleep 0.1; done")
    made.until_logged("line 3\n")
    os.rename(made.log_path, f"{made.log_path}.1")
    pod.cri.reopen_log(made.id)
    until(lambda: len(made.lines()) >= 3, "the new file gets lines")
    made.stop()
    with open(f"{made.log_path}.1", encoding="utf-8") as file:
        old = [line.rstrip("\n").split(" ", 3)[3] for line in file]
    new = [line.text for line in made.lines()]
    assert old + new == [f"line {number}" for number in range(1, len(old) + len(new) + 1)]
    made.remove()


def test_no_log(pod: Pod) -> None:
    """A container whose output nobody keeps is not held up by it."""
    made = pod.start("unlogged", "sh", "-c", "head -c 5000000 /dev/zero", log_path="")
    assert made.until_exited().exit_code == 0
    made.remove()
