"""A pod's network: addresses, who reaches whom, ports of the node that lead into a pod, forwarded ports."""

from __future__ import annotations

import threading

import pytest

from support import cri_messages as m
from support.engines import differs
from support.machine import until
from support.pods import ASK, GET, Ctr, Node, Pod, either

pytestmark = [pytest.mark.e2e, pytest.mark.slow]

#: The node's address on the pods' network.
NODE = "10.88.0.1"
_SIZE = 2_000_000

NOBODY = differs(
    "a forwarded port that nobody listens at",
    runc="connection refused",
    hako="connection reset",
    why="the connection is taken on the host before the guest is asked",
)


def test_addresses(pod: Pod, container: Ctr) -> None:
    found = container.sh("ip -4 -o addr show; ip route")
    assert f"inet {pod.address}/16" in found
    assert "inet 127.0.0.1/8" in found
    assert f"default via {NODE} dev eth0" in found


def test_pod_reaches_node(node: Node, container: Ctr) -> None:
    with node.serving(b"from the node\n") as port:
        assert container.sh(f"nc -w 5 {NODE} {port} </dev/null") == "from the node"


def test_node_and_pods_reach_pod(node: Node, handler: str, pod: Pod, container: Ctr) -> None:
    with node.pod(handler, "serving") as other:
        other.serve("server", "0.0.0.0:8080", "across")
        assert node.ask(other.address, 8080, GET).endswith(b"\r\n\r\nacross\n")
        assert container.sh(f"{ASK}{other.address} 8080").endswith("\nacross")


def test_ports_of_the_node(node: Node, handler: str, container: Ctr) -> None:
    mappings = [m.PortMapping(container_port=port, host_port=port + 10_000) for port in (8080, 8081)]
    with node.pod(handler, "ports", port_mappings=mappings) as pod:
        pod.serve("one", "0.0.0.0:8080", "first")
        pod.serve("two", "0.0.0.0:8081", "second")
        assert node.ask(NODE, 18080, GET).endswith(b"\r\n\r\nfirst\n")
        assert node.ask("127.0.0.1", 18081, GET).endswith(b"\r\n\r\nsecond\n")
        # Other pods use them too.
        assert container.sh(f"{ASK}{NODE} 18081").endswith("\nsecond")
    with pytest.raises(OSError):
        node.ask(NODE, 18080, GET)


@pytest.mark.parametrize("listen", ["127.0.0.1:9001", "0.0.0.0:9002"])
def test_forwarded_port(pod: Pod, listen: str) -> None:
    port = int(listen.rpartition(":")[2])
    made = pod.serve(f"forwarded-{port}", listen, "through")
    for _ in range(2):
        with pod.cri.port_forward(pod.id, port) as link:
            link.send(GET)
            assert link.read(10_000).endswith(b"\r\n\r\nthrough\n")
            assert link.error == b""
    made.stop()
    made.remove()


def test_much_through_a_forwarded_port(pod: Pod) -> None:
    """Both ways at once, and to the last byte."""
    made = pod.start("echo", "nc", "-ll", "-p", "9100", "-e", "cat")
    until(lambda: f":{9100:04X} " in made.sh("cat /proc/net/tcp /proc/net/tcp6"), "the echo listens")
    data = bytes(range(256)) * (_SIZE // 256)
    with pod.cri.port_forward(pod.id, 9100) as link:
        sender = threading.Thread(target=link.send, args=(data,))
        sender.start()
        assert link.read(len(data)) == data
        sender.join()
    made.stop()
    made.remove()


def test_forwarded_port_without_a_server(pod: Pod, container: Ctr) -> None:
    with pod.cri.port_forward(pod.id, 9300) as link:
        assert link.read(1) == b""
        assert b"9300" in link.error
        assert either(pod.handler, NOBODY, runc=b"connection refused", hako=b"connection reset") in link.error
