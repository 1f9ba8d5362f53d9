"""Where hako keeps things, and how that is moved."""

from __future__ import annotations

import os

import pytest

from hako import paths

ROOTS = [
    ("HAKO_STATE_ROOT", paths.state_root, "/run/hako"),
    ("HAKO_DATA_ROOT", paths.data_root, "/var/lib/hako"),
    ("HAKO_CONFIG", paths.config_file, "/etc/hako/config.toml"),
]


@pytest.mark.parametrize(("variable", "root", "default"), ROOTS)
def test_roots_have_defaults_and_can_be_moved(
    monkeypatch: pytest.MonkeyPatch, variable: str, root: object, default: str
) -> None:
    assert callable(root)
    monkeypatch.delenv(variable)
    assert root() == default
    monkeypatch.setenv(variable, "")
    assert root() == default
    monkeypatch.setenv(variable, "/elsewhere")
    assert root() == "/elsewhere"


def test_everything_is_below_a_root(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HAKO_STATE_ROOT", "/s")
    monkeypatch.setenv("HAKO_DATA_ROOT", "/d")
    places = [
        value()
        for name, value in vars(paths).items()
        if callable(value) and name.endswith("_dir") and value.__module__ == paths.__name__
    ]
    assert len(places) >= 5
    assert len(set(places)) == len(places)
    assert all(os.path.dirname(place) in ("/s", "/d") for place in places)


def test_the_tests_have_roots_of_their_own() -> None:
    assert paths.state_root().startswith("/var/tmp/hako-test-")
    assert paths.data_root().startswith("/var/tmp/hako-test-")
    assert paths.config_file().startswith("/var/tmp/hako-test-")
