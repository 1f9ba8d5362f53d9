"""The netlink codec: known bytes, round trips, and bytes that are no netlink."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import struct
import subprocess
from collections.abc import Callable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hako.linux import netlink, rtnetlink, tc
from hako.linux.netlink import Message, Netlink
from hako.linux.rtnetlink import Address, Link, Neighbour, Route

#: What the kernel says of a veth: a header, then attributes, one of them nested.
LINK = bytes.fromhex(
    "00000100020000004310010000000000"  # ifinfomsg: Ethernet, index 2, flags
    "0900030065746830000000000800040078050000"  # eth0, MTU 1400
    "0a0001000242ac1100020000"  # address
    "100012000900010076657468000000000800050003000000"  # linkinfo: veth; link 3
)


def test_a_link_as_the_kernel_writes_it() -> None:
    link = Link(LINK)
    assert (link.index, link.name, link.mtu, link.mac, link.kind) == (2, "eth0", 1400, "02:42:ac:11:00:02", "veth")
    assert link.type == rtnetlink.ARPHRD_ETHER
    assert link.flags & rtnetlink.IFF_UP
    assert not link.ipv6
    assert (link.permanent_mac, link.master) == ("", 0)


def test_messages_and_attributes() -> None:
    payload = netlink.attribute_text(3, "lo") + netlink.nested(18, netlink.attribute_u32(1, 7))
    assert payload == bytes.fromhex("070003006c6f00000c0012800800010007000000")
    data = netlink.encode(16, 5, 77, payload) + netlink.encode(3, 2, 78, b"")
    first, second = netlink.decode(data)
    assert (first.kind, first.flags, first.sequence, first.payload) == (16, 5, 77, payload)
    assert (second.kind, second.flags, second.sequence, second.payload) == (3, 2, 78, b"")
    assert netlink.attributes(payload) == {3: b"lo\0", 18: netlink.attribute_u32(1, 7)}
    with pytest.raises(OSError, match="an attribute of 65536 bytes"):
        netlink.attribute(1, bytes(1 << 16))


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"\0", "1 bytes where a message should be"),
        (bytes(16), "a message of 0 bytes"),
        (struct.pack("=IHHII", 20, 0, 0, 0, 0), "a message of 20 bytes where 16 are left"),
    ],
)
def test_bad_messages(data: bytes, message: str) -> None:
    with pytest.raises(OSError, match=message) as caught:
        list(netlink.decode(data))
    assert caught.value.errno == errno.EBADMSG


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"\0\0\0", "3 bytes where an attribute should be"),
        (b"\3\0\1\0", "an attribute of 3 bytes"),
        (b"\x09\0\1\0\0\0\0\0", "an attribute of 9 bytes where 8 are left"),
    ],
)
def test_bad_attributes(data: bytes, message: str) -> None:
    with pytest.raises(OSError, match=message):
        netlink.attributes(data)


def test_the_last_attribute_may_be_unpadded() -> None:
    assert netlink.attributes(b"\5\0\1\0x") == {1: b"x"}


def error_message(code: int, said: str = "", *, capped: bool = True) -> Message:
    words = netlink.attribute_text(1, said) if said else b""
    flags = (netlink.NLM_F_ACK_TLVS if said else 0) | (netlink.NLM_F_CAPPED if capped else 0)
    request = netlink.encode(18, 1, 5, b"" if capped else bytes(4))
    return Message(netlink.NLMSG_ERROR, flags, 5, struct.pack("=i", -code) + request + words)


@pytest.mark.parametrize("capped", [True, False])
def test_errors_have_the_kernels_words(capped: bool) -> None:
    error = netlink.error_of(error_message(errno.EEXIST, "Exclusivity flag on, cannot modify.", capped=capped), "eth0")
    assert isinstance(error, FileExistsError)
    assert error.strerror == "File exists: Exclusivity flag on, cannot modify"
    assert error.filename == "eth0"
    error = netlink.error_of(error_message(errno.ENODEV, capped=capped), "eth0")
    assert error is not None
    assert (error.errno, error.strerror) == (errno.ENODEV, os.strerror(errno.ENODEV))
    assert netlink.error_of(error_message(0, capped=capped), "eth0") is None


@pytest.mark.parametrize("payload", [b"", bytes(19), struct.pack("=i", 5) + bytes(16)])
def test_bad_errors(payload: bytes) -> None:
    with pytest.raises(OSError, match="netlink: ") as caught:
        netlink.error_of(Message(netlink.NLMSG_ERROR, 0, 0, payload), "x")
    assert caught.value.errno == errno.EBADMSG


DECODERS: list[Callable[[bytes], object]] = [
    lambda data: list(netlink.decode(data)),
    lambda data: netlink.error_of(Message(2, netlink.NLM_F_ACK_TLVS, 0, data), "x"),
    lambda data: netlink.error_of(Message(2, netlink.NLM_F_ACK_TLVS | netlink.NLM_F_CAPPED, 0, data), "x"),
    Link,
    Address.decoded,
    Route.decoded,
    Neighbour.decoded,
    tc.decode_filter,
]
SEEDS = [
    LINK,
    Address(2, "10.0.0.2", 24, broadcast="10.0.0.255", peer="10.0.0.9").payload(),
    Address(2, "fd00::2", 64).payload(),
    Route(2, rtnetlink.AF_INET, "10.1.0.0", 16, gateway="10.0.0.1", source="10.0.0.2", metric=5, mtu=1400).payload(),
    Route(2, rtnetlink.AF_INET, gateway="fd00::1").payload(),
    Neighbour(2, "10.0.0.7", "02:00:00:00:00:01").payload(),
]


def attempt(decoder: Callable[[bytes], object], data: bytes) -> None:
    """Decode; nothing but an OSError may come of it."""
    with contextlib.suppress(OSError):
        decoder(data)


@settings(max_examples=300, deadline=None)
@given(st.sampled_from(DECODERS), st.binary(max_size=200))
def test_any_bytes_are_netlink_or_an_error(decoder: Callable[[bytes], object], data: bytes) -> None:
    attempt(decoder, data)


@settings(max_examples=500, deadline=None)
@given(st.sampled_from(SEEDS), st.data())
def test_damaged_messages_are_decoded_or_an_error(seed: bytes, data: st.DataObject) -> None:
    damaged = bytearray(seed)
    for _ in range(data.draw(st.integers(0, 4))):
        damaged[data.draw(st.integers(0, len(damaged) - 1))] = data.draw(st.integers(0, 255))
    del damaged[data.draw(st.integers(0, len(damaged))) :]
    for decoder in DECODERS:
        attempt(decoder, bytes(damaged))


ipv4 = st.ip_addresses(v=4).map(str)
ipv6 = st.ip_addresses(v=6).map(lambda address: rtnetlink.ip_text(rtnetlink.AF_INET6, address.packed))
mac = st.binary(min_size=6, max_size=6).map(rtnetlink.mac_text)
index = st.integers(1, (1 << 31) - 1)


def fields(thing: object) -> dict[str, object]:
    return {name: getattr(thing, name) for name in type(thing).__slots__}  # type: ignore[attr-defined]


@given(index, ipv4 | ipv6, st.integers(0, 32), st.integers(0, 255), st.sampled_from([0, 2, 0x200, 0x282]), st.data())
def test_addresses_round_trip(number: int, text: str, prefix: int, scope: int, flags: int, data: st.DataObject) -> None:
    same_family = ipv6 if ":" in text else ipv4
    peer = data.draw(same_family)
    made = Address(number, text, prefix, scope=scope, flags=flags, peer="" if peer == text else peer)
    made.broadcast = data.draw(st.just("") | ipv4) if ":" not in text else ""
    assert fields(Address.decoded(made.payload())) == fields(made)


@given(st.sampled_from([ipv4, ipv6]), st.data())
def test_routes_round_trip(family: st.SearchStrategy[str], data: st.DataObject) -> None:
    destination = data.draw(st.just("") | family)
    some = data.draw(family)
    made = Route(
        data.draw(index),
        rtnetlink.family_of(some),
        destination,
        data.draw(st.integers(0, 32)) if destination else 0,
        gateway=data.draw(st.just("") | ipv4 | ipv6),
        source=data.draw(st.just("") | family),
        metric=data.draw(st.integers(0, (1 << 32) - 1)),
        scope=data.draw(st.integers(0, 255)),
        onlink=data.draw(st.booleans()),
        mtu=data.draw(st.integers(0, 65535)),
    )
    assert fields(Route.decoded(made.payload())) == fields(made)


@given(index, ipv4 | ipv6, mac, st.integers(1, 255))
def test_neighbours_round_trip(number: int, text: str, hardware: str, state: int) -> None:
    made = Neighbour(number, text, hardware, state)
    back = Neighbour.decoded(made.payload())
    assert back is not None
    assert fields(back) == fields(made)


def test_a_route_of_several_next_hops_is_that_of_the_first_that_works() -> None:
    def hop(number: int, flags: int, gateway: str) -> bytes:
        rest = netlink.attribute(5, rtnetlink.ip_bytes(gateway))
        return struct.pack("=HBBi", 8 + len(rest), flags, 0, number) + rest

    hops = hop(2, 0x10, "10.0.0.1") + hop(3, 4, "10.0.0.2")
    payload = Route(0, rtnetlink.AF_INET).payload()[:12] + netlink.attribute(9, hops)
    route = Route.decoded(payload)
    assert (route.index, route.gateway, route.onlink) == (3, "10.0.0.2", True)
    for broken in (b"", hops[:-1], b"\7\0\0\0\2\0\0\0"):
        with pytest.raises(OSError, match="netlink: "):
            Route.decoded(payload[:12] + netlink.attribute(9, broken))


@pytest.mark.parametrize("text", ["", "1.2.3", "10.0.0.1\0", "fd00::g", "::1%eth0", "1.2.3.4.5"])
def test_what_is_no_ip_address(text: str) -> None:
    with pytest.raises(OSError, match="not an IP address") as caught:
        rtnetlink.ip_bytes(text)
    assert caught.value.errno == errno.EINVAL


@pytest.mark.parametrize(
    "text", ["", "02:42", "02:42:ac:11:00:0g", "2:42:ac:11:0:2", "02:42:ac:11:00:02:03", "+2:42:ac:11:00:2 "]
)
def test_what_is_no_hardware_address(text: str) -> None:
    with pytest.raises(OSError, match="not a hardware address"):
        rtnetlink.mac_bytes(text)


def test_the_kernel_agrees_with_ip() -> None:
    command = ["ip", "-j", "addr", "show", "lo"]
    (shown,) = json.loads(subprocess.run(command, capture_output=True, check=True, timeout=20).stdout)
    with Netlink() as kernel:
        link = rtnetlink.find_link(kernel, "lo")
        assert link.index in {other.index for other in rtnetlink.links(kernel)}
        addresses = [str(entry) for entry in rtnetlink.addresses(kernel) if entry.index == link.index]
        rtnetlink.routes(kernel)
        rtnetlink.neighbours(kernel)
    assert (link.index, link.name, link.mtu, link.mac) == (1, "lo", shown["mtu"], shown["address"])
    assert addresses == [f"{entry['local']}/{entry['prefixlen']}" for entry in shown["addr_info"]]


def test_a_closed_socket_says_so() -> None:
    kernel = Netlink()
    kernel.close()
    assert kernel.fileno() == -1
    with pytest.raises(OSError, match="Bad file descriptor"):
        rtnetlink.links(kernel)
