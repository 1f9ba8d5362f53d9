"""A real VM on a network: the guest's card, its driver and the agent's method Network."""

from __future__ import annotations

import asyncio
import socket
import subprocess
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from hako.agent_client import AgentClient
from hako.errors import NotFoundError
from hako.hypervisor.base import AgentChannel, Backends, Nic, Rng, Share9p, VmSpec
from hako.hypervisor.qemu import QemuVm
from hako.network.api import Network
from hako.sandbox.vm import command_line
from hako.storage.ninep import NinePShare
from hako.wire.calls import PROTOCOL_VERSION
from support.guest import Guest
from support.hostside import read_all
from support.netns import BOX, BOX6, HOST, HOST6, connected, links, on_a_host_of_its_own, pings, run

pytestmark = [pytest.mark.system, pytest.mark.slow]

CARD = "52:54:00:00:00:01"


def serve(family: socket.AddressFamily, address: str, answer: bytes) -> threading.Thread:
    """Answer one request for a page, with an address's bytes."""
    server = socket.create_server((address, 8000), family=family)

    def body() -> None:
        with server:
            client, _ = server.accept()
            with client:
                client.recv(4096)
                client.sendall(b"HTTP/1.0 200 OK\r\n\r\n" + answer)

    thread = threading.Thread(target=body)
    thread.start()
    return thread


async def scenario(guest: Guest, network: Network, path: str) -> None:
    """The guest's part, once it runs."""

    async def configure() -> Any:
        told = [{**entry, "device": CARD} for entry in network.descriptions()]
        answer = await guest.call("Network", interfaces=told, describe=True)
        assert answer["interfaces"] == network.descriptions()

    loop = asyncio.get_running_loop()
    await configure()
    assert await loop.run_in_executor(None, pings, BOX)
    await guest.create("box", "sleep", "1000")
    data = bytes(range(256)) * (4 << 10)
    for family, host, url in ((socket.AF_INET, HOST, HOST), (socket.AF_INET6, HOST6, f"[{HOST6}]")):
        thread = serve(family, host, data)
        process = await guest.exec("box", f"get{int(family)}", "wget", "-q", "-O", "-", f"http://{url}:8000/")
        chunks = b""
        while piece := await process.stdout.read():
            process.stdout.consumed(len(piece))
            chunks += piece
        assert await process.status() == 0, await read_all(process.streams["stderr"])
        assert chunks == data
        await loop.run_in_executor(None, thread.join)
    assert BOX6 in await guest.output("box", "addresses", "busybox", "ip", "addr", "show", "eth0")

    # The engine changes the address while the container runs.
    run("ip", "addr", "add", "10.9.0.77/24", "dev", "eth0", inside=path)
    run("ip", "link", "set", "eth0", "mtu", "1400", inside=path)
    assert network.changes().changed
    await configure()
    assert await loop.run_in_executor(None, pings, "10.9.0.77")
    assert "mtu 1400" in await guest.output("box", "mtu", "busybox", "ip", "link", "show", "eth0")

    # A card that is no longer wanted is switched off.
    assert (await guest.call("Network", interfaces=[], describe=True))["interfaces"] == []
    assert not await loop.run_in_executor(None, pings, BOX)
    assert BOX not in await guest.output("box", "none", "busybox", "ip", "addr")
    await configure()
    assert await loop.run_in_executor(None, pings, BOX)
    with pytest.raises(NotFoundError, match="the VM has no network device 02:00:00:00:00:99"):
        await guest.call("Network", interfaces=[{"name": "x", "mac": "02:00:00:00:00:99", "mtu": 1500}])
    await guest.call("Delete", container="box", force=True)


def test_a_guest_is_on_the_network_of_its_namespace(guest_image: Any, busybox_image: Any, tmp_path: Path) -> None:
    subprocess.run(["cp", "-a", busybox_image.rootfs, str(tmp_path / "rootfs")], check=True)
    driver = NinePShare(512_000)
    device = driver.device(str(tmp_path))
    assert isinstance(device, Share9p)
    devices = (AgentChannel(), Rng(), device, Nic(CARD))
    spec = VmSpec(
        "network", guest_image.kernel, guest_image.initrd, command_line("tcg", ""), 256 << 20, devices=devices
    )

    async def drive(network: Network, path: str) -> None:
        (attachment,) = network.attach_all()
        vm = QemuVm(spec, backends=Backends(nic=tuple(attachment.tap.fds)))
        await vm.start()
        attachment.tap.close()  # QEMU has it
        client = AgentClient(vm.agent_socket)
        try:
            await client.call("Hello", {"version": PROTOCOL_VERSION}, 120)
            await client.call("Configure", {"time_ns": time.time_ns()})
            await client.call("MountShare", driver.mount_request().params())
            await asyncio.wait_for(scenario(Guest(vm, client, tmp_path), network, path), 200)
        finally:
            client.close()
            await vm.kill()

    def body() -> None:
        with connected() as path, Network.open(path) as network:
            asyncio.run(drive(network, path))
            # The device went with QEMU, which was the last to hold it.
            assert links(path) == ["lo", "eth0"]

    on_a_host_of_its_own(body)
