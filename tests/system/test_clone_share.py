"""The share of a clone: its device was found when the template was made, and later ones are found as ever."""

from __future__ import annotations

import asyncio
import os
import re
import subprocess
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from conftest import Roots
from hako.config.settings import Config
from hako.hypervisor.base import AgentChannel, Backends, Balloon, Disk, MemoryDevice, Nic, Rng, VmSpec
from hako.hypervisor.qemu import QemuVm
from hako.network.tap import Tap
from hako.sandbox import vm as sandbox_vm
from hako.sandbox.vm import command_line
from hako.storage import shares
from hako.template import build, identity, memory
from support.guest import Guest, config
from support.hostside import read_all

pytestmark = [pytest.mark.system, pytest.mark.slow]

_MAC = "02:00:00:00:00:77"
#: Seconds between the guest's last words in a template and its freezing, at least.
_STILL = 2.0


def _spec(image: Any) -> VmSpec:
    devices = (AgentChannel(), Rng(), Balloon(), MemoryDevice(1 << 30))
    return VmSpec(
        "share", image.kernel, image.initrd, command_line("tcg", ""), 512 << 20, sharing="shared", devices=devices
    )


@asynccontextmanager
async def _clone(
    recipe: build.Recipe, memory_fd: int, state: int, directory: Path
) -> AsyncIterator[tuple[Guest, float]]:
    """A clone that sees ``directory``, its share mounted, and how old its guest was before, in seconds."""
    share = shares.make(Config({}).share)
    fd = os.open(f"/proc/self/fd/{state}", os.O_RDONLY | os.O_CLOEXEC)
    own = memory.new("clone", recipe.spec.memory)
    memory.copy(memory_fd, own)
    socket = await share.start(str(directory))
    vm = QemuVm(recipe.spec, backends=Backends(own, fd, clone=True, plugged=share.plugged(), share=socket))
    client = None
    try:
        await vm.start()
        client, _ = await sandbox_vm.greet(vm, "share", 60)
        await client.call("Configure", {"time_ns": time.time_ns()})
        age = (await client.call("Info", {}))["uptime_ns"] / 1e9
        await client.call("MountShare", share.mount_request().params())
        yield Guest(vm, client, directory), age
    finally:
        if client is not None:
            client.close()
        await vm.kill()
        await share.close()
        os.close(own)
        os.close(fd)


async def _messages(guest: Guest) -> list[tuple[float, str]]:
    """What the guest's kernel has said, with the seconds since its start."""
    spec = config("dmesg", own_pids=False)
    for kind in spec["process"]["capabilities"]:
        spec["process"]["capabilities"][kind] = ["CAP_SYSLOG"]
    process = await guest.create("messages", spec=spec)
    text = await read_all(process.stdout)
    assert await process.status() == 0, await read_all(process.streams["stderr"])
    await guest.call("Delete", container="messages")
    return [(float(when), what) for when, what in re.findall(r"^\[ *([0-9.]+)\] (.*)$", text.decode(), re.M)]


async def _found(guest: Guest, what: str) -> list[float]:
    return [when for when, line in await _messages(guest) if what in line]


async def _plug_later(guest: Guest, directory: Path) -> None:
    """A network card and a disk that come when the share has been mounted are found and used."""
    tap = Tap.alone()
    try:
        await guest.vm.plug(Nic(_MAC), tap.fds)
    finally:
        tap.close()
    card = {"name": "eth7", "mac": _MAC, "mtu": 1500}
    (interface,) = (await guest.call("Network", interfaces=[card], describe=True))["interfaces"]
    assert interface["name"] == "eth7"
    file = directory / "disk"
    file.write_bytes(b"on the disk".ljust(1 << 20))
    disk = Disk("later")
    fd = os.open(file, os.O_RDWR | os.O_CLOEXEC)
    try:
        await guest.vm.plug(disk, [fd])
    finally:
        os.close(fd)
    (found,) = (await guest.call("AttachDisks", container="c", disks=[disk.serial]))["disks"].values()
    assert found["path"].startswith("/dev/sd")
    await guest.call("DetachDisks", container="c", disks=[disk.serial])
    await guest.vm.unplug(disk)


def test_a_clone_has_its_share_without_looking_for_it(
    guest_image: Any, busybox_image: Any, roots: Roots, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spec = _spec(guest_image)
    kept: list[int] = []
    # The frozen VM itself, instead of what is written of it.
    monkeypatch.setattr(build.files, "publish", lambda *args: kept.extend(map(os.dup, args[-2:])))
    recipe = build.Recipe(spec, {"test": 1}, "hako-vm", "", 60, lambda: shares.make(Config({}).share))
    assert identity.as_template(spec).devices == spec.devices

    async def body() -> None:
        await build.build(recipe, str(tmp_path / "templates"), ())
        for number in range(2):
            directory = tmp_path / f"clone{number}"
            directory.mkdir()
            for source, name in ((busybox_image.rootfs, "rootfs"), (guest_image.modules, ".modules")):
                subprocess.run(["cp", "-a", source, str(directory / name)], check=True)
            async with _clone(recipe, *kept, directory) as (guest, age):
                (found,) = await _found(guest, "[1af4:105a]")
                assert age - found > _STILL
                await _plug_later(guest, directory)
                assert len(await _found(guest, "[1af4:1041]")) == 1
                assert await _found(guest, "[1af4:105a]") == [found]

    try:
        asyncio.run(body())
    finally:
        for fd in kept:
            os.close(fd)
