"""The life of a container under docker and podman, with runc and with hako: all that is done to one that runs."""

from __future__ import annotations

import hashlib
import os
import signal
import subprocess
import time
from pathlib import Path

import pytest

from support.engines import IMAGE, Box, differs
from support.machine import until
from support.terminals import OnTerminal

pytestmark = [pytest.mark.e2e, pytest.mark.slow]

PROCESSES = differs(
    "`docker top`, `podman top`",
    runc="all processes of the container",
    hako="the process that stands for the container on the host, under the command line of the container's first",
    why="engines read the host's /proc, which does not have a guest's processes",
)

LIMIT = differs(
    "limit of memory in `docker stats`",
    runc="the container's",
    hako="the container's, and what its VM needs besides",
    why="docker shows the limit of the container's cgroup on the host, which the VM has to fit in",
)

_WAIT = "trap 'exit 9' USR1; echo ready; while :; do sleep 0.1; done"


def test_exec(box: Box) -> None:
    box.start("host", "-e", "A=1", IMAGE, "sleep", "1000")
    script = "id -u; pwd; echo $A$B; echo err >&2; exit 5"
    done = box("exec", "-u", "1000", "-w", "/var", "-e", "B=2", "host", "sh", "-c", script, check=False)
    assert (done.status, done.stdout, done.stderr) == (5, "1000\n/var\n12\n", "err\n")
    assert box("exec", "-i", "host", "sha256sum", input="some text").stdout.startswith(
        hashlib.sha256(b"some text").hexdigest()
    )
    box("exec", "-d", "host", "sh", "-c", "echo $$ >/tmp/detached; exec sleep 999")
    until(lambda: box("exec", "host", "test", "-s", "/tmp/detached", check=False).status == 0, "the other command runs")
    assert "sleep 999" in box.output("exec", "host", "sh", "-c", "tr '\\0' ' ' </proc/$(cat /tmp/detached)/cmdline")


def test_exec_of_what_cannot_be_run(box: Box) -> None:
    box.start("host", IMAGE, "sleep", "1000")
    missing = box("exec", "host", "no-such-program", check=False)
    assert missing.status == (126 if box.docker else 127)
    assert '"no-such-program": executable file not found in $PATH' in missing.stdout + missing.stderr
    lost = box("exec", "-w", "/no/such/place", "host", "true", check=False)
    assert lost.status == (126 if box.docker else 127)
    assert "/no/such/place" in lost.stdout + lost.stderr
    assert box.state("host")["Status"] == "running"


def test_exec_on_a_terminal(box: Box) -> None:
    box.start("host", IMAGE, "sleep", "1000")
    with OnTerminal(["/usr/bin/env", *box.argv("exec", "-it", "host", "sh")], rows=33, columns=90) as terminal:
        terminal.expect("# ")
        terminal.type("until [ \"$(stty size)\" = '33 90' ]; do :; done; echo si''zed\r")
        terminal.expect("sized")
        terminal.type("exit 4\r")
        assert terminal.wait() == 4


def test_logs_signals_and_waiting(box: Box) -> None:
    box.start("life", IMAGE, "sh", "-c", f"echo err >&2; {_WAIT}")
    box.until_logged("life", "ready")
    done = box("logs", "life")
    assert (done.stdout, done.stderr) == ("ready\n", "err\n")
    state = box.state("life")
    assert state["Status"] == "running"
    assert os.path.isdir(f"/proc/{state['Pid']}")
    with subprocess.Popen(
        box.argv("wait", "life"), env=box.engine.machine.environment, stdout=subprocess.PIPE, text=True
    ) as waiting:
        box("kill", "--signal", "USR1", "life")
        assert waiting.communicate(timeout=60)[0] == "9\n"
    assert box.until_state("life", "exited")["ExitCode"] == 9
    until(lambda: not os.path.isdir(f"/proc/{state['Pid']}"), "the process is gone")
    box("start", "life")
    until(lambda: box.output("logs", "life").count("ready") == 2, "it has started anew")
    box("kill", "life")
    assert box.output("wait", "life") == "137"


def test_stopping(box: Box) -> None:
    box.start("polite", IMAGE, "sh", "-c", "trap 'exit 7' TERM; echo ready; while :; do sleep 0.1; done")
    box.start(
        "stubborn",
        "--stop-signal",
        "USR2",
        IMAGE,
        "sh",
        "-c",
        "trap 'echo no' USR2; echo ready; while :; do sleep 0.1; done",
    )
    for name, status in (("polite", 7), ("stubborn", 137)):
        box.until_logged(name, "ready")
        box("stop", "-t", "1" if name == "stubborn" else "60", name)
        assert box.state(name)["ExitCode"] == status
    assert box.output("logs", "stubborn") == "ready\nno"
    box("restart", "-t", "1", "polite")
    until(lambda: box.output("logs", "polite").count("ready") == 2, "it has started anew")


def test_the_first_process_is_killed_from_outside(box: Box) -> None:
    box.start("victim", IMAGE, "sleep", "1000")
    os.kill(box.state("victim")["Pid"], signal.SIGKILL)
    state = box.until_state("victim", "exited")
    assert (state["ExitCode"], state["OOMKilled"]) == (137, False)
    box("start", "victim")
    assert box.state("victim")["Status"] == "running"


def test_pausing(box: Box, tmp_path: Path) -> None:
    counter = tmp_path / "count"
    script = "i=0; while :; do i=$((i+1)); echo $i >/data/new; mv /data/new /data/count; sleep 0.01; done"
    box.start("counter", "-v", f"{tmp_path}:/data", IMAGE, "sh", "-c", script)
    until(counter.exists, "it counts")
    box("pause", "counter")
    assert box.state("counter")["Status"] == "paused"
    before = counter.read_text()
    time.sleep(0.5)  # for nothing to happen takes time
    assert counter.read_text() == before
    assert box("exec", "counter", "true", check=False).status != 0
    box("unpause", "counter")
    until(lambda: counter.read_text() != before, "it counts again")
    box("pause", "counter")
    box("rm", "-f", "counter")


def test_updating(box: Box) -> None:
    box.start("sized", "-m", "64m", "--memory-swap", "64m", IMAGE, "sleep", "1000")
    box("update", "-m", "96m", "--memory-swap", "96m", "--cpus", "0.5", "sized")
    script = """
        cd /sys/fs/cgroup
        if [ -e memory.max ]; then cat memory.max; cat cpu.max | cut -d' ' -f1
        else cat memory/memory.limit_in_bytes cpu/cpu.cfs_quota_us; fi
    """
    assert box.output("exec", "sized", "sh", "-c", script).split() == [str(96 << 20), "50000"]


def test_top_and_stats(box: Box) -> None:
    box.start("busy", "-m", "256m", IMAGE, "sh", "-c", "sleep 1001 & sleep 1002; true")

    def processes() -> str:
        said = box.output("top", "busy")
        return said if len(said.splitlines()) == wanted else ""

    wanted = box.either(PROCESSES, runc=4, hako=2)
    assert "sleep 1001" in until(processes, "its processes")
    form = "{{.MemUsage}}|{{.MemPerc}}|{{.PIDs}}"
    used, limit = box.output("stats", "--no-stream", "--format", form, "busy").split("|")[0].split(" / ")
    assert _bytes(used) > 0
    if box.docker:
        assert _bytes(limit) >= 256 << 20
        assert (limit == "256MiB") is box.either(LIMIT, runc=True, hako=False)
    else:
        assert limit == "268.4MB"


def _bytes(text: str) -> float:
    number = text.rstrip("BKMGik")
    return (
        float(number)
        * {"B": 1, "kB": 1e3, "KiB": 1 << 10, "MB": 1e6, "MiB": 1 << 20, "GiB": 1 << 30}[text[len(number) :]]
    )


def test_copying(box: Box, tmp_path: Path) -> None:
    box.start(
        "shelf", IMAGE, "sh", "-c", "mkdir /out; echo made inside >/out/file; ln -s file /out/link; exec sleep 1000"
    )
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "data").write_bytes(data := os.urandom(1 << 20))
    box("cp", f"{tmp_path}/in", "shelf:/in")
    assert box.output("exec", "shelf", "sha256sum", "/in/data").split()[0] == hashlib.sha256(data).hexdigest()
    until(lambda: box("exec", "shelf", "test", "-L", "/out/link", check=False).status == 0, "the files are there")
    box("cp", "shelf:/out", f"{tmp_path}/out")
    assert (tmp_path / "out" / "file").read_text() == "made inside\n"
    assert os.readlink(tmp_path / "out" / "link") == "file"
    assert "/in" in box.output("diff", "shelf")


def test_health(box: Box) -> None:
    every = ["--health-interval", "500ms"] if box.docker else ["--health-interval", "disable"]
    box.start("well", "--health-cmd", "test ! -e /ill", "--health-retries", "1", *every, IMAGE, "sleep", "1000")

    def health() -> str:
        if box.docker:
            return str(box.state("well")["Health"]["Status"])
        # Its checks are made by timers of systemd, or when asked for.
        status = box("healthcheck", "run", "well", check=False).status
        return {0: "healthy", 1: "unhealthy"}[status]

    until(lambda: health() == "healthy", "it is well")
    box("exec", "well", "touch", "/ill")
    until(lambda: health() == "unhealthy", "it is ill")


def test_restarting(box: Box, tmp_path: Path) -> None:
    box.start("thrice", "--restart", "on-failure:2", IMAGE, "sh", "-c", "echo run; exit 3")
    until(lambda: box.output("logs", "thrice").count("run") == 3, "it has run three times")
    box.until_state("thrice", "exited")
    assert box.output("inspect", "-f", "{{.RestartCount}} {{.State.ExitCode}}", "thrice") == "2 3"
    # The first run ends by itself, the second one stays.
    script = "[ -e /data/second ] && exec sleep 1000; touch /data/second"
    box.start("always", "--restart", "always", "-v", f"{tmp_path}:/data", IMAGE, "sh", "-c", script)
    until(
        lambda: box.output("inspect", "-f", "{{.RestartCount}} {{.State.Status}}", "always") == "1 running", "a restart"
    )
    box("stop", "-t", "1", "always")
    assert box.state("always")["Status"] == "exited"


def test_running_out_of_memory(box: Box) -> None:
    box.start("hungry", "-m", "48m", "--memory-swap", "48m", IMAGE, "sh", "-c", "exec tail /dev/zero")
    assert box.output("wait", "hungry") == "137"
    state = box.until_state("hungry", "exited")
    # Podman's monitor misses it when the process ends before it looks.
    assert state["OOMKilled"] or not box.docker
    assert state["ExitCode"] == 137


def test_events(box: Box) -> None:
    start = str(time.time() - 1)
    name = f"short-{box.runtime}"
    box("run", "--rm", "--name", name, IMAGE, "sh", "-c", "exit 3", check=False)
    kinds = ["create", "start", "die", "destroy"] if box.docker else ["create", "init", "start", "died", "remove"]

    until_now = ["--until", "0s"] if box.docker else ["--stream=false"]
    form = "{{.Action}}" if box.docker else "{{.Status}}"
    chosen = ["--filter", f"container={name}", "--filter", "type=container", "--format", form]

    def seen() -> list[str]:
        words = box.output("events", "--since", start, *until_now, *chosen).split()
        return words if words[-1:] == kinds[-1:] else []

    words = until(seen, "the last event")
    assert [word for word in words if word in kinds] == kinds
