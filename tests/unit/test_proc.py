"""Running other programs: what comes back, what fails and how it reads."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from hako import proc
from hako.errors import HakoError, HostError


def test_output_and_status_come_back() -> None:
    done = proc.run(["sh", "-c", "echo out; echo err >&2"])
    assert (done.stdout, done.stderr, done.returncode) == (b"out\n", b"err\n", 0)


def test_programs_are_found_where_the_child_would_find_them(tmp_path: Path) -> None:
    assert proc.find("sh") in ("/usr/bin/sh", "/bin/sh")
    own = tmp_path / "own"
    own.write_text("")
    assert proc.find(str(own)) is None, "it cannot be run"
    own.chmod(0o755)
    assert proc.find(str(own)) == str(own)
    assert proc.find(str(tmp_path)) is None
    assert proc.find("no-such-program") is None


def test_input_reaches_the_program() -> None:
    data = bytes(range(256)) * 4096
    assert proc.run(["cat"], input=data).stdout == data


def test_standard_input_is_empty_otherwise() -> None:
    assert proc.run(["cat"], timeout=10).stdout == b""


def test_the_environment_is_hakos_own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SECRET", "leaked")
    lines = proc.run(["env"]).stdout.decode().split("\n")
    assert {line.partition("=")[0] for line in lines if line} <= {"PATH", "LC_ALL", "PWD", "SHLVL", "_"}
    assert proc.run(["env"], env={"A": "b"}).stdout == b"A=b\n"


def test_arguments_are_not_a_shells() -> None:
    assert proc.run(["printf", "%s", "$(id); *"]).stdout == b"$(id); *"


def test_a_failure_quotes_the_last_line_that_was_said() -> None:
    with pytest.raises(proc.CommandFailedError) as caught:
        proc.run(["sh", "-c", "echo first >&2; echo 'the reason' >&2; echo >&2; exit 3"])
    assert caught.value.returncode == 3
    assert str(caught.value).startswith("sh failed with status 3: the reason (sh -c ")
    assert caught.value.stderr == "first\nthe reason\n\n"
    assert isinstance(caught.value, HakoError)


def test_a_silent_failure_says_so() -> None:
    with pytest.raises(HostError, match=r"^false failed with status 1: it said nothing \(false\)$"):
        proc.run(["false"])


def test_failing_can_be_fine() -> None:
    assert proc.run(["sh", "-c", "exit 7"], check=False).returncode == 7


def test_a_missing_program_comes_with_the_remedy() -> None:
    with pytest.raises(HostError, match=r"^no-such-program is not installed\. Install it and try again\.$"):
        proc.run(["no-such-program"])
    with pytest.raises(HostError, match=r"^no-such-program is not installed\. Run: apt-get install it$"):
        proc.run(["no-such-program"], missing="Run: apt-get install it")


def test_a_missing_directory_is_not_taken_for_a_missing_program(tmp_path: Path) -> None:
    with pytest.raises(HostError, match=r"its working directory .*/none does not exist\.$"):
        proc.run(["true"], cwd=str(tmp_path / "none"))


def test_time_is_limited() -> None:
    begun = time.monotonic()
    with pytest.raises(HostError, match=r"^sleep 60 did not end within 0.1 s\.$"):
        proc.run(["sleep", "60"], timeout=0.1)
    assert time.monotonic() - begun < 10


@pytest.mark.parametrize(("merge", "expected"), [(False, ["one", "two"]), (True, ["one", "out", "two"])])
def test_lines_are_reported(merge: bool, expected: list[str]) -> None:
    lines: list[str] = []
    proc.run(["sh", "-c", "echo one >&2; echo out; echo two >&2"], on_line=lines.append, merge=merge)
    assert lines == expected


def test_lines_are_reported_as_they_come(tmp_path: Path) -> None:
    """The program waits for a file that only the report of its first line makes."""
    go = tmp_path / "go"
    script = f"echo ready >&2; until [ -e {go} ]; do :; done; echo done >&2"
    lines: list[str] = []

    def on_line(line: str) -> None:
        lines.append(line)
        go.touch()

    proc.run(["sh", "-c", script], on_line=on_line)
    assert lines == ["ready", "done"]


def test_a_failure_after_reported_lines_quotes_the_last_one() -> None:
    with pytest.raises(proc.CommandFailedError, match="failed with status 2: last"):
        proc.run(["sh", "-c", "echo first >&2; echo last >&2; exit 2"], on_line=lambda _: None)


def test_an_error_in_the_report_ends_the_program() -> None:
    def on_line(line: str) -> None:
        raise KeyError(line)

    begun = time.monotonic()
    with pytest.raises(KeyError):
        proc.run(["sh", "-c", "echo one >&2; exec sleep 60"], on_line=on_line)
    assert time.monotonic() - begun < 10
