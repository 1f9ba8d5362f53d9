"""Links, addresses, routes and neighbours by rtnetlink. Shared by host and guest.

    with Netlink() as kernel:
        link = rtnetlink.find_link(kernel, "eth0")
        rtnetlink.set_link(kernel, link.index, up=True)

Addresses are text as people write them: ``10.0.0.2``, ``fd00::2``, ``02:42:ac:11:00:02``. All functions raise OSError
with the kernel's number and words, and with what they worked on as its filename. Numbers are those of
include/uapi/linux/{if_link,if_addr,rtnetlink,neighbour}.h.
"""

from __future__ import annotations

import _socket
import errno
import os
import struct

from hako.linux import netlink
from hako.linux.netlink import Netlink, attribute, attribute_text, attribute_u32, nested

RTM_NEWLINK, RTM_DELLINK, RTM_GETLINK = 16, 17, 18
RTM_NEWADDR, RTM_DELADDR, RTM_GETADDR = 20, 21, 22
RTM_NEWROUTE, RTM_DELROUTE, RTM_GETROUTE = 24, 25, 26
RTM_NEWNEIGH, RTM_DELNEIGH, RTM_GETNEIGH = 28, 29, 30

#: Groups for Netlink(groups): links, neighbours, addresses and routes of both families.
GROUP_LINK, GROUP_NEIGH, GROUP_IPV4_ADDR, GROUP_IPV4_ROUTE, GROUP_IPV6_ADDR, GROUP_IPV6_ROUTE = (
    1,
    1 << 2,
    1 << 4,
    1 << 6,
    1 << 8,
    1 << 10,
)

IFF_UP = 0x1
IFF_LOOPBACK = 0x8
IFF_NOARP = 0x80
IFF_ALLMULTI = 0x200

ARPHRD_ETHER = 1

IFA_F_NODAD = 0x02
IFA_F_PERMANENT = 0x80
IFA_F_NOPREFIXROUTE = 0x200
IFAPROT_KERNEL_RA = 2
IFAPROT_KERNEL_LL = 3

SCOPE_GLOBAL, SCOPE_LINK, SCOPE_HOST = 0, 253, 254
TABLE_MAIN = 254
PROTOCOL_KERNEL, PROTOCOL_STATIC, PROTOCOL_RA = 2, 4, 9
UNICAST = 1
RTNH_F_ONLINK = 4
_RTNH_F_DEAD_OR_DOWN = 0x01 | 0x10

NUD_PERMANENT = 0x80

AF_INET = _socket.AF_INET
AF_INET6 = _socket.AF_INET6

_IFINFO = struct.Struct("=BxHiII")
_IFADDR = struct.Struct("=BBBBi")
_RTMSG = struct.Struct("=BBBBBBBBI")
_NDMSG = struct.Struct("=BxxxiHBB")
_NEXTHOP = struct.Struct("=HBBi")

_IFLA_ADDRESS, _IFLA_IFNAME, _IFLA_MTU, _IFLA_LINK, _IFLA_MASTER = 1, 3, 4, 5, 10
_IFLA_LINKINFO, _IFLA_AF_SPEC, _IFLA_NET_NS_FD, _IFLA_EXT_MASK, _IFLA_PERM_ADDRESS = 18, 26, 28, 29, 54
_IFLA_INET6_CONF, _DEVCONF_DISABLE_IPV6 = 2, 26
_IFLA_INFO_KIND, _IFLA_INFO_DATA, _VETH_INFO_PEER = 1, 2, 1
_EXT_SKIP_STATISTICS = 8
_IFA_ADDRESS, _IFA_LOCAL, _IFA_BROADCAST, _IFA_FLAGS, _IFA_PROTO = 1, 2, 4, 8, 11
_RTA_DST, _RTA_OIF, _RTA_GATEWAY, _RTA_PRIORITY, _RTA_PREFSRC, _RTA_METRICS = 1, 4, 5, 6, 7, 8
_RTA_MULTIPATH, _RTA_TABLE, _RTA_VIA, _RTAX_MTU = 9, 15, 18, 2
_NDA_DST, _NDA_LLADDR = 1, 2
_BYTE_INET, _BYTE_INET6 = bytes([AF_INET]), bytes([AF_INET6])
_HEXADECIMAL = frozenset("0123456789abcdef")


class Link:
    """A network device. ``kind`` is its driver as far as the kernel tells (``veth``, ``tun``), empty for hardware.

    ``type`` is the kernel's ARPHRD number, ``permanent_mac`` the address it came with (empty when not known),
    ``master`` the index of the bridge or bond it is a port of, 0 for none, ``ipv6`` whether it may have addresses
    of IPv6.
    """

    __slots__ = ("flags", "index", "ipv6", "kind", "mac", "master", "mtu", "name", "permanent_mac", "type")

    def __init__(self, payload: bytes) -> None:
        (_, self.type, self.index, self.flags, _), rest = netlink.fixed(_IFINFO, payload)
        found = netlink.attributes(rest)
        info = netlink.attributes(found.get(_IFLA_LINKINFO, b""))
        self.name = netlink.text(found.get(_IFLA_IFNAME, b""))
        self.mac = mac_text(found.get(_IFLA_ADDRESS, b""))
        self.permanent_mac = mac_text(found.get(_IFLA_PERM_ADDRESS, b""))
        self.mtu = netlink.number(found.get(_IFLA_MTU, bytes(4)))
        self.master = netlink.number(found.get(_IFLA_MASTER, bytes(4)))
        self.kind = netlink.text(info.get(_IFLA_INFO_KIND, b""))
        self.ipv6 = _has_ipv6(found.get(_IFLA_AF_SPEC, b""))


def _has_ipv6(families: bytes) -> bool:
    settings = netlink.attributes(netlink.attributes(families).get(AF_INET6, b"")).get(_IFLA_INET6_CONF, b"")
    disabled = settings[4 * _DEVCONF_DISABLE_IPV6 : 4 * _DEVCONF_DISABLE_IPV6 + 4]
    return len(disabled) == 4 and not any(disabled)


class Address:
    """An IP address of the link ``index``. ``peer`` is the other end of a point-to-point link, else empty.

    ``protocol`` says who made it (IFAPROT_*), 0 when the kernel is older than 5.18 and does not tell.
    """

    __slots__ = ("address", "broadcast", "family", "flags", "index", "peer", "prefix", "protocol", "scope")

    def __init__(
        self,
        index: int,
        address: str,
        prefix: int,
        *,
        broadcast: str = "",
        peer: str = "",
        scope: int = 0,
        flags: int = 0,
    ) -> None:
        self.index = index
        self.address = address
        self.prefix = prefix
        self.broadcast = broadcast
        self.peer = peer
        self.scope = scope
        self.flags = flags
        self.family = family_of(address)
        self.protocol = 0

    @classmethod
    def decoded(cls, payload: bytes) -> Address:
        """The address in a message. Raises OSError (EBADMSG)."""
        (family, prefix, flags, scope, index), rest = netlink.fixed(_IFADDR, payload)
        found = netlink.attributes(rest)
        address = ip_text(family, found.get(_IFA_ADDRESS, b""))
        local = ip_text(family, found.get(_IFA_LOCAL, found.get(_IFA_ADDRESS, b"")))
        broadcast = ip_text(family, found[_IFA_BROADCAST]) if _IFA_BROADCAST in found else ""
        made = cls(index, local, prefix, broadcast=broadcast, peer=address if address != local else "", scope=scope)
        made.flags = netlink.number(found[_IFA_FLAGS]) if _IFA_FLAGS in found else flags
        made.protocol = netlink.number(found.get(_IFA_PROTO, b"\0"))
        return made

    def payload(self) -> bytes:
        """The message that adds or removes it."""
        local = ip_bytes(self.address)
        parts = [
            _IFADDR.pack(self.family, self.prefix, self.flags & 0xFF, self.scope, self.index),
            attribute(_IFA_LOCAL, local),
            attribute(_IFA_ADDRESS, ip_bytes(self.peer) if self.peer else local),
            attribute_u32(_IFA_FLAGS, self.flags),
        ]
        if self.broadcast:
            parts.append(attribute(_IFA_BROADCAST, ip_bytes(self.broadcast)))
        return b"".join(parts)

    def __str__(self) -> str:
        return f"{self.address}/{self.prefix}"


class Route:
    """A unicast route through the link ``index``. ``destination`` is empty for the default route, as is a missing
    ``gateway`` or ``source``. ``gateway`` may be of the other family. ``metric`` 0 leaves it to the kernel.
    """

    __slots__ = (
        "destination",
        "family",
        "gateway",
        "index",
        "metric",
        "mtu",
        "onlink",
        "prefix",
        "protocol",
        "scope",
        "source",
        "table",
        "type",
    )

    def __init__(
        self,
        index: int,
        family: int,
        destination: str = "",
        prefix: int = 0,
        *,
        gateway: str = "",
        source: str = "",
        metric: int = 0,
        scope: int = SCOPE_GLOBAL,
        onlink: bool = False,
        mtu: int = 0,
        protocol: int = PROTOCOL_STATIC,
    ) -> None:
        self.index = index
        self.family = family
        self.destination = destination
        self.prefix = prefix
        self.gateway = gateway
        self.source = source
        self.metric = metric
        self.scope = scope
        self.onlink = onlink
        self.mtu = mtu
        self.protocol = protocol
        self.table = TABLE_MAIN
        self.type = UNICAST

    @classmethod
    def decoded(cls, payload: bytes) -> Route:
        """The route in a message; of several next hops the first one that works. Raises OSError (EBADMSG)."""
        header, rest = netlink.fixed(_RTMSG, payload)
        family, prefix, _, _, table, protocol, scope, kind, flags = header
        found = netlink.attributes(rest)
        if _RTA_MULTIPATH in found:
            index, flags, hop = _first_hop(found[_RTA_MULTIPATH])
            found.update(hop)
        else:
            index = netlink.number(found.get(_RTA_OIF, bytes(4)))
        made = cls(index, family, prefix=prefix, scope=scope, protocol=protocol, onlink=bool(flags & RTNH_F_ONLINK))
        made.table = netlink.number(found[_RTA_TABLE]) if _RTA_TABLE in found else table
        made.type = kind
        made.destination = ip_text(family, found[_RTA_DST]) if _RTA_DST in found else ""
        made.source = ip_text(family, found[_RTA_PREFSRC]) if _RTA_PREFSRC in found else ""
        made.metric = netlink.number(found.get(_RTA_PRIORITY, bytes(4)))
        made.mtu = netlink.number(netlink.attributes(found.get(_RTA_METRICS, b"")).get(_RTAX_MTU, bytes(4)))
        if _RTA_GATEWAY in found:
            made.gateway = ip_text(family, found[_RTA_GATEWAY])
        elif _RTA_VIA in found:
            via = found[_RTA_VIA]
            made.gateway = ip_text(netlink.number(via[:2]), via[2:])
        return made

    def payload(self) -> bytes:
        """The message that adds or removes it."""
        flags = RTNH_F_ONLINK if self.onlink else 0
        header = (self.family, self.prefix, 0, 0, self.table, self.protocol, self.scope, self.type, flags)
        parts = [_RTMSG.pack(*header), attribute_u32(_RTA_OIF, self.index)]
        if self.destination:
            parts.append(attribute(_RTA_DST, ip_bytes(self.destination)))
        if self.source:
            parts.append(attribute(_RTA_PREFSRC, ip_bytes(self.source)))
        if self.metric:
            parts.append(attribute_u32(_RTA_PRIORITY, self.metric))
        if self.mtu:
            parts.append(nested(_RTA_METRICS, attribute_u32(_RTAX_MTU, self.mtu)))
        if self.gateway:
            family, gateway = family_of(self.gateway), ip_bytes(self.gateway)
            via = attribute(_RTA_VIA, struct.pack("=H", family) + gateway)
            parts.append(attribute(_RTA_GATEWAY, gateway) if family == self.family else via)
        return b"".join(parts)

    def __str__(self) -> str:
        to = f"{self.destination}/{self.prefix}" if self.destination else "default"
        return f"{to} via {self.gateway}" if self.gateway else to


def _first_hop(data: bytes) -> tuple[int, int, dict[int, bytes]]:
    """Link, flags and attributes of the first next hop whose link is up, or of the first one."""
    hops = []
    while data:
        (size, flags, _, index), _ = netlink.fixed(_NEXTHOP, data)
        if size < _NEXTHOP.size or size > len(data):
            raise netlink.malformed(f"a next hop of {size} bytes where {len(data)} are left")
        hops.append((index, flags, netlink.attributes(data[_NEXTHOP.size : size])))
        data = data[-(-size // 4) * 4 :]
    if not hops:
        raise netlink.malformed("a route of no next hops")
    return next((hop for hop in hops if not hop[1] & _RTNH_F_DEAD_OR_DOWN), hops[0])


class Neighbour:
    """An entry of the ARP or neighbour discovery table of the link ``index``."""

    __slots__ = ("address", "family", "index", "mac", "state")

    def __init__(self, index: int, address: str, mac: str, state: int = NUD_PERMANENT) -> None:
        self.index = index
        self.address = address
        self.mac = mac
        self.state = state
        self.family = family_of(address)

    @classmethod
    def decoded(cls, payload: bytes) -> Neighbour | None:
        """The neighbour in a message, None for one that is not of IP. Raises OSError (EBADMSG)."""
        (family, index, state, _, _), rest = netlink.fixed(_NDMSG, payload)
        found = netlink.attributes(rest)
        if family not in (AF_INET, AF_INET6) or _NDA_DST not in found:
            return None
        return cls(index, ip_text(family, found[_NDA_DST]), mac_text(found.get(_NDA_LLADDR, b"")), state)

    def payload(self) -> bytes:
        """The message that adds or removes it."""
        header = _NDMSG.pack(self.family, self.index, self.state, 0, 0)
        mac = attribute(_NDA_LLADDR, mac_bytes(self.mac)) if self.mac else b""
        return header + attribute(_NDA_DST, ip_bytes(self.address)) + mac


def links(kernel: Netlink) -> list[Link]:
    """All links."""
    payload = _IFINFO.pack(0, 0, 0, 0, 0) + attribute_u32(_IFLA_EXT_MASK, _EXT_SKIP_STATISTICS)
    messages = kernel.dump(RTM_GETLINK, payload, "links")
    return [Link(message.payload) for message in messages if message.kind == RTM_NEWLINK]


def find_link(kernel: Netlink, name: str) -> Link:
    """The link called ``name``. Raises OSError (ENODEV) when there is none."""
    wanted = attribute_text(_IFLA_IFNAME, name) + attribute_u32(_IFLA_EXT_MASK, _EXT_SKIP_STATISTICS)
    for message in kernel.request(RTM_GETLINK, 0, _IFINFO.pack(0, 0, 0, 0, 0) + wanted, name):
        if message.kind == RTM_NEWLINK:
            return Link(message.payload)
    raise OSError(errno.ENODEV, os.strerror(errno.ENODEV), name)


def add_link(kernel: Netlink, name: str, kind: str, *, peer: str = "") -> None:
    """Make a link of the kind ``kind``; for ``veth`` its other end is called ``peer``."""
    info = [attribute_text(_IFLA_INFO_KIND, kind)]
    if peer:
        other = _IFINFO.pack(0, 0, 0, 0, 0) + attribute_text(_IFLA_IFNAME, peer)
        info.append(nested(_IFLA_INFO_DATA, attribute(_VETH_INFO_PEER, other)))
    payload = _IFINFO.pack(0, 0, 0, 0, 0) + attribute_text(_IFLA_IFNAME, name) + nested(_IFLA_LINKINFO, *info)
    kernel.request(RTM_NEWLINK, netlink.NLM_F_CREATE | netlink.NLM_F_EXCL, payload, name)


def set_link(
    kernel: Netlink,
    index: int,
    *,
    up: bool | None = None,
    arp: bool | None = None,
    allmulti: bool | None = None,
    name: str = "",
    mac: str = "",
    mtu: int = 0,
    namespace: int | None = None,
) -> None:
    """Change what is given of the link ``index``. ``namespace`` is the descriptor of one to move it to.

    ``allmulti``: whether it takes the packets of all multicast groups.
    """
    flags = change = 0
    for wanted, bit in ((up, IFF_UP), (allmulti, IFF_ALLMULTI), (None if arp is None else not arp, IFF_NOARP)):
        if wanted is not None:
            change |= bit
            flags |= bit if wanted else 0
    parts = [_IFINFO.pack(0, 0, index, flags, change)]
    if name:
        parts.append(attribute_text(_IFLA_IFNAME, name))
    if mac:
        parts.append(attribute(_IFLA_ADDRESS, mac_bytes(mac)))
    if mtu:
        parts.append(attribute_u32(_IFLA_MTU, mtu))
    if namespace is not None:
        parts.append(attribute_u32(_IFLA_NET_NS_FD, namespace))
    kernel.request(RTM_NEWLINK, 0, b"".join(parts), name or f"link {index}")


def delete_link(kernel: Netlink, index: int) -> None:
    """Remove the link ``index``."""
    kernel.request(RTM_DELLINK, 0, _IFINFO.pack(0, 0, index, 0, 0), f"link {index}")


def addresses(kernel: Netlink) -> list[Address]:
    """All IP addresses of all links."""
    messages = kernel.dump(RTM_GETADDR, _IFADDR.pack(0, 0, 0, 0, 0), "addresses")
    return [Address.decoded(message.payload) for message in messages if message.kind == RTM_NEWADDR]


def add_address(kernel: Netlink, address: Address) -> None:
    """Add ``address``, or change the flags of one that is there."""
    kernel.request(RTM_NEWADDR, netlink.NLM_F_CREATE | netlink.NLM_F_REPLACE, address.payload(), str(address))


def delete_address(kernel: Netlink, address: Address) -> None:
    """Remove ``address``."""
    kernel.request(RTM_DELADDR, 0, address.payload(), str(address))


def routes(kernel: Netlink) -> list[Route]:
    """The routes of all tables and both families, the kernel's own ones too."""
    messages = kernel.dump(RTM_GETROUTE, _RTMSG.pack(0, 0, 0, 0, 0, 0, 0, 0, 0), "routes")
    return [
        Route.decoded(message.payload)
        for message in messages
        if message.kind == RTM_NEWROUTE and message.payload[:1] in (_BYTE_INET, _BYTE_INET6)
    ]


def add_route(kernel: Netlink, route: Route) -> None:
    """Add ``route``, after those to the same destination. Raises FileExistsError when it is there already."""
    kernel.request(RTM_NEWROUTE, netlink.NLM_F_CREATE | netlink.NLM_F_APPEND, route.payload(), f"route {route}")


def delete_route(kernel: Netlink, route: Route) -> None:
    """Remove ``route``."""
    kernel.request(RTM_DELROUTE, 0, route.payload(), f"route {route}")


def neighbours(kernel: Netlink) -> list[Neighbour]:
    """The neighbours of all links, both families."""
    messages = kernel.dump(RTM_GETNEIGH, _NDMSG.pack(0, 0, 0, 0, 0), "neighbours")
    found = [Neighbour.decoded(message.payload) for message in messages if message.kind == RTM_NEWNEIGH]
    return [neighbour for neighbour in found if neighbour is not None]


def add_neighbour(kernel: Netlink, neighbour: Neighbour) -> None:
    """Add ``neighbour``, or replace what is known of its address."""
    flags = netlink.NLM_F_CREATE | netlink.NLM_F_REPLACE
    kernel.request(RTM_NEWNEIGH, flags, neighbour.payload(), f"neighbour {neighbour.address}")


def delete_neighbour(kernel: Netlink, neighbour: Neighbour) -> None:
    """Remove ``neighbour``."""
    kernel.request(RTM_DELNEIGH, 0, neighbour.payload(), f"neighbour {neighbour.address}")


def family_of(address: str) -> int:
    """AF_INET6 for text with a colon, else AF_INET."""
    return AF_INET6 if ":" in address else AF_INET


def ip_bytes(address: str) -> bytes:
    """The 4 or 16 bytes of an IP address. Raises OSError (EINVAL) for text that is none."""
    try:
        return _socket.inet_pton(family_of(address), address)
    except (OSError, ValueError) as error:
        raise OSError(errno.EINVAL, "not an IP address", address) from error


def ip_text(family: int, data: bytes) -> str:
    """The text of an IP address. Raises OSError (EBADMSG) for data of another length."""
    if (family, len(data)) not in ((AF_INET, 4), (AF_INET6, 16)):
        raise netlink.malformed(f"{len(data)} bytes for an address of the family {family}")
    return _socket.inet_ntop(family, data)


def mac_bytes(mac: str) -> bytes:
    """The 6 bytes of ``02:42:ac:11:00:02``. Raises OSError (EINVAL) for text that is no such address."""
    parts = mac.lower().split(":")
    if len(parts) != 6 or any(len(part) != 2 or not _HEXADECIMAL.issuperset(part) for part in parts):
        raise OSError(errno.EINVAL, "not a hardware address", mac)
    return bytes(int(part, 16) for part in parts)


def mac_text(data: bytes) -> str:
    """The text of a hardware address of any length; empty for none."""
    return ":".join(f"{byte:02x}" for byte in data)
