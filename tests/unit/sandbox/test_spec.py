"""The description of a sandbox: it comes back from JSON as it was, or is refused."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hako.errors import ConfigError
from hako.sandbox.spec import SandboxSpec

specs = st.builds(
    SandboxSpec,
    id=st.text(),
    name=st.text(),
    memory=st.integers(),
    vcpus=st.integers(),
    guest_image=st.text(),
    owned=st.booleans(),
    retain=st.booleans(),
    labels=st.dictionaries(st.text(), st.text()),
    cgroup=st.dictionaries(st.text(), st.text()),
    network=st.text(),
    ports=st.lists(st.text()),
    hosts=st.lists(st.text()),
)

#: What earlier versions did not write.
_LATER = ("annotations", "cgroup", "network", "ports", "dns", "dns_search", "hosts")


@given(specs)
def test_round_trip(spec: SandboxSpec) -> None:
    assert SandboxSpec.from_json(json.loads(json.dumps(spec.to_json()))) == spec


@pytest.mark.parametrize("key", SandboxSpec._fields)
@pytest.mark.parametrize("value", [None, 1.5, [1], "missing"])
def test_missing_and_wrong_fields(key: str, value: object) -> None:
    good: dict[str, Any] = SandboxSpec("s1", "", 1, 1).to_json()
    if value == "missing" and key in _LATER:
        del good[key]
        assert SandboxSpec.from_json(good) == SandboxSpec("s1", "", 1, 1)
        return
    if value == "missing":
        del good[key]
    else:
        good[key] = value
    with pytest.raises(ConfigError, match=f"no valid {key}"):
        SandboxSpec.from_json(good)


def test_true_is_no_number() -> None:
    with pytest.raises(ConfigError, match="no valid memory"):
        SandboxSpec.from_json({**SandboxSpec("s1", "", 1, 1).to_json(), "memory": True})


def test_unknown_fields_are_ignored() -> None:
    spec = SandboxSpec("s1", "", 1, 1)
    assert SandboxSpec.from_json({**spec.to_json(), "later": 1}) == spec
