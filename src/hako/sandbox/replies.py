"""The agent's longer answers, checked: a guest that has been taken over may send anything.

What is passed on is built anew from the parts that are expected; the rest is dropped.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from hako.agent_client import field
from hako.errors import ProtocolError
from hako.wire.calls import MAX_DEVICES, MAX_PROCESSES

#: Lines of one of the kernel's ``name value`` tables.
_MAX_LINES = 256

_MEMORY = ("usage", "limit", "peak", "swap", "swap_limit", "swap_peak")
_IO = ("rbytes", "wbytes", "rios", "wios")
_DEVICE = dict.fromkeys(("major", "minor", *_IO), int)
_PRESSURE = dict.fromkeys(("avg10", "avg60", "avg300", "total"), int)
_INTERFACE = {
    "name": str,
    **dict.fromkeys(
        (f"{way}_{what}" for way in ("rx", "tx") for what in ("bytes", "packets", "errors", "dropped")), int
    ),
}
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
    io, pressure = field(answer, "io", dict), field(answer, "pressure", dict)
    return {
        "cpu": _table(answer, "cpu"),
        "memory": {
            **{name: _number_or_none(memory, name) for name in _MEMORY},
            "stat": _table(memory, "stat"),
            "events": _table(memory, "events"),
        },
        "pids": {name: _number_or_none(pids, name) for name in ("current", "limit")},
        "io": {name: _count(io, name) for name in _IO} | {"devices": _entries(io, "devices", _DEVICE)},
        "hugetlb": [_huge_pages(entry) for entry in _list(answer, "hugetlb")],
        "pressure": {name: _pressure(pressure, name) for name in ("cpu", "memory", "io")},
        "network": _entries(answer, "network", _INTERFACE),
    }


def _huge_pages(entry: dict[str, Any]) -> dict[str, Any]:
    found = {"page": field(entry, "page", str)}
    return found | {name: _number_or_none(entry, name) for name in ("current", "limit", "failures")}


def _pressure(answer: dict[str, Any], name: str) -> dict[str, dict[str, Any]]:
    found = field(answer, name, dict)
    return {kind: _entry(field(found, kind, dict), _PRESSURE) for kind in ("some", "full") if kind in found}


def processes(answer: dict[str, Any]) -> dict[str, Any]:
    """The answer to Ps. Raises ProtocolError."""
    entries = field(answer, "processes", list)
    if len(entries) > MAX_PROCESSES or not all(isinstance(entry, dict) for entry in entries):
        raise ProtocolError("The agent's answer has no valid processes.")
    return {"processes": [{name: field(entry, name, kind) for name, kind in _PROCESS.items()} for entry in entries]}


def _list(answer: dict[str, Any], name: str) -> list[dict[str, Any]]:
    """The objects of a list of devices."""
    entries: list[dict[str, Any]] = field(answer, name, list)
    if len(entries) > MAX_DEVICES or not all(isinstance(entry, dict) for entry in entries):
        raise ProtocolError(f"The agent's answer has no valid {name}.")
    return entries


def _entries(answer: dict[str, Any], name: str, fields: Mapping[str, type]) -> list[dict[str, Any]]:
    return [_entry(entry, fields) for entry in _list(answer, name)]


def _entry(entry: dict[str, Any], fields: Mapping[str, type]) -> dict[str, Any]:
    return {name: _count(entry, name) if kind is int else field(entry, name, kind) for name, kind in fields.items()}


def _number_or_none(answer: dict[str, Any], name: str) -> int | None:
    return None if answer.get(name) is None else _count(answer, name)


def _count(answer: dict[str, Any], name: str) -> int:
    """A number that is never negative."""
    number: int = field(answer, name, int)
    if number < 0:
        raise ProtocolError(f"The agent's answer has no valid {name}.")
    return number


def _table(answer: dict[str, Any], name: str) -> dict[str, int]:
    table = field(answer, name, dict)
    if len(table) > _MAX_LINES or not all(len(key) <= 64 and key.isprintable() for key in table):
        raise ProtocolError(f"The agent's answer has no valid {name}.")
    return {key: _count(table, key) for key in table}
