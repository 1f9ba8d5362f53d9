"""The disks of a sandbox's VM: attached for a container, shared by containers that use the same one, and given back.

A disk is a file or block device that the sandbox process opened; QEMU gets the descriptor, and the guest is told the
serial number to look for.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
from collections.abc import Awaitable
from typing import TYPE_CHECKING, Any

from hako.agent_client import field
from hako.errors import HakoError, ProtocolError
from hako.hypervisor.base import Disk, Hypervisor
from hako.named import NamedTuple
from hako.sandbox.guestdevices import Node
from hako.storage.block import Plan
from hako.storage.sources import OpenDisk
from hako.storage.tree import SharedTree

if TYPE_CHECKING:
    from hako.sandbox.vm import Vm

log = logging.getLogger(__name__)

#: The guest may have to translate its drivers first, look at many disks, and recover a file system.
_ATTACH_TIMEOUT = 120.0
#: What has been written to a disk is written out first.
_DETACH_TIMEOUT = 60.0
_HIGHEST_MAJOR, _HIGHEST_MINOR = 4095, (1 << 20) - 1


class _Attached(NamedTuple):
    disk: Disk
    users: set[str]  #: containers


class Disks:
    """All disks of one sandbox. With the VM everything is gone; ``detach`` gives back what one container has."""

    def __init__(self) -> None:
        self._attached: dict[tuple[object, ...], _Attached] = {}
        self._lock = asyncio.Lock()
        #: The VM is about to end, and takes them all along.
        self.ending = False

    def __len__(self) -> int:
        """How many disks there are."""
        return len(self._attached)

    async def attach(self, vm: Vm, plan: Plan, opened: list[OpenDisk]) -> dict[tuple[int, int], Node]:
        """Give the VM the disks of ``plan``, which are ``opened``, and have the guest mount what is to be mounted.

        Returns where the guest has the devices among them, by their numbers on the host. The descriptors stay the
        caller's. Raises HakoError; nothing is left of a failure.
        """
        try:
            async with self._lock:
                disks = [await self._plug(vm.hypervisor, plan.container_id, one) for one in opened]
                serials = [disk.serial for disk in disks]
                call: dict[str, Any] = {"container": plan.container_id, "disks": list(dict.fromkeys(serials))}
                call |= {"mounts": [mount.params(serials) for mount in plan.mounts], "modules": list(plan.modules)}
                answer = await vm.agent.call("AttachDisks", call, _ATTACH_TIMEOUT)
                found = field(answer, "disks", dict)
                nodes = {serial: _node(found.get(serial)) for serial in serials}
        except BaseException:
            await self.detach(vm, plan.container_id)
            raise
        wanted = zip(plan.disks, serials, strict=True)
        return {one.device: nodes[serial] for one, serial in wanted if one.device is not None}

    async def _plug(self, hypervisor: Hypervisor, container_id: str, opened: OpenDisk) -> Disk:
        known = self._attached.get(opened.key)
        if known is None:
            disk = Disk(os.urandom(8).hex(), opened.readonly, opened.block, opened.sector)
            try:
                await hypervisor.plug(disk, [opened.fd])
            except HakoError as error:
                raise type(error)(f"{opened.path} cannot be a disk of the VM: {error}") from error
            known = self._attached[opened.key] = _Attached(disk, set())
        known.users.add(container_id)
        return known.disk

    async def detach(self, vm: Vm, container_id: str) -> None:
        """Have the guest let go of a container's disks, and take away those that no other container uses.

        A guest that does not let go loses them nevertheless.
        """
        async with self._lock:
            if self.ending or vm.hypervisor.pid is None:
                return
            gone = {key: known for key, known in self._attached.items() if known.users == {container_id}}
            for known in self._attached.values():
                known.users.discard(container_id)
            call = {"container": container_id, "disks": [known.disk.serial for known in gone.values()]}
            await _reported(vm.agent.call("DetachDisks", call, _DETACH_TIMEOUT))
            for key in gone:
                del self._attached[key]
            await asyncio.gather(*(_reported(vm.hypervisor.unplug(known.disk)) for known in gone.values()))


async def _reported(work: Awaitable[object]) -> None:
    try:
        await work
    except HakoError as error:
        log.warning("A disk could not be given back as it should, and goes with the VM: %s", error)


def open_all(plan: Plan, tree: SharedTree, held: contextlib.ExitStack) -> list[OpenDisk]:
    """Open the disks of ``plan``, to be closed by ``held``. Raises ConfigError."""
    opened = []
    for wanted in plan.disks:
        opened.append(tree.open_disk(wanted.path, readonly=wanted.readonly, device=wanted.device))
        held.callback(os.close, opened[-1].fd)
    return opened


def _node(value: object) -> Node:
    """Where the guest says that it has a disk, which is used for nothing but the guest's own config.json."""
    if isinstance(value, dict):
        path, major, minor = value.get("path"), value.get("major"), value.get("minor")
        numbers = ((major, _HIGHEST_MAJOR), (minor, _HIGHEST_MINOR))
        sound = all(type(number) is int and 0 <= number <= most for number, most in numbers)
        if sound and isinstance(path, str) and path.startswith("/dev/") and len(path) < 64:
            return Node(path, value["major"], value["minor"])
    raise ProtocolError("The agent did not say where it has a disk.")
