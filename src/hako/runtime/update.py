"""``hako-runtime update``: changes the limits of a container; its VM grows and shrinks with them."""

from __future__ import annotations

from hako.errors import ConfigError, StateError
from hako.runtime import containers
from hako.runtime.flags import parse_int
from hako.runtime.texts import quote
from hako.units import parse_size

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from hako.runtime.verbs import Call

#: Flag: where it goes in the resources object. In the order of runc's checks.
_NUMBERS = {
    "cpu-period": ("cpu", "period"),
    "cpu-quota": ("cpu", "quota"),
    "cpu-share": ("cpu", "shares"),
    "cpu-rt-period": ("cpu", "realtimePeriod"),
    "cpu-rt-runtime": ("cpu", "realtimeRuntime"),
    "cpu-idle": ("cpu", "idle"),
}
_SIZES = {
    "memory": ("memory", "limit"),
    "memory-swap": ("memory", "swap"),
    "memory-reservation": ("memory", "reservation"),
}
_TEXTS = {"cpuset-cpus": ("cpu", "cpus"), "cpuset-mems": ("cpu", "mems")}
_INTEGERS = {"blkio-weight": ("blockIO", "weight"), "pids-limit": ("pids", "limit")}


def main(call: Call) -> int:
    """Change them. Raises HakoError."""
    container = containers.find(call.root, call.args[0])
    file = call.options["resources"]
    wanted = _checked(_read(file)) if file else from_flags(call.options)
    if containers.status(container) == "stopped":
        raise StateError("container not running")
    if wanted:
        containers.update(container, wanted)
    return 0


def from_flags(options: dict[str, Any]) -> dict[str, Any]:
    """The OCI resources object that the flags ask for, with what they name alone. Raises ConfigError."""
    found: dict[str, Any] = {}

    def put(place: tuple[str, str], value: object) -> None:
        found.setdefault(place[0], {})[place[1]] = value

    for flag, place in _NUMBERS.items():
        if options[flag]:
            put(place, _number(options[flag], flag))
    for flag, place in _SIZES.items():
        if options[flag]:
            put(place, -1 if options[flag] == "-1" else parse_size(options[flag], f"--{flag}"))
    for flag, place in _TEXTS.items():
        if options[flag]:
            put(place, options[flag])
    for flag, place in _INTEGERS.items():
        if options[flag]:
            put(place, options[flag])
    return _checked(found)


def _number(text: str, flag: str) -> int:
    try:
        return parse_int(text, 10)
    except (ValueError, OverflowError):
        raise ConfigError(f"invalid value for {flag}: {quote(text)} is not a whole number") from None


def _read(file: str) -> object:
    import json
    import sys

    name = "standard input" if file == "-" else file
    try:
        if file == "-":
            data = sys.stdin.buffer.read()
        else:
            with open(file, "rb") as opened:
                data = opened.read()
        return json.loads(data)
    except OSError as error:
        raise ConfigError(f"Cannot read the resources in {name}: {error.strerror}.") from error
    except (ValueError, RecursionError) as error:
        raise ConfigError(f"The resources in {name} are not valid JSON: {error}.") from error


def _checked(resources: object) -> dict[str, Any]:
    """``resources`` if config.json could have them. Raises ConfigError, which says what is wrong and where."""
    from hako.oci import check

    if not isinstance(resources, dict):
        raise ConfigError("$.linux.resources: must be an object, as config.json has it.")
    around = {"root": {"path": "/"}, "process": {"args": ["-"], "cwd": "/"}}
    checked: dict[str, Any] = check.check({**around, "linux": {"resources": resources}})["linux"]["resources"]
    return checked
