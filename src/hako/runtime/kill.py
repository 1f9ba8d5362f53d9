"""``hako-runtime kill``: send a signal to the container's process, or to all of its processes."""

from __future__ import annotations

import signal

from hako.errors import ConfigError, HakoError, StateError
from hako.runtime import containers
from hako.runtime.verbs import Call
from hako.sandbox import client


def main(call: Call) -> int:
    """Send it. Raises HakoError."""
    container = containers.find(call.root, call.args[0])
    number = parse_signal(call.args[1] if len(call.args) > 1 else "SIGTERM")
    everyone = call.options.get("all") is True
    if containers.status(container) == "stopped":
        if everyone:
            return 0  # none is left, and engines make sure of that so
        raise StateError("container not running")
    try:
        containers.call(container, "Kill", {"signal": number, "all": everyone})
    except client.GoneError:
        raise StateError("container not running") from None
    except HakoError:
        if containers.status(container) == "stopped":
            raise StateError("container not running") from None
        raise
    return 0


def parse_signal(text: str) -> int:
    """A signal by number or name, with or without SIG. Raises ConfigError."""
    if text.isdecimal():
        number = int(text)
        if number <= signal.NSIG - 1:
            return number
    else:
        name = text.upper()
        name = name if name.startswith("SIG") else f"SIG{name}"
        base, sign, offset = name.partition("+") if "+" in name else name.partition("-")
        found = getattr(signal, base, None)
        if isinstance(found, signal.Signals) and (not sign or offset.isdecimal()):
            return int(found) + (int(offset) if sign == "+" else -int(offset) if sign else 0)
    raise ConfigError(f"unknown signal {text!r}")
