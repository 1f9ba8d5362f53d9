"""Names that are resolved at a loopback address of the network namespace, as docker's are, in a real VM."""

from __future__ import annotations

import contextlib
import os
import socket
import struct
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import hako
from conftest import Roots
from hako.network import namespace as namespaces
from hako.sandbox import client
from hako.sandbox.api import Container
from hako.sandbox.requests import Mount
from support.netns import connected, on_a_host_of_its_own, opened, run, until, veth

pytestmark = [pytest.mark.system, pytest.mark.slow, pytest.mark.usefixtures("guest_image", "busybox_image")]

ADDRESS = "127.0.0.11"
#: What the test's server says of every name.
FOUND = "192.0.2.77"

#: Asks in each way in which a program can; prints whom it has heard from.
_ASK = """
import socket, struct
question = struct.pack(">6H", 7, 0x100, 1, 0, 0, 0) + b"\\4name\\0" + struct.pack(">2H", 1, 1)
def of(family):
    return ("127.0.0.11" if family == socket.AF_INET else "::ffff:127.0.0.11", 53)
def tell(how, family, peer, answer):
    assert peer[:2] == of(family), peer
    print(how, family.name, socket.inet_ntoa(answer[-4:]))
for family in (socket.AF_INET, socket.AF_INET6):
    with socket.socket(family, socket.SOCK_DGRAM) as client:
        client.settimeout(60)
        client.sendto(question, of(family))
        answer, peer = client.recvfrom(512)
        tell("sendto", family, peer, answer)
    with socket.socket(family, socket.SOCK_DGRAM) as client:
        client.settimeout(60)
        client.connect(of(family))
        client.send(question)
        tell("send", family, client.getpeername(), client.recv(512))
    with socket.create_connection(of(family), timeout=60) as client:
        client.sendall(len(question).to_bytes(2, "big") + question)
        size = int.from_bytes(client.recv(2, socket.MSG_WAITALL), "big")
        tell("tcp", family, client.getpeername(), client.recv(size, socket.MSG_WAITALL))
print(socket.gethostbyname("name"))
"""
_ASKED = "".join(f"{how} {family} {FOUND}\n" for family in ("AF_INET", "AF_INET6") for how in ("sendto", "send", "tcp"))

#: A name server of the container's own does not meet the relay.
_OWN = """
import socket
for kind in (socket.SOCK_DGRAM, socket.SOCK_STREAM):
    for address in ("0.0.0.0", "127.0.0.1", "127.0.0.11"):
        with socket.socket(socket.AF_INET, kind) as own:
            own.bind((address, 53))
own, client = (socket.socket(socket.AF_INET, socket.SOCK_DGRAM) for _ in range(2))
own.bind(("127.0.0.1", 53))
client.sendto(b"to my own", ("127.0.0.1", 53))
print(own.recv(100).decode())
"""


def answer(question: bytes) -> bytes:
    """The answer to a question for one name."""
    record = struct.pack(">HHHIH", 0xC00C, 1, 1, 60, 4) + socket.inet_aton(FOUND)
    return question[:2] + struct.pack(">5H", 0x8180, 1, 1, 0, 0) + question[12:] + record


@contextlib.contextmanager
def name_server(path: str) -> Iterator[None]:
    """A server at ADDRESS in the network namespace of the file ``path``, by UDP and TCP."""
    with opened(path) as fd:
        datagram = namespaces.inside(fd, lambda: socket.socket(socket.AF_INET, socket.SOCK_DGRAM))
        listener = namespaces.inside(fd, lambda: socket.socket(socket.AF_INET, socket.SOCK_STREAM))
    datagram.bind((ADDRESS, 53))
    listener.bind((ADDRESS, 53))
    listener.listen()

    def serve_datagrams() -> None:
        while (received := datagram.recvfrom(512))[0]:
            # A resolver asks for addresses of both families, and only one is there.
            datagram.sendto(answer(received[0]), received[1])

    def serve_connections() -> None:
        with contextlib.suppress(OSError):
            while True:
                with listener.accept()[0] as peer:
                    question = peer.recv(512)[2:]
                    if question:
                        reply = answer(question)
                        peer.sendall(len(reply).to_bytes(2, "big") + reply)

    threads = [threading.Thread(target=body) for body in (serve_datagrams, serve_connections)]
    for thread in threads:
        thread.start()
    try:
        yield
    finally:
        listener.shutdown(socket.SHUT_RDWR)
        with opened(path) as fd, namespaces.inside(fd, lambda: socket.socket(type=socket.SOCK_DGRAM)) as last:
            last.sendto(b"", (ADDRESS, 53))
        for thread in threads:
            thread.join()
        datagram.close()
        listener.close()


@pytest.fixture
def on_host(roots: Roots, tmp_path: Path) -> Callable[[Callable[[str], None]], None]:
    """Calls a function with the file of a network namespace that is connected with a host of the test's own."""
    assert roots

    def whole(body: Callable[[str], None]) -> None:
        def inner() -> None:
            (tmp_path / "config.toml").touch()
            os.environ["HAKO_CONFIG"] = str(tmp_path / "config.toml")
            with connected() as path:
                body(path)

        on_a_host_of_its_own(inner)

    return whole


def create(sandbox: hako.Sandbox, resolv_conf: Path) -> Container:
    """A container with that file and the host's interpreter."""
    mounts = [Mount(path, path, True) for path in ("/usr", "/lib", "/lib64")]
    return sandbox.create(["sleep", "1000"], mounts=[*mounts, Mount(str(resolv_conf), "/etc/resolv.conf")])


def python(container: Container, program: str) -> str:
    """What a program prints in the container."""
    done: Any = container.run(["/usr/bin/python3", "-IS", "-c", program])
    assert done.exit_status == 0, done.stderr
    return str(done.stdout)


def test_a_name_server_on_the_networks_loopback(
    on_host: Callable[[Callable[[str], None]], None], tmp_path: Path
) -> None:
    file = tmp_path / "resolv.conf"
    file.write_text(f"nameserver {ADDRESS}\noptions ndots:0\n")

    def body(path: str) -> None:
        with name_server(path), hako.Sandbox("busybox") as sandbox:
            client.call(sandbox.id, "Network", {"path": path})
            first = create(sandbox, file)
            assert python(first, _ASK) == f"{_ASKED}{FOUND}\n"
            assert python(first, _OWN) == "to my own\n"
            # Containers of one VM share its network, and the relay.
            assert python(create(sandbox, file), _ASK) == f"{_ASKED}{FOUND}\n"

    on_host(body)


def test_a_network_with_a_name_server_is_connected_later(
    on_host: Callable[[Callable[[str], None]], None], tmp_path: Path
) -> None:
    file = tmp_path / "resolv.conf"
    file.write_text("nameserver 10.9.0.1\n")
    program = f"import socket; print(socket.gethostbyname('name') == '{FOUND}')"

    def body(path: str) -> None:
        with hako.Sandbox("busybox") as sandbox:
            client.call(sandbox.id, "Network", {"path": path})
            container = create(sandbox, file)
            with name_server(path):
                file.write_text(f"nameserver {ADDRESS}\noptions timeout:1 attempts:1\n")
                veth("h1", "eth1", path)
                run("ip", "addr", "add", "10.8.0.2/24", "dev", "eth1", inside=path)
                until(lambda: container.run(["/usr/bin/python3", "-IS", "-c", program]).stdout == "True\n")

    on_host(body)
