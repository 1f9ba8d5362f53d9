"""The library's sandboxes on networks of hako's own."""

from __future__ import annotations

import asyncio
import json
import os
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import hako
from conftest import Roots, RunHako
from hako import aio
from hako.errors import NotFoundError, StateError
from hako.network import cniconfig
from hako.sandbox import records
from hako.sandbox.api import Container
from support import leaks
from support.netns import pings, run, until
from support.ownnet import NETWORK, left, on_own_host

pytestmark = [pytest.mark.system, pytest.mark.slow, pytest.mark.usefixtures("guest_image", "busybox_image")]

_ADDRESS = ["hostname", "-i"]
_SERVE = ["sh", "-c", "echo here >/tmp/index.html; exec httpd -f -p 80 -h /tmp"]
_GET = ["wget", "-q", "-O", "-"]


@pytest.fixture
def own_host(roots: Roots, tmp_path: Path) -> Callable[[Callable[[], None]], None]:
    """Calls a function on a host of its own; see on_own_host()."""
    return lambda body: on_own_host(roots, tmp_path / "config.toml", body)


def test_the_example_of_the_documentation_runs(own_host: Callable[[Callable[[], None]], None]) -> None:
    page = Path(__file__).parents[2] / "docs" / "network.md"
    (example,) = re.findall(r"^```python\n(.*?)^```", page.read_text(), re.MULTILINE | re.DOTALL)
    own_host(lambda: exec(compile(example, str(page), "exec"), {}))


def test_containers_of_a_sandbox_share_its_network(own_host: Callable[[Callable[[], None]], None]) -> None:
    def body() -> None:
        with hako.Sandbox("busybox", network="bridge", ports=["80"], hosts=["gone:192.0.2.7"]) as sandbox:
            one = sandbox.create(_SERVE, hostname="one")  # before the network is there
            network: dict[str, Any] = sandbox.state["network"]
            (given,) = (entry.partition("/")[0] for entry in network["addresses"])
            assert given.startswith(NETWORK)
            assert network["name"] == "bridge"
            two = sandbox.create(["sleep", "1000"], hostname="two")
            for container, name in ((one, "one"), (two, "two")):
                assert container.run(_ADDRESS).stdout.strip() == given
                hosts = container.run(["cat", "/etc/hosts"]).stdout
                assert hosts.endswith(f"{given}\t{name}\n192.0.2.7\tgone\n")
                assert container.run(["cat", "/etc/hostname"]).stdout == f"{name}\n"
            assert two.run([*_GET, "http://localhost/"]).stdout == "here\n"
            (port,) = network["ports"]
            assert (port["container_port"], port["host_ip"], port["protocol"]) == (80, "", "tcp")
            with hako.Sandbox("busybox", network="bridge") as other:
                got = other.run([*_GET, f"http://{given}/"])
                assert got.stdout == other.run([*_GET, f"http://10.99.0.1:{port['host_port']}/"]).stdout == "here\n"
        assert not pings(given)

    own_host(body)


def test_without_a_network_a_sandbox_has_the_loopback_alone(own_host: Callable[[Callable[[], None]], None]) -> None:
    def body() -> None:
        with hako.Sandbox("busybox") as sandbox:
            assert "inet " not in sandbox.run(["ip", "addr", "show", "eth0"]).stdout
            assert sandbox.run(["cat", "/etc/hosts"]).stdout == "127.0.0.1\tlocalhost\n", "the image's own"
            assert sandbox.state["network"] == {}
        assert not os.path.exists(cniconfig.state_dir())

    own_host(body)


def test_on_asyncio(own_host: Callable[[Callable[[], None]], None]) -> None:
    async def several() -> None:
        async with aio.Sandbox("busybox", network="bridge", ports=["8080:80"], dns=["192.0.2.53"]) as sandbox:
            container = await sandbox.create(_SERVE)
            assert (await container.run(["cat", "/etc/resolv.conf"])).stdout.startswith("nameserver 192.0.2.53\n")
            result = await sandbox.run([*_GET, "http://10.99.0.1:8080/"])
            assert result.stdout == "here\n"

    own_host(lambda: asyncio.run(several()))


def test_a_network_that_cannot_be_had_fails_the_sandbox(own_host: Callable[[Callable[[], None]], None]) -> None:
    def body() -> None:
        nowhere = hako.Sandbox("busybox", network="nowhere")
        with nowhere, pytest.raises(NotFoundError, match="The network 'nowhere' does not exist"):
            nowhere.run(_ADDRESS)
        with hako.Sandbox("busybox", network="bridge", ports=["8080:80"]) as first:
            first.wait_ready()
            second = hako.Sandbox("busybox", network="bridge", ports=["8080:80"])
            with second, pytest.raises(StateError, match="Cannot publish the host's port 8080:80/tcp: it is in use"):
                second.wait_ready()

    own_host(body)


def test_an_administrators_list_is_used(own_host: Callable[[Callable[[], None]], None]) -> None:
    """With addresses of both families, name servers of the network, and the interface that they describe."""

    def body() -> None:
        ranges = [[{"subnet": "10.87.9.0/24"}], [{"subnet": "fd87::/64"}]]
        ipam = {"type": "host-local", "dataDir": os.path.join(cniconfig.state_dir(), "networks"), "ranges": ranges}
        routes = [{"dst": "0.0.0.0/0"}, {"dst": "::/0"}]
        bridge = {"type": "bridge", "bridge": "h0br", "isGateway": True, "ipam": {**ipam, "routes": routes}}
        bridge["dns"] = {"nameservers": ["192.0.2.1"], "search": ["example.org"]}
        os.makedirs(cniconfig.directory())
        with open(os.path.join(cniconfig.directory(), "10-two.conflist"), "w", encoding="ascii") as file:
            json.dump({"cniVersion": "1.0.0", "name": "two", "plugins": [bridge]}, file)
        with hako.Sandbox("busybox", network="bridge") as sandbox:
            found = sandbox.run(
                ["sh", "-c", "cat /etc/resolv.conf /etc/hosts; ping6 -c 1 fd87::1; ping -c 1 10.87.9.1"]
            )
            assert found.exit_status == 0, found
            assert found.stdout.startswith("nameserver 192.0.2.1\nsearch example.org\n")
            for entry in sandbox.state["network"]["addresses"]:
                assert f"\n{entry.partition('/')[0]}\t" in found.stdout
        run("ip", "link", "del", "h0br")
        shutil.rmtree(os.path.join(cniconfig.state_dir(), "networks"))

    own_host(body)


def test_whoever_looks_cleans_up_when_the_guardian_is_gone_too(
    own_host: Callable[[Callable[[], None]], None], roots: Roots, run_hako: RunHako
) -> None:
    def body() -> None:
        sandbox = hako.Sandbox("busybox", network="bridge", ports=["8080:80"], owned=False)
        sandbox.wait_ready()
        assert isinstance(sandbox.create(["sleep", "1000"]), Container)
        pid = records.read(sandbox.id)["pid"]
        guardians = [
            name
            for name in filter(str.isdigit, os.listdir("/proc"))
            if _has(f"/proc/{name}/cmdline", b"hako-guardian", sandbox.id.encode())
        ]
        assert len(guardians) == 1
        for number in (*map(int, guardians), pid):
            os.kill(number, 9)
        until(lambda: not leaks.processes(roots.base))
        assert {"note", "rule", "address", "file"} <= {line.split()[0] for line in left(roots)}
        assert run_hako("ps", "-a", "-q").stdout == ""
        assert left(roots) == []

    own_host(body)


def _has(path: str, *words: bytes) -> bool:
    try:
        with open(path, "rb") as file:
            content = file.read()
    except OSError:
        return False
    return all(word in content for word in words)
