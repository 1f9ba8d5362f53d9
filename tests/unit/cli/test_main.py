"""The command line as a whole: finding the verb, wording errors, exit codes."""

from __future__ import annotations

import importlib
import os
import subprocess

import pytest

from hako import errors
from hako.cli import main as main_module
from hako.cli.main import VERBS, main
from hako.version import __version__


def one_line(text: str) -> str:
    """The only line of ``text``."""
    lines = text.splitlines()
    assert len(lines) == 1, text
    return lines[0]


def test_version_is_printed(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["version"]) == 0
    assert capsys.readouterr().out == f"hako {__version__}\n"
    assert main(["--version"]) == 0
    assert capsys.readouterr().out == f"hako {__version__}\n"


@pytest.mark.parametrize("words", [["--help"], ["-h"], ["help"], ["help", "nonsense"]])
def test_help_names_every_verb(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(words) == 0
    text = capsys.readouterr().out
    assert all(f"  {verb} " in text for verb in VERBS)


@pytest.mark.parametrize("verb", VERBS)
def test_every_verb_has_help(verb: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([verb, "--help"]) == 0
    out = capsys.readouterr().out
    assert out.lower().startswith(f"usage: hako {verb}")
    assert main(["help", verb]) == 0
    assert capsys.readouterr().out == out


@pytest.mark.parametrize("verb", VERBS)
def test_every_verb_refuses_an_unknown_option_in_one_sentence(verb: str, capsys: pytest.CaptureFixture[str]) -> None:
    # A word for each positional argument, so that the option is what is wrong.
    words = {"image": ["list"], "completion": ["bash"], "cp": ["a:/b", "c"], "exec": [], "run": []}.get(verb, [])
    assert main([verb, "--no-such-option", *words]) == 125
    line = one_line(capsys.readouterr().err)
    assert line.startswith("hako: ")
    assert line.endswith((f"see hako {verb} --help.", "see hako image list --help."))


@pytest.mark.parametrize(
    ("words", "wanted"),
    [
        (["rnu"], "hako: hako has no verb 'rnu'; did you mean run?; see hako --help."),
        (["zzz"], "hako: hako has no verb 'zzz'; see hako --help."),
        (["--wrong", "ps"], "hako: hako has no option --wrong; options of a verb follow the verb; see hako --help."),
        (["--config"], "hako: --config needs the name of a file; see hako --help."),
        (["run"], "hako: The following arguments are required: IMAGE; see hako run --help."),
        (["run", "--pull", "often", "x"], "hako: --pull: invalid choice"),
        (
            ["run", "--network", "none", "-p", "80", "x"],
            "hako: A published port (80) needs a network, and there is none",
        ),
        (["stop", "-t", "soon", "x"], "hako: -t/--time: 'soon' is not a number of seconds; see hako stop --help."),
        (["image"], "hako: Image needs a verb: build, list, inspect, verify, default or remove;"),
        (["ps", "--format", "xml"], "hako: --format 'xml' is not known; it can be table or json."),
        (["kill", "-s", "FOO", "x"], "hako: 'FOO' is not a signal"),
        (["inspect", "nothing"], "hako: There is no container nothing; `hako ps -a` lists those there are."),
        (["logs", "--tail", "x", "nothing"], "hako: --tail 'x' is not a number of lines."),
    ],
)
def test_wrong_words_give_one_sentence(words: list[str], wanted: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(words) == 125
    assert one_line(capsys.readouterr().err).startswith(wanted)


def test_no_words_shows_the_help_as_an_error(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([]) == 125
    assert "Verbs:" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("error", "status", "text"),
    [
        (errors.NotFoundError("It is gone."), 125, "hako: It is gone.\n"),
        (errors.CommandError("No such program.", exit_code=127), 127, "hako: No such program.\n"),
        (OSError(28, "No space left on device", "/full"), 125, "hako: No space left on device: /full.\n"),
        (errors.HakoError("Two\nlines \x1b[31m"), 125, "hako: Two lines \\x1b[31m\n"),
        (KeyboardInterrupt(), 130, ""),
    ],
)
def test_errors_become_one_line_and_an_exit_code(
    error: BaseException, status: int, text: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(_args: list[str]) -> int:
        raise error

    monkeypatch.setattr(main_module, "load_verb", lambda _verb: fail)
    assert main(["ps"]) == status
    assert capsys.readouterr().err == text


def test_a_defect_is_named_as_one_and_debug_shows_where(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(_args: list[str]) -> int:
        raise ValueError("oops")

    monkeypatch.setattr(main_module, "load_verb", lambda _verb: fail)
    assert main(["ps"]) == 125
    assert one_line(capsys.readouterr().err) == (
        "hako: This is a defect of hako: ValueError: oops; hako --debug shows where."
    )
    main(["--debug", "ps"])
    assert "Traceback" in capsys.readouterr().err


def test_config_is_passed_on_by_the_environment(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("HAKO_CONFIG", "/before")
    monkeypatch.chdir("/tmp")
    assert main(["--config", "mine.toml", "version"]) == 0
    assert os.environ["HAKO_CONFIG"] == "/tmp/mine.toml"
    assert main(["--config=/other.toml", "version"]) == 0
    assert os.environ["HAKO_CONFIG"] == "/other.toml"


@pytest.mark.parametrize(
    ("content", "wanted"),
    [
        ("[sandbox]\nmemry = 1\n", "there is no setting 'sandbox.memry' (did you mean 'sandbox.memory'?)"),
        ("[sandbox]\nvcpus = 'many'\n", "sandbox.vcpus"),
        ("[sandbox\n", "is not TOML"),
    ],
)
def test_a_wrong_configuration_gives_one_sentence(
    content: str, wanted: str, tmp_path: object, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    file = os.path.join(str(tmp_path), "config.toml")
    with open(file, "w", encoding="utf-8") as opened:
        opened.write(content)
    monkeypatch.setenv("HAKO_CONFIG", file)
    assert main(["run", "busybox"]) == 125
    line = one_line(capsys.readouterr().err)
    assert wanted in line
    assert file in line


def test_a_reader_that_leaves_is_no_error(hako_cmd: list[str]) -> None:
    read, write = os.pipe()
    os.close(read)
    done = subprocess.run([*hako_cmd, "--help"], stdout=write, stderr=subprocess.PIPE, timeout=60, check=False)
    os.close(write)
    assert done.stderr == b""
    assert done.returncode == main_module.EXIT_BROKEN_PIPE


@pytest.mark.parametrize("verb", VERBS)
def test_verbs_have_what_the_table_promises(verb: str) -> None:
    module = importlib.import_module(f"hako.cli.{VERBS[verb][0]}")
    assert module.parser().prog == f"hako {verb}"
    assert callable(module.main)
