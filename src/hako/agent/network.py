"""The guest's interfaces: brings them to what the host describes, whatever they were before. See linux/interfaces.py.

Imported when the first network is set up: not every sandbox has one.
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import struct

from hako.agent import system
from hako.linux import interfaces, rtnetlink
from hako.linux.interfaces import Everything
from hako.linux.netlink import Netlink
from hako.linux.rtnetlink import Address, Link, Neighbour, Route
from hako.wire import calls

TYPE_CHECKING = False
if TYPE_CHECKING:
    import socket
    from typing import Any
else:
    import _socket as socket  # socket itself brings enum and selectors

#: Interfaces one VM may have.
MAX_INTERFACES = 64
_MAX_ENTRIES = 4096
# include/uapi/linux/ethtool.h
_SIOCETHTOOL = 0x8946
_ETHTOOL_GCHANNELS, _ETHTOOL_SCHANNELS = 0x3C, 0x3D
_CHANNELS = struct.Struct("=9I")
#: Indexes of cards; see note_untouched().
_untouched: set[int] = set()
_DISABLE_IPV6 = "/proc/sys/net/ipv6/conf/{}/disable_ipv6"


def _bad(text: str) -> calls.CallError:
    return calls.CallError(calls.INVALID_ARGUMENT, text)


class _Reader:
    """Takes typed fields out of an object of the description; ``where`` names it in errors."""

    def __init__(self, value: object, where: str) -> None:
        if not isinstance(value, dict):
            raise _bad(f"{where}: not an object")
        self._value: dict[str, Any] = value
        self._where = where

    def text(self, key: str, *, required: bool = False) -> str:
        value = self._value.get(key, "")
        if not isinstance(value, str) or (required and not value):
            raise _bad(f"{self._where}.{key}: not a text")
        return value

    def integer(self, key: str, low: int, high: int, default: int | None = 0) -> int:
        value = self._value.get(key, default)
        if type(value) is not int or not low <= value <= high:
            raise _bad(f"{self._where}.{key}: not a number from {low} to {high}")
        return value

    def flag(self, key: str, default: bool = False) -> bool:
        value = self._value.get(key, default)
        if not isinstance(value, bool):
            raise _bad(f"{self._where}.{key}: not true or false")
        return value

    def entries(self, key: str) -> list[_Reader]:
        value = self._value.get(key, [])
        if not isinstance(value, list) or len(value) > _MAX_ENTRIES:
            raise _bad(f"{self._where}.{key}: not a list of at most {_MAX_ENTRIES}")
        return [_Reader(entry, f"{self._where}.{key}[{number}]") for number, entry in enumerate(value)]

    def ip(self, key: str, *, required: bool = False) -> str:
        """An IP address in the kernel's own spelling, or an empty text."""
        value = self.text(key, required=required)
        if not value:
            return ""
        try:
            return rtnetlink.ip_text(rtnetlink.family_of(value), rtnetlink.ip_bytes(value))
        except OSError:
            raise _bad(f"{self._where}.{key}: {value!r} is not an IP address") from None

    def network(self, key: str) -> tuple[str, int]:
        """An IP address and the length of its prefix."""
        whole = self.text(key, required=True)
        text, slash, length = whole.partition("/")
        address = _Reader({key: text}, self._where).ip(key, required=True)
        bits = 128 if ":" in address else 32
        if not slash or not length.isdecimal() or not 0 <= int(length) <= bits:
            raise _bad(f"{self._where}.{key}: {whole!r} needs a prefix length from 0 to {bits}")
        return address, int(length)

    def mac(self, key: str, *, required: bool = True) -> str:
        value = self.text(key, required=required).lower()
        try:
            return rtnetlink.mac_text(rtnetlink.mac_bytes(value)) if value else ""
        except OSError:
            raise _bad(f"{self._where}.{key}: {value!r} is not a hardware address") from None


class Interface:
    """One interface of the description, checked."""

    def __init__(self, value: object, where: str) -> None:
        reader = _Reader(value, where)
        self.name = reader.text("name", required=True)
        if len(self.name.encode()) > interfaces.MAX_NAME or not self.name.isprintable() or set(self.name) & set(" /:%"):
            raise _bad(f"{where}.name: {self.name!r} is not an interface's name")
        self.mac = reader.mac("mac")
        self.mtu = reader.integer("mtu", 68, 65535, None)
        self.arp = reader.flag("arp", True)
        self.ipv6 = reader.flag("ipv6", True)
        #: The NIC's own address, or its place among the VM's NICs.
        self.device: str | int = self.mac
        if isinstance(reader._value.get("device"), int):
            self.device = reader.integer("device", 0, MAX_INTERFACES)
        elif reader.text("device"):
            self.device = reader.mac("device")
        self.addresses = [_address(entry) for entry in reader.entries("addresses")]
        self.routes = [_route(entry) for entry in reader.entries("routes")]
        self.neighbours = [
            Neighbour(0, entry.ip("address", required=True), entry.mac("mac")) for entry in reader.entries("neighbours")
        ]


def _address(entry: _Reader) -> Address:
    address, prefix = entry.network("address")
    flags = rtnetlink.IFA_F_NOPREFIXROUTE if entry.flag("noprefixroute") else 0
    # Nobody else can have it, for the host gave it; and it is needed now, not in a second.
    flags |= rtnetlink.IFA_F_NODAD if ":" in address else 0
    scope = entry.integer("scope", 0, 255)
    broadcast, peer = entry.ip("broadcast"), entry.ip("peer")
    return Address(0, address, prefix, broadcast=broadcast, peer=peer, scope=scope, flags=flags)


def _route(entry: _Reader) -> Route:
    destination, prefix = entry.network("destination")
    family = rtnetlink.family_of(destination)
    return Route(
        0,
        family,
        destination if prefix else "",
        prefix,
        gateway=entry.ip("gateway"),
        source=entry.ip("source"),
        metric=entry.integer("metric", 0, 0xFFFFFFFF),
        scope=entry.integer("scope", 0, 255),
        onlink=entry.flag("onlink"),
        mtu=entry.integer("mtu", 0, 0xFFFFFFFF),
    )


def parse(value: object) -> list[Interface]:
    """Check the description ``value``, a list. Raises CallError."""
    if not isinstance(value, list) or len(value) > MAX_INTERFACES:
        raise _bad(f"interfaces: not a list of at most {MAX_INTERFACES}")
    wanted = [Interface(entry, f"interfaces[{number}]") for number, entry in enumerate(value)]
    for what, seen in (("name", [entry.name for entry in wanted]), ("device", [entry.device for entry in wanted])):
        if len(set(seen)) < len(seen):
            raise _bad(f"interfaces: two have the same {what}")
    return wanted


def cards() -> list[Link]:
    """The links of the VM, for apply()."""
    with Netlink() as kernel:
        return rtnetlink.links(kernel)


def missing(wanted: list[Interface], links: list[Link]) -> str:
    """The first device that is not among ``links`` (yet), as text; empty when all are there."""
    return next((str(entry.device) for entry in wanted if _find(links, entry) is None), "")


def note_untouched() -> None:
    """Nobody has given anything to the cards that there are, or will before the first apply()."""
    _untouched.update(link.index for link in _nics(cards()) if not link.flags & rtnetlink.IFF_UP)


def apply(wanted: list[Interface], links: list[Link], *, describe: bool = True) -> list[dict[str, Any]]:
    """Make the VM's interfaces what ``wanted`` says; ``describe`` them as they are then. ``links`` are those of now.

    NICs that it does not name lose their addresses and are switched off. What is as it should be is not touched, so
    connections survive. Raises CallError and OSError.
    """
    untouched = {link.index for link in links if link.index in _untouched and not link.flags & rtnetlink.IFF_UP}
    _untouched.clear()
    with Netlink() as kernel:
        found = []
        before = Everything(kernel, links)
        for entry in wanted:
            link = _find(before.links, entry)
            if link is None:
                raise calls.CallError(calls.NOT_FOUND, f"the VM has no network device {entry.device}")
            found.append((link, entry))
        for link in _nics(before.links):
            if link.index not in untouched and all(link is not other for other, _ in found):
                _switch_off(kernel, before, link)
        _rename(kernel, before.links, [(link.index, entry) for link, entry in found])
        for link, entry in found:
            _set_link(kernel, link, entry)
        used = [(link, entry) for link, entry in found if link.index not in untouched]
        _set_all(kernel, used)
        for link, entry in found:
            if link.index in untouched:
                _add_addresses(kernel, link, entry, [])
        for link, entry in found:
            if link.index in untouched:
                _add_routes(kernel, link, entry, [])
        if not describe:
            return []
        after = Everything(kernel)
        return [after.describe(_by_index(after.links, link.index)) for link, _ in found]


def _set_all(kernel: Netlink, found: list[tuple[Link, Interface]]) -> None:
    """Give links that may have something else their addresses, routes and neighbours."""
    if not found:
        return
    now = Everything(kernel)
    found = [(_by_index(now.links, link.index), entry) for link, entry in found]
    for link, entry in found:
        _set_addresses(kernel, now, link, entry)
    # First all that must go: a default route of one interface may have to make room for another's.
    for link, entry in found:
        _remove_routes(kernel, now, link, entry)
    for link, entry in found:
        _add_routes(kernel, link, entry, [interfaces.route(old) for old in now.routes(link)])


def use_queues(count: int) -> None:
    """Have each of the VM's NICs use ``count`` pairs of queues, one for each processor, or as many as it has."""
    with Netlink() as kernel:
        names = [link.name for link in _nics(rtnetlink.links(kernel))]
    control = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    try:
        for name in names:
            fields = _channels(control.fileno(), name, _CHANNELS.pack(_ETHTOOL_GCHANNELS, *[0] * 8))
            most, combined = fields[4], fields[8]
            wanted = min(most, count)
            if combined != wanted and most > 1:
                _channels(control.fileno(), name, _CHANNELS.pack(_ETHTOOL_SCHANNELS, *fields[1:8], wanted))
    finally:
        control.close()


def _channels(fd: int, name: str, request: bytes) -> tuple[int, ...]:
    """Ask the driver of the interface ``name`` about its queues; all zero when it has nothing to say about them."""
    buffer = ctypes.create_string_buffer(request)
    try:
        fcntl.ioctl(fd, _SIOCETHTOOL, struct.pack("16sQ16x", name.encode(), ctypes.addressof(buffer)))
    except OSError:
        return (0,) * 9
    return _CHANNELS.unpack_from(buffer)


def _nics(links: list[Link]) -> list[Link]:
    """The VM's NICs, not what containers in it have made."""
    return [link for link in interfaces.ethernet(links) if not link.kind]


def _find(links: list[Link], entry: Interface) -> Link | None:
    if isinstance(entry.device, int):
        return dict(enumerate(_nics(links))).get(entry.device)
    # The address a NIC came with is its own; the one it has may be another's by now.
    candidates = interfaces.ethernet(links)
    came_with = [link for link in candidates if link.permanent_mac == entry.device]
    has = [link for link in candidates if link.mac in (entry.device, entry.mac) and link.name == entry.name]
    has += [link for link in candidates if link.mac == entry.device]
    has += [link for link in candidates if link.mac == entry.mac]
    return next(iter(came_with + has), None)


def _by_index(links: list[Link], index: int) -> Link:
    for link in links:
        if link.index == index:
            return link
    raise OSError(errno.ENODEV, "the network device has vanished", str(index))


def _switch_off(kernel: Netlink, before: Everything, link: Link) -> None:
    for address in before.addresses(link):
        _delete_address(kernel, address)
    for neighbour in before.neighbours(link):
        rtnetlink.delete_neighbour(kernel, neighbour)
    if link.flags & rtnetlink.IFF_UP:
        rtnetlink.set_link(kernel, link.index, up=False)


def _rename(kernel: Netlink, links: list[Link], wanted: list[tuple[int, Interface]]) -> None:
    """Give the links their names; a name that another one has is taken away from it first. They are down then."""
    names = {entry.name: index for index, entry in wanted}
    for link in links:
        if names.get(link.name, link.index) != link.index:
            _set_name(kernel, link, f"hako{link.index}")
    for index, entry in wanted:
        link = _by_index(links, index)
        if link.name != entry.name:
            _set_name(kernel, link, entry.name)


def _set_name(kernel: Netlink, link: Link, name: str) -> None:
    if link.flags & rtnetlink.IFF_UP:
        rtnetlink.set_link(kernel, link.index, up=False)
        link.flags &= ~rtnetlink.IFF_UP
    rtnetlink.set_link(kernel, link.index, name=name)
    link.name = name


def _set_link(kernel: Netlink, link: Link, entry: Interface) -> None:
    if link.ipv6 != entry.ipv6:
        try:
            system.write(_DISABLE_IPV6.format(entry.name), b"0" if entry.ipv6 else b"1")
        except FileNotFoundError:
            pass  # a kernel without IPv6
    arp = not link.flags & rtnetlink.IFF_NOARP
    if link.mac != entry.mac or link.mtu != entry.mtu or arp != entry.arp or not link.flags & rtnetlink.IFF_UP:
        rtnetlink.set_link(kernel, link.index, mac=entry.mac, mtu=entry.mtu, up=True, arp=entry.arp)


def _set_addresses(kernel: Netlink, now: Everything, link: Link, entry: Interface) -> None:
    wanted = [interfaces.address(address) for address in entry.addresses]
    present = []
    removed = False
    for old in now.addresses(link):
        if interfaces.address(old) in wanted:
            present.append(interfaces.address(old))
        else:
            _delete_address(kernel, old)
            removed = True
    if removed:
        # Removing one can take others of its network along.
        present = [interfaces.address(old) for old in Everything(kernel).addresses(link)]
    _add_addresses(kernel, link, entry, present)


def _add_addresses(kernel: Netlink, link: Link, entry: Interface, present: list[dict[str, Any]]) -> None:
    for address in entry.addresses:
        if not present or interfaces.address(address) not in present:
            address.index = link.index
            rtnetlink.add_address(kernel, address)


def _delete_address(kernel: Netlink, address: Address) -> None:
    try:
        rtnetlink.delete_address(kernel, address)
    except OSError as error:
        if error.errno != errno.EADDRNOTAVAIL:  # the first address of a network takes the others along
            raise


def _remove_routes(kernel: Netlink, now: Everything, link: Link, entry: Interface) -> None:
    """Remove routes and permanent neighbours that are not wanted."""
    wanted = [interfaces.route(route) for route in entry.routes]
    for old in now.routes(link):
        if interfaces.route(old) not in wanted:
            rtnetlink.delete_route(kernel, old)
    kept = [(neighbour.address, neighbour.mac) for neighbour in entry.neighbours]
    for known in now.neighbours(link):
        if (known.address, known.mac) not in kept:
            rtnetlink.delete_neighbour(kernel, known)


def _add_routes(kernel: Netlink, link: Link, entry: Interface, present: list[dict[str, Any]]) -> None:
    """Add routes, those without gateway first so that each gateway can be reached, and permanent neighbours.

    ``present`` are the routes that are there already.
    """
    for route in sorted(entry.routes, key=lambda route: bool(route.gateway)):
        if not present or interfaces.route(route) not in present:
            route.index = link.index
            rtnetlink.add_route(kernel, route)
    for neighbour in entry.neighbours:
        neighbour.index = link.index
        rtnetlink.add_neighbour(kernel, neighbour)
