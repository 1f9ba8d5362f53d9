"""Network interfaces as plain JSON: what a network namespace has, and what the guest is to have.

    {"name": "eth0", "mac": "02:42:ac:11:00:02", "mtu": 1500, "arp": true, "ipv6": false,
     "addresses": [{"address": "172.17.0.2/16", "broadcast": "172.17.255.255"}],
     "routes": [{"destination": "0.0.0.0/0", "gateway": "172.17.0.1"}],
     "neighbours": [{"address": "169.254.1.1", "mac": "ee:ee:ee:ee:ee:ee"}]}

Optional, and missing where they have the value in brackets: of an address ``broadcast`` and ``peer`` (""), ``scope``
(0) and ``noprefixroute`` (false); of a route ``gateway`` and ``source`` (""), ``metric``, ``scope`` and ``mtu`` (0)
and ``onlink`` (false). Scopes are the kernel's numbers. Shared by host and guest.
"""

from __future__ import annotations

from hako.linux import rtnetlink

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable
    from typing import Any

    from hako.linux.netlink import Netlink
    from hako.linux.rtnetlink import Address, Link, Neighbour, Route

#: Linux's limit for a name, in bytes.
MAX_NAME = 15
#: The metric that the kernel gives to routes of IPv6 that have none.
_IPV6_METRIC = 1024


class Everything:
    """Links, addresses, routes and neighbours of a namespace; each sort as it is when it is first asked for."""

    __slots__ = ("_addresses", "_kernel", "_neighbours", "_routes", "links")

    def __init__(self, kernel: Netlink, links: list[Link] | None = None) -> None:
        """``links`` are those of the namespace, where they are known already."""
        self._kernel = kernel
        self.links = rtnetlink.links(kernel) if links is None else links
        self._addresses: list[Address] | None = None
        self._routes: list[Route] | None = None
        self._neighbours: list[Neighbour] | None = None

    def addresses(self, link: Link) -> list[Address]:
        """The addresses of ``link`` that somebody gave it: not those that the kernel or a router makes."""
        if self._addresses is None:
            self._addresses = rtnetlink.addresses(self._kernel)
        mine = [entry for entry in self._addresses if entry.index == link.index]
        return [entry for entry in mine if not _made_by_kernel(entry, link.mac)]

    def routes(self, link: Link) -> list[Route]:
        """The unicast routes of the main table through ``link`` that somebody gave it, those without gateway first.

        Added in this order each gateway can be reached when it is needed.
        """
        if self._routes is None:
            self._routes = rtnetlink.routes(self._kernel)
        kept = [
            entry
            for entry in self._routes
            if entry.index == link.index
            and entry.table == rtnetlink.TABLE_MAIN
            and entry.type == rtnetlink.UNICAST
            and entry.protocol not in (rtnetlink.PROTOCOL_KERNEL, rtnetlink.PROTOCOL_RA)
        ]
        return sorted(kept, key=lambda entry: (bool(entry.gateway), -entry.prefix))

    def neighbours(self, link: Link) -> list[Neighbour]:
        """The permanent neighbours on ``link``."""
        if self._neighbours is None:
            self._neighbours = rtnetlink.neighbours(self._kernel)
        return [
            entry
            for entry in self._neighbours
            if entry.index == link.index and entry.state & rtnetlink.NUD_PERMANENT and entry.mac
        ]

    def describe(self, link: Link) -> dict[str, Any]:
        """The description of ``link``."""
        return {
            "name": link.name,
            "mac": link.mac,
            "mtu": link.mtu,
            "arp": not link.flags & rtnetlink.IFF_NOARP,
            "ipv6": link.ipv6,
            "addresses": [address(entry) for entry in self.addresses(link)],
            "routes": [route(entry) for entry in self.routes(link)],
            "neighbours": [{"address": entry.address, "mac": entry.mac} for entry in self.neighbours(link)],
        }


def address(entry: Address) -> dict[str, Any]:
    """The description of an address."""
    return _compact(
        address=f"{entry.address}/{entry.prefix}",
        broadcast=entry.broadcast,
        peer=entry.peer,
        scope=entry.scope,
        noprefixroute=bool(entry.flags & rtnetlink.IFA_F_NOPREFIXROUTE),
    )


def route(entry: Route) -> dict[str, Any]:
    """The description of a route."""
    any_address = "::" if entry.family == rtnetlink.AF_INET6 else "0.0.0.0"  # noqa: S104 a route's, not a socket's
    usual_metric = _IPV6_METRIC if entry.family == rtnetlink.AF_INET6 else 0
    return _compact(
        destination=f"{entry.destination or any_address}/{entry.prefix}",
        gateway=entry.gateway,
        source=entry.source,
        metric=0 if entry.metric == usual_metric else entry.metric,
        scope=entry.scope,
        mtu=entry.mtu,
        onlink=entry.onlink,
    )


def _compact(**fields: Any) -> dict[str, Any]:
    """``fields`` without those that are 0, empty or false."""
    return {name: value for name, value in fields.items() if value}


def _made_by_kernel(entry: Address, mac: str) -> bool:
    """Whether an address came by itself, as it will in the guest: link-local ones, and those of routers' prefixes."""
    if entry.family != rtnetlink.AF_INET6:
        return False
    if entry.protocol in (rtnetlink.IFAPROT_KERNEL_LL, rtnetlink.IFAPROT_KERNEL_RA):
        return True
    # Kernels before 5.18 do not tell.
    return not entry.flags & rtnetlink.IFA_F_PERMANENT or entry.address == link_local(mac)


def link_local(mac: str) -> str:
    """The address of IPv6 that the kernel makes from a hardware address, empty when that is not of Ethernet."""
    octets = rtnetlink.mac_bytes(mac) if len(mac) == 17 else b""
    if not octets:
        return ""
    identifier = bytes([octets[0] ^ 2]) + octets[1:3] + b"\xff\xfe" + octets[3:]
    return rtnetlink.ip_text(rtnetlink.AF_INET6, b"\xfe\x80" + bytes(6) + identifier)


def ethernet(links: Iterable[Link]) -> list[Link]:
    """Those of ``links`` that carry Ethernet frames, without the loopback, in the order in which they came."""
    kept = [
        link
        for link in links
        if link.type == rtnetlink.ARPHRD_ETHER and not link.flags & rtnetlink.IFF_LOOPBACK and len(link.mac) == 17
    ]
    return sorted(kept, key=lambda link: link.index)
