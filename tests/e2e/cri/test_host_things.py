"""Volumes that are more than files: sockets of the node, its block devices."""

from __future__ import annotations

import contextlib
import os
import socket
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from support import cri_messages as m
from support.filesystem import pyroot
from support.machine import until
from support.pods import Pod, fails

pytestmark = [pytest.mark.e2e, pytest.mark.slow]

_SIZE = 8 << 20
_CLIENT = """
import socket, sys
link = socket.socket(socket.AF_UNIX)
link.connect("/run/service.sock")
link.sendall(sys.argv[1].encode())
link.shutdown(socket.SHUT_WR)
answer = b""
while data := link.recv(65536):
    answer += data
print(len(answer), answer[:60].decode())
"""

_SERVER = """
import socket
server = socket.socket(socket.AF_UNIX)
server.bind("/run/service.sock")
server.listen()
print("listens", flush=True)
link = server.accept()[0]
link.sendall(link.recv(100).upper())
"""


@pytest.fixture(scope="module")
def python(tmp_path_factory: pytest.TempPathFactory) -> list[m.Mount]:
    """Mounts by which a container has Python, which can talk to a UNIX socket."""
    root = tmp_path_factory.mktemp("python")
    root.chmod(0o755)
    script = root / "client.py"
    script.write_text(_CLIENT)
    pyroot.make(root, script)
    return [
        m.Mount(container_path=f"/{name}", host_path=str(root / name), readonly=True)
        for name in ("usr", "lib", "lib64", "checks")
        if (root / name).exists()
    ]


@contextlib.contextmanager
def echo_server(path: Path) -> Iterator[list[bytes]]:
    """A server of the host at the UNIX socket ``path`` that answers with what it was told, a hundred times."""
    told: list[bytes] = []
    server = socket.socket(socket.AF_UNIX)
    server.bind(str(path))
    path.chmod(0o666)
    server.listen()

    def serve() -> None:
        with contextlib.suppress(OSError):  # the end
            while True:
                link, _ = server.accept()
                with link:
                    said = b""
                    while data := link.recv(1 << 16):
                        said += data
                    told.append(said)
                    link.sendall(said * 100)

    thread = threading.Thread(target=serve)
    thread.start()
    try:
        yield told
    finally:
        server.shutdown(socket.SHUT_RDWR)
        thread.join()
        server.close()


def test_socket_of_the_node(pod: Pod, tmp_path: Path, python: list[m.Mount]) -> None:
    """What listens at a UNIX socket of the node is reached through it, by several containers."""
    with echo_server(tmp_path / "s") as told:
        mounts = [*python, m.Mount(container_path="/run/service.sock", host_path=str(tmp_path / "s"))]
        clients = [pod.start(name, "sleep", "1000", mounts=mounts) for name in ("one", "two")]
        for number, client in enumerate(clients * 2):
            said = client.exec(pyroot.PYTHON, "-IS", "/checks/client.py", f"hello {number}")
            assert (said.stdout.decode(), said.exit_code) == (f"700 {(f'hello {number}' * 100)[:60]}\n", 0)
        assert told == [f"hello {number}".encode() for number in range(4)]
        for client in clients:
            client.stop()
            client.remove()


def test_socket_between_containers(pod: Pod, python: list[m.Mount]) -> None:
    """Containers of a pod reach each other by a socket in a volume that they share."""
    volume = m.Mount(container_path="/run", host_path=pod.volume("empty-dir", "run"))
    server = pod.start("server", pyroot.PYTHON, "-IS", "-c", _SERVER, mounts=[*python, volume])
    server.until_logged("listens\n")
    client = pod.start("client", "sleep", "1000", mounts=[*python, volume])
    said = client.exec(pyroot.PYTHON, "-IS", "/checks/client.py", "hello")
    assert (said.stdout, said.exit_code) == (b"5 HELLO\n", 0)
    # It ends after its only client, and containerd does not remove what it is just about to see end.
    assert server.until_exited().exit_code == 0
    client.stop()
    for made in (client, server):
        made.remove()


@contextlib.contextmanager
def loop_device(path: Path) -> Iterator[str]:
    """A block device of the node with the file ``path`` behind it."""
    path.write_bytes(bytes(_SIZE))
    made = subprocess.run(["losetup", "--find", "--show", path], check=True, capture_output=True, text=True)
    device = made.stdout.strip()
    try:
        yield device
    finally:
        subprocess.run(["losetup", "--detach", device], check=True)


def test_block_device(pod: Pod, tmp_path: Path) -> None:
    """volumeDevices: a raw block device, read and written."""
    with loop_device(tmp_path / "disk") as device:
        made = pod.start("block", devices=[m.Device(container_path="/dev/xvda", host_path=device, permissions="rwm")])
        assert made.sh("blockdev --getsize64 /dev/xvda; test -b /dev/xvda && echo block") == f"{_SIZE}\nblock"
        made.sh("echo from the pod | dd of=/dev/xvda bs=512 seek=3 conv=notrunc,sync,fsync 2>&1; sync")
        with open(device, "rb") as disk:
            until(lambda: os.pread(disk.fileno(), 13, 3 * 512) == b"from the pod\n", "the device has it", 10)
        made.sh("mke2fs /dev/xvda >/dev/null 2>&1; sync")
        assert made.sh("dd if=/dev/xvda bs=1 skip=1080 count=2 2>/dev/null | od -An -tx1").split() == ["53", "ef"]
        made.stop()
        made.remove()


def test_read_only_block_device(pod: Pod, tmp_path: Path) -> None:
    with loop_device(tmp_path / "disk") as device:
        made = pod.start("readonly", devices=[m.Device(container_path="/dev/xvdb", host_path=device, permissions="rm")])
        assert made.sh(f"head -c {_SIZE} /dev/xvdb | wc -c") == str(_SIZE)
        assert made.exec("sh", "-c", "echo x >/dev/xvdb").exit_code != 0
        made.stop()
        made.remove()


def test_block_device_that_is_not_there(pod: Pod) -> None:
    device = m.Device(container_path="/dev/x", host_path="/dev/no-such-device", permissions="rw")
    assert "no-such-device" in fails(pod.create, "missing", devices=[device])
