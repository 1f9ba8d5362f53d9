"""What is kept of containers, which sandbox one joins, and the words of the verbs that need no sandbox."""

from __future__ import annotations

import os
import signal
from pathlib import Path
from typing import Any

import pytest

from hako.errors import ConfigError, ExistsError, HostError, NotFoundError, StateError
from hako.runtime import console, containers, joining
from hako.runtime.containers import Container
from hako.runtime.kill import parse_signal


@pytest.fixture(autouse=True)
def roots(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HAKO_STATE_ROOT", str(tmp_path / "state"))
    monkeypatch.setenv("HAKO_DATA_ROOT", str(tmp_path / "data"))


def made(root: Path, name: str = "one", **changes: Any) -> Container:
    """A container that is written down, of a sandbox that does not exist."""
    containers.claim(str(root), name)
    container = Container(
        root=str(root), id=name, bundle="/b", rootfs="/b/rootfs", sandbox="s1", guest_id=name, created_ns=5,
        owner="root", oci_version="1.0.2", annotations={"a": "b"}, hooks={},
    ).change(**changes)  # fmt: skip
    container.save()
    return container


@pytest.mark.parametrize("name", ["a", "_x", "+.-", "A" * 1024, "9" * 64])
def test_names_that_runc_takes_too(name: str) -> None:
    assert containers.check_id(name) == name
    assert 0 < len(containers.guest_id(name)) <= 128


@pytest.mark.parametrize("name", ["", ".", "..", "a/b", "a b", "ä", "a\n", "A" * 1025])
def test_names_that_it_does_not_take(name: str) -> None:
    with pytest.raises(ConfigError, match="invalid container ID format"):
        containers.check_id(name)


def test_it_is_found_as_it_was_written(tmp_path: Path) -> None:
    container = made(tmp_path, netns=(4, 7), pid=1, cgroup={"directories": {}})
    assert containers.find(str(tmp_path), "one") == container
    assert containers.all_of(str(tmp_path)) == [container]
    with pytest.raises(ExistsError, match="container with id one already exists"):
        containers.claim(str(tmp_path), "one")
    containers.forget(str(tmp_path), "one")
    with pytest.raises(NotFoundError, match="container does not exist"):
        containers.find(str(tmp_path), "one")


@pytest.mark.parametrize("text", ['{"id": "one"}', '{"id": 1, "netns": "x"}', '{"netns": null}'])
def test_a_damaged_record_is_said_to_be_one(tmp_path: Path, text: str) -> None:
    made(tmp_path)
    (tmp_path / "one/state.json").write_text(text)
    with pytest.raises(HostError, match="damaged"):
        containers.find(str(tmp_path), "one")
    assert containers.all_of(str(tmp_path)) == []


def test_one_whose_sandbox_is_gone_has_stopped(tmp_path: Path) -> None:
    assert containers.status(made(tmp_path, pid=os.getpid())) == "stopped"
    assert not containers.is_its(made(tmp_path, "two", pid=os.getpid(), started=1))
    own = containers.start_time(os.getpid())
    assert containers.is_its(made(tmp_path, "three", pid=os.getpid(), started=own))


def test_a_pods_container_joins_by_its_annotations(tmp_path: Path) -> None:
    made(tmp_path, "pod", pid=os.getpid())
    keys = {"io.kubernetes.cri.container-type": "container", "io.kubernetes.cri.sandbox-id": "pod"}
    with pytest.raises(StateError, match="pod, which the container is to join, has ended"):
        joining.sandbox_owner(str(tmp_path), {"annotations": keys})
    with pytest.raises(NotFoundError):
        joining.sandbox_owner(str(tmp_path), {"annotations": {**keys, "io.kubernetes.cri.sandbox-id": "other"}})
    sandbox = {**keys, "io.kubernetes.cri.container-type": "sandbox"}
    assert joining.sandbox_owner(str(tmp_path), {"annotations": sandbox}) is None


def test_it_joins_who_has_its_network(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    own = "/proc/self/ns/net"
    spec = {"linux": {"namespaces": [{"type": "pid"}, {"type": "network", "path": own}]}}
    assert joining.sandbox_owner(str(tmp_path), spec) is None
    container = made(tmp_path, netns=joining.identity(own), pid=1)
    assert joining.sandbox_owner(str(tmp_path), spec) is None  # it has ended
    monkeypatch.setattr(containers, "status", lambda _: "running")
    assert joining.sandbox_owner(str(tmp_path), spec) == container
    new = {"linux": {"namespaces": [{"type": "network"}]}}
    assert joining.sandbox_owner(str(tmp_path), new) is None
    missing = {"linux": {"namespaces": [{"type": "network", "path": "/no/such"}]}}
    with pytest.raises(ConfigError, match="/no/such cannot be used"):
        joining.sandbox_owner(str(tmp_path), missing)


def test_namespaces_of_mates_have_places_in_the_guest(tmp_path: Path) -> None:
    owner = made(tmp_path, "pod", pid=77, guest_pid=5)
    made(tmp_path, "stranger", pid=78, guest_pid=6, sandbox="s2")
    names = ["/proc/77/ns/ipc", "/proc/78/ns/ipc", "/proc/77/ns", "/run/ns/x", ""]
    spec = {"linux": {"namespaces": [{"type": "ipc", "path": name} for name in names]}}
    assert joining.joined(str(tmp_path), spec, owner) == {"/proc/77/ns/ipc": "/proc/5/ns/ipc"}


@pytest.mark.parametrize(
    ("text", "number"),
    [
        ("9", 9), ("KILL", 9), ("sigterm", 15), ("SIGRTMIN+3", signal.SIGRTMIN + 3), ("RTMAX-1", signal.SIGRTMAX - 1),
        ("0", 0), ("64", 64),
    ],
)  # fmt: skip
def test_signals_by_number_and_name(text: str, number: int) -> None:
    assert parse_signal(text) == number


@pytest.mark.parametrize("text", ["", "65", "-9", "SIGNOTHING", "SIG", "RTMIN+x", "getsignal"])
def test_what_is_no_signal(text: str) -> None:
    with pytest.raises(ConfigError, match="unknown signal"):
        parse_signal(text)


@pytest.mark.parametrize(
    ("terminal", "path", "detach", "fine"),
    [
        (False, "", True, True), (True, "/s", True, True), (True, "", False, True), (True, "", True, False),
        (False, "/s", True, False), (True, "/s", False, False),
    ],
)  # fmt: skip
def test_a_terminal_needs_somebody_who_has_it(terminal: bool, path: str, detach: bool, fine: bool) -> None:
    if fine:
        console.check({"terminal": terminal}, path, detach=detach)
    else:
        with pytest.raises(ConfigError, match="cannot"):
            console.check({"terminal": terminal}, path, detach=detach)


@pytest.mark.parametrize(
    ("process", "size"),
    [
        ({}, None), ({"consoleSize": {"width": 80, "height": 25}}, (80, 25)), ({"consoleSize": {"width": 80}}, None),
        ({"consoleSize": {"width": 0, "height": 0}}, None),
    ],
)  # fmt: skip
def test_the_size_of_the_console(process: dict[str, Any], size: tuple[int, int] | None) -> None:
    assert console.wanted_size(process) == size


def test_who_stands_for_it_tells_that_it_has_ended(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(containers, "record_of", lambda _: {"status": "running"})
    own = containers.start_time(os.getpid())
    assert containers.status(made(tmp_path, "alive", pid=os.getpid(), started=own)) == "running"
    assert containers.status(made(tmp_path, "dead", pid=os.getpid(), started=own - 1)) == "stopped"
