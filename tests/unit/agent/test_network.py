"""What the agent accepts as a network: everything else is an error that names the field, and changes nothing."""

from __future__ import annotations

import contextlib
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hako.agent import network
from hako.linux import rtnetlink
from hako.wire.calls import INVALID_ARGUMENT, CallError

GOOD: dict[str, Any] = {"name": "eth0", "mac": "02:42:AC:11:00:02", "mtu": 1500}


def test_defaults() -> None:
    (found,) = network.parse([GOOD])
    assert (found.name, found.mac, found.mtu, found.arp, found.ipv6) == ("eth0", "02:42:ac:11:00:02", 1500, True, True)
    assert found.device == found.mac
    assert not found.addresses
    assert not found.routes
    assert not found.neighbours


def test_everything() -> None:
    (found,) = network.parse(
        [
            {
                **GOOD,
                "device": "52:54:00:00:00:01",
                "addresses": [{"address": "fd00:0::2/64", "scope": 0}, {"address": "10.0.0.2/32", "peer": "10.0.0.1"}],
                "routes": [{"destination": "0.0.0.0/0", "gateway": "10.0.0.1", "onlink": True, "metric": 7}],
                "neighbours": [{"address": "10.0.0.1", "mac": "EE:EE:EE:EE:EE:EE"}],
            }
        ]
    )
    assert found.device == "52:54:00:00:00:01"
    assert [str(address) for address in found.addresses] == ["fd00::2/64", "10.0.0.2/32"]
    assert [bool(address.flags & rtnetlink.IFA_F_NODAD) for address in found.addresses] == [True, False]
    assert [(route.destination, route.gateway, route.metric) for route in found.routes] == [("", "10.0.0.1", 7)]
    assert found.neighbours[0].mac == "ee:ee:ee:ee:ee:ee"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"name": ""}, r"interfaces\[0\].name: not a text"),
        ({"name": 5}, "name: not a text"),
        ({"name": "a" * 16}, "is not an interface's name"),
        ({"name": "a/b"}, "is not an interface's name"),
        ({"name": "a b"}, "is not an interface's name"),
        ({"mac": "02:42"}, "mac: '02:42' is not a hardware address"),
        ({"mac": ""}, "mac: not a text"),
        ({"mtu": None}, "mtu: not a number from 68 to 65535"),
        ({"mtu": True}, "mtu: not a number"),
        ({"mtu": 67}, "mtu: not a number"),
        ({"arp": 1}, "arp: not true or false"),
        ({"device": -1}, "device: not a number"),
        ({"device": "eth0"}, "device: 'eth0' is not a hardware address"),
        ({"device": []}, "device: not a text"),
        ({"addresses": {}}, "addresses: not a list"),
        ({"addresses": [7]}, r"interfaces\[0\].addresses\[0\]: not an object"),
        ({"addresses": [{}]}, r"addresses\[0\].address: not a text"),
        ({"addresses": [{"address": "10.0.0.2"}]}, "needs a prefix length from 0 to 32"),
        ({"addresses": [{"address": "10.0.0.2/33"}]}, "needs a prefix length from 0 to 32"),
        ({"addresses": [{"address": "fd00::/129"}]}, "needs a prefix length from 0 to 128"),
        ({"addresses": [{"address": "10.0.0/24"}]}, "is not an IP address"),
        ({"addresses": [{"address": "10.0.0.2/24", "scope": 256}]}, "scope: not a number"),
        ({"routes": [{"destination": "default"}]}, "is not an IP address"),
        ({"routes": [{"destination": "::/0", "gateway": "x"}]}, "gateway: 'x' is not an IP address"),
        ({"routes": [{"destination": "::/0", "metric": -1}]}, "metric: not a number"),
        ({"neighbours": [{"address": "10.0.0.1"}]}, "mac: not a text"),
    ],
)
def test_mistakes_are_named(change: dict[str, Any], message: str) -> None:
    with pytest.raises(CallError, match=message) as caught:
        network.parse([{**GOOD, **change}])
    assert caught.value.code == INVALID_ARGUMENT


@pytest.mark.parametrize("value", [None, {}, "x", [None], [GOOD] * 65])
def test_what_is_no_list_of_interfaces(value: object) -> None:
    with pytest.raises(CallError, match="interfaces"):
        network.parse(value)


def test_no_two_may_be_the_same() -> None:
    with pytest.raises(CallError, match="two have the same name"):
        network.parse([GOOD, {**GOOD, "mac": "02:42:ac:11:00:03"}])
    with pytest.raises(CallError, match="two have the same device"):
        network.parse([GOOD, {**GOOD, "name": "eth1"}])


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(sorted(GOOD)), inner, max_size=4),
    max_leaves=10,
)
keys = ("name", "mac", "mtu", "device", "addresses", "routes", "neighbours", "arp", "ipv6")


@settings(max_examples=300, deadline=None)
@given(st.sampled_from(keys), json_values)
def test_any_value_is_accepted_or_named(key: str, value: object) -> None:
    with contextlib.suppress(CallError):
        (found,) = network.parse([{**GOOD, key: value}])
        assert found.name


def test_a_device_that_is_not_there_is_missing() -> None:
    assert (
        network.missing(network.parse([{**GOOD, "mac": "02:ff:ff:ff:ff:fe"}]), network.cards()) == "02:ff:ff:ff:ff:fe"
    )
