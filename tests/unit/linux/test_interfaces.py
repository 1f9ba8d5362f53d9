"""What a description leaves out and how it is ordered; what the kernel does with it is in tests/system."""

from __future__ import annotations

import pytest

from hako.linux import interfaces, rtnetlink
from hako.linux.rtnetlink import Address, Route


@pytest.mark.parametrize(
    ("mac", "address"),
    [("02:42:ac:11:00:02", "fe80::42:acff:fe11:2"), ("de:4d:c3:c0:5a:dd", "fe80::dc4d:c3ff:fec0:5add"), ("", "")],
)
def test_the_link_local_address_of_a_hardware_address(mac: str, address: str) -> None:
    assert interfaces.link_local(mac) == address


def test_what_is_usual_is_left_out() -> None:
    assert interfaces.address(Address(2, "fd00::2", 64)) == {"address": "fd00::2/64"}
    odd = Address(2, "10.0.0.2", 32, peer="10.0.0.1", scope=253, flags=rtnetlink.IFA_F_NOPREFIXROUTE)
    assert interfaces.address(odd) == {
        "address": "10.0.0.2/32",
        "peer": "10.0.0.1",
        "scope": 253,
        "noprefixroute": True,
    }
    assert interfaces.route(Route(2, rtnetlink.AF_INET6, metric=1024)) == {"destination": "::/0"}
    assert interfaces.route(Route(2, rtnetlink.AF_INET, metric=1024)) == {"destination": "0.0.0.0/0", "metric": 1024}
