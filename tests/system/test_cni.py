"""Debian's CNI plugins on a host of the test's own: its packet filter and its interfaces are not the machine's."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import socket
import threading
import time
from collections.abc import Iterator

import pytest

from hako.errors import ExistsError, HostError, NotFoundError
from hako.network import cni, cniconfig, ports
from hako.network import namespace as namespaces
from hako.network.api import Network
from support.netns import ip, namespace, on_a_host_of_its_own, opened, run, veth

pytestmark = pytest.mark.system


@contextlib.contextmanager
def host() -> Iterator[None]:
    """Notes and lists of the test's own. Nothing may be left at the end but the bridge and empty chains."""
    try:
        yield
        assert not cni.connected()
        assert not _given()
        assert not [line for line in rules() if "10.87." in line]
        assert {entry["ifname"] for entry in ip("link")} <= {"lo", cniconfig.BRIDGE, "h0"}
    finally:
        for path in (cniconfig.state_dir(), cniconfig.directory()):
            shutil.rmtree(path, ignore_errors=True)


def _given() -> list[str]:
    """The addresses that are taken."""
    folder = os.path.join(cniconfig.state_dir(), "networks", cniconfig.BUILT_IN)
    return [name for name in os.listdir(folder) if name[0].isdigit()] if os.path.isdir(folder) else []


def rules() -> list[str]:
    """The packet filter's rules."""
    return [*run("iptables", "-S").splitlines(), *run("iptables", "-t", "nat", "-S").splitlines()]


def write_list(name: str, value: object) -> None:
    os.makedirs(cniconfig.directory(), exist_ok=True)
    with open(os.path.join(cniconfig.directory(), name), "w", encoding="utf-8") as file:
        json.dump(value, file)


def serve(path: str, port: int, kind: socket.SocketKind = socket.SOCK_STREAM) -> threading.Thread:
    """In the namespace: answer one client, or one datagram, with the address it comes from."""
    with opened(path) as fd:
        server = namespaces.inside(fd, lambda: socket.socket(socket.AF_INET, kind))
    server.bind(("", port))
    if kind == socket.SOCK_STREAM:
        server.listen()

    def body() -> None:
        with server:
            if kind == socket.SOCK_STREAM:
                client, peer = server.accept()
                with client:
                    client.sendall(peer[0].encode())
            else:
                _, peer = server.recvfrom(100)
                server.sendto(peer[0].encode(), peer)

    thread = threading.Thread(target=body)
    thread.start()
    return thread


def test_connecting_publishing_and_taking_back() -> None:
    def body() -> None:
        with host(), namespace("one") as path:
            wanted = [*ports.parse("8080:80"), *ports.parse("127.0.0.1:5353:53/udp")]
            result = cni.add("one", path, wanted)
            (shown,) = ip("-4", "addr", "show", "eth0", inside=path)
            (address,) = shown["addr_info"]
            assert result.addresses == [f"{address['local']}/{address['prefixlen']}"]
            assert result.addresses[0].startswith("10.87.")
            with Network.open(path) as network:
                (endpoint,) = network.endpoints()
                assert endpoint.description["routes"] == [{"destination": "0.0.0.0/0", "gateway": "10.87.0.1"}]
            assert cni.connected() == ["one"]
            with pytest.raises(ExistsError, match="The sandbox one is connected to a network already"):
                cni.add("one", path)

            thread = serve(path, 80)
            with socket.create_connection(("127.0.0.1", 8080), timeout=10) as client:
                assert client.recv(100) == b"10.87.0.1"
            thread.join()
            thread = serve(path, 53, socket.SOCK_DGRAM)
            with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as client:
                client.settimeout(10)
                client.sendto(b"?", ("127.0.0.1", 5353))
                assert client.recv(100) == b"10.87.0.1"
            thread.join()

            cni.delete("one")
            assert not ip("-4", "addr", "show", inside=path)[1:]
            cni.delete("one")

    on_a_host_of_its_own(body)


def test_two_containers_reach_each_other_and_the_outside_by_the_hosts_address() -> None:
    def body() -> None:
        with host(), namespace("outside") as outside, namespace("one") as first, namespace("two") as second:
            veth("h0", "eth0", outside)
            run("ip", "addr", "add", "10.99.0.1/24", "dev", "h0")
            run("ip", "addr", "add", "10.99.0.2/24", "dev", "eth0", inside=outside)
            ones = cni.add("one", first).addresses[0].split("/")[0]
            twos = cni.add("two", second).addresses[0].split("/")[0]
            assert ones != twos
            for server, address, seen in ((second, twos, ones), (outside, "10.99.0.2", "10.99.0.1")):
                thread = serve(server, 80)
                with opened(first) as fd, namespaces.inside(fd, socket.socket) as client:
                    client.settimeout(10)
                    client.connect((address, 80))
                    assert client.recv(100).decode() == seen
                thread.join()
            cni.delete("one")
            cni.delete("two")

    on_a_host_of_its_own(body)


def test_check_notices_what_has_been_taken_away() -> None:
    def body() -> None:
        with host(), namespace("one") as path:
            with pytest.raises(NotFoundError, match="one is not connected"):
                cni.check("one")
            result = cni.add("one", path)
            cni.check("one")
            run("ip", "addr", "flush", "dev", "eth0", inside=path)
            with pytest.raises(HostError, match="The CNI plugin bridge could not check the network of one"):
                cni.check("one")
            # The plugin takes back by the addresses that it finds.
            run("ip", "addr", "add", *result.addresses, "dev", "eth0", inside=path)
            cni.delete("one")

    on_a_host_of_its_own(body)


def test_the_namespace_may_go_first() -> None:
    def body() -> None:
        with host():
            with namespace("one") as path:
                cni.add("one", path, ports.parse("8080:80"))
            cni.delete("one")

    on_a_host_of_its_own(body)


@pytest.mark.parametrize("steps", [1, 2, 3])
def test_what_a_killed_one_began_can_be_taken_back(steps: int) -> None:
    """The process that connects is killed while the first, second or third plugin runs."""

    def body() -> None:
        with host(), namespace("one") as path:
            pid = os.fork()
            if pid == 0:
                real, count = cni._call, [0]

                def call(*arguments: object) -> bytes:
                    count[0] += 1
                    if count[0] == steps:
                        threading.Timer(0.03, os.kill, (os.getpid(), signal.SIGKILL)).start()
                    return real(*arguments)  # type: ignore[arg-type]

                cni._call = call
                cni.add("one", path, ports.parse("8080:80"))
                time.sleep(60)
                os._exit(1)
            assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == -signal.SIGKILL
            assert cni.connected() == ["one"]
            cni.delete("one")
            assert cni.add("one", path).addresses, "the next one has no trouble"
            cni.delete("one")

    on_a_host_of_its_own(body)


def test_a_failure_takes_back_what_was_done_and_says_why() -> None:
    def body() -> None:
        with host(), namespace("one") as path:
            config = cniconfig.built_in("10.87.0.0/16")
            write_list("10-a.conflist", config | {"name": "a", "plugins": [*config["plugins"], {"type": "none-such"}]})
            broken = config["plugins"][0] | {"ipam": {"type": "host-local", "ranges": [[{"subnet": "nonsense"}]]}}
            write_list("20-b.conflist", config | {"name": "b", "plugins": [broken]})
            write_list("30-c.conflist", config | {"name": "c", "plugins": config["plugins"][:1]})
            with pytest.raises(HostError, match=r"The CNI plugin none-such is in none of .*: install the Debian pack"):
                cni.add("one", path, ports.parse("8080:80"))
            assert not cni.connected()
            with pytest.raises(
                HostError, match=r"The CNI plugin bridge could not connect one \(network b\): .*nonsense"
            ):
                cni.add("one", path, network="b")
            assert not cni.connected()
            with pytest.raises(HostError, match="The network c cannot publish ports"):
                cni.add("one", path, ports.parse("8080:80"), network="c")
            with pytest.raises(
                NotFoundError, match=r"The network 'd' does not exist. There are: none, bridge, a, b, c"
            ):
                cni.add("one", path, network="d")
            assert cni.add("one", path, network="c").addresses
            cni.delete("one")

    on_a_host_of_its_own(body)


def test_addresses_of_the_host_are_avoided_and_the_choice_is_kept() -> None:
    def body() -> None:
        with host(), namespace("one") as path:
            run("ip", "link", "add", "h0", "type", "veth", "peer", "name", "h1")
            run("ip", "link", "set", "h0", "up")
            run("ip", "addr", "add", "10.87.3.1/24", "dev", "h0")
            assert cni.add("one", path).addresses == ["10.86.0.2/16"]
            run("ip", "link", "del", "h0")
            with namespace("two") as other:
                assert cni.add("two", other).addresses == ["10.86.0.3/16"]
                cni.delete("two")
            cni.delete("one")

    on_a_host_of_its_own(body)


def test_notes_from_before_a_reboot_count_no_more() -> None:
    def body() -> None:
        with host(), namespace("one") as path:
            cni.add("one", path)
            with open(os.path.join(cniconfig.state_dir(), "boot.json"), "w", encoding="ascii") as file:
                file.write('{"boot_id": "another"}')
            run("ip", "link", "del", "eth0", inside=path)
            assert cni.add("one", path).addresses == ["10.87.0.2/16"]
            cni.delete("one")

    on_a_host_of_its_own(body)


def test_a_published_port_is_held() -> None:
    def body() -> None:
        with ports.Reservation(ports.parse("80") + ports.parse("127.0.0.1:7000-7001:1-2/udp")) as held:
            chosen = held.mappings[0].host_port
            assert chosen > 0
            assert [mapping.host_port for mapping in held.mappings[1:]] == [7000, 7001]
            with pytest.raises(HostError, match=f"Cannot publish the host's port {chosen}:1/tcp: it is in use already"):
                ports.Reservation(ports.parse(f"{chosen}:1"))
            with pytest.raises(HostError, match=r"127\.0\.0\.1:7001:5/udp: it is in use already"):
                ports.Reservation([*ports.parse("7003:1/udp"), *ports.parse("127.0.0.1:7001:5/udp")])
            ports.Reservation(ports.parse("7003:1/udp")).close()
            with pytest.raises(OSError, match="Address already in use"):
                socket.create_server(("127.0.0.1", chosen))
        ports.Reservation(ports.parse(f"{chosen}:1")).close()

    on_a_host_of_its_own(body)
