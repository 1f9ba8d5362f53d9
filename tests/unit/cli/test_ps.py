"""``hako ps``: published ports as people read them."""

from __future__ import annotations

from typing import Any

import pytest

from hako.cli import ps
from hako.cli.containers import Target
from hako.network import ports


def target(*options: str, status: str = "running") -> Target:
    mappings = [mapping._asdict() for option in options for mapping in ports.parse(option)]
    record = {"status": status, "created_ns": 1, "started_ns": 1, "exited_ns": 1, "exit_status": 0}
    state: dict[str, Any] = {"spec": {"id": "0" * 64, "name": ""}, "status": "running", "created_ns": 1}
    state |= {"network": {"name": "bridge", "addresses": ["10.87.0.2/16"], "ports": mappings}}
    return Target(state, "0" * 64, record)


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ([], ""),
        (["8080:80"], "0.0.0.0:8080->80/tcp"),
        (["127.0.0.1:53:53/udp", "[::1]:53:53"], "127.0.0.1:53->53/udp, [::1]:53->53/tcp"),
        (["8000-8002:80-82", "8003:90"], "0.0.0.0:8000-8002->80-82/tcp, 0.0.0.0:8003->90/tcp"),
        (["8000:80", "8001:81/udp"], "0.0.0.0:8000->80/tcp, 0.0.0.0:8001->81/udp"),
    ],
)
def test_ports(options: list[str], text: str) -> None:
    assert ps._row(target(*options), whole=True)[5] == text


def test_what_has_ended_publishes_nothing() -> None:
    assert ps.describe(target("80:80"))["ports"][0]["host_port"] == 80
    ended = target("80:80", status="stopped")
    assert ps.describe(ended)["ports"] == []
    assert ps._row(ended, whole=True)[5] == ""


def test_a_state_of_an_earlier_version_has_no_ports() -> None:
    old = target()
    del old.state["network"]
    assert ps.describe(old)["ports"] == []
