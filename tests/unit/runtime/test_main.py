"""The command line as a whole: finding the verb, help, errors where engines read them, exit codes."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from hako import errors
from hako.runtime import main as main_module
from hako.runtime.main import main
from hako.runtime.verbs import VERBS, Call
from hako.version import __version__
from support import source

#: Verbs that there are.
OWN = [name for name, verb in VERBS.items() if not verb.refused]
_ENTRY = re.compile(r'time="\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(Z|[+-]\d\d:\d\d)" level=error msg=(.*)\n')

Captured = pytest.CaptureFixture[str]


def message(text: str) -> str:
    """The message of the one entry that ``text`` is, as it is written there."""
    entry = _ENTRY.fullmatch(text)
    assert entry, text
    return entry[2]


def test_the_version_names_the_command_first(capsys: Captured) -> None:
    for words in (["--version"], ["-v"], ["--v", "state"], ["--debug", "-version"]):
        assert main(words) == 0
        assert capsys.readouterr().out == f"hako-runtime version {__version__}\nspec: 1.2.0\n"


@pytest.mark.parametrize("words", [[], ["--help"], ["-h"], ["help"], ["h"], ["--help", "nonsense"], ["--root", "/x"]])
def test_help_names_every_verb(words: list[str], capsys: Captured) -> None:
    assert main(words) == 0
    text = capsys.readouterr().out
    assert all(f"   {verb} " in text for verb in OWN)
    assert "checkpoint" not in text.partition("GLOBAL OPTIONS")[0]
    assert "--log-format value" in text


@pytest.mark.parametrize("verb", OWN)
def test_every_verb_has_help(verb: str, capsys: Captured) -> None:
    assert main(["help", verb]) == 0
    text = capsys.readouterr().out
    assert text.startswith(f"NAME:\n   hako-runtime {verb} - ")
    assert all(f"--{flag.name}" in text for flag in VERBS[verb].flags if flag.help and not flag.refused)
    for words in (["--help"], ["-h"], ["x", "--help"]):
        if words[0] == "x" and VERBS[verb].passes_on:
            continue
        assert main([verb, *words]) == 0
        assert capsys.readouterr().out == text


@pytest.mark.parametrize("verb", OWN)
def test_every_verb_has_a_module(verb: str) -> None:
    assert os.path.exists(os.path.join(source.SOURCE, "hako", "runtime", f"{VERBS[verb].module}.py"))


@pytest.mark.parametrize(
    ("words", "incorrect", "reason"),
    [
        (
            ["--bogus"],
            "Incorrect Usage. flag provided but not defined: -bogus",
            "flag provided but not defined: -bogus",
        ),
        (["--log"], "Incorrect Usage. flag needs an argument: -log", "flag needs an argument: -log"),
        (["state", "--x"], "Incorrect Usage: flag provided but not defined: -x", "flag provided but not defined: -x"),
        (["state"], "Incorrect Usage.", 'hako-runtime: \\"state\\" requires exactly 1 argument(s)'),
        (["state", "a", "b"], "Incorrect Usage.", 'hako-runtime: \\"state\\" requires exactly 1 argument(s)'),
        (["list", "a"], "Incorrect Usage.", 'hako-runtime: \\"list\\" requires exactly 0 argument(s)'),
        (["kill"], "Incorrect Usage.", 'hako-runtime: \\"kill\\" requires a minimum of 1 argument(s)'),
        (["kill", "a", "9", "b"], "Incorrect Usage.", 'hako-runtime: \\"kill\\" requires a maximum of 2 argument(s)'),
        (["exec", "-e", "A=1"], "Incorrect Usage.", 'hako-runtime: \\"exec\\" requires a minimum of 1 argument(s)'),
    ],
)
def test_wrong_usage_shows_the_help_on_stdout(words: list[str], incorrect: str, reason: str, capsys: Captured) -> None:
    assert main(words) == 1
    out, err = capsys.readouterr()
    assert out.startswith(f"{incorrect}\n\nNAME:\n   hako-runtime ")
    assert message(err) == f'"{reason}"'


@pytest.mark.parametrize("words", [["bogus"], ["help", "bogus"], ["init"]])
def test_an_unknown_verb_has_an_exit_code_of_its_own(words: list[str], capsys: Captured) -> None:
    assert main(words) == 3
    out, err = capsys.readouterr()
    assert not out
    assert message(err) == f"\"No help topic for '{words[-1]}'\""


@pytest.mark.parametrize("verb", ["checkpoint", "restore"])
def test_verbs_that_hako_cannot_have_are_refused(verb: str, capsys: Captured) -> None:
    for words in ([verb, "--image-path", "/x", "id"], [verb], ["help", verb]):
        assert main(words) == 1
        out, err = capsys.readouterr()
        assert not out
        assert "hako cannot save or restore the processes of a container." in message(err)


@pytest.mark.parametrize(
    "words",
    [
        ["update", "--l3-cache-schema", "L3:0=f", "x"],
        ["update", "x", "--cpu-burst", "5"],
        ["create", "--pidfd-socket", "/s", "x"],
    ],
)
def test_flags_that_hako_cannot_honour_are_refused(words: list[str], capsys: Captured) -> None:
    assert main(words) == 1
    assert f"cannot honour the flag {next(word for word in words if word[:2] == '--')}" in capsys.readouterr().err


@pytest.fixture
def failing(monkeypatch: pytest.MonkeyPatch) -> list[BaseException]:
    """Each verb raises the last of these."""
    raised: list[BaseException] = []

    def fail(_call: Call) -> int:
        raise raised[-1]

    monkeypatch.setattr(main_module, "load_verb", lambda _verb: fail)
    return raised


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (errors.NotFoundError("gone"), "gone"),
        (errors.NotFoundError("container does not exist"), '"container does not exist"'),
        (errors.CommandError("exec: executable file not found in $PATH", exit_code=127),
         '"exec: executable file not found in $PATH"'),
        (errors.HakoError("Two\nlines \x1b[31m"), '"Two\\nlines \\x1b[31m"'),
        (OSError(28, "No space left on device", "/full"), '"No space left on device: /full."'),
        (ValueError("oops"), '"This is a defect of hako: ValueError: oops; hako-runtime --debug shows where."'),
    ],
)  # fmt: skip
def test_errors_are_entries_and_exit_codes(
    error: BaseException, said: str, failing: list[BaseException], capsys: Captured
) -> None:
    failing.append(error)
    for verb, status in (("state", 1), ("create", 1), ("run", 1), ("exec", 255)):
        assert main([verb, "id"]) == status
        out, err = capsys.readouterr()
        assert not out
        assert message(err) == said


def test_an_interrupt_has_an_exit_code_of_its_own(failing: list[BaseException]) -> None:
    failing.append(KeyboardInterrupt())
    assert main(["state", "id"]) == 130


def test_debug_shows_where_and_is_no_part_of_the_log(
    failing: list[BaseException], capsys: Captured, tmp_path: Path
) -> None:
    failing.append(ValueError("oops"))
    log = tmp_path / "log"
    assert main(["--debug", "--log", str(log), "state", "id"]) == 1
    assert "Traceback" in capsys.readouterr().err
    assert "This is a defect of hako: ValueError: oops" in message(log.read_text())


def test_the_log_is_json_where_that_is_asked_for(
    failing: list[BaseException], capsys: Captured, tmp_path: Path
) -> None:
    failing.append(errors.HakoError('Bad "file"\n\x1b[31m <é>'))
    log = tmp_path / "log"
    for _ in range(2):
        assert main(["--log", str(log), "--log-format=json", "create", "id"]) == 1
        assert capsys.readouterr().err == 'Bad "file" \\x1b[31m <é>\n'
    first, second = map(json.loads, log.read_text().splitlines())
    assert set(first) == {"level", "msg", "time"}
    assert (first["level"], first["msg"]) == ("error", 'Bad "file"\n\x1b[31m <é>')
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(Z|[+-]\d\d:\d\d)", second["time"])


def test_json_goes_to_standard_error_without_a_file(failing: list[BaseException], capsys: Captured) -> None:
    failing.append(errors.HakoError("no \udcff byte"))
    assert main(["--log-format", "json", "state", "id"]) == 1
    assert json.loads(capsys.readouterr().err)["msg"] == "no \ufffd byte"


def test_the_log_is_made_before_anything_goes_wrong_and_nobody_holds_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    held: list[str] = []

    def look(_call: Call) -> int:
        assert (tmp_path / "log").read_text() == ""
        links = [f"/proc/self/fd/{fd}" for fd in os.listdir("/proc/self/fd")]
        held.extend(os.readlink(link) for link in links if os.path.exists(link))
        return 0

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(main_module, "load_verb", lambda _verb: look)
    assert main(["--log", "log", "state", "id"]) == 0
    assert held
    assert str(tmp_path / "log") not in held


def test_a_relative_log_stays_where_it_was(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Captured) -> None:
    def leave(_call: Call) -> int:
        os.chdir("/")
        raise errors.HakoError("late")

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(main_module, "load_verb", lambda _verb: leave)
    assert main(["--log", "log", "state", "id"]) == 1
    assert message((tmp_path / "log").read_text()) == "late"


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--log", "/nowhere/log", "state", "x"], "Cannot open the log /nowhere/log: No such file or directory."),
        (["--log-format", "xml", "state", "x"], "invalid log-format: xml"),
    ],
)
def test_a_log_that_cannot_be(words: list[str], said: str, capsys: Captured) -> None:
    assert main(words) == 1
    assert message(capsys.readouterr().err) == f'"{said}"'


def test_what_a_verb_gets(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    calls: list[Call] = []

    def take(call: Call) -> int:
        calls.append(call)
        return 7

    monkeypatch.setattr(main_module, "load_verb", lambda _verb: take)
    monkeypatch.setenv("HAKO_STATE_ROOT", "/state")
    monkeypatch.chdir(tmp_path)
    assert main(["--systemd-cgroup", "--root", "here", "exec", "-t", "-e", "A=1", "id", "ls", "-t"]) == 7
    assert main(["delete", "id", "--force"]) == 7
    first, second = calls
    assert first.root == str(tmp_path / "here")
    assert (first.options["tty"], first.options["env"], first.options["detach"]) == (True, ["A=1"], False)
    assert first.args == ["id", "ls", "-t"]
    assert first.globals["systemd-cgroup"] is True
    assert "help" not in first.options
    assert second.root == "/state/runtime"
    assert (second.options, second.args) == ({"force": True}, ["id"])


def run(code: str, **options: object) -> subprocess.CompletedProcess[str]:
    """Run ``code`` in an interpreter like that of the installed command."""
    program = f"import sys\nsys.path.append({source.SOURCE!r})\nfrom hako.runtime.main import main\n{code}"
    python = os.path.realpath(sys.executable)
    return subprocess.run([python, "-IS", "-c", program], text=True, timeout=60, check=False, **options)  # type: ignore[call-overload, no-any-return]  # options are subprocess.run's


def test_closed_standard_streams_are_replaced(tmp_path: Path) -> None:
    log = tmp_path / "log"
    words = ["--log", str(log), "nonsense"]
    done = run(
        f"import os\nos.closerange(0, 3)\nstatus = main({words!r})\n"
        f"assert [os.readlink(f'/proc/self/fd/{{fd}}') for fd in range(3)] == ['/dev/null'] * 3\nsys.exit(status)"
    )
    assert done.returncode == 3
    assert "nonsense" in message(log.read_text())


def test_a_reader_who_went_away_is_no_error() -> None:
    read, write = os.pipe()
    os.close(read)
    try:
        done = run("sys.exit(main(['features']))", stdout=write, stderr=subprocess.PIPE)
    finally:
        os.close(write)
    assert (done.returncode, done.stderr) == (141, "")


def test_little_is_imported_before_the_verb_is_known() -> None:
    code = "assert main(['--version']) == 0\nprint(*sys.modules, file=sys.stderr)"
    done = run(code, capture_output=True)
    assert done.returncode == 0, done.stderr
    slow = {"typing", "re", "json", "argparse", "collections", "socket", "contextlib", "asyncio", "logging", "enum"}
    assert not slow & set(done.stderr.split())
    assert not [name for name in done.stderr.split() if name.startswith(("hako.sandbox", "hako.oci"))]
