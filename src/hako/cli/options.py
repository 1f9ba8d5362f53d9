"""What the verbs' command lines have in common: a parser with hako's error sentences, and values people write."""

from __future__ import annotations

import argparse
import os
from typing import NoReturn

from hako.errors import ConfigError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from hako.sandbox.requests import Mount


class Parser(argparse.ArgumentParser):
    """An argument parser for ``hako VERB`` that raises ConfigError instead of printing and leaving."""

    def __init__(self, verb: str, about: str, usage: str, epilog: str = "") -> None:
        super().__init__(
            prog=f"hako {verb}",
            usage=f"hako {verb} {usage}" if usage else None,
            description=about,
            epilog=epilog,
            allow_abbrev=False,
            formatter_class=_Formatter,
        )

    def error(self, message: str) -> NoReturn:
        """Wrong arguments: one sentence."""
        text = message.removeprefix("argument ")
        raise ConfigError(f"{text[:1].upper() + text[1:] if text is message else text}; see {self.prog} --help.")


class SubParser(Parser):
    """What add_parser() makes for a verb of a verb; ``prog`` is ``hako image VERB``."""

    def __init__(self, *, prog: str) -> None:
        super().__init__(prog.removeprefix("hako "), "", "")


class _Formatter(argparse.HelpFormatter):
    def __init__(self, prog: str) -> None:
        super().__init__(prog, max_help_position=32, width=100)


def positive_seconds(text: str) -> float:
    """A number of seconds, zero allowed; for ``type=`` of an option."""
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 0 <= value < 1e9:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number of seconds")
    return value


def parse_cpus(text: str) -> float:
    """A number of CPUs such as ``1.5``. Raises ConfigError."""
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 0.01 <= value <= 255:
        raise ConfigError(f"--cpus {text!r} is not a number of CPUs: write one from 0.01 to 255, for example 1.5.")
    return value


def parse_volume(text: str) -> Mount:
    """A host directory or file for the container, ``SOURCE:DESTINATION[:ro|rw]``. Raises ConfigError.

    A relative source counts from the working directory and must be written with a leading ``.``.
    """
    from hako.sandbox.requests import Mount

    source, *rest = text.split(":")
    if not rest:
        raise ConfigError(f"-v {text}: hako has no anonymous volumes; write SOURCE:DESTINATION[:ro].")
    destination, *flags = rest
    if len(flags) > 1:
        raise ConfigError(f"-v {text}: there are too many colons; write SOURCE:DESTINATION[:ro].")
    readonly = False
    for flag in flags[0].split(",") if flags else ():
        if flag not in ("ro", "rw"):
            raise ConfigError(f"-v {text}: {flag!r} is not an option of a volume; those are ro and rw.")
        readonly = flag == "ro"
    if not source:
        raise ConfigError(f"-v {text}: the source is missing; write SOURCE:DESTINATION[:ro].")
    if source[0] not in "/.":
        raise ConfigError(
            f"-v {text}: hako has no named volumes; write ./{source} if a directory of the host is meant."
        )
    if not destination.startswith("/"):
        raise ConfigError(f"-v {text}: the path in the container, {destination!r}, must be absolute.")
    path = os.path.abspath(source)
    if not os.path.exists(path):
        raise ConfigError(f"-v {text}: {path} does not exist.")
    return Mount(path, destination, readonly)


def parse_env(words: list[str], files: list[str]) -> dict[str, str]:
    """Environment from ``-e`` words and ``--env-file`` files; words win. Raises ConfigError.

    ``NAME`` alone takes the caller's value and means nothing when the caller has none.
    """
    found: dict[str, str] = {}
    for file in files:
        for line in _env_lines(file):
            _add_variable(found, line, f"{file}: {line!r}")
    for word in words:
        _add_variable(found, word, f"-e {word}")
    return found


def _add_variable(found: dict[str, str], text: str, where: str) -> None:
    name, equals, value = text.partition("=")
    if not name or any(char.isspace() for char in name) or "\0" in text:
        raise ConfigError(f"{where} is not a variable: write NAME=VALUE.")
    if equals:
        found[name] = value
    elif name in os.environ:
        found[name] = os.environ[name]


def _env_lines(file: str) -> list[str]:
    try:
        with open(file, encoding="utf-8") as opened:
            lines = opened.read().splitlines()
    except OSError as error:
        raise ConfigError(f"Cannot read the environment file {file}: {error.strerror}.") from error
    except UnicodeDecodeError as error:
        raise ConfigError(f"The environment file {file} is not UTF-8 text.") from error
    return [line.lstrip() for line in lines if line.strip() and not line.lstrip().startswith("#")]


def parse_signal(text: str) -> int:
    """The number of the signal ``KILL``, ``SIGKILL`` or ``9``. Raises ConfigError."""
    import signal

    word = text.strip().upper()
    if word.isascii() and word.isdigit() and 1 <= int(word) <= 64:
        return int(word)
    name = word if word.startswith("SIG") else f"SIG{word}"
    base, plus, offset = name.partition("+")
    number = getattr(signal, base, None)
    if not isinstance(number, signal.Signals):
        raise ConfigError(f"{text!r} is not a signal: write a name such as TERM or a number from 1 to 64.")
    if plus and base == "SIGRTMIN" and offset.isdigit() and int(offset) <= signal.SIGRTMAX - number:
        return int(number) + int(offset)
    if plus:
        raise ConfigError(f"{text!r} is not a signal: write a name such as TERM or a number from 1 to 64.")
    return int(number)


def parse_annotations(words: list[str]) -> dict[str, str]:
    """``KEY=VALUE`` words. Raises ConfigError."""
    found = {}
    for word in words:
        key, equals, value = word.partition("=")
        if not key or not equals:
            raise ConfigError(f"--annotation {word} is not an annotation: write KEY=VALUE.")
        found[key] = value
    return found


def add_process_options(parser: argparse.ArgumentParser) -> None:
    """The options that run and exec share."""
    parser.add_argument("-i", "--interactive", action="store_true", help="pass standard input on")
    parser.add_argument("-t", "--tty", action="store_true", help="give the command a terminal")
    parser.add_argument("-e", "--env", action="append", default=[], metavar="NAME[=VALUE]", help="set a variable")
    parser.add_argument("--env-file", action="append", default=[], metavar="FILE", help="set the variables in FILE")
    parser.add_argument("-w", "--workdir", default="", metavar="DIR", help="working directory in the container")
    parser.add_argument("-u", "--user", default="", metavar="USER[:GROUP]", help="names or numbers")


def add_command(parser: argparse.ArgumentParser, help: str) -> None:
    """The container's command: all that is left, options included."""
    action = parser.add_argument("command", metavar="COMMAND", nargs=argparse.REMAINDER, help=help)
    action.required = False


def check_terminal(*, tty: bool, interactive: bool) -> None:
    """Refuse ``-i -t`` without a terminal. Raises ConfigError."""
    if tty and interactive and not os.isatty(0):
        raise ConfigError("Standard input is not a terminal, which -i with -t needs; leave out -t.")
