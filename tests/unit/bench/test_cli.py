"""The benchmark's command line: what it chooses, and that it leaves nothing, however it ends."""

from __future__ import annotations

import json
import os
import pathlib
import re
import signal
import subprocess
import sys
import time

import pytest

from bench import cli, context
from bench.model import BenchError, Phase
from bench.pieces import PIECES, starts
from bench.targets.base import PREFIX, is_leftover

CLONE = os.path.dirname(os.path.dirname(os.path.abspath(cli.__file__)))

#: Stands for hako: writes down how it is called; containers are files.
_FAKE = """\
#!/bin/sh
cd {directory}
echo "$*" >>calls
case $1 in
    version) echo "hako 9.9" ;;
    images) echo "busybox" ;;
    ps) for name in box-*; do [ -e "$name" ] && echo "{{\\"name\\": \\"${{name#box-}}\\"}}"; done ;;
    rm) for name; do :; done; rm -f "box-$name" ;;
    exec) [ -e fail-exec ] && {{ echo "hako: no luck" >&2; exit 125; }} ;;
    inspect) echo '[{{"rootfs": "/", "sandbox": {{"info": {{"accelerator": "tcg"}}}}}}]' ;;
    run) while [ "$1" != --name ]; do [ "$1" = -d ] && stay=1; shift; done
        touch "box-$2"
        [ -e slow ] && exec sleep 1000
        [ "$stay" ] || rm "box-$2" ;;
esac
exit 0
"""


@pytest.fixture
def fake(tmp_path: pathlib.Path) -> pathlib.Path:
    """A directory with a program that stands for hako."""
    program = tmp_path / "hako"
    program.write_text(_FAKE.format(directory=tmp_path))
    program.chmod(0o755)
    return tmp_path


def bench(fake: pathlib.Path, *words: str) -> subprocess.Popen[str]:
    argv = [
        sys.executable,
        "-m",
        "bench",
        "--hako",
        str(fake / "hako"),
        "--targets",
        "hako",
        "--out",
        str(fake / "out"),
    ]
    return subprocess.Popen(
        [*argv, *words], cwd=CLONE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, encoding="utf-8"
    )


def calls(fake: pathlib.Path) -> list[str]:
    return (fake / "calls").read_text().splitlines()


@pytest.mark.skipif(os.geteuid() != 0, reason="hako needs root")
def test_a_run_prints_writes_and_leaves_no_container(fake: pathlib.Path) -> None:
    (fake / f"box-{PREFIX}-99999999-1").touch()  # of a run that was killed; there is no such process
    (fake / "box-somebodys").touch()
    with bench(fake, "--runs", "2", "--only", "exec,state") as running:
        output, errors = running.communicate(timeout=60)
    assert running.returncode == 0, errors
    assert "exec `true`, to exit, ms" in output
    assert json.loads((fake / "out" / "results.json").read_text())["versions"]["accelerator"] == "tcg"
    assert [path.name for path in fake.glob("box-*")] == ["box-somebodys"]
    assert sum(line.startswith("exec ") for line in calls(fake)) == 1 + 2 * 2, "a warm-up, and twice as many as runs"


@pytest.mark.skipif(os.geteuid() != 0, reason="hako needs root")
def test_a_piece_that_fails_is_reported_and_the_others_go_on(fake: pathlib.Path) -> None:
    (fake / "fail-exec").touch()
    with bench(fake, "--runs", "1", "--only", "exec,state") as running:
        output, _ = running.communicate(timeout=60)
    assert running.returncode == 1
    assert re.search(r"FAILED: .* failed with 125: hako: no luck", output)
    assert "print the version" in output
    assert not list(fake.glob("box-*"))


@pytest.mark.skipif(os.geteuid() != 0, reason="hako needs root")
def test_without_its_programs_engines_are_not_measured(fake: pathlib.Path) -> None:
    with bench(fake, "--runs", "1", "--only", "docker,podman,tcp,runtime,ctr,pods,state") as running:
        output, _ = running.communicate(timeout=60)
    assert running.returncode == 1
    assert output.count("FAILED: There is no hako-runtime beside hako; `make install` installs both.") == 4
    assert output.count("FAILED: There is no containerd-shim-hako-v2 beside hako; `make install` installs both.") == 2
    assert "print the version" in output


@pytest.mark.skipif(os.geteuid() != 0, reason="hako needs root")
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_interrupted_in_the_middle_it_leaves_nothing(fake: pathlib.Path, number: signal.Signals) -> None:
    (fake / "slow").touch()
    with bench(fake, "--only", "run") as running:
        deadline = time.monotonic() + 30
        while not list(fake.glob("box-*")) and time.monotonic() < deadline:
            time.sleep(0.02)
        running.send_signal(number)
        _, errors = running.communicate(timeout=60)
    assert running.returncode == 128 + number
    assert errors == "bench: interrupted; everything has been removed.\n"
    assert not list(fake.glob("box-*"))
    assert calls(fake)[-1].startswith(("rm -f", "ps"))


def test_bad_words_are_refused(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["--only", "exec,nonsense"]) == 2
    assert "There is no piece nonsense; there are run," in capsys.readouterr().err
    assert cli.main(["--targets", "hako,lxc"]) == 2
    assert "There is no runtime lxc" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        cli.main(["--pods", "0"])


def test_a_missing_hako_is_one_sentence(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["--hako", "no-such-hako"]) == 1
    assert capsys.readouterr().err == "bench: There is no no-such-hako; `make run` installs hako.\n"


def test_the_list(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["--list"]) == 0
    assert [line.split()[0] for line in capsys.readouterr().out.splitlines()] == [piece.name for piece in PIECES]


def test_pieces_are_chosen_by_name_in_their_own_order() -> None:
    assert [piece.name for piece in cli.choose(["memory,run", "exec"])] == ["run", "exec", "memory"]
    assert cli.choose([]) == list(PIECES)
    with pytest.raises(BenchError):
        cli.choose(["", "x"])


def test_options_change_the_plan() -> None:
    asked = cli.parser().parse_args(["--quick", "--runs", "1", "--pods", "5,1", "--starts", "10,7"])
    chosen = cli.plan(asked)
    assert (chosen.runs, chosen.engine_runs, chosen.pod_runs, chosen.calls, chosen.io_runs) == (1, 1, 1, 2, 1)
    assert chosen.pods_at_once == 0
    assert cli.plan(cli.parser().parse_args(["--quick", "--pods-at-once", "7"])).pods_at_once == 7
    assert cli.plan(cli.parser().parse_args(["--pods-at-once", "0"])).pods_at_once == 0
    assert chosen.pods == (1, 5)
    assert chosen.at_once == ((7, 1), (10, 1))
    assert chosen.budget == context.QUICK.budget


def test_failures_that_differ_only_in_names_are_counted_together() -> None:
    errors = [f"The agent in the VM of {number:016x} did not answer." for number in range(40)] + ["No memory."]
    assert starts.kinds(errors) == ["40 x The agent in the VM of ... did not answer.", "1 x No memory."]
    many = [f"reason {chr(65 + number)}" for number in range(9)]
    assert len(starts.kinds(many)) == 6
    assert starts.kinds(many)[-1] == "and 4 other kinds of failure"
    assert starts.kinds([]) == []


def test_leftovers_are_those_of_dead_runs() -> None:
    assert is_leftover(f"{PREFIX}-99999999-1")
    assert not is_leftover(f"{PREFIX}-{os.getpid()}-1")
    assert not is_leftover("web")
    with subprocess.Popen(["true"]) as ended:
        os.waitid(os.P_PID, ended.pid, os.WEXITED | os.WNOWAIT)
        assert is_leftover(f"{PREFIX}-{ended.pid}-1"), "it is a zombie"
    assert not is_leftover(f"my-{PREFIX}-99999999-1")


def test_phases_are_medians_of_the_starts_that_are_alike() -> None:
    def trace(begin: float, *more: Phase) -> list[Phase]:
        return [Phase("QEMU", "sandbox", begin, begin + 10), Phase("agent ready", "VM", begin + 10, begin + 60), *more]

    found = starts.median_phases([trace(1), trace(3), trace(2), trace(500, Phase("probe", "sandbox", 0, 1))])
    assert found == trace(2)
    assert starts.median_phases([]) == []
    assert starts.until_ready(found) == 60
    assert starts.until_started(found) is None
    assert starts.until_started([*found, Phase("create", "container", 70, 90)]) == 90
    assert starts.until_ready([]) is None
