"""What comes to a running VM and goes: virtio-mem, vCPUs, balloon, network cards, the share of one that is frozen."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from hako.errors import HypervisorError
from hako.hypervisor.base import FreezeError, Nic
from hako.hypervisor.qemu_args import MEMORY_DEVICE, nic_device

if TYPE_CHECKING:
    from hako.hypervisor.qmp import Qmp

_PATH = f"/machine/peripheral/{MEMORY_DEVICE}"
_POLL = 0.005
#: virtio-mem adds and removes memory in blocks of this size (its block-size).
_BLOCK = 2 << 20

#: Registers of the hot-plug controller in QEMU's ``pc`` machine: the bus that is meant (0: the first), and the slots
#: of it that are to be emptied, a bit each (QEMU's docs/specs/acpi_pci_hotplug.rst).
_BUS_REGISTER = 0xAE10
_EJECT_REGISTER = 0xAE08


async def resize_memory(qmp: Qmp, extra: int, timeout: float) -> int:
    """Ask for ``extra`` bytes in the memory device and return what it has when it has them, or after ``timeout``."""
    wanted = -(-extra // _BLOCK) * _BLOCK
    await qmp.execute("qom-set", {"path": _PATH, "property": "requested-size", "value": wanted})
    loop = asyncio.get_running_loop()
    deadline = loop.time() + timeout
    while True:
        size = await qmp.execute("qom-get", {"path": _PATH, "property": "size"})
        if not isinstance(size, int):
            raise HypervisorError("QEMU did not say how much memory the VM has.")
        if size == wanted or loop.time() > deadline:
            return size
        await asyncio.sleep(_POLL)


async def add_vcpus(qmp: Qmp, count: int) -> int:
    """Plug vCPUs in until there are ``count``; return how many there are."""
    slots = await qmp.execute("query-hotpluggable-cpus")
    if not isinstance(slots, list):
        raise HypervisorError("QEMU did not say which vCPUs the VM can have.")
    # QEMU lists the last place first.
    free = [slot for slot in reversed(slots) if isinstance(slot, dict) and "qom-path" not in slot]
    present = len(slots) - len(free)
    for slot in free[: max(0, count - present)]:
        place: dict[str, Any] = {key: value for key, value in slot["props"].items() if key != "node-id"}
        await qmp.execute("device_add", {"driver": slot["type"], "id": f"cpu{present}", **place})
        present += 1
    return present


async def add_nic(qmp: Qmp, nic: Nic, name: str, fds: Sequence[int]) -> None:
    """Plug a network card in that is tied to the tap with the queues ``fds``; QEMU knows both by ``name``."""
    names = [f"{name}.{number}" for number in range(len(fds))]
    for fd, queue in zip(fds, names, strict=True):
        await qmp.pass_file(fd, queue)
    tap = {"fds": ":".join(names)} if len(names) > 1 else {"fd": names[0]}
    await qmp.execute("netdev_add", {"type": "tap", "id": name, "vhost": False, **tap})
    try:
        await qmp.execute("device_add", nic_device(nic, name))
    except HypervisorError:
        await qmp.execute("netdev_del", {"id": name})
        raise


async def take_away(qmp: Qmp, name: str) -> None:
    """Take the PCI device ``name`` from a guest that stands still, without its noticing. Raises FreezeError.

    Asked in the usual way, QEMU would wait for the guest to empty the slot when its drivers have let go of the device.
    Here nobody uses it, and what the guest's kernel knows of it is to stay.
    """
    slot = await _slot(qmp, name)
    if slot is not None:
        for register, value in ((_BUS_REGISTER, 0), (_EJECT_REGISTER, 1 << slot)):
            await qmp.execute("human-monitor-command", {"command-line": f"o /w {register:#x} {value:#x}"})
    if slot is None or await _slot(qmp, name) is not None:
        raise FreezeError("QEMU does not take a share's device away, with which it cannot freeze a VM.")


async def _slot(qmp: Qmp, name: str) -> int | None:
    """The slot of the device ``name`` on the first PCI bus, None when it is not there."""
    buses = await qmp.execute("query-pci")
    devices = buses[0].get("devices") if isinstance(buses, list) and buses and isinstance(buses[0], dict) else None
    for device in devices if isinstance(devices, list) else ():
        if isinstance(device, dict) and device.get("qdev_id") == name:
            return int(device["slot"])
    return None


async def balloon(qmp: Qmp, size: int | None) -> int:
    """Set the balloon so that the guest keeps ``size`` bytes; return what it has now."""
    if size is not None:
        await qmp.execute("balloon", {"value": size})
    answer = await qmp.execute("query-balloon")
    actual = answer.get("actual") if isinstance(answer, dict) else None
    if not isinstance(actual, int):
        raise HypervisorError("QEMU did not say how large the balloon is.")
    return actual
