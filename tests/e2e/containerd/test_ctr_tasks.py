"""Tasks in the background, with runc and with hako: all that ctr does to a container that runs."""

from __future__ import annotations

import json
import subprocess
import time
from pathlib import Path

import pytest

from support.children import started
from support.containerd import IMAGE
from support.ctr import Ctr, Event, resize
from support.machine import until

pytestmark = [pytest.mark.e2e, pytest.mark.slow]

_TRAP = "trap 'exit 9' USR1; echo ready; while :; do sleep 0.1; done"


def test_life(ctr: Ctr) -> None:
    with ctr.events() as events:
        log = ctr.start("life", "sh", "-c", f"echo err >&2; {_TRAP}")
        assert sorted(ctr.until_logged(log, "ready").split()) == ["err", "ready"]
        pid, status = ctr.tasks()["life"]
        assert status == "RUNNING"
        assert Path(f"/proc/{pid}").exists()
        assert str(pid) in ctr("task", "ps", "life").stdout.split()
        refused = ctr("task", "delete", "life", check=False)
        assert refused.status != 0
        assert "must be stopped" in refused.stderr or "not stopped" in refused.stderr
        ctr("task", "kill", "--signal", "USR1", "life")
        ctr.until_stopped("life")
        again = ctr("task", "kill", "life", check=False)
        assert again.status != 0
        assert "already finished" in again.stderr
        assert ctr.delete("life") == 9
        assert "life" not in ctr.tasks()
        create, start, exit, *deleted = events.until("life", "create", "start", "exit", "delete")
    assert create.content["pid"] == start.content["pid"] == exit.content["pid"] == pid
    assert (exit.content["id"], exit.content["exit_status"]) == ("life", 9)
    assert all(event.content["exit_status"] == 9 for event in deleted)
    assert create.content["io"]["stdout"] == f"file://{log}"


def test_exec(ctr: Ctr) -> None:
    with ctr.events() as events:
        ctr.start("host", "sleep", "1000", options=("--env", "A=1"))
        missing = ctr.exec("host", "no-such-program", check=False)
        assert missing.status != 0
        assert '"no-such-program": executable file not found in $PATH' in missing.stderr
        ctr.exec("host", "sh", "-c", "echo $$ >/tmp/pid; exec sleep 999", id="long", options=("--detach",))
        until(lambda: ctr.exec("host", "test", "-s", "/tmp/pid", check=False).status == 0, "it runs")
        assert "long" in ctr("task", "ps", "host").stdout
        ctr("task", "kill", "--exec-id", "long", "--signal", "KILL", "host")
        until(lambda: ctr.delete_exec("host", "long") == 137, "it has ended")
        assert ctr.status("host") == "RUNNING"
        script = "id -u; pwd; echo $A; echo err >&2; exit 5"
        # Last, because ctr mounts the container's files once more to look for the user; what is written then is lost.
        options = ("--user", "1000", "--cwd", "/var")
        done = ctr.exec("host", "sh", "-c", script, id="last", options=options, check=False)
        assert (done.status, done.stdout, done.stderr) == (5, "1000\n/var\n1\n", "err\n")

        def told() -> list[Event]:
            return [
                event
                for event in events.of("host")
                if "last" in (event.content.get("exec_id"), event.content.get("id"))
            ]

        until(lambda: len(told()) >= 3, "containerd is told of it")
        added, started_, exit, *_ = told()
    assert (added.topic, started_.topic, exit.topic) == ("/tasks/exec-added", "/tasks/exec-started", "/tasks/exit")
    assert exit.content["exit_status"] == 5
    assert exit.content["pid"] == started_.content["pid"]


def test_exec_with_an_input(ctr: Ctr) -> None:
    ctr.start("host", "sleep", "1000")
    argv = ctr.containerd.argv("task", "exec", "--exec-id", "reader", "host", "sh", "-c", "echo here; cat; echo end")
    with started(argv, env=ctr.containerd.machine.environment, stdin=subprocess.PIPE) as client:
        # ctr forgets the end of an input that is there before the process is.
        assert client.output.readline() == b"here\n"
        data = bytes(range(256)) * 4096
        assert client.communicate(data, 60)[0] == data + b"end\n"
        assert client.returncode == 0


def test_exec_on_a_terminal(ctr: Ctr) -> None:
    ctr.start("host", "sleep", "1000")
    with ctr.on_terminal("task", "exec", "--tty", "--exec-id", "seat", "host", "sh") as terminal:
        terminal.expect("# ")
        terminal.type("until [ \"$(stty size)\" = '24 80' ]; do :; done; echo si''zed\r")
        terminal.expect("sized\r")
        resize(terminal)
        terminal.type("exit 4\r")
        assert terminal.wait() == 4


def test_create_and_start(ctr: Ctr) -> None:
    # Debian's ctr takes options of the command for its own here.
    ctr("container", "create", *ctr.made("later", "ls", "/etc/group", "/none"))
    assert ctr.tasks() == {}
    for _ in range(2):  # the same container can have one task after the other
        done = ctr("task", "start", "later", check=False)
        assert (done.status, done.stdout) == (1, "/etc/group\n")
    assert ctr.tasks() == {}
    ctr("container", "delete", "later")


def test_attaching(ctr: Ctr) -> None:
    script = "read -r line; echo got $line; echo bad >&2; read -r line; exit 4"
    ctr("run", "--detach", *ctr.made("reader", "sh", "-c", script))
    argv = ctr.containerd.argv("task", "attach", "reader")
    pipes = {"stdin": subprocess.PIPE, "stderr": subprocess.PIPE}
    with started(argv, env=ctr.containerd.machine.environment, **pipes) as client:
        client.input.write(b"one\n")
        client.input.flush()
        assert client.output.readline() == b"got one\n"
        assert client.complaints.readline() == b"bad\n"
        client.input.write(b"two\n")
        client.input.flush()
        assert client.wait(60) == 4
    assert ctr.tasks() == {}  # it is removed by those who saw its end


def test_leaving_a_terminal_and_coming_back(ctr: Ctr) -> None:
    with ctr.on_terminal("run", "--detach", "--tty", *ctr.made("seat", "sh")) as terminal:
        assert terminal.wait() == 0
    for turn in range(2):
        with ctr.on_terminal("task", "attach", "seat") as terminal:
            terminal.type(f"echo tur''n{turn}\r")
            terminal.expect(f"turn{turn}\r")
            if turn:
                terminal.type("exit 3\r")
                assert terminal.wait() == 3
    assert ctr.tasks() == {}


def test_pausing(ctr: Ctr, tmp_path: Path) -> None:
    counter = tmp_path / "count"
    script = "i=0; while :; do i=$((i+1)); echo $i >/data/new; mv /data/new /data/count; sleep 0.01; done"
    mount = f"type=bind,src={tmp_path},dst=/data,options=rbind:rw"
    with ctr.events() as events:
        ctr.start("counter", "sh", "-c", script, options=("--mount", mount))
        until(counter.exists, "it counts")
        ctr("task", "pause", "counter")
        assert ctr.status("counter") == "PAUSED"
        before = counter.read_text()
        time.sleep(0.3)  # for nothing to happen takes time
        assert counter.read_text() == before
        ctr("task", "resume", "counter")
        assert ctr.status("counter") == "RUNNING"
        until(lambda: counter.read_text() != before, "it counts again")
        ctr("task", "pause", "counter")
        ctr.remove("counter")
        events.until("counter", "create", "start", "paused", "resumed", "paused", "exit", "delete")


def test_metrics(ctr: Ctr) -> None:
    ctr.start("busy", "sh", "-c", "sleep 1001 & while :; do :; done", options=("--memory-limit", str(256 << 20)))

    def used() -> dict[str, int]:
        found = ctr.metrics("busy")
        memory, cpu, pids = found["memory"], found["cpu"], found["pids"]
        if "usage_usec" in cpu:
            return {"cpu": cpu["usage_usec"] * 1000, "memory": memory["usage"], "limit": memory["usage_limit"], **pids}
        usage = memory["usage"]
        return {"cpu": cpu["usage"]["total"], "memory": usage["usage"], "limit": usage["limit"], **pids}

    first = until(lambda: used() if used()["current"] == 2 else {}, "both of its processes are there")
    assert first["limit"] == 256 << 20
    assert 0 < first["memory"] < 256 << 20
    until(lambda: used()["cpu"] > first["cpu"], "it uses a processor")
    assert "memory" in ctr("task", "metrics", "busy").stdout


def test_checkpoint(ctr: Ctr) -> None:
    ctr.start("host", "sleep", "1000")
    done = ctr("task", "checkpoint", "host", check=False)
    assert done.status != 0
    if ctr.hako:
        assert "checkpoint" in done.stderr.lower()
        assert len(done.stderr.strip().splitlines()) == 1
    assert ctr.status("host") == "RUNNING"


def test_what_ends_at_once(ctr: Ctr) -> None:
    with ctr.events() as events:
        for number in range(3):
            ctr.start(f"quick{number}", "sh", "-c", f"echo {number}; exit {number}")
        for number in range(3):
            name = f"quick{number}"
            ctr.until_stopped(name)
            assert ctr.delete(name) == number
            assert Path(f"{ctr.directory}/{name}.log").read_text() == f"{number}\n"
            events.until(name, "create", "start", "exit", "delete")


def test_too_much_memory(ctr: Ctr) -> None:
    # The first process goes on for a while, so that the events cannot overtake each other.
    script = "sh -c 'tail /dev/zero; true'; echo survived; sleep 0.5; exit 5"
    with ctr.events() as events:
        ctr.start("hungry", "sh", "-c", script, options=("--memory-limit", str(16 << 20)))
        ctr.until_stopped("hungry")
        until(lambda: "exit" in events.topics("hungry"), "containerd is told of its end")
        first, second, third, *_, last = events.topics("hungry")
    assert (first, second, third, last) == ("create", "start", "oom", "exit")
    assert ctr.delete("hungry") == 5


def test_labels_are_shown(ctr: Ctr) -> None:
    ctr.start("shown", "sleep", "1000", options=("--label", "a=b"))
    found = json.loads(ctr("container", "info", "shown").stdout)
    assert found["Labels"]["a"] == "b"
    assert found["Image"] == IMAGE
    assert found["Runtime"]["Name"] == ctr.type
