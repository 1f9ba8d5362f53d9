"""The agent's calls: which parameters are refused, and that a refused call changes nothing."""

from __future__ import annotations

from typing import Any

import pytest

from hako.agent import service as service_module
from hako.agent.service import Service
from hako.wire import calls
from support.agentside import Bench


class Refusing(Bench):
    """An agent without containers, on a Bench."""

    def __init__(self) -> None:
        super().__init__()
        self.service = Service(self.loop)
        self.service.attach(self.channel)
        self.channel._handler = self.service.handle

    def error(self, method: str, params: dict[str, Any]) -> calls.CallError:
        """What ``method`` fails with; it must do so at once."""
        try:
            self.service.handle(method, params).send(None)
        except calls.CallError as error:
            return error
        except StopIteration as stop:
            pytest.fail(f"{method} gave {stop.value}")
        pytest.fail(f"{method} was not refused")


GOOD_SPEC = {"process": {"args": ["true"]}}
MOUNT = {"type": "ext4", "source": "", "flags": 0, "data": ""}
NAMES: list[object] = ["", "-a", ".a", "a/b", "a" * 129, "ä", "a\n", 1, None, ["a"], {"a": 1}, True]

CASES: list[tuple[str, dict[str, Any], str]] = [
    ("Hello", {}, "version"),
    ("Hello", {"version": "1"}, "version"),
    ("Hello", {"version": True}, "version"),
    ("Hello", {"version": -1}, "version"),
    ("Configure", {"time_ns": "now"}, "time_ns"),
    ("Configure", {"time_ns": 0}, "time_ns"),
    ("Configure", {"time_ns": 1 << 62 | 1}, "time_ns"),
    ("Configure", {"hostname": "a b"}, "hostname"),
    ("Configure", {"entropy": 5}, "entropy"),
    ("Configure", {"entropy": "!!!"}, "entropy"),
    ("Configure", {"entropy": "A" * 4097}, "entropy"),
    ("Configure", {"machine_id": "../x"}, "machine_id"),
    ("Configure", {"mac": 5}, "mac"),
    ("Configure", {"mac": "02:00:00:00:00"}, "mac"),
    ("Configure", {"mac": "02-00-00-00-00-01"}, "mac"),
    ("Configure", {"mac": "03:00:00:00:00:01"}, "mac"),
    ("Configure", {"mac": "002:00:00:00:00:1"}, "mac"),
    ("Settle", {"squeeze": 1}, "squeeze"),
    ("Resized", {"extra": 0}, "vcpus"),
    ("Resized", {"vcpus": 0, "extra": 0}, "vcpus"),
    ("Resized", {"vcpus": 1, "extra": -1}, "extra"),
    ("MountShare", {"driver": "ext4", "tag": "a", "name": "a"}, "driver"),
    ("MountShare", {"driver": ["9p"], "tag": "a", "name": "a"}, "driver"),
    ("MountShare", {"driver": "9p", "tag": "a", "name": "../a"}, "name"),
    ("MountShare", {"driver": "9p", "tag": "", "name": "a"}, "tag"),
    ("MountShare", {"driver": "9p", "tag": "a", "name": "a", "options": 1}, "options"),
    ("MountShare", {"driver": "9p", "tag": "a", "name": "a", "options": "x" * 1025}, "options"),
    ("LoadModules", {"name": "../x"}, "name"),
    ("Network", {}, "interfaces"),
    ("Network", {"interfaces": [{"name": "eth0"}]}, "mac"),
    ("Resolve", {"stdin": 1, "stdout": 3}, "addresses"),
    ("Resolve", {"addresses": ["10.0.0.1"], "stdin": 1, "stdout": 3}, "addresses"),
    ("Resolve", {"addresses": ["127.0.0.11"], "stdout": 3}, "stdin"),
    ("Resolve", {"addresses": ["127.0.0.11"], "stdin": 1, "stdout": 0}, "stdout"),
    ("Pod", {"hostname": "a/b", "inside": {}, "whole": {}}, "hostname"),
    ("Pod", {"hostname": "", "whole": {}}, "inside"),
    ("Pod", {"hostname": "", "inside": {}}, "whole"),
    ("Pod", {"hostname": "", "inside": {}, "whole": {"../x": "1"}}, "sysctls"),
    ("AttachDisks", {"container": "c"}, "disks"),
    ("AttachDisks", {"container": "c", "disks": ["a/b"]}, "disks"),
    ("AttachDisks", {"container": "c", "disks": ["a"] * 257}, "disks"),
    ("AttachDisks", {"container": "../c", "disks": []}, "container"),
    ("AttachDisks", {"container": "c", "disks": [], "modules": [1]}, "modules"),
    ("AttachDisks", {"container": "c", "disks": [], "mounts": {}}, "mounts"),
    ("AttachDisks", {"container": "c", "disks": [], "mounts": [{}]}, "mounts.type"),
    ("AttachDisks", {"container": "c", "disks": [], "mounts": [{**MOUNT, "flags": "ro"}]}, "mounts.flags"),
    ("AttachDisks", {"container": "c", "disks": [], "mounts": [{**MOUNT, "data": "\0"}]}, "mounts.data"),
    ("AttachDisks", {"container": "c", "disks": [], "mounts": [{**MOUNT, "disk": "b"}]}, "not among"),
    ("AttachDisks", {"container": "c", "disks": ["a"], "mounts": [{**MOUNT, "devices": ["b"]}]}, "not among"),
    ("AttachDisks", {"container": "c", "disks": [], "mounts": [{**MOUNT, "inside": [1]}]}, "mounts.inside"),
    ("AttachDisks", {"container": "c", "disks": [], "mounts": [{**MOUNT, "make": [{"path": "0"}]}]}, "mounts.make"),
    ("DetachDisks", {"container": "c"}, "disks"),
    ("DetachDisks", {"disks": []}, "container"),
    ("Listen", {"socket": "../s", "mode": 0, "uid": 0, "gid": 0}, "socket"),
    ("Listen", {"socket": "s", "mode": 0o10000, "uid": 0, "gid": 0}, "mode"),
    ("Listen", {"socket": "s", "mode": 0, "uid": (1 << 32) - 1, "gid": 0}, "uid"),
    ("Listen", {"socket": "s", "mode": 0, "uid": 0, "gid": -1}, "gid"),
    ("Accept", {"socket": "", "stdin": 1, "stdout": 3}, "socket"),
    ("Unlisten", {}, "socket"),
    ("Dial", {"port": 0, "stdin": 1, "stdout": 3}, "port"),
    ("Dial", {"port": 65536, "stdin": 1, "stdout": 3}, "port"),
    ("Dial", {"port": "80", "stdin": 1, "stdout": 3}, "port"),
    ("Dial", {"port": 80, "ipv6": 1, "stdin": 1, "stdout": 3}, "ipv6"),
    ("Dial", {"port": 80, "stdout": 3}, "stdin"),
    ("Create", {"container": "c", "stdio": {}}, "spec"),
    ("Create", {"container": "c", "spec": [], "stdio": {}}, "spec"),
    ("Create", {"container": "c", "spec": {}, "stdio": {}}, "process"),
    ("Create", {"container": "c", "spec": {"process": []}, "stdio": {}}, "process"),
    ("Create", {"container": "c", "spec": {"process": {}, "linux": 3}, "stdio": {}}, "linux"),
    ("Create", {"container": "c", "spec": GOOD_SPEC}, "stdio"),
    ("Create", {"container": "c", "spec": GOOD_SPEC, "stdio": {"stdin": "1"}}, "stdin"),
    ("Create", {"container": "c", "spec": GOOD_SPEC, "stdio": {}, "start": 1}, "start"),
    ("Create", {"container": "c", "spec": GOOD_SPEC, "stdio": {}, "width": 80}, "height"),
    ("Create", {"container": "c", "spec": GOOD_SPEC, "stdio": {}, "width": -1, "height": 1}, "width"),
    ("Create", {"container": "c", "spec": GOOD_SPEC, "stdio": {}, "width": 1, "height": 65536}, "height"),
]
CASES += [("Create", {"container": name, "spec": GOOD_SPEC, "stdio": {}}, "container") for name in NAMES]


@pytest.mark.parametrize(("method", "params", "named"), CASES)
def test_bad_parameters(method: str, params: dict[str, Any], named: str) -> None:
    with Refusing() as agent:
        error = agent.error(method, params)
        assert error.code == calls.INVALID_ARGUMENT
        assert named in error.message
        assert agent.service._store.ids() == []
        assert agent.service._store._all == {}


WITH_CONTAINER = [
    "Start",
    "Exec",
    "Wait",
    "Kill",
    "Delete",
    "Pause",
    "Resume",
    "Update",
    "Stats",
    "Ps",
    "State",
    "Resize",
]


@pytest.mark.parametrize("method", WITH_CONTAINER)
def test_calls_about_a_container_need_one(method: str) -> None:
    with Refusing() as agent:
        assert agent.error(method, {}).code == calls.INVALID_ARGUMENT
        assert agent.error(method, {"container": "a/b"}).code == calls.INVALID_ARGUMENT
        error = agent.error(method, {"container": "missing"})
        assert error.code == calls.NOT_FOUND
        assert "container missing does not exist" in error.message


def test_every_method_is_covered_here() -> None:
    assert {method for method, _, _ in CASES} | set(WITH_CONTAINER) | {"Info", "Shutdown"} == set(
        service_module._METHODS
    )


def test_another_version_is_refused() -> None:
    with Refusing() as agent:
        error = agent.error("Hello", {"version": calls.PROTOCOL_VERSION + 1})
        assert error.code == calls.FAILED_PRECONDITION
        assert f"protocol {calls.PROTOCOL_VERSION}, not {calls.PROTOCOL_VERSION + 1}" in error.message


@pytest.mark.parametrize("method", ["", "hello", "Nonsense", "__class__", "x" * 10_000])
def test_unknown_methods(method: str) -> None:
    with Refusing() as agent:
        error = agent.error(method, {})
        assert error.code == calls.UNIMPLEMENTED
        assert len(error.message) < 120


def test_errors_of_the_system_are_told(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(_time: int) -> None:
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr(service_module.system, "set_clock", fail)
    with Refusing() as agent:
        error = agent.error("Configure", {"time_ns": 1})
        assert (error.code, error.message) == (calls.INTERNAL, "Configure: Operation not permitted")
