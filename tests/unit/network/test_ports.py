"""Port mappings as people write them."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hako.errors import ConfigError
from hako.network.ports import MAX_RANGE, PortMapping, parse


@pytest.mark.parametrize(
    ("option", "expected"),
    [
        ("80", [PortMapping(80, 0)]),
        ("8080:80", [PortMapping(80, 8080)]),
        (":80", [PortMapping(80, 0)]),
        ("8080:80/udp", [PortMapping(80, 8080, "", "udp")]),
        ("53/sctp", [PortMapping(53, 0, "", "sctp")]),
        ("127.0.0.1:8080:80", [PortMapping(80, 8080, "127.0.0.1")]),
        ("127.0.0.1::80", [PortMapping(80, 0, "127.0.0.1")]),
        ("[::1]:8080:80/tcp", [PortMapping(80, 8080, "::1")]),
        ("[::1]::80", [PortMapping(80, 0, "::1")]),
        ("8000-8001:80-81", [PortMapping(80, 8000), PortMapping(81, 8001)]),
        ("80-81", [PortMapping(80, 0), PortMapping(81, 0)]),
        ("5-5:6", [PortMapping(6, 5)]),
        ("1-1024:1-1024", [PortMapping(number, number) for number in range(1, MAX_RANGE + 1)]),
    ],
)
def test_what_is_understood(option: str, expected: list[PortMapping]) -> None:
    assert parse(option) == expected


@pytest.mark.parametrize(
    ("option", "reason"),
    [
        ("", "'' is neither a port"),
        ("http", "'http' is neither a port"),
        ("0:80", "'0' is neither a port"),
        ("80:65536", "'65536' is neither a port"),
        ("80:", "'' is neither a port"),
        ("80:+1", r"'\+1' is neither"),
        ("80:1_0", "'1_0' is neither"),
        ("80:٣", "is neither a port"),
        ("8" * 5000, "is neither a port"),
        ("80/", "'nothing' is not a protocol"),
        ("80/icmp", "'icmp' is not a protocol"),
        ("80/tcp/udp", "'tcp/udp' is not a protocol"),
        ("80-79", "the range 80-79 is the wrong way round"),
        ("80-:80", "'80-' is neither"),
        ("8000-8002:80-81", "8000-8002 and 80-81 are not equally many ports"),
        ("8000:80-81", "8000 and 80-81 are not equally many ports"),
        ("1-1025:1-1025", "1025 ports are too many, 1024 are the limit"),
        ("1.2.3:80:80", "'1.2.3' is not an IP address"),
        (":80:80", "the address before the first colon is missing"),
        ("localhost:80:80", "'localhost' is not an IP address"),
        ("::1:80:80", "it has too many colons"),
        ("[::1]80:80", r"after \[ there must be an address of IPv6"),
        ("[::1]:80", r"after \[ there must be"),
        ("[1.2.3.4]:80:80", r"after \[ there must be"),
        ("[::g]:80:80", "'::g' is not an IP address"),
        ("[::1]:1:2:3", "it has too many colons"),
    ],
)
def test_what_is_refused(option: str, reason: str) -> None:
    with pytest.raises(ConfigError, match=reason) as caught:
        parse(option)
    assert str(caught.value).startswith(f"The port mapping {option!r} is not valid: ")
    assert "HOST:GUEST" in str(caught.value)


@given(st.text(alphabet="0123456789:-/[]udptc.", max_size=30))
def test_any_text_is_a_mapping_or_a_sentence(option: str) -> None:
    try:
        found = parse(option)
    except ConfigError:
        return
    for mapping in found:
        assert 0 < mapping.container_port < 65536
        assert 0 <= mapping.host_port < 65536
        if mapping.host_port:
            assert parse(str(mapping)) == [mapping]
