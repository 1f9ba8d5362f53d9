"""Networks of docker and podman, with runc and with hako: ports, names, neighbours, what is connected later."""

from __future__ import annotations

import json
import subprocess

import pytest

from support.engines import IMAGE, Box, differs
from support.machine import until

pytestmark = [pytest.mark.e2e, pytest.mark.slow]

CARD = differs(
    "`--network none`",
    runc="the loopback alone",
    hako="the loopback, and a network card that is down and connected to nothing",
    why="the card is among the devices of the template that every VM is cloned from",
)

DOCKER = pytest.mark.parametrize("box", ["docker-runc", "docker-hako"], indirect=True)

#: A web server on port 80 that gives away its own name.
_SERVER = ["sh", "-c", "hostname >/tmp/name; exec httpd -f -p 80 -h /tmp"]


def fetch(box: Box, container: str, host: str) -> str:
    """What a container gets from the web server on ``host``, once it answers."""

    def fetched() -> str:
        # The image's wget is not to be relied on.
        script = f"printf 'GET /name HTTP/1.0\\r\\n\\r\\n' | nc -w 5 {host} 80"
        return box("exec", container, "sh", "-c", script, check=False).stdout.partition("\r\n\r\n")[2]

    return until(fetched, f"{container} reaches {host}").strip()


def fetch_from_host(box: Box, address: str) -> str:
    """What the host gets from a server at ``address``, once it answers."""
    code = f"import urllib.request as r; print(r.urlopen('http://{address}/name', timeout=2).read().decode())"
    argv = box.engine.machine.inside("/usr/bin/python3", "-IS", "-c", code)

    def fetched() -> str:
        done = subprocess.run(argv, env=box.engine.machine.environment, capture_output=True, text=True, check=False)
        return done.stdout

    return until(fetched, f"the host reaches {address}").strip()


def address_of(box: Box, container: str, network: str) -> str:
    """A container's address in a network."""
    (found,) = json.loads(box.output("inspect", container))
    return str(found["NetworkSettings"]["Networks"][network]["IPAddress"])


def test_published_ports(box: Box) -> None:
    box.start("web", "--hostname", "served", "-p", "127.0.0.1:8080:80", "-p", "8081:80", IMAGE, *_SERVER)
    gateway = "172.17.0.1" if box.docker else "10.88.0.1"
    assert fetch_from_host(box, "127.0.0.1:8080") == "served"
    assert fetch_from_host(box, f"{gateway}:8081") == "served"
    assert "8080->80/tcp" in box.output("ps")


def test_neighbours_of_both_runtimes(box: Box) -> None:
    box.engine.run("run", "-d", "--name", "plain", "--hostname", "one", IMAGE, *_SERVER, runtime="runc")
    box.start("tested", "--hostname", "two", IMAGE, *_SERVER)
    network = "bridge" if box.docker else "podman"
    assert fetch(box, "tested", address_of(box, "plain", network)) == "one"
    assert fetch(box, "plain", address_of(box, "tested", network)) == "two"
    assert "mtu 1500" in box.output("exec", "tested", "ip", "link", "show", "eth0")


@DOCKER
def test_names_on_a_network(box: Box) -> None:
    box("network", "create", "team")
    box.start("first", "--network", "team", "--network-alias", "uno", "--hostname", "one", IMAGE, *_SERVER)
    box.start("second", "--network", "team", "--hostname", "two", IMAGE, *_SERVER)
    assert fetch(box, "second", "first") == "one"
    assert fetch(box, "second", "uno") == "one"
    assert fetch(box, "first", "second") == "two"


def test_a_network_of_ones_own(box: Box) -> None:
    box("network", "create", "--subnet", "10.77.5.0/24", "team")
    box.start("first", "--network", "team", "--ip", "10.77.5.9", "--hostname", "one", IMAGE, *_SERVER)
    box.start("second", "--network", "team", IMAGE, "sleep", "1000")
    assert fetch(box, "second", "10.77.5.9") == "one"
    assert "default via 10.77.5.1 dev eth0" in box.output("exec", "second", "ip", "route")


def test_no_network(box: Box) -> None:
    script = "ip -o link | grep -v LOOPBACK | wc -l; ip -o -4 addr show up | awk '{ print $4 }'; ip route"
    assert box.shell("--network", "none", script).splitlines() == [box.either(CARD, runc="0", hako="1"), "127.0.0.1/8"]


def test_connecting_and_disconnecting(box: Box) -> None:
    for name, subnet in (("left", "10.77.6.0/24"), ("right", "10.77.7.0/24")):
        box("network", "create", "--subnet", subnet, name)
    box.start("server", "--network", "right", "--ip", "10.77.7.9", "--hostname", "one", IMAGE, *_SERVER)
    box.start("client", "--network", "left", IMAGE, "sleep", "1000")
    box("network", "connect", "right", "client")
    assert fetch(box, "client", "10.77.7.9") == "one"
    assert "10.77.7." in box.output("exec", "client", "ip", "addr")
    box("network", "disconnect", "right", "client")
    until(lambda: "10.77.7." not in box.output("exec", "client", "ip", "addr"), "the interface is gone")
    assert "10.77.6." in box.output("exec", "client", "ip", "addr")
