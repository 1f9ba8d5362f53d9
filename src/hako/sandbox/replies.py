"""The agent's longer answers, checked: a guest that has been taken over may send anything.

What is passed on is built anew from the parts that are expected; the rest is dropped.
"""

from __future__ import annotations

from typing import Any

from hako.agent_client import field
from hako.errors import ProtocolError
from hako.wire.calls import MAX_PROCESSES

#: Lines of one of the kernel's ``name value`` tables.
_MAX_LINES = 256

_MEMORY = ("usage", "limit", "peak", "swap")
_PROCESS = {
    "pid": int,
    "container_pid": int,
    "ppid": int,
    "uid": int,
    "state": str,
    "ticks": int,
    "rss": int,
    "command": str,
}


def stats(answer: dict[str, Any]) -> dict[str, Any]:
    """The answer to Stats. Raises ProtocolError."""
    memory = field(answer, "memory", dict)
    pids = field(answer, "pids", dict)
    io = field(answer, "io", dict)
    return {
        "cpu": _table(answer, "cpu"),
        "memory": {
            **{name: _number_or_none(memory, name) for name in _MEMORY},
            "stat": _table(memory, "stat"),
            "events": _table(memory, "events"),
        },
        "pids": {name: _number_or_none(pids, name) for name in ("current", "limit")},
        "io": {name: field(io, name, int) for name in ("rbytes", "wbytes", "rios", "wios")},
    }


def processes(answer: dict[str, Any]) -> dict[str, Any]:
    """The answer to Ps. Raises ProtocolError."""
    entries = field(answer, "processes", list)
    if len(entries) > MAX_PROCESSES or not all(isinstance(entry, dict) for entry in entries):
        raise ProtocolError("The agent's answer has no valid processes.")
    return {"processes": [{name: field(entry, name, kind) for name, kind in _PROCESS.items()} for entry in entries]}


def _number_or_none(answer: dict[str, Any], name: str) -> int | None:
    number: int | None = None if answer.get(name) is None else field(answer, name, int)
    return number


def _table(answer: dict[str, Any], name: str) -> dict[str, int]:
    table = field(answer, name, dict)
    if len(table) > _MAX_LINES or not all(len(key) <= 64 and key.isprintable() for key in table):
        raise ProtocolError(f"The agent's answer has no valid {name}.")
    return {key: field(table, key, int) for key in table}
