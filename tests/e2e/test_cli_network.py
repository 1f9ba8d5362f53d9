"""``hako run`` with networks of hako's own: addresses, names, published ports, and that nothing of them stays."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import struct
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from conftest import Roots, RunHako
from hako.network import cni, cniconfig, dns
from hako.sandbox import records
from support.children import started
from support.clones import python
from support.netns import pings, until
from support.ownnet import GATEWAY, NETWORK, left, on_own_host

pytestmark = [pytest.mark.e2e, pytest.mark.slow, pytest.mark.usefixtures("guest_image", "busybox_image")]

#: Serves its own address as a page.
_WEB = "mkdir /srv/w && hostname -i >/srv/w/index.html && exec httpd -f -p 80 -h /srv/w"
_ECHO = """
import _socket
server = _socket.socket(_socket.AF_INET, _socket.SOCK_DGRAM)
server.bind(("0.0.0.0", 7))
print("ready")
while True:
    data, peer = server.recvfrom(100)
    server.sendto(data[::-1], peer)
"""


@pytest.fixture
def own_host(roots: Roots, tmp_path: Path) -> Callable[[Callable[[], None]], None]:
    """Calls a function on a host of its own; see on_own_host()."""
    return lambda body: on_own_host(roots, tmp_path / "config.toml", body)


def inspected(run_hako: RunHako, name: str) -> dict[str, Any]:
    """What is known of the sandbox of the container ``name``."""
    (found,) = json.loads(run_hako("inspect", name).stdout)
    sandbox: dict[str, Any] = found["sandbox"]
    return sandbox


def address(run_hako: RunHako, name: str) -> str:
    """The address of a container."""
    text: str = inspected(run_hako, name)["network"]["addresses"][0]
    return text.partition("/")[0]


def page(host: str, port: int) -> str:
    """The page that is served there, which may not have begun."""
    deadline = time.monotonic() + 30
    while True:
        try:
            with socket.create_connection((host, port), timeout=10) as client:
                client.sendall(b"GET / HTTP/1.0\r\n\r\n")
                answer = b"".join(iter(lambda: client.recv(4096), b""))
            return answer.decode().rpartition("\r\n\r\n")[2].strip()
        except ConnectionRefusedError:
            assert time.monotonic() < deadline
            time.sleep(0.1)


@contextlib.contextmanager
def background(run_hako: RunHako, name: str, *words: str) -> Iterator[None]:
    """``hako run -d --name NAME WORDS``, for the time of the block."""
    run_hako("run", "-d", "--name", name, *words)
    try:
        yield
    finally:
        run_hako("rm", "-f", name)


def test_a_container_has_an_address_and_its_names(
    run_hako: RunHako, own_host: Callable[[Callable[[], None]], None]
) -> None:
    script = "hostname -i; cat /etc/hostname; ping -c 1 10.99.0.1 >/dev/null && echo outside; cat /etc/resolv.conf"

    def body() -> None:
        for options in ([], ["--read-only", "--network", "bridge"]):
            said = run_hako("run", "--rm", "--hostname", "box", *options, "busybox", "sh", "-c", script).stdout
            given, name, outside, *resolv_conf = said.splitlines()
            assert given.startswith(NETWORK)
            assert (name, outside) == ("box", "outside")
            assert "\n".join(resolv_conf) + "\n" == dns.resolv_conf(dns.host_resolv_conf())
        alone = run_hako("run", "--rm", "--network", "none", "busybox", "sh", "-c", "ip -4 addr; cat /etc/resolv.conf")
        assert "127.0.0.1" in alone.stdout
        assert "eth0" not in alone.stdout

    own_host(body)


def test_containers_and_the_host_reach_each_other(
    run_hako: RunHako, own_host: Callable[[Callable[[], None]], None]
) -> None:
    def body() -> None:
        ports = ["-p", "8080:80", "-p", "127.0.0.1:8082-8083:80-81", "-p", "80"]
        with background(run_hako, "web", *ports, "busybox", "sh", "-c", _WEB):
            given = address(run_hako, "web")
            chosen = inspected(run_hako, "web")["network"]["ports"][-1]["host_port"]
            for host, port in ((given, 80), ("127.0.0.1", 8080), (GATEWAY, 8080), ("10.99.0.1", 8080)):
                assert page(host, port) == given, (host, port)
            assert page("127.0.0.1", 8082) == page("127.0.0.1", chosen) == given
            assert pings(given)
            row = run_hako("ps").stdout.splitlines()[1]
            assert "0.0.0.0:8080->80/tcp, 127.0.0.1:8082-8083->80-81/tcp" in row
            for url in (f"http://{given}/", f"http://{GATEWAY}:8080/", "http://web/"):
                got = run_hako("run", "--rm", "--add-host", f"web:{given}", "busybox", "wget", "-q", "-O", "-", url)
                assert got.stdout.strip() == given, url
            # The host's port stays this container's.
            done = run_hako("run", "--rm", "-p", "8080:1", "busybox", "true", check=False)
            assert done.returncode == 125
            assert done.stderr == "hako: Cannot publish the host's port 8080:1/tcp: it is in use already.\n"
        with pytest.raises(OSError, match="refused"):
            socket.create_connection(("127.0.0.1", 8080), timeout=10)

    own_host(body)


def test_a_published_port_of_udp(run_hako: RunHako, own_host: Callable[[Callable[[], None]], None]) -> None:
    options, command = python(_ECHO)

    def body() -> None:
        with background(run_hako, "echo", "-p", "7007:7/udp", *options, "busybox", *command):
            until(lambda: "ready" in run_hako("logs", "echo").stdout)
            for host in ("127.0.0.1", "10.99.0.1", GATEWAY):
                with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as client:
                    client.settimeout(20)
                    client.sendto(b"abc", (host, 7007))
                    assert client.recv(100) == b"cba"

    own_host(body)


def _answer_names(server: socket.socket) -> None:
    """Answer each question for a name with the address 192.0.2.9, until the socket is shut down."""
    while True:
        question, peer = server.recvfrom(512)
        if not question:
            return
        body = question[12:]
        kind = body[body.index(0) + 1 :][:2]
        count = 1 if kind == b"\0\1" else 0
        header = question[:2] + struct.pack("!5H", 0x8580, 1, count, 0, 0)
        record = b"\xc0\x0c" + struct.pack("!HHIH4B", 1, 1, 60, 4, 192, 0, 2, 9)
        server.sendto(header + body + record * count, peer)


def test_name_servers_and_own_files(
    run_hako: RunHako, own_host: Callable[[Callable[[], None]], None], tmp_path: Path
) -> None:
    own = tmp_path / "resolv.conf"
    own.write_text("# mine\n")

    def body() -> None:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as server:
            server.bind(("10.99.0.1", 53))
            thread = threading.Thread(target=_answer_names, args=[server])
            thread.start()
            options = ["--dns", "10.99.0.1", "--dns-search", "example.org"]
            script = "cat /etc/resolv.conf; nslookup some.example.org"
            said = run_hako("run", "--rm", *options, "busybox", "sh", "-c", script).stdout
            server.sendto(b"", ("10.99.0.1", 53))
            thread.join()
        assert said.startswith("nameserver 10.99.0.1\nsearch example.org\n")
        assert "192.0.2.9" in said
        mounted = ["-v", f"{own}:/etc/resolv.conf:ro"]
        said = run_hako("run", "--rm", *mounted, "busybox", "cat", "/etc/resolv.conf", "/etc/hostname").stdout
        assert said.startswith("# mine\n")
        assert len(said.splitlines()) == 2

    own_host(body)


def test_what_cannot_be_connected_is_said_and_leaves_nothing(
    run_hako: RunHako, own_host: Callable[[Callable[[], None]], None], roots: Roots
) -> None:
    def body() -> None:
        config = cniconfig.built_in("10.87.0.0/16")
        lists = {
            "no-such": [*config["plugins"], {"type": "no-such-plugin"}],
            "broken": [config["plugins"][0] | {"ipam": {"type": "host-local", "ranges": [[{"subnet": "nonsense"}]]}}],
            "closed": config["plugins"][:1],
        }
        os.makedirs(cniconfig.directory())
        for name, plugins in lists.items():
            with open(os.path.join(cniconfig.directory(), f"{name}.conflist"), "w", encoding="ascii") as file:
                json.dump(config | {"name": name, "plugins": plugins}, file)
        for options, wanted in (
            (["--network", "host"], "The network 'host' does not exist. There are: none, bridge, broken, closed, no-s"),
            (["--network", "no-such"], "The CNI plugin no-such-plugin is in none of /opt/cni/bin"),
            (["--network", "broken"], "The CNI plugin bridge could not connect "),
            (["--network", "closed", "-p", "80"], "The network closed cannot publish ports"),
        ):
            for detached in ([], ["-d"]):
                done = run_hako("run", *detached, "--name", "never", *options, "busybox", "true", check=False)
                assert done.returncode == 125
                assert done.stderr.startswith(f"hako: {wanted}")
                assert len(done.stderr.splitlines()) == 1
                assert run_hako("ps", "-a", "-q").stdout == ""
                until(lambda: not left(roots))

    own_host(body)


@pytest.mark.parametrize("victim", ["vm_pid", "pid", "client"])
def test_nothing_is_left_when_something_is_killed(
    victim: str,
    run_hako: RunHako,
    hako_cmd: list[str],
    roots: Roots,
    own_host: Callable[[Callable[[], None]], None],
) -> None:
    def body() -> None:
        argv = [*hako_cmd, "run", "--rm", "--name", "victim", "-p", "8080:80", "busybox", "sh", "-c", "echo ready; cat"]
        with started(argv, stdin=subprocess.PIPE, stderr=subprocess.PIPE) as child:
            assert child.output.readline() == b"ready\n"
            assert any("8080" in line for line in left(roots))
            pid = child.pid if victim == "client" else inspected(run_hako, "victim")[victim]
            os.kill(pid, signal.SIGKILL)
            child.wait(60)
        until(lambda: not left(roots))
        with background(run_hako, "next", "-p", "8080:80", "busybox", "sh", "-c", _WEB):
            assert page("127.0.0.1", 8080) == address(run_hako, "next")

    own_host(body)


@pytest.mark.parametrize("victim", ["client", "sandbox"])
def test_nothing_is_left_when_something_is_killed_while_it_starts(
    victim: str, hako_cmd: list[str], roots: Roots, own_host: Callable[[Callable[[], None]], None]
) -> None:
    def body() -> None:
        for _ in range(4):
            argv = [*hako_cmd, "run", "--rm", "-p", "8080:80", "busybox", "true"]
            with started(argv, stderr=subprocess.PIPE) as child:
                until(lambda: cni.connected() or child.poll() is not None)
                names = os.listdir(os.path.join(roots.state, "sandboxes"))
                if victim == "client":
                    os.kill(child.pid, signal.SIGKILL)
                elif names:
                    with contextlib.suppress(ProcessLookupError):
                        os.kill(records.read(names[0])["pid"], signal.SIGKILL)
                child.wait(60)
            until(lambda: not left(roots))

    own_host(body)


def test_a_sandbox_from_the_pool_gets_its_network(
    run_hako: RunHako, own_host: Callable[[Callable[[], None]], None], tmp_path: Path
) -> None:
    def body() -> None:
        (tmp_path / "config.toml").write_text("[pool]\nsize = 1\n")
        try:
            run_hako("pool", "fill")
            with background(run_hako, "web", "-p", "8080:80", "busybox", "sh", "-c", _WEB):
                assert inspected(run_hako, "web")["info"]["pool"] is True
                assert page("127.0.0.1", 8080) == address(run_hako, "web")
        finally:
            (tmp_path / "config.toml").write_text("")
            run_hako("pool", "drain")

    own_host(body)
