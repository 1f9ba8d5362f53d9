"""docs/agent-protocol.md says what the code does: methods, numbers, codes."""

from __future__ import annotations

import inspect
import re

import pytest

from hako.agent import service, system
from hako.agent.main import PORT
from hako.wire import calls, frames
from support import source

DOCUMENT = source.read("docs/agent-protocol.md")


def section(title: str) -> str:
    """The text below the heading ``title``, up to the next one of the same depth."""
    found = re.search(rf"^(#+) {re.escape(title)}$(.*?)(?=^\1 |^## |\Z)", DOCUMENT, re.MULTILINE | re.DOTALL)
    assert found, f"no section {title}"
    return found[2]


def rows(title: str) -> list[list[str]]:
    """The cells of the tables in a section, headings left out."""
    lines = [line for line in section(title).splitlines() if line.startswith("|")]
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]
    return [row for row in cells if not set(row[0]) <= {"-"} and row[0] not in ("parameter", "type", "flag", "code")]


def test_each_method_is_described() -> None:
    methods = re.findall(r"^### (\w+)$", section("Methods"), re.MULTILINE)
    assert methods == list(service._METHODS)


@pytest.mark.parametrize("method", service._METHODS)
def test_each_parameter_is_described(method: str) -> None:
    """The names are those that the method's code, and the helpers it uses, look for."""
    code = inspect.getsource(service._METHODS[method])
    used = set(re.findall(r'params(?:, |\.get\(|\[)"(\w+)"', code))
    used |= {"container"} if "self._container(params)" in code else set()
    used |= {"width", "height"} if "_sized(" in code or "_size(" in code else set()
    described = {name for row in rows(method) for name in re.findall(r"[a-z_0-9]+", row[0])}
    if method == "Stats":
        described &= {"container"}
    assert described == used


def test_the_limits() -> None:
    described = {name.strip("`"): int(value) for name, value, _ in rows("Limits") if name != "constant"}
    names = ("MAX_CALL", "WINDOW", "CHUNK", "MAX_CALLS", "MAX_CONTAINERS", "MAX_EXECS", "MAX_PROCESSES", "MAX_DEVICES")
    names += ("MAX_MESSAGE",)
    assert described == {name: getattr(calls, name) for name in names}
    public = {name for name, value in vars(calls).items() if name.isupper() and name[0] != "_" and type(value) is int}
    codes = {name for _, name, _ in rows("Calls")}
    assert public - codes == {*names, "PROTOCOL_VERSION"}


def test_the_codes() -> None:
    for number, name, _ in rows("Calls"):
        assert getattr(calls, name) == int(number)


def test_the_frames() -> None:
    table = {name: int(number) for number, name, *_ in rows("Frames")}
    assert table == {
        "request": frames.REQUEST,
        "response": frames.RESPONSE,
        "data": frames.DATA,
        "credit": frames.CREDIT,
        "remote closed": frames.FLAG_REMOTE_CLOSED,
        "remote open": frames.FLAG_REMOTE_OPEN,
        "no data": frames.FLAG_NO_DATA,
    }
    assert f"{frames.HEADER.size}-byte header" in DOCUMENT


def test_names_and_version() -> None:
    assert f"This page describes version {calls.PROTOCOL_VERSION};" in DOCUMENT
    assert f"port named `{PORT}`" in DOCUMENT
    assert f"`{system._SHARES}/NAME`" in DOCUMENT
