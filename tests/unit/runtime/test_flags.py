"""Flags as Go's package flag reads them; tests/e2e/test_runtime_cli.py holds them against runc itself."""

from __future__ import annotations

from typing import Any

import pytest

from hako.errors import ConfigError
from hako.runtime import flags
from hako.runtime.flags import Flag, UsageError
from hako.runtime.verbs import GLOBAL_FLAGS, HELP, VERBS

FLAGS = (
    Flag("bundle", short="b"),
    Flag("detach", "bool", "d"),
    Flag("env", "list", "e"),
    Flag("gids", "ints", "g"),
    Flag("preserve-fds", "int"),
    Flag("interval", "duration", default=5.0),
    Flag("format", short="f", default="table"),
    Flag("schema", refused="a VM has none"),
)


@pytest.mark.parametrize(
    ("words", "given", "rest"),
    [
        ([], {}, []),
        (["id"], {}, ["id"]),
        (["--bundle", "/b", "id"], {"bundle": "/b"}, ["id"]),
        (["--bundle=/b", "id"], {"bundle": "/b"}, ["id"]),
        (["-bundle", "/b", "id"], {"bundle": "/b"}, ["id"]),
        (["-b=/b", "id"], {"bundle": "/b"}, ["id"]),
        (["--b", "/b", "id"], {"bundle": "/b"}, ["id"]),
        (["-b", "--detach", "id"], {"bundle": "--detach"}, ["id"]),
        (["--bundle", "", "id"], {"bundle": ""}, ["id"]),
        (["--bundle=", "id"], {"bundle": ""}, ["id"]),
        (["--bundle=a=b"], {"bundle": "a=b"}, []),
        (["--bundle", "1", "--bundle", "2"], {"bundle": "2"}, []),
        (["-d", "id"], {"detach": True}, ["id"]),
        (["--detach=false", "id"], {}, ["id"]),
        (["-d=T", "id"], {"detach": True}, ["id"]),
        (["--detach", "true", "id"], {"detach": True}, ["true", "id"]),
        (["-e", "A=1", "-e=B=2", "id"], {"env": ["A=1", "B=2"]}, ["id"]),
        (["-e=", "-e="], {"env": ["", ""]}, []),
        (["-g", "1", "-g=10"], {"gids": [1, 10]}, []),
        (["--preserve-fds", "-1"], {"preserve-fds": -1}, []),
        (["--interval", "1h2m3.5s"], {"interval": 3723.5}, []),
        (["--", "-d", "id"], {}, ["-d", "id"]),
        (["id", "--", "-d"], {}, ["id", "-d"]),
        (["-", "id"], {}, ["-", "id"]),
        (["", "id"], {}, ["", "id"]),
        # Known flags may follow the first argument, what else looks like one is an argument there.
        (["id", "-d"], {"detach": True}, ["id"]),
        (["id", "--bundle", "/b", "9"], {"bundle": "/b"}, ["id", "9"]),
        (["id", "-9"], {}, ["id", "-9"]),
        (["id", "--nothing=1"], {}, ["id", "--nothing=1"]),
        (["--schema=", "id"], {}, ["id"]),
    ],
)
def test_what_is_given(words: list[str], given: dict[str, Any], rest: list[str]) -> None:
    defaults = {
        "bundle": "", "detach": False, "env": [], "gids": [], "preserve-fds": 0, "interval": 5.0, "format": "table",
        "schema": "",
    }  # fmt: skip
    assert flags.parse(FLAGS, words) == (defaults | given, rest)


@pytest.mark.parametrize(
    ("words", "given", "rest"),
    [
        (["id", "ls", "-d"], {}, ["id", "ls", "-d"]),
        (["id", "-d", "ls"], {}, ["id", "-d", "ls"]),
        (["-d", "id", "--", "ls", "--"], {"detach": True}, ["id", "--", "ls", "--"]),
        (["--", "id", "--", "ls"], {}, ["id", "--", "ls"]),
        (["-"], {}, ["-"]),
    ],
)
def test_what_belongs_to_another_program_is_left_alone(
    words: list[str], given: dict[str, Any], rest: list[str]
) -> None:
    values, arguments = flags.parse(FLAGS, words, passes_on=True)
    assert arguments == rest
    assert values["detach"] is given.get("detach", False)


@pytest.mark.parametrize(
    ("words", "reason"),
    [
        (["--nothing"], "flag provided but not defined: -nothing"),
        (["-eA=1"], "flag provided but not defined: -eA"),
        (["-db"], "flag provided but not defined: -db"),
        (["--bundle"], "flag needs an argument: -bundle"),
        (["id", "-b"], "flag needs an argument: -b"),
        (["---bundle"], "bad flag syntax: ---bundle"),
        (["--=x"], "bad flag syntax: --=x"),
        (["-=x"], "bad flag syntax: -=x"),
        (["--detach=maybe"], 'invalid boolean value "maybe" for -detach: parse error'),
        (["-d="], 'invalid boolean value "" for -d: parse error'),
        (["--preserve-fds=x"], 'invalid value "x" for flag -preserve-fds: parse error'),
        (["--preserve-fds", "9223372036854775808"],
         'invalid value "9223372036854775808" for flag -preserve-fds: value out of range'),
        (["--interval=5"], 'invalid value "5" for flag -interval: parse error'),
        (['--preserve-fds="\n'], 'invalid value "\\"\\n" for flag -preserve-fds: parse error'),
        (["-f", "json", "--format", "json"], "Cannot use two forms of the same flag: f format"),
        (["-e", "A=1", "--env", "B=2"], "Cannot use two forms of the same flag: e env"),
        (["--format", "json", "-f", "json"], "Cannot use two forms of the same flag: f format"),
    ],
)  # fmt: skip
def test_what_is_wrong_is_said_as_go_says_it(words: list[str], reason: str) -> None:
    with pytest.raises(UsageError) as caught:
        flags.parse(FLAGS, words)
    assert str(caught.value) == reason


def test_a_flag_that_cannot_be_honoured_is_refused_with_the_reason() -> None:
    with pytest.raises(ConfigError, match="cannot honour the flag --schema of update: a VM has none") as caught:
        flags.parse(FLAGS, ["--schema", "L3:0=f"], "update")
    assert not isinstance(caught.value, UsageError)


def test_lists_are_nobody_elses() -> None:
    flags.parse(FLAGS, [])[0]["env"].append("A=1")
    assert flags.parse(FLAGS, [])[0]["env"] == []


@pytest.mark.parametrize(
    ("text", "number"),
    [
        ("0", 0), ("7", 7), ("-7", -7), ("+7", 7), ("0x10", 16), ("-0X1f", -31), ("0b11", 3), ("0o17", 15), ("017", 15),
        ("0_17", 15), ("1_000", 1000), ("9223372036854775807", (1 << 63) - 1), ("-9223372036854775808", -(1 << 63)),
    ],
)  # fmt: skip
def test_numbers(text: str, number: int) -> None:
    assert flags.parse_int(text) == number


@pytest.mark.parametrize(
    "text", ["", "-", "+", "08", "1__0", "_1", "1_", "0x", "1.5", "1e3", " 1", "1 ", "1\n", "--1", "- 1", "٣", "²", "x"]
)
def test_what_is_no_number(text: str) -> None:
    with pytest.raises(ValueError):
        flags.parse_int(text)


@pytest.mark.parametrize("text", ["0x10", "1_000", "0b1", "", "- 1", "1\n"])
def test_what_is_no_decimal_number(text: str) -> None:
    with pytest.raises(ValueError):
        flags.parse_int(text, 10)
    assert flags.parse_int("010", 10) == 10


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("5s", 5), ("0", 0), ("+0", 0), ("1m", 60), ("1h", 3600), ("1ms", 0.001), ("1us", 1e-6), ("1µs", 1e-6),
        ("1ns", 1e-9), ("1.5s", 1.5), (".5s", 0.5), ("1.s", 1), ("-2m", -120), ("1h1h", 7200), ("1m1ms", 60.001),
    ],
)  # fmt: skip
def test_durations(text: str, seconds: float) -> None:
    assert flags.parse_duration(text) == pytest.approx(seconds)


@pytest.mark.parametrize("text", ["", "-", "5", "s", ".s", "1.2.3s", "1 s", "1d", "5s3", "1S", "--1s", "1e3s", "inf"])
def test_what_is_no_duration(text: str) -> None:
    with pytest.raises(ValueError):
        flags.parse_duration(text)


@pytest.mark.parametrize("verb", VERBS)
def test_the_flags_of_a_verb_have_names_of_their_own(verb: str) -> None:
    names = [name for flag in (*VERBS[verb].flags, HELP) for name in (flag.name, flag.short) if name]
    assert len(names) == len(set(names))


def test_the_global_flags_have_names_of_their_own() -> None:
    names = [name for flag in GLOBAL_FLAGS for name in (flag.name, flag.short) if name]
    assert len(names) == len(set(names))
