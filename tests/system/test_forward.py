"""Connections from the host to servers in a real VM: through a pod's network namespace, and by the library."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import os
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import hako
import hako.aio
from conftest import Roots
from hako.errors import NotFoundError
from hako.sandbox import client
from hako.sandbox.api import Container
from hako.sandbox.requests import Mount
from support.netns import BOX, connected, on_a_host_of_its_own, tc, until

pytestmark = [pytest.mark.system, pytest.mark.slow, pytest.mark.usefixtures("guest_image", "busybox_image")]

PYTHON = [Mount(path, path, True) for path in ("/usr", "/lib", "/lib64")]

#: Echoes at a port of each address.
_SERVER = """
import socket, sys, threading
def echo(s):
    with s:
        while data := s.recv(1 << 16):
            s.sendall(data)
        s.shutdown(socket.SHUT_WR)
def serve(listener):
    while True:
        threading.Thread(target=echo, args=(listener.accept()[0],)).start()
listeners = []
for at in sys.argv[1:]:
    address, _, port = at.rpartition(":")
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    listeners.append(socket.create_server((address, int(port)), family=family, backlog=128))
print("ready", flush=True)
for listener in listeners:
    threading.Thread(target=serve, args=(listener,)).start()
"""
#: Sends so many bytes, ends that, and tells the digests of both directions.
_CLIENT = """
import hashlib, os, socket, sys, threading
address, port, size = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
data = os.urandom(size)
with socket.create_connection((address, port), timeout=120) as s:
    def send():
        s.sendall(data)
        s.shutdown(socket.SHUT_WR)
    sending = threading.Thread(target=send)
    sending.start()
    received = b"".join(iter(lambda: s.recv(1 << 16), b""))
    sending.join()
print(received == data)
"""


#: A name server in the container, and a question to it.
_OWN_SERVER = """
import socket
own, client = (socket.socket(socket.AF_INET, socket.SOCK_DGRAM) for _ in range(2))
own.bind(("127.0.0.1", 53))
client.sendto(b"to my own", ("127.0.0.1", 53))
own.settimeout(10)
print(own.recv(100).decode())
"""


def start(sandbox: hako.Sandbox, *addresses: str) -> Container:
    """A container with a server at these addresses of the guest's."""
    container = sandbox.create(["sleep", "1000"], image="busybox", mounts=PYTHON)
    read, write = os.pipe()
    container.exec(["/usr/bin/python3", "-IS", "-c", _SERVER, *addresses], stdout=write)
    os.close(write)
    with open(read, "rb") as output:
        assert output.readline() == b"ready\n"
    return container


def ask(path: str, *arguments: object) -> subprocess.CompletedProcess[str]:
    """Run the client in the namespace, as an engine does that forwards a port."""
    command = ["nsenter", f"--net={path}", sys.executable, "-IS", "-c", _CLIENT, *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=150, check=False)


def on_host(tmp_path: Path, body: Callable[[str], None]) -> None:
    """Run ``body`` with the file of a pod's network namespace."""

    def whole() -> None:
        (tmp_path / "config.toml").touch()
        os.environ["HAKO_CONFIG"] = str(tmp_path / "config.toml")
        with connected() as path:
            body(path)

    on_a_host_of_its_own(whole)


def test_ports_of_a_pod_are_forwarded(tmp_path: Path, roots: Roots) -> None:
    assert roots

    def body(path: str) -> None:
        with hako.Sandbox("busybox") as sandbox:
            client.call(sandbox.id, "Network", {"path": path, "forward": True})
            start(sandbox, "127.0.0.1:8001", "0.0.0.0:8002", "::1:8003")
            for address, port, size in (
                *(("127.0.0.1", 8001, 8 << 20), ("localhost", 8002, 1 << 20), ("127.0.0.1", 8003, 100)),
                *(("::1", 8001, 100), ("::1", 8003, 1 << 20)),
            ):
                done = ask(path, address, port, size)
                assert done.stdout == "True\n", (address, port, done.stderr)
            refused = ask(path, "127.0.0.1", 8004, 10)
            assert "ConnectionResetError" in refused.stderr
            # What the namespace is for is not disturbed: the pod's address is the guest's.
            reached = subprocess.run(
                [sys.executable, "-IS", "-c", _CLIENT, BOX, "8002", "100000"],
                capture_output=True, text=True, timeout=60, check=False,
            )  # fmt: skip
            assert reached.stdout == "True\n", reached.stderr
        # Nothing is left in the namespace.
        assert "ConnectionRefusedError" in ask(path, "127.0.0.1", 8001, 10).stderr
        assert tc("qdisc", "show", "dev", "eth0", "ingress", inside=path) == []

    on_host(tmp_path, body)


def test_ports_are_not_forwarded_unasked_nor_after_a_kill(tmp_path: Path) -> None:
    def body(path: str) -> None:
        with hako.Sandbox("busybox") as sandbox:
            client.call(sandbox.id, "Network", {"path": path})
            assert "ConnectionRefusedError" in ask(path, "127.0.0.1", 8001, 10).stderr
        sandbox = hako.Sandbox("busybox", owned=False)
        client.call(sandbox.id, "Network", {"path": path, "forward": True})
        assert "ConnectionResetError" in ask(path, "127.0.0.1", 8001, 10).stderr
        os.kill(sandbox.state["pid"], 9)
        until(lambda: "ConnectionRefusedError" in ask(path, "127.0.0.1", 8001, 10).stderr)
        until(lambda: not os.path.exists(client.socket_path(sandbox.id)))
        with contextlib.suppress(NotFoundError):
            sandbox.delete()

    on_host(tmp_path, body)


def test_a_pods_own_name_server_is_not_taken_for_one_of_the_hosts(tmp_path: Path) -> None:
    """Its address in the namespace leads back into the guest, where a relay would ask itself."""
    file = tmp_path / "resolv.conf"
    file.write_text("nameserver 127.0.0.1\n")

    def body(path: str) -> None:
        with hako.Sandbox("busybox") as sandbox:
            client.call(sandbox.id, "Network", {"path": path, "forward": True})
            mounts = [*PYTHON, Mount(str(file), "/etc/resolv.conf")]
            container = sandbox.create(["sleep", "1000"], mounts=mounts)
            done: Any = container.run(["/usr/bin/python3", "-IS", "-c", _OWN_SERVER])
            assert done.stdout == "to my own\n", done.stderr

    on_host(tmp_path, body)


def test_a_program_connects() -> None:
    data = os.urandom(8 << 20)
    with hako.Sandbox("busybox") as sandbox:
        start(sandbox, "127.0.0.1:8001")
        with pytest.raises(NotFoundError, match="nothing in the VM listens at port 8002"):
            sandbox.connect(8002)
        with sandbox.connect(8001) as connected_socket:
            sending = threading.Thread(target=lambda: (connected_socket.sendall(data), connected_socket.shutdown(1)))
            sending.start()
            with connected_socket.makefile("rb") as incoming:
                assert hashlib.sha256(incoming.read()).digest() == hashlib.sha256(data).digest()
            sending.join()
        idle = sandbox.connect(8001)
    # The end of the VM is the end of its connections.
    with idle:
        assert idle.recv(1) == b""


def test_a_program_connects_on_asyncio() -> None:
    async def body() -> None:
        async with hako.aio.Sandbox("busybox") as sandbox:
            await asyncio.to_thread(start, hako.Sandbox.load(sandbox.id), "127.0.0.1:8001")
            with pytest.raises(NotFoundError):
                await sandbox.connect(8002)
            pairs: list[Any] = await asyncio.gather(*(sandbox.connect(8001) for _ in range(20)))
            for index, (_, writer) in enumerate(pairs):
                writer.write(b"%d" % index)
                writer.write_eof()
            for index, (reader, writer) in enumerate(pairs):
                assert await reader.read() == b"%d" % index
                writer.close()
                await writer.wait_closed()

    asyncio.run(body())
