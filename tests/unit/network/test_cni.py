"""The calls of CNI plugins: order, what they are told, and plugins that misbehave; real ones are in tests/system."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest

from hako.errors import HostError
from hako.network import cni, cniconfig, ports

_PLUGIN = """#!/bin/sh
exec 3>>"$(dirname "$0")/log"
request=$(cat)
printf '%s %s %s %s\\n' "$(basename "$0")" "$CNI_COMMAND" "$CNI_CONTAINERID/$CNI_IFNAME" "$request" >&3
"""
RESULT = {"cniVersion": "1.0.0", "ips": [{"address": "10.1.0.2/24"}], "dns": {"nameservers": ["10.1.0.1"]}}


class Plugins:
    """Programs in place of plugins that write down how they are called."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory

    def add(self, name: str, script: str) -> None:
        """``script`` is run after the call has been written down."""
        path = self._directory / name
        path.write_text(_PLUGIN + script)
        path.chmod(0o755)

    def calls(self) -> list[tuple[str, str, dict[str, Any]]]:
        """Name, command and request of each call so far."""
        lines = (self._directory / "log").read_text().splitlines()
        parts = [line.split(" ", 3) for line in lines]
        assert {part[2] for part in parts} == {"box/eth0"}
        return [(name, command, json.loads(request)) for name, command, _, request in parts]

    def use(self, *plugins: dict[str, Any], version: str = "1.0.0") -> None:
        """Make a list of ``plugins`` the default network."""
        os.makedirs(cniconfig.directory(), exist_ok=True)
        value = {"cniVersion": version, "name": "net", "plugins": list(plugins)}
        (Path(cniconfig.directory()) / "net.conflist").write_text(json.dumps(value))


@pytest.fixture
def plugins(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Plugins:
    """Three plugins: one that gives an address, one that passes results on, one that says nothing."""
    monkeypatch.setenv("HAKO_CONFIG", str(tmp_path / "config.toml"))
    monkeypatch.setenv("HAKO_DATA_ROOT", str(tmp_path / "data"))
    (tmp_path / "bin").mkdir()
    monkeypatch.setattr(cniconfig, "PLUGIN_DIRS", (str(tmp_path / "bin"),))
    made = Plugins(tmp_path / "bin")
    made.add("giver", f"echo '{json.dumps(RESULT)}'")
    made.add("silent", "")
    made.use({"type": "giver", "capabilities": {"portMappings": True}, "own": 7}, {"type": "silent"})
    return made


def namespace() -> str:
    return f"/proc/{os.getpid()}/ns/net"


def test_what_plugins_are_told(plugins: Plugins) -> None:
    result = cni.add("box", namespace(), ports.parse("127.0.0.1:8080:80/udp"))
    assert result.addresses == ["10.1.0.2/24"]
    assert result.nameservers == ["10.1.0.1"]
    cni.check("box")
    cni.delete("box")
    mapping = {"hostPort": 8080, "containerPort": 80, "protocol": "udp", "hostIP": "127.0.0.1"}
    first = {
        "type": "giver",
        "own": 7,
        "cniVersion": "1.0.0",
        "name": "net",
        "runtimeConfig": {"portMappings": [mapping]},
    }
    second = {"type": "silent", "cniVersion": "1.0.0", "name": "net"}
    previous = {"prevResult": RESULT}
    assert plugins.calls() == [
        ("giver", "ADD", first),
        ("silent", "ADD", second | previous),
        ("giver", "CHECK", first | previous),
        ("silent", "CHECK", second | previous),
        ("silent", "DEL", second | previous),
        ("giver", "DEL", first | previous),
    ]
    assert not cni.connected()
    cni.delete("box")
    assert len(plugins.calls()) == 6


def test_old_versions_have_no_check_and_get_no_result_back(plugins: Plugins) -> None:
    plugins.use({"type": "giver"}, version="0.3.1")
    cni.add("box", namespace())
    cni.check("box")
    cni.delete("box")
    assert [(command, "prevResult" in request) for _, command, request in plugins.calls()] == [
        ("ADD", False),
        ("DEL", False),
    ]


@pytest.mark.parametrize(
    ("script", "message"),
    [
        ('echo \'{"code": 7, "msg": "no more", "details": "addresses  left."}\'; exit 1', "no more: addresses left."),
        ("echo oops >&2; exit 3", "oops."),
        ("exit 3", "it ended with status 3."),
        ("echo '[]'; exit 1", "it ended with status 1."),
        ("echo nonsense", "an answer that is not a JSON object."),
        ("echo '[]'", "an answer that is not a JSON object."),
        ("head -c 2000000 /dev/zero | tr '\\0' ' '; echo '{}'", "an answer that is not a JSON object."),
        ("echo '{\"ips\": 5}'", "a result whose ips makes no sense."),
        ('echo \'{"ips": [{"address": "10.0.0.1"}]}\'', "a result whose ips makes no sense."),
        ('echo \'{"ips": [{"address": 5}]}\'', "a result whose ips makes no sense."),
        ('echo \'{"dns": {"nameservers": [5]}}\'', "a result whose dns.nameservers makes no sense."),
    ],
)
def test_a_plugin_that_misbehaves(plugins: Plugins, script: str, message: str) -> None:
    plugins.add("bad", f'[ "$CNI_COMMAND" = ADD ] || exit 0\n{script}')
    plugins.use({"type": "giver"}, {"type": "bad"}, {"type": "silent"})
    with pytest.raises(HostError) as caught:
        cni.add("box", namespace())
    assert str(caught.value).endswith(message)
    assert "\n" not in str(caught.value)
    commands = [(name, command) for name, command, _ in plugins.calls()]
    assert commands == [("giver", "ADD"), ("bad", "ADD"), ("silent", "DEL"), ("bad", "DEL"), ("giver", "DEL")]
    assert not cni.connected()


def test_every_plugin_is_asked_to_take_back_and_a_failure_can_be_repeated(plugins: Plugins, tmp_path: Path) -> None:
    plugins.add("stubborn", f'[ "$CNI_COMMAND" = ADD ] || [ -e {tmp_path}/ready ] || {{ echo busy >&2; exit 1; }}')
    plugins.use({"type": "giver"}, {"type": "stubborn"})
    cni.add("box", namespace())
    with pytest.raises(HostError, match=r"The CNI plugin stubborn could not disconnect box \(network net\): busy\.$"):
        cni.delete("box")
    assert plugins.calls()[-1][:2] == ("giver", "DEL")
    assert cni.connected() == ["box"]
    (tmp_path / "ready").touch()
    cni.delete("box")
    assert not cni.connected()


def test_by_force_a_failure_does_not_count(plugins: Plugins) -> None:
    plugins.add("stubborn", '[ "$CNI_COMMAND" = ADD ]')
    plugins.use({"type": "stubborn"})
    cni.add("box", namespace())
    cni.delete("box", force=True)
    assert not cni.connected()


def test_taking_back_waits_for_a_plugin_that_outlived_its_starter(plugins: Plugins, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "go")
    plugins.add("slow", f'[ "$CNI_COMMAND" = ADD ] && {{ cat {tmp_path}/go; echo done >&3; }}')
    plugins.use({"type": "slow"})
    pid = os.fork()
    if pid == 0:
        try:
            cni.add("box", namespace())
        finally:
            os._exit(1)
    # Opening for writing waits until the plugin reads.
    with (tmp_path / "go").open("w") as go:
        os.kill(pid, 9)
        os.waitpid(pid, 0)
        waiting = os.fork()
        if waiting == 0:
            try:
                go.close()  # or the plugin would wait for this process too
                cni.delete("box", force=True)
                os._exit(0)
            finally:
                os._exit(1)
        assert os.waitpid(waiting, os.WNOHANG) == (0, 0)
    assert os.waitpid(waiting, 0)[1] == 0
    lines = (tmp_path / "bin" / "log").read_text().splitlines()
    assert [line.split()[:2] for line in lines] == [["slow", "ADD"], ["done"], ["slow", "DEL"]]
