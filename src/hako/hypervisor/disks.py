"""Disks of a running VM: SCSI disks on one virtio-scsi controller, which is plugged in with the first of them.

A PCI bus has two dozen free places, and what is plugged into one stops the VM for 30 to 60 ms and can only be taken
away when the guest agrees. A controller takes one place for all disks, and its disks go when the host says so.
"""

from __future__ import annotations

import asyncio
import contextlib
from typing import TYPE_CHECKING

from hako.errors import HakoError, HypervisorError, NotFoundError, StateError
from hako.hypervisor.base import Disk
from hako.hypervisor.qemu_args import controller_device, disk_device, disk_node

if TYPE_CHECKING:
    from hako.hypervisor.qmp import Qmp


class DiskBus:
    """The disks of one VM. The VM's end gives everything back; ``remove`` does so for one disk."""

    def __init__(self, vm_id: str, limit: int) -> None:
        self._vm_id = vm_id
        self._limit = limit
        self._has_controller = False
        self._units: dict[str, int] = {}  # by serial number
        self._going: set[str] = set()
        self._files: dict[str, int] = {}  # the sets in which QEMU has them
        self._lock = asyncio.Lock()

    async def add(self, qmp: Qmp, disk: Disk, *fds: int) -> None:
        """Plug ``disk`` in, whose content is the one of ``fds``. Raises HypervisorError, StateError."""
        disk.check()
        (fd,) = fds
        async with self._lock:
            if disk.serial in self._units:
                raise StateError(f"VM {self._vm_id} has a disk {disk.serial} already.")
            free = set(range(self._limit)).difference(self._units.values())
            if not free:
                raise StateError(f"VM {self._vm_id} has {self._limit} disks, and there is no room for another one.")
            if not self._has_controller:
                await qmp.execute("device_add", controller_device())
                self._has_controller = True
            self._files[disk.serial] = await qmp.add_file(fd)
            try:
                await qmp.execute("blockdev-add", disk_node(disk, f"/dev/fdset/{self._files[disk.serial]}"))
                await qmp.execute("device_add", disk_device(disk, min(free)))
            except BaseException:
                with contextlib.suppress(HakoError):
                    await self._forget(qmp, disk)
                raise
            self._units[disk.serial] = min(free)

    async def remove(self, qmp: Qmp, disk: Disk) -> None:
        """Take ``disk`` away. Raises HypervisorError, NotFoundError, TimedOutError.

        It takes QEMU 50 ms, for many disks as for one.
        """
        if disk.serial not in self._units or disk.serial in self._going:
            raise NotFoundError(f"VM {self._vm_id} has no disk {disk.serial}.")
        self._going.add(disk.serial)
        try:
            await qmp.remove_device(str(disk_device(disk, 0)["id"]))
            del self._units[disk.serial]
            await self._forget(qmp, disk)
        finally:
            self._going.discard(disk.serial)

    async def _forget(self, qmp: Qmp, disk: Disk) -> None:
        """Have QEMU close the file."""
        number = self._files.pop(disk.serial)
        # Of a disk that could not be made there may be no such node.
        with contextlib.suppress(HypervisorError):
            await qmp.execute("blockdev-del", {"node-name": disk_node(disk, "")["node-name"]})
        await qmp.execute("remove-fd", {"fdset-id": number})
