"""Where the output of tasks goes: files, logging programs and FIFOs, with runc and with hako."""

from __future__ import annotations

from pathlib import Path

import pytest

from support.ctr import Ctr
from support.machine import until

pytestmark = [pytest.mark.e2e, pytest.mark.slow]

_LOGGER = """\
#!/bin/sh
# What containerd's logging programs get: the streams, and a pipe to close when they are ready.
trap "" TERM
exec 5>&-
echo "$CONTAINER_NAMESPACE $CONTAINER_ID $*" >"$2/arguments"
cat <&3 >"$2/out" &
cat <&4 >"$2/err"
wait
echo done >"$2/ended"
"""
_BOTH = "echo out; echo err >&2; i=0; while [ $i -lt 20000 ]; do i=$((i+1)); echo line $i; done; exit 3"


def test_a_file(ctr: Ctr) -> None:
    log = ctr.start("filed", "sh", "-c", _BOTH)
    ctr.until_stopped("filed")
    assert ctr.delete("filed") == 3
    lines = Path(log).read_text().splitlines()
    assert sorted(lines[:2]) == ["err", "out"] or "err" in lines
    assert [line for line in lines if line.startswith("line")] == [f"line {number + 1}" for number in range(20000)]
    # Another task adds to it.
    ctr.start("filed", "sh", "-c", "echo more")
    ctr.until_stopped("filed")
    ctr.delete("filed")
    assert Path(log).read_text().splitlines() == [*lines, "more"]


def test_a_logging_program(ctr: Ctr) -> None:
    where = Path(ctr.directory)
    logger = where / "logger"
    logger.write_text(_LOGGER)
    logger.chmod(0o755)
    ctr(
        "run",
        "--detach",
        *ctr.made("logged", "sh", "-c", _BOTH, options=("--log-uri", f"binary://{logger}?to={where}")),
    )
    ctr.until_stopped("logged")
    assert ctr.delete("logged") == 3
    until(lambda: (where / "ended").exists(), "the program has read everything")
    assert (where / "arguments").read_text() == f"{ctr.containerd.namespace} logged to {where}\n"
    assert (where / "out").read_text().splitlines() == ["out", *(f"line {number + 1}" for number in range(20000))]
    assert (where / "err").read_text() == "err\n"


def test_a_logging_program_that_is_not_there(ctr: Ctr) -> None:
    made = ctr.made("lost", "true", options=("--log-uri", "binary:///no/such/program"))
    done = ctr("run", "--detach", *made, check=False)
    assert done.status != 0
    assert "/no/such/program" in done.stderr
    assert ctr.tasks() == {}


def test_nowhere(ctr: Ctr) -> None:
    ctr("run", "--detach", *ctr.made("silent", "sh", "-c", _BOTH, options=("--null-io",)))
    ctr.until_stopped("silent")
    assert ctr.delete("silent") == 3


def test_output_that_nobody_reads_for_a_while(ctr: Ctr) -> None:
    """ctr goes away from the FIFOs, others come and go; the container neither ends nor loses what comes later."""
    script = "while read -r line; do echo got $line; done; echo over"
    with ctr.on_terminal(
        "run", "--detach", "--tty", *ctr.made("fifo", "sh", "-c", f"stty -echo; {script}")
    ) as terminal:
        assert terminal.wait() == 0
    for turn in range(3):
        with ctr.on_terminal("task", "attach", "fifo") as terminal:
            terminal.type(f"{turn}\r")
            terminal.expect(f"got {turn}\r")
    assert ctr.status("fifo") == "RUNNING"


def test_exec_into_a_file(ctr: Ctr) -> None:
    ctr.start("host", "sleep", "1000")
    log = Path(ctr.directory, "exec.log")
    options = ("--detach", "--log-uri", f"file://{log}")
    script = "trap 'exit 4' TERM; echo out; echo err >&2; while :; do sleep 0.1; done"
    ctr.exec("host", "sh", "-c", script, id="filed", options=options)
    until(lambda: log.exists() and sorted(log.read_text().split()) == ["err", "out"], "its output is there")
    ctr("task", "kill", "--exec-id", "filed", "host")
    until(lambda: ctr.delete_exec("host", "filed") == 4, "it has ended")
