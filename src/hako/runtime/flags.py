"""Flags as runc reads them, by the rules of Go's package flag.

``--name value``, ``--name=value`` and the same with one dash; a bool is ``--name`` or ``--name=false``; short names are
not joined (``-it`` is a flag called "it"); ``--`` ends the flags. Flags may also follow the first argument, except
where all that follows it belongs to somebody else. argparse, which differs in all of these, would also cost more time
than everything else that ``hako-runtime state`` does.
"""

from __future__ import annotations

from hako.errors import ConfigError
from hako.runtime.texts import quote

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from typing import Any

_TRUE = ("1", "t", "T", "TRUE", "true", "True")
_FALSE = ("0", "f", "F", "FALSE", "false", "False")
_INT64 = 1 << 63
#: Go's units of time, in nanoseconds; the longer names first where one begins with another.
_UNITS = {"ns": 1, "us": 1_000, "µs": 1_000, "μs": 1_000, "ms": 10**6, "s": 10**9, "m": 60 * 10**9, "h": 3600 * 10**9}


class UsageError(ConfigError):
    """The words after the verb are not what the verb takes; its help is shown with it."""


class Flag:
    """One flag. ``kind`` is text, bool, int, list (of texts), ints or duration (seconds, a float).

    ``refused`` is the reason why this flag cannot be given; what asks for nothing (an empty text, false) still can.
    A flag without ``help`` is in no help text.
    """

    __slots__ = ("default", "help", "kind", "name", "refused", "short")

    def __init__(
        self, name: str, kind: str = "text", short: str = "", help: str = "", default: Any = None, refused: str = ""
    ) -> None:
        self.name = name
        self.kind = kind
        self.short = short
        self.help = help
        self.default = _DEFAULTS[kind] if default is None else default
        self.refused = refused


def parse(
    flags: Sequence[Flag], words: Sequence[str], verb: str = "", *, passes_on: bool = False
) -> tuple[dict[str, Any], list[str]]:
    """The values of all ``flags`` by long name, and the arguments that are left.

    With ``passes_on`` the first argument ends the flags: what follows is another program's. Raises UsageError with
    runc's words, and ConfigError for a flag that hako refuses.
    """
    named = {name: flag for flag in flags for name in (flag.name, flag.short) if name}
    values: dict[str, Any] = {
        flag.name: list(flag.default) if flag.kind in ("list", "ints") else flag.default for flag in flags
    }
    used: dict[str, str] = {}
    arguments: list[str] = []
    rest = list(words)
    while rest:
        word = rest.pop(0)
        if word == "--":
            break
        if len(word) < 2 or not word.startswith("-") or (arguments and _name(word) not in named):
            arguments.append(word)
            if passes_on:
                break
            continue
        _take(word, rest, named, values, used)
    _check_refused(flags, values, verb)
    return values, arguments + rest


def _name(word: str) -> str:
    return word.removeprefix("-").removeprefix("-").partition("=")[0]


def _take(word: str, rest: list[str], named: dict[str, Flag], values: dict[str, Any], used: dict[str, str]) -> None:
    """Read the flag ``word``, and its value from ``rest`` where it has none of its own, into ``values``."""
    body = word[2:] if word.startswith("--") else word[1:]
    if not body or body[0] in "-=":
        raise UsageError(f"bad flag syntax: {word}")
    name, has_value, text = body.partition("=")
    flag = named.get(name)
    if flag is None:
        raise UsageError(f"flag provided but not defined: -{name}")
    if used.setdefault(flag.name, name) != name:
        raise UsageError(f"Cannot use two forms of the same flag: {flag.short} {flag.name}")
    if flag.kind == "bool":
        values[flag.name] = parse_bool(text, name) if has_value else True
        return
    if not has_value:
        if not rest:
            raise UsageError(f"flag needs an argument: -{name}")
        text = rest.pop(0)
    try:
        value = _READERS[flag.kind](text)
    except (ValueError, OverflowError) as error:
        reason = "value out of range" if isinstance(error, OverflowError) else "parse error"
        raise UsageError(f"invalid value {quote(text)} for flag -{name}: {reason}") from None
    values[flag.name] = [*values[flag.name], value] if flag.kind in ("list", "ints") else value


def _check_refused(flags: Sequence[Flag], values: dict[str, Any], verb: str) -> None:
    for flag in flags:
        if flag.refused and values[flag.name]:
            where = f" of {verb}" if verb else ""
            raise ConfigError(f"hako cannot honour the flag --{flag.name}{where}: {flag.refused}.")


def parse_bool(text: str, name: str) -> bool:
    """A bool as Go writes it. Raises UsageError."""
    if text in _TRUE or text in _FALSE:
        return text in _TRUE
    raise UsageError(f"invalid boolean value {quote(text)} for -{name}: parse error")


def parse_int(text: str, base: int = 0) -> int:
    """A whole number of 64 bits, by Go's rules: 010 and 0o10 are octal, 0x10 is hexadecimal, 1_000 is a thousand.

    Raises ValueError, or OverflowError where it does not fit.
    """
    body = text[1:] if text[:1] in ("+", "-") else text
    # Python would also take spaces, a second sign and the digits of other scripts.
    if not body.isascii() or not body[:1].isdigit() or body[-1:].isspace():
        raise ValueError(text)
    if base == 10 and not body.isdigit():  # no underscores
        raise ValueError(text)
    if base == 0 and len(body) > 1 and body[0] == "0" and (body[1].isdigit() or body[1] == "_"):
        base = 8
    number = int(body, base)
    if text.startswith("-"):
        number = -number
    if not -_INT64 <= number < _INT64:
        raise OverflowError(text)
    return number


def parse_duration(text: str) -> float:
    """Seconds in a duration as Go writes it: ``5s``, ``1h2m``, ``1.5s``, ``100ms``. Raises ValueError."""
    body = text[1:] if text[:1] in ("+", "-") else text
    if body == "0":
        return 0.0
    if not body:
        raise ValueError(text)
    total = 0.0
    while body:
        unit = body.lstrip("0123456789.")
        number = body[: len(body) - len(unit)]
        name = next((name for name in _UNITS if unit.startswith(name)), "")
        if name == "m" and unit.startswith("ms"):
            name = "ms"
        if not name or not number.strip(".") or number.count(".") > 1:
            raise ValueError(text)
        total += float(number) * _UNITS[name]
        body = unit[len(name) :]
    return (-total if text.startswith("-") else total) / 1e9


def _parse_int10(text: str) -> int:
    return parse_int(text, 10)


_DEFAULTS: dict[str, Any] = {"text": "", "bool": False, "int": 0, "list": (), "ints": (), "duration": 0.0}
_READERS: dict[str, Callable[[str], Any]] = {
    "text": str, "int": parse_int, "list": str, "ints": _parse_int10, "duration": parse_duration,
}  # fmt: skip
