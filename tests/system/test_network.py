"""Taps, endpoints and the guest's interfaces with the real kernel, on a host of the test's own; `ip` is the oracle."""

from __future__ import annotations

import contextlib
import os
import select
import signal
import socket
import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from hako.agent import network as guest_network
from hako.errors import HostError, StateError
from hako.linux import rtnetlink
from hako.linux.netlink import Netlink
from hako.network import namespace as namespaces
from hako.network import tap
from hako.network.api import Network
from hako.network.tap import MAX_MTU, Tap
from hako.wire.calls import CallError
from support.netns import (
    BOX,
    BOX6,
    HOST,
    HOST6,
    cable,
    connected,
    ip,
    links,
    namespace,
    on_a_host_of_its_own,
    opened,
    pings,
    run,
    tc,
    until,
    veth,
    write,
)

pytestmark = pytest.mark.system


@contextlib.contextmanager
def guest(network: Network) -> Iterator[Callable[[list[dict[str, Any]]], list[dict[str, Any]]]]:
    """A namespace in place of the guest, with a NIC that is wired to the network's first tap.

    Gives what the agent does for the call Network, with that NIC as the device of the first interface.
    """
    with namespace("guest") as path, opened(path) as fd:
        nic = Tap.open(fd)

        def apply(wanted: list[dict[str, Any]]) -> list[dict[str, Any]]:
            # Unlike a real card, a tap does not tell the address it came with.
            (found,) = [entry for entry in ip("link", inside=path) if entry["ifindex"] == nic.index]
            told = [{**wanted[0], "device": found["address"]}, *wanted[1:]]
            return namespaces.inside(fd, lambda: guest_network.apply(guest_network.parse(told), guest_network.cards()))

        try:
            with cable(network.attachments[0].tap, nic):
                yield apply
        finally:
            nic.close()


def echo_once(server: socket.socket) -> threading.Thread:
    """Send everything back that the next client of ``server`` sends."""

    def body() -> None:
        client, _ = server.accept()
        with client:
            while data := client.recv(1 << 16):
                client.sendall(data)

    thread = threading.Thread(target=body)
    thread.start()
    return thread


def exchange(client: socket.socket, data: bytes) -> bytes:
    """Send ``data`` and read as much back."""
    sender = threading.Thread(target=client.sendall, args=(data,))
    sender.start()
    received = bytearray()
    while len(received) < len(data):
        received += client.recv(1 << 16) or pytest.fail("the connection ended")
    sender.join()
    return bytes(received)


def test_frames_pass_both_ways_and_the_namespace_sees_none() -> None:
    def body() -> None:
        with connected() as path, Network.open(path) as network:
            assert pings(BOX), "the namespace itself answers as long as nothing is attached"
            (attachment,) = network.attach_all()
            assert not pings(BOX)
            with guest(network) as apply:
                assert apply(network.descriptions()) == network.descriptions()
                assert pings(BOX)
            assert attachment.endpoint.name == "eth0"
        assert not namespaces.names()

    on_a_host_of_its_own(body)


def test_a_card_that_nobody_has_touched_is_not_asked_what_it_has(monkeypatch: pytest.MonkeyPatch) -> None:
    def body() -> None:
        with connected() as path, Network.open(path) as network:
            network.attach_all()
            guest_network._untouched.update(range(100))
            monkeypatch.setattr(guest_network, "_set_all", lambda _kernel, used: used and pytest.fail("it is asked"))
            with guest(network) as apply:
                assert apply(network.descriptions()) == network.descriptions()
                assert pings(BOX)

    on_a_host_of_its_own(body)


@pytest.mark.parametrize(("host", "box"), [(HOST, BOX), (HOST6, BOX6)])
def test_connections_in_both_directions_with_large_frames(host: str, box: str) -> None:
    def body() -> None:
        family = rtnetlink.family_of(host)
        data = os.urandom(4 << 20)
        with connected() as path, Network.open(path) as network, namespace("guest") as inside, opened(inside) as fd:
            (attachment,) = network.attach_all()
            nic = Tap.open(fd)
            with cable(attachment.tap, nic) as wire:
                wanted = [{**network.descriptions()[0], "device": ip("link", inside=inside)[-1]["address"]}]
                namespaces.inside(fd, lambda: guest_network.apply(guest_network.parse(wanted), guest_network.cards()))
                with (
                    socket.create_server((host, 7), family=family) as server,
                    namespaces.inside(fd, lambda: socket.socket(family)) as client,
                ):
                    thread = echo_once(server)
                    client.settimeout(20)
                    client.connect((host, 7))
                    assert exchange(client, data) == data
                    client.close()
                    thread.join()
                with namespaces.inside(fd, lambda: socket.create_server((box, 7), family=family)) as server:
                    thread = echo_once(server)
                    with socket.create_connection((box, 7), timeout=20) as client:
                        assert exchange(client, data) == data
                    thread.join()
                # Segments larger than the MTU went through whole: 10 bytes of virtio header and 14 of Ethernet's.
                assert 1500 + 24 < wire.longest <= (64 << 10) + 24
            nic.close()

    on_a_host_of_its_own(body)


def test_the_description_is_what_ip_says() -> None:
    def body() -> None:
        with connected() as path, Network.open(path) as network:
            for arguments in (
                "addr add 10.9.0.3/32 dev eth0",
                "addr add fe80::7/64 dev eth0 nodad",
                "route add 10.20.0.0/16 via 10.9.0.9 metric 50 src 10.9.0.3",
                "route add 169.254.1.1 dev eth0 scope link",
                "route add 10.30.0.0/24 via 169.254.9.9 dev eth0 onlink mtu 1200",
                "route add 10.31.0.0/24 nexthop via 10.9.0.8 nexthop via 10.9.0.7",
                "route add blackhole 10.40.0.0/24",
                "route add 10.50.0.0/24 via 10.9.0.9 table 100",
                "route add fd20::/32 via fd09::9 metric 77",
                "neigh add 169.254.1.1 lladdr ee:ee:ee:ee:ee:ee dev eth0 nud permanent",
                "neigh add fd09::9 lladdr ee:ee:ee:ee:ee:e6 dev eth0 nud permanent",
                "neigh add 10.9.0.77 lladdr ee:ee:ee:ee:ee:e7 dev eth0 nud reachable",
                "link set eth0 mtu 1400",
            ):
                run("ip", *arguments.split(), inside=path)
            (endpoint,) = network.endpoints()
            found = endpoint.description
            (link,) = ip("link", "show", "eth0", inside=path)
            assert (found["name"], found["mac"], found["mtu"]) == ("eth0", link["address"], 1400)
            assert endpoint.kind == "veth"
            assert found["arp"] is True
            assert found["ipv6"] is True
            (shown,) = ip("addr", "show", "eth0", inside=path)
            expected = {
                f"{entry['local']}/{entry['prefixlen']}"
                for entry in shown["addr_info"]
                if entry["scope"] == "global" or entry["local"] == "fe80::7"
            }
            assert {entry["address"] for entry in found["addresses"]} == expected
            assert len(found["addresses"]) == 4
            assert {"address": f"{BOX}/24", "broadcast": "10.9.0.255"} in found["addresses"]
            assert found["routes"] == [
                {"destination": "169.254.1.1/32", "scope": 253},
                {"destination": "fd20::/32", "gateway": "fd09::9", "metric": 77},
                {"destination": "10.30.0.0/24", "gateway": "169.254.9.9", "mtu": 1200, "onlink": True},
                {"destination": "10.31.0.0/24", "gateway": "10.9.0.8"},
                {"destination": "10.20.0.0/16", "gateway": "10.9.0.9", "source": "10.9.0.3", "metric": 50},
                {"destination": "0.0.0.0/0", "gateway": HOST},
                {"destination": "::/0", "gateway": HOST6},
            ]
            assert found["neighbours"] == [
                {"address": "169.254.1.1", "mac": "ee:ee:ee:ee:ee:ee"},
                {"address": "fd09::9", "mac": "ee:ee:ee:ee:ee:e6"},
            ]
            network.attach_all()
            with guest(network) as apply:
                assert apply(network.descriptions()) == [found]
                for what in ("route", "-6 route", "neigh"):
                    shown_here = ip(
                        *what.split(), *(["show", "nud", "permanent"] if what == "neigh" else []), inside=path
                    )
                    kept = [entry for entry in shown_here if _is_mirrored(entry)]
                    there = ip(*what.split(), inside=f"{namespaces.directory()}/guest")
                    assert _plain(kept) == _plain([entry for entry in there if _is_mirrored(entry)]), what

    on_a_host_of_its_own(body)


def _is_mirrored(entry: dict[str, Any]) -> bool:
    """Whether the guest has this entry of ``ip`` too: a single route or neighbour that somebody added to eth0."""
    return (
        entry.get("dev") == "eth0"
        and entry.get("dst") != "10.31.0.0/24"
        and not entry.get("dst", "").startswith("fe80")
    )


def _plain(entries: list[dict[str, Any]]) -> list[str]:
    """Entries in one order, without how they were made."""
    for entry in entries:
        entry.pop("protocol", None)
    return sorted(map(str, entries))


def test_the_guest_follows_changes_and_keeps_what_is_right() -> None:
    def body() -> None:
        with connected() as path, Network.open(path) as network:
            network.attach_all()
            with guest(network) as apply, opened(f"{namespaces.directory()}/guest") as fd:
                (first,) = network.descriptions()
                apply([first])
                with socket.create_server((HOST, 7)) as server, namespaces.inside(fd, socket.socket) as client:
                    thread = echo_once(server)
                    client.settimeout(10)
                    client.connect((HOST, 7))
                    second = {
                        **first,
                        "mtu": 1400,
                        "addresses": [first["addresses"][0], {"address": "10.9.0.7/24"}],
                        "routes": [{"destination": "10.77.0.0/16", "gateway": HOST}],
                        "neighbours": [{"address": "10.9.0.99", "mac": "ee:ee:ee:ee:ee:ee"}],
                    }
                    assert apply([second]) == [second]
                    assert exchange(client, b"still here") == b"still here"
                    client.close()
                    thread.join()
                # The first address of a network takes the others of it along when it goes.
                fewer = {**second, "addresses": second["addresses"][1:]}
                assert apply([fewer]) == [fewer]
                assert apply([second]) == [{**second, "addresses": second["addresses"][::-1]}]
                assert apply([{**first, "addresses": [], "routes": []}])[0]["addresses"] == []
                assert apply([first]) == [first]
                assert apply([{**first, "ipv6": False, "addresses": [], "routes": []}])[0]["ipv6"] is False
                renamed = {**first, "name": "net7", "mac": "02:00:00:00:00:77"}
                assert apply([renamed]) == [renamed]
                missing = guest_network.parse([{**first, "device": "02:00:00:00:00:99"}])
                with pytest.raises(CallError, match="no network device 02:00:00:00:00:99"):
                    namespaces.inside(fd, lambda: guest_network.apply(missing, guest_network.cards()))
                with pytest.raises(OSError, match="Nexthop has invalid gateway"):
                    apply([{**renamed, "routes": [{"destination": "10.1.0.0/16", "gateway": "10.250.0.1"}]}])

    on_a_host_of_its_own(body)


def test_names_and_default_routes_change_places() -> None:
    """As when a second network takes over the default route, or the kernel finds the cards in another order."""

    def body() -> None:
        with namespace("guest") as path, opened(path) as fd:
            veth("h0", "eth0", path)
            veth("h1", "eth1", path)
            macs = {entry["ifname"]: entry["address"] for entry in ip("link", inside=path)}

            def interface(name: str, device: str, net: int, *, default: bool) -> dict[str, Any]:
                routes = [{"destination": "0.0.0.0/0", "gateway": f"10.{net}.0.1"}] if default else []
                addresses = [{"address": f"10.{net}.0.2/24"}]
                facts = {"name": name, "mac": device, "mtu": 1500, "arp": True, "ipv6": True, "neighbours": []}
                return {**facts, "addresses": addresses, "routes": routes}

            for order in (("eth0", "eth1"), ("eth1", "eth0"), ("eth0", "eth1")):
                for default in (0, 1):
                    wanted = [
                        interface(name, macs[card], net, default=net == default)
                        for net, (name, card) in enumerate(zip(order, ("eth0", "eth1"), strict=True))
                    ]
                    got = namespaces.inside(
                        fd,
                        lambda wanted=wanted: guest_network.apply(guest_network.parse(wanted), guest_network.cards()),
                    )
                    assert got == wanted

    on_a_host_of_its_own(body)


def test_interfaces_that_come_and_go() -> None:
    def body() -> None:
        with connected() as path, Network.open(path) as network:
            network.attach_all()
            network.changes()
            assert not select.select([network], [], [], 0)[0]
            assert not network.changes()

            veth("h1", "eth1", path)
            run("ip", "addr", "add", "10.10.0.2/24", "dev", "eth1", inside=path)
            assert select.select([network], [], [], 5)[0]
            changes = network.changes()
            assert [endpoint.name for endpoint in changes.appeared] == ["eth1"]
            assert not changes.vanished
            assert not changes.changed
            second = network.attach(changes.appeared[0])
            assert network.attach(changes.appeared[0]) is second
            network.changes()

            run("ip", "addr", "add", "10.10.0.3/24", "dev", "eth1", inside=path)
            run("ip", "link", "set", "eth1", "mtu", "1300", inside=path)
            assert select.select([network], [], [], 5)[0]
            assert network.changes() == ([], [], [second])
            assert second.endpoint.description["mtu"] == 1300
            assert len(second.endpoint.description["addresses"]) == 2
            assert ip("link", "show", second.tap.name, inside=path)[0]["mtu"] == 1300

            run("ip", "link", "set", "eth1", "down", inside=path)
            assert not network.changes().vanished
            run("ip", "link", "del", "h1")
            assert select.select([network], [], [], 5)[0]
            assert network.changes().vanished == [second]
            network.detach(second)
            network.detach(second)
            assert not network.changes()
            assert links(path) == ["lo", "eth0", "tap0"]

    on_a_host_of_its_own(body)


def test_two_hundred_rounds_leave_nothing() -> None:
    def body() -> None:
        def state() -> tuple[object, ...]:
            links = [(entry["ifname"], entry["flags"]) for entry in ip("link", inside=path)]
            qdiscs = [entry["kind"] for entry in tc("qdisc", "show", "dev", "eth0", inside=path)]
            return links, qdiscs, sorted(os.listdir("/proc/self/fd")), threading.active_count()

        with connected() as path:
            with Network.open(path) as network:
                network.attach_all()
            before = state()
            for _ in range(100):
                with Network.open(path, queues=2) as network:
                    (attachment,) = network.attach_all()
                    network.detach(attachment)
                    network.attach_all()
            assert state() == before
        until(lambda: links() == ["lo"])  # removing the namespace took the other end along

    on_a_host_of_its_own(body)


def test_a_killed_owner_leaves_nothing_that_stops_the_next() -> None:
    def body() -> None:
        with connected() as path:
            ready, told = os.pipe()
            pid = os.fork()
            if pid == 0:
                Network.open(path).attach_all()
                os.write(told, b"x")
                signal.pause()
            os.close(told)
            assert os.read(ready, 1) == b"x"
            assert links(path) == ["lo", "eth0", "tap0"]
            with Network.open(path) as network, pytest.raises(StateError, match="eth0 belongs to another virtual"):
                network.attach_all()
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)
            assert links(path) == ["lo", "eth0"]
            with Network.open(path) as network:
                network.attach_all()
                with guest(network) as apply:
                    apply(network.descriptions())
                    assert pings(BOX)
        until(lambda: links() == ["lo"])

    on_a_host_of_its_own(body)


def test_filters_of_others_are_respected_and_a_failure_undoes_the_rest() -> None:
    def body() -> None:
        with connected() as path:
            veth("h1", "eth1", path)
            run("tc", "qdisc", "add", "dev", "eth1", "ingress", inside=path)
            rule = "filter add dev eth1 parent ffff: protocol all prio 7 u32 match u32 0 0 classid 1:1"
            run("tc", *rule.split(), inside=path)
            with Network.open(path) as network:
                with pytest.raises(StateError, match="Another program filters the packets of eth1"):
                    network.attach_all()
                assert not network.attachments
                assert "tap0" not in links(path)
                assert tc("qdisc", "show", "dev", "eth0", inside=path)[0]["kind"] != "ingress"
            assert tc("filter", "show", "dev", "eth1", "ingress", inside=path)

    on_a_host_of_its_own(body)


def test_a_macvlan_is_an_endpoint_and_others_are_not() -> None:
    def body() -> None:
        with namespace("box") as path, opened(path) as fd:
            run("ip", "link", "add", "up0", "type", "veth", "peer", "name", "up1")
            run("ip", "link", "add", "link", "up0", "name", "mv0", "type", "macvlan", "mode", "bridge")
            with Netlink() as kernel:
                rtnetlink.set_link(kernel, rtnetlink.find_link(kernel, "mv0").index, namespace=fd)
            for name in ("up0", "up1"):
                run("ip", "link", "set", name, "up")
            run("ip", "addr", "add", f"{HOST}/24", "dev", "up1")
            run("ip", "link", "set", "mv0", "name", "eth0", "up", inside=path)
            run("ip", "addr", "add", f"{BOX}/24", "dev", "eth0", inside=path)
            run("ip", "link", "add", "off0", "type", "veth", "peer", "name", "off1", inside=path)
            run("ip", "link", "add", "br0", "type", "bridge", inside=path)
            run("ip", "link", "set", "off0", "master", "br0", "up", inside=path)
            unused = Tap.open(fd)
            with Network.open(path) as network:
                assert [(endpoint.name, endpoint.kind) for endpoint in network.endpoints()] == [("eth0", "macvlan")]
                network.attach_all()
                assert "ALLMULTI" in ip("link", "show", "eth0", inside=path)[0]["flags"]
                with guest(network) as apply:
                    apply(network.descriptions())
                    assert pings(BOX)
            assert "ALLMULTI" not in ip("link", "show", "eth0", inside=path)[0]["flags"]
            unused.close()

    on_a_host_of_its_own(body)


def test_mtu_queues_and_the_taps_own_ipv6() -> None:
    def body() -> None:
        with connected() as path:
            run("ip", "link", "set", "eth0", "mtu", "65535", inside=path)
            with Network.open(path, queues=4) as network:
                (attachment,) = network.attach_all()
                assert len(set(attachment.tap.fds)) == 4
                assert attachment.endpoint.description["mtu"] == MAX_MTU
                (shown,) = ip("-d", "addr", "show", attachment.tap.name, inside=path)
                assert (shown["mtu"], shown["addr_info"]) == (MAX_MTU, [])
                assert shown["linkinfo"]["info_data"] == {
                    **shown["linkinfo"]["info_data"],
                    "type": "tap",
                    "vnet_hdr": True,
                    "pi": False,
                    "persist": False,
                    "multi_queue": True,
                    "numqueues": 4,
                }
                fds = list(attachment.tap.fds)
                attachment.tap.close()  # as when QEMU has them
                assert not [fd for fd in fds if os.path.exists(f"/proc/self/fd/{fd}")]

    on_a_host_of_its_own(body)


def test_without_ipv6_the_guest_has_none_either() -> None:
    def body() -> None:
        with connected() as path, opened(path) as fd:
            namespaces.inside(fd, lambda: write("/proc/sys/net/ipv6/conf/all/disable_ipv6", "1"))
            with Network.open(path) as network:
                network.attach_all()
                (found,) = network.descriptions()
                assert found["ipv6"] is False
                assert [entry["address"] for entry in found["addresses"]] == [f"{BOX}/24"]
                with guest(network) as apply:
                    assert apply([found]) == [found]
                    shown = ip("addr", "show", "eth0", inside=f"{namespaces.directory()}/guest")[0]["addr_info"]
                    assert [entry["family"] for entry in shown] == ["inet"]

    on_a_host_of_its_own(body)


def test_a_host_without_tap_devices(monkeypatch: pytest.MonkeyPatch) -> None:
    def body() -> None:
        monkeypatch.setattr(tap, "_DEVICE", "/dev/net/none")
        with connected() as path, Network.open(path) as network:
            with pytest.raises(HostError, match="This host has no /dev/net/none: load the kernel module tun"):
                network.attach_all()
            assert "ingress" not in [entry["kind"] for entry in tc("qdisc", "show", "dev", "eth0", inside=path)]

    on_a_host_of_its_own(body)


def test_the_hosts_own_interfaces_are_never_taken() -> None:
    def body() -> None:
        for path in ("/proc/self/ns/net", f"/proc/{os.getpid()}/ns/net"):
            with pytest.raises(StateError, match=f"The network namespace {path} is the host's"):
                Network.open(path)

    on_a_host_of_its_own(body)
