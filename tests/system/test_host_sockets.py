"""UNIX sockets of the host in containers, in a real VM."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import struct
import tempfile
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

import hako
from conftest import Roots, RunHako
from hako.config.load import load, override
from hako.errors import ConfigError
from hako.sandbox import records
from hako.sandbox.api import Container
from hako.sandbox.requests import Mount
from support import leaks
from support.servers import echo, unix_server

pytestmark = [pytest.mark.system, pytest.mark.slow, pytest.mark.usefixtures("guest_image", "busybox_image")]

#: Where the containers have it.
INSIDE = "/run/host.sock"
PYTHON = [Mount(path, path, True) for path in ("/usr", "/lib", "/lib64")]

#: Sends so many MiB in pieces, ends that, and compares what comes back.
_ECHO = """
import hashlib, os, socket, sys, threading
sent, received = hashlib.sha256(), hashlib.sha256()
with socket.socket(socket.AF_UNIX) as s:
    s.connect(sys.argv[1])
    def send():
        for _ in range(int(sys.argv[2])):
            data = os.urandom(1 << 20)
            sent.update(data)
            s.sendall(data)
        s.shutdown(socket.SHUT_WR)
    sending = threading.Thread(target=send)
    sending.start()
    while data := s.recv(1 << 16):
        received.update(data)
    sending.join()
print(sent.digest() == received.digest())
"""
#: One connection after another, and many at once.
_MANY = """
import socket, sys
def connect():
    s = socket.socket(socket.AF_UNIX)
    s.connect(sys.argv[1])
    return s
for round in range(2):
    all = [connect() for _ in range(200)]
    for i, s in enumerate(all):
        s.sendall(b"%d" % i)
        s.shutdown(socket.SHUT_WR)
    for i, s in enumerate(all):
        assert s.makefile("rb").read() == b"%d" % i
        s.close()
print("all")
"""
_READ = "import socket, sys; s = socket.socket(socket.AF_UNIX); s.connect(sys.argv[1]); print(s.makefile().read())"


@pytest.fixture
def directory() -> Iterator[str]:
    """One whose name leaves room in the address of a socket."""
    with tempfile.TemporaryDirectory(prefix="h", dir="/tmp") as made:
        os.chmod(made, 0o755)
        yield made


def peer(connected: socket.socket) -> None:
    """Tell the client who it is."""
    _, uid, gid = struct.unpack("3I", connected.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12))
    connected.sendall(f"{uid}:{gid}".encode())


def python(container: Container, program: str, *arguments: str, user: str = "") -> str:
    """What a program prints in the container."""
    done: Any = container.run(["/usr/bin/python3", "-IS", "-c", program, *arguments], user=user, timeout=180)
    assert done.exit_status == 0, done.stderr
    return str(done.stdout)


def create(sandbox: hako.Sandbox, source: str) -> Container:
    return sandbox.create(["sleep", "1000"], mounts=[*PYTHON, Mount(source, INSIDE)])


def test_two_containers_at_once(directory: str) -> None:
    with unix_server(f"{directory}/s", echo) as path, hako.Sandbox("busybox") as sandbox:
        containers = [create(sandbox, path) for _ in range(2)]
        with ThreadPoolExecutor(2) as threads:
            assert list(threads.map(lambda one: python(one, _ECHO, INSIDE, "16"), containers)) == ["True\n"] * 2
        containers[0].delete(force=True)
        assert python(containers[1], _ECHO, INSIDE, "1") == "True\n"
        assert python(containers[1], _MANY, INSIDE) == "all\n"


def test_the_socket_looks_and_works_as_on_the_host(directory: str) -> None:
    with unix_server(f"{directory}/s", peer) as path, hako.Sandbox("busybox") as sandbox:
        os.chown(path, 0, 1234)
        os.chmod(path, 0o660)
        container = create(sandbox, path)
        shown = container.run(["stat", "-c", "%F %a %u %g", INSIDE])
        assert shown.stdout == "socket 660 0 1234\n"
        assert python(container, _READ, INSIDE) == "0:0\n"
        assert python(container, _READ, INSIDE, user="1000:1234") == "1000:1234\n"
        refused: Any = container.run(["/usr/bin/python3", "-IS", "-c", _READ, INSIDE], user="1000:1000")
        assert "PermissionError" in refused.stderr
        # By its directory it is a file, and no more.
        other = sandbox.create(["sleep", "1000"], mounts=[*PYTHON, Mount(directory, "/run/host")])
        refused = other.run(["/usr/bin/python3", "-IS", "-c", _READ, "/run/host/s"])
        assert "ConnectionRefusedError" in refused.stderr


def test_a_server_that_goes(directory: str) -> None:
    with hako.Sandbox("busybox") as sandbox:
        with unix_server(f"{directory}/s", peer) as path:
            container = create(sandbox, path)
            assert python(container, _READ, INSIDE) == "0:0\n"
        assert python(container, _READ, INSIDE) == "\n"


def test_what_is_refused(directory: str) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as log, hako.Sandbox("busybox") as sandbox:
        log.bind(f"{directory}/log")
        with pytest.raises(ConfigError, match="SOCK_DGRAM"):
            create(sandbox, f"{directory}/log")
        os.mkfifo(f"{directory}/fifo")
        with pytest.raises(ConfigError, match="is a fifo"):
            create(sandbox, f"{directory}/fifo")
        assert sandbox.run(["echo", "fine"]).stdout == "fine\n"


def test_the_setting_refuses_sockets(directory: str) -> None:
    config = override(load(), {"sandbox.host_sockets": "false"})
    with (
        unix_server(f"{directory}/s", peer) as path,
        hako.Sandbox("busybox", config=config) as sandbox,
        pytest.raises(ConfigError, match=r"sandbox\.host_sockets"),
    ):
        create(sandbox, path)


def test_the_command_line(directory: str, run_hako: RunHako) -> None:
    with unix_server(f"{directory}/s", peer) as path:
        volumes = [f"{one.source}:{one.destination}:ro" for one in PYTHON] + [f"{path}:{INSIDE}"]
        flags = [word for volume in volumes for word in ("-v", volume)]
        done = run_hako("run", "--rm", *flags, "busybox", "/usr/bin/python3", "-IS", "-c", _READ, INSIDE)
        assert done.stdout == "0:0\n"


def test_nothing_is_left_of_a_sandbox_that_is_killed(directory: str, roots: Roots) -> None:
    waiting = threading.Event()
    ended = threading.Event()

    def hold(connected: socket.socket) -> None:
        waiting.set()
        with contextlib.suppress(OSError):
            while connected.recv(100):
                pass
        ended.set()

    with unix_server(f"{directory}/s", hold) as path:
        sandbox = hako.Sandbox("busybox", owned=False)
        container = create(sandbox, path)
        program = f"import socket; s = socket.socket(socket.AF_UNIX); s.connect('{INSIDE}'); input()"
        read, write = os.pipe()
        container.exec(["/usr/bin/python3", "-IS", "-c", program], stdin=read)
        os.close(read)
        assert waiting.wait(30)
        os.kill(sandbox.state["pid"], signal.SIGKILL)
        assert ended.wait(30)
        os.close(write)
        deadline = time.monotonic() + 20
        while leaks.mounts(roots.base) or os.path.exists(records.run_dir(sandbox.id)):
            assert time.monotonic() < deadline
            time.sleep(0.1)
        sandbox.delete()


def test_docker_s_client_speaks_http_over_it(directory: str) -> None:
    """An HTTP server, as docker's, whose connections are kept open."""
    from http.server import BaseHTTPRequestHandler
    from socketserver import ThreadingUnixStreamServer

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            answer = json.dumps({"length": len(body)}).encode()
            self.send_response(200)
            self.send_header("Content-Length", str(len(answer)))
            self.end_headers()
            self.wfile.write(answer)

        def address_string(self) -> str:
            return "guest"

        def log_message(self, *_: object) -> None:
            pass

    program = f"""
import http.client, socket
class Connection(http.client.HTTPConnection):
    def connect(self):
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.connect("{INSIDE}")
c = Connection("localhost")
for size in (0, 10, 3 << 20, 1):
    c.request("POST", "/build", bytes(size))
    print(c.getresponse().read().decode())
"""
    with ThreadingUnixStreamServer(f"{directory}/s", Handler) as http_server:
        threading.Thread(target=http_server.serve_forever).start()
        try:
            with hako.Sandbox("busybox") as sandbox:
                told = python(create(sandbox, f"{directory}/s"), program)
        finally:
            http_server.shutdown()
    assert [json.loads(line)["length"] for line in told.splitlines()] == [0, 10, 3 << 20, 1]
