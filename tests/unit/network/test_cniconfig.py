"""CNI configuration lists: which one is used, and what is wrong with one that is refused."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from hako.errors import ConfigError, HostError, NotFoundError
from hako.network import cniconfig

GOOD = {"cniVersion": "1.0.0", "name": "one", "plugins": [{"type": "bridge"}]}


@pytest.fixture(autouse=True)
def own_directories(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Lists and notes of the test's own; returns the directory of the lists."""
    monkeypatch.setenv("HAKO_CONFIG", str(tmp_path / "config.toml"))
    monkeypatch.setenv("HAKO_DATA_ROOT", str(tmp_path / "data"))
    (tmp_path / "data" / "cni").mkdir(parents=True)
    (tmp_path / "cni").mkdir()
    return tmp_path / "cni"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "is not JSON"),
        ("[" * 100000, "is not JSON"),
        ("[]", "it is not an object"),
        (json.dumps({**GOOD, "name": "../x"}), '"name" is missing or not a name'),
        (json.dumps({**GOOD, "cniVersion": 1}), '"cniVersion" is missing'),
        (json.dumps({**GOOD, "plugins": []}), '"plugins" is missing or empty'),
        (json.dumps({**GOOD, "plugins": [{"type": "/bin/sh"}]}), '"plugins" number 1 has no "type"'),
        (json.dumps({**GOOD, "plugins": [{"type": "a", "capabilities": []}]}), '"capabilities" of the plugin a'),
    ],
)
def test_a_list_that_is_refused(own_directories: Path, text: str, message: str) -> None:
    (own_directories / "x.conflist").write_text(text)
    with pytest.raises(ConfigError, match=message) as caught:
        cniconfig.load()
    assert str(own_directories / "x.conflist") in str(caught.value)


def test_the_first_list_is_the_default_unless_one_is_called_so(own_directories: Path) -> None:
    (own_directories / "20.conflist").write_text(json.dumps({**GOOD, "name": "two"}))
    (own_directories / "10.conflist").write_text(json.dumps(GOOD))
    (own_directories / "00.conf").write_text("not a list")
    assert cniconfig.load()["name"] == "one"
    assert cniconfig.load("two")["name"] == "two"
    (own_directories / "30.conflist").write_text(json.dumps({**GOOD, "name": "bridge"}))
    assert cniconfig.load()["name"] == "bridge"
    with pytest.raises(NotFoundError, match="There are: none, bridge, one, two; "):
        cniconfig.load("three")


def test_without_lists_there_is_a_bridge() -> None:
    config = cniconfig.load()
    assert config == cniconfig.load(cniconfig.BUILT_IN)
    assert config["name"] == "hako"
    assert [plugin["type"] for plugin in config["plugins"]][:2] == ["bridge", "portmap"]
    json.dumps(config)


@pytest.mark.parametrize(
    ("used", "chosen"),
    [
        ([], "10.87.0.0/16"),
        (["192.0.2.0/24", "172.17.0.0/16"], "10.87.0.0/16"),
        (["10.87.5.1/24"], "10.86.0.0/16"),
        (["10.0.0.0/8"], "192.168.201.0/24"),
        (["10.0.0.0/8", "192.168.201.77/32"], "192.168.202.0/24"),
    ],
)
def test_the_networks_of_the_host_are_avoided(used: list[str], chosen: str) -> None:
    assert cniconfig.choose_subnet(used) == chosen


def test_when_there_is_none_left() -> None:
    with pytest.raises(HostError, match=r"write a CNI configuration list to .*/cni that names one that is free\.$"):
        cniconfig.choose_subnet(["10.0.0.0/8", "192.168.0.0/16"])
