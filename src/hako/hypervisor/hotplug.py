"""Making a running VM larger and smaller: virtio-mem, vCPUs, balloon."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from hako.errors import HypervisorError
from hako.hypervisor.base import Nic
from hako.hypervisor.qemu_args import MEMORY_DEVICE, nic_device

if TYPE_CHECKING:
    from hako.hypervisor.qmp import Qmp

_PATH = f"/machine/peripheral/{MEMORY_DEVICE}"
_POLL = 0.005
#: virtio-mem adds and removes memory in blocks of this size (its block-size).
_BLOCK = 2 << 20


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


async def balloon(qmp: Qmp, size: int | None) -> int:
    """Set the balloon so that the guest keeps ``size`` bytes; return what it has now."""
    if size is not None:
        await qmp.execute("balloon", {"value": size})
    answer = await qmp.execute("query-balloon")
    actual = answer.get("actual") if isinstance(answer, dict) else None
    if not isinstance(actual, int):
        raise HypervisorError("QEMU did not say how large the balloon is.")
    return actual
