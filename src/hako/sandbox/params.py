"""Parameters of a sandbox's calls, checked, and what is recorded of a new container."""

from __future__ import annotations

import time
from typing import Any

from hako.errors import ConfigError

#: Names that descriptors for a process's streams come under.
FD_NAMES = ("stdin", "stdout", "stderr")
#: The mount namespace in which the paths of a new container mean what they say, if it is another than at the start.
MOUNTS = "mounts"


def text(params: dict[str, Any], key: str) -> str:
    """The text ``key``. Raises ConfigError."""
    value = params.get(key)
    if isinstance(value, str):
        return value
    raise ConfigError(f"$.{key}: not a text.")


def number(params: dict[str, Any], key: str, low: int, high: int) -> int:
    """The number ``key``. Raises ConfigError."""
    value = params.get(key)
    if type(value) is int and low <= value <= high:
        return value
    raise ConfigError(f"$.{key}: not a number from {low} to {high}.")


def size(params: dict[str, Any]) -> dict[str, int]:
    """Terminal size, when the caller gave one."""
    return {key: number(params, key, 0, 0xFFFF) for key in ("width", "height")} if "width" in params else {}


def resources(spec: dict[str, Any]) -> dict[str, Any]:
    """The resources that size the VM, out of a checked config.json."""
    found = spec.get("linux", {}).get("resources") or {}
    return {name: found[name] for name in ("memory", "cpu") if isinstance(found.get(name), dict)}


def new_record(params: dict[str, Any], spec: dict[str, Any], *, terminal: bool, started: bool) -> dict[str, Any]:
    """What is written down of a container that has just been made."""
    now = time.time_ns()
    return {
        "status": "running" if started else "created",
        "created_ns": now,
        "started_ns": now if started else 0,
        "image": str(params.get("image") or ""),
        "command": [str(arg) for arg in spec["process"].get("args", [])],
        "process": {key: value for key, value in spec["process"].items() if key != "args"},
        "resources": resources(spec),
        "mounts": spec.get("mounts", []),
        "terminal": terminal,
        "lower": str(params.get("lower") or spec["root"]["path"]),
        "exit_status": 0,
        "exited_ns": 0,
        "oom": False,
        "error": "",
    }
