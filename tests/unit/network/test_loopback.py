"""Taking what is connected to on the loopback of a network namespace."""

from __future__ import annotations

import os
import select
import socket
import subprocess
import time
from collections.abc import Callable

import pytest

from hako.errors import HostError
from hako.linux import bpf, rtnetlink
from hako.linux.netlink import Netlink
from hako.network import loopback
from hako.network import namespace as namespaces
from hako.network.loopback import Loopback
from support.agentside import open_fds
from support.netns import on_a_host_of_its_own, run

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="needs root: network namespaces and programs in the kernel")

OWN = "/proc/thread-self/ns/net"


def here(body: Callable[[Loopback], None]) -> None:
    """Run ``body`` where the loopback is taken."""

    def whole() -> None:
        before = open_fds()
        namespace = os.open(OWN, os.O_RDONLY | os.O_CLOEXEC)
        taken = Loopback(namespace)
        os.close(namespace)
        body(taken)
        taken.close()
        taken.close()
        assert open_fds() == before
        # Nothing of it is left in the kernel.
        with pytest.raises(ConnectionRefusedError):
            socket.create_connection(("127.0.0.1", 80), timeout=5)

    on_a_host_of_its_own(whole)


def accept(taken: Loopback) -> socket.socket:
    """The next connection, of either family."""
    ready, _, _ = select.select(taken.listeners, [], [], 5)
    assert ready
    return ready[0].accept()[0]  # type: ignore[no-any-return]


def test_every_port_is_taken() -> None:
    def body(taken: Loopback) -> None:
        for address in ("127.0.0.1", "::1"):
            for port in (1, 80, 8443, 65535):
                with socket.create_connection((address, port), timeout=5) as client, accept(taken) as accepted:
                    assert accepted.getsockname()[:2] == client.getpeername()[:2] == (address, port)
                    client.sendall(b"ping")
                    accepted.setblocking(True)
                    assert accepted.recv(10) == b"ping"

    here(body)


def test_nothing_else_is_taken() -> None:
    def body(taken: Loopback) -> None:
        run("ip", "addr", "add", "10.1.1.1/32", "dev", "lo")
        run("ip", "addr", "add", "fd00::1/128", "dev", "lo", "nodad")
        while subprocess.run(["ip", "-6", "route", "get", "fd00::1"], capture_output=True, check=False).returncode:
            time.sleep(0.01)  # the kernel has not made its route yet
        for address, source in (
            *(("127.0.0.2", ""), ("10.1.1.1", ""), ("fd00::1", "")),
            *(("127.0.0.1", "10.1.1.1"), ("::1", "fd00::1")),
        ):
            with pytest.raises(ConnectionRefusedError):
                socket.create_connection((address, 80), timeout=5, source_address=(source, 0) if source else None)
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as client:
            client.settimeout(5)
            client.connect(("127.0.0.1", 53))
            client.send(b"question")
            with pytest.raises(ConnectionRefusedError):
                client.recv(10)
        with socket.create_server(("10.1.1.1", 80)) as server:
            socket.create_connection(("10.1.1.1", 80), timeout=5).close()
            server.accept()[0].close()
        assert select.select(taken.listeners, [], [], 0)[0] == []

    here(body)


def test_connections_outlive_it() -> None:
    def body(taken: Loopback) -> None:
        with socket.create_connection(("127.0.0.1", 80), timeout=5) as client, accept(taken) as accepted:
            taken.close()
            accepted.setblocking(True)
            accepted.sendall(b"still")
            assert client.recv(10) == b"still"

    here(body)


def test_another_namespace_whose_loopback_comes_later() -> None:
    def whole() -> None:
        namespace = namespaces.create_unnamed(_switch_loopback_off)
        taken = Loopback(namespace)
        with namespaces.open_socket(namespace) as kernel:
            rtnetlink.set_link(kernel, rtnetlink.find_link(kernel, "lo").index, up=True)
        # Here is another one, where nothing is taken.
        with pytest.raises(ConnectionRefusedError):
            socket.create_connection(("127.0.0.1", 80), timeout=5)
        for address in ("127.0.0.1", "::1"):
            client = namespaces.inside(namespace, lambda at=address: socket.create_connection((at, 80), timeout=5))
            accept(taken).close()
            client.close()
        taken.close()
        os.close(namespace)

    on_a_host_of_its_own(whole)


def _switch_loopback_off(kernel: Netlink) -> None:
    rtnetlink.set_link(kernel, rtnetlink.find_link(kernel, "lo").index, up=False)


@pytest.mark.parametrize("step", ["create_map", "set_entry", "load", "attach"])
def test_a_kernel_that_cannot_do_it(step: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> int:
        raise OSError(22, "bpf: Invalid argument")

    monkeypatch.setattr(bpf, step, fail)
    before = open_fds()
    namespace = namespaces.create_unnamed(lambda _: None)
    with pytest.raises(HostError, match="bpf: Invalid argument"):
        Loopback(namespace)
    os.close(namespace)
    assert open_fds() == before


def test_the_program_has_no_jump_out_of_itself() -> None:
    code = loopback.program(5, [socket.AF_INET, socket.AF_INET6])
    steps = [code[at : at + 8] for at in range(0, len(code), 8)]
    jumps = [(at, int.from_bytes(step[2:4], "little")) for at, step in enumerate(steps) if step[0] in (0x15, 0x56)]
    assert len(jumps) > 10
    assert all(at < at + 1 + offset < len(steps) for at, offset in jumps)
