"""The resolv.conf that a container gets."""

from __future__ import annotations

import pytest

from hako.network.dns import resolv_conf

HOST = """\
# made by hand
; nameserver 9.9.9.9
nameserver 192.0.2.1
nameserver 127.0.0.53
nameserver ::1
nameserver fd00::53
nameserver fe80::1%eth0
nameserver nonsense
nameserver
domain old.example
search example.org example.com
options ndots:2 edns0
options timeout:1
"""


def test_servers_a_container_cannot_reach_are_left_out() -> None:
    expected = "nameserver 192.0.2.1\nsearch example.org example.com\noptions ndots:2 edns0 timeout:1\n"
    assert resolv_conf(HOST) == expected
    assert resolv_conf(HOST, ipv6=True).startswith("nameserver 192.0.2.1\nnameserver fd00::53\nsearch")


@pytest.mark.parametrize("host", ["", "nameserver 127.0.0.1\n", "nameserver 0.0.0.0\n", "nameserver fd00::1\n", "\0\n"])
def test_without_any_public_ones_are_named(host: str) -> None:
    assert resolv_conf(host) == "nameserver 8.8.8.8\nnameserver 8.8.4.4\n"


def test_without_any_and_with_ipv6() -> None:
    assert resolv_conf("nameserver ::1", ipv6=True).count("nameserver") == 4


def test_what_is_asked_for_takes_the_place_of_the_hosts() -> None:
    text = resolv_conf(HOST, servers=["127.0.0.11"], search=["a.example"], options=["ndots:0"])
    assert text == "nameserver 127.0.0.11\nsearch a.example\noptions ndots:0\n"
    assert "search" not in resolv_conf(HOST, search=["."])


def test_the_last_of_search_and_domain_counts() -> None:
    assert "search new.example\n" in resolv_conf("search old.example\ndomain new.example\nnameserver 1.1.1.1\n")
