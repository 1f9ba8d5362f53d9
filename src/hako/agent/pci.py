"""PCI devices that are plugged in while the VM runs, and the share's, which a clone knows before it has it.

A template is frozen with a kernel that has found the share's device, made room for it and bound it to virtio_pci, and
has not seen that it was taken away since. A clone gets another one into the same slot, which lacks nothing but what is
written to a device when it is found: its addresses. Finding it anew would be half as much work again as mounting it.
"""

from __future__ import annotations

import os

from hako.agent import system
from hako.wire import calls

_BUS = "/sys/bus/pci"
_VIRTIO = "/sys/bus/virtio"
#: Masks the event by which QEMU's machines tell of devices that come and go.
_EVENT = "/sys/firmware/acpi/interrupts/gpe01"

#: Vendor and device of a virtio file system (virtio 1.2, 4.1.2 and 5.11.1), as in the configuration space.
_FILE_SYSTEM = b"\xf4\x1a\x5a\x10"
#: Where the configuration space has the command register and the six base addresses (PCI 3.0, 6.1).
_COMMAND = slice(4, 6)
_ADDRESSES = slice(16, 40)

_hotplug_ignored = False
#: At most one.
_known: list[_Known] = []


class _Known:
    """A device that the kernel has found, without a driver for what it offers.

    Both files are opened beforehand, for a clone runs the code of each path and each open for the first time.
    """

    def __init__(self, name: str, virtio: str) -> None:
        self._virtio = virtio.encode()
        self._config = os.open(f"{_BUS}/devices/{name}/config", os.O_RDWR | os.O_CLOEXEC)
        self._bind = os.open(f"{_VIRTIO}/drivers/virtiofs/bind", os.O_WRONLY | os.O_CLOEXEC)
        self._head = os.pread(self._config, _ADDRESSES.stop, 0)

    def use(self) -> None:
        """Give the device in its place the addresses that the kernel knows it by, and bind the driver."""
        try:
            if os.pread(self._config, len(_FILE_SYSTEM), 0) != _FILE_SYSTEM:
                raise calls.CallError(calls.FAILED_PRECONDITION, "the share's device is not where it is expected")
            for part in (_ADDRESSES, _COMMAND):  # it listens to its addresses from the last write on
                os.pwrite(self._config, self._head[part], part.start)
            os.write(self._bind, self._virtio)
        finally:
            os.close(self._config)
            os.close(self._bind)


def ignore_hotplug() -> None:
    """Have the kernel not look after devices that are plugged in: find_plugged() does, when it is time.

    It would do so by interpreted ACPI code, before it does anything else.
    """
    try:
        system.write(_EVENT, b"mask\n")
    except OSError:
        return  # a machine without it; the kernel goes on looking after devices itself
    global _hotplug_ignored
    _hotplug_ignored = True


def find_plugged() -> None:
    """Find devices that have been plugged in, if the kernel does not do that by itself."""
    if _hotplug_ignored:
        system.write(f"{_BUS}/rescan", b"1")


def learn_share() -> bool:
    """Find the share's device, if one has been plugged in, as far as that is the same for each device in its slot.

    From now on there need not be one, until use_known() is called. False when there is none.
    """
    system.write(f"{_VIRTIO}/drivers_autoprobe", b"0")
    try:
        find_plugged()
    finally:
        system.write(f"{_VIRTIO}/drivers_autoprobe", b"1")
    for name in os.listdir(f"{_BUS}/devices"):
        for virtio in os.listdir(f"{_BUS}/devices/{name}"):
            if virtio.startswith("virtio") and _is_unused_share(name, virtio):
                _known[:] = [_Known(name, virtio)]
                return True
    return False


def _is_unused_share(name: str, virtio: str) -> bool:
    with open(f"{_BUS}/devices/{name}/config", "rb") as file:
        return file.read(4) == _FILE_SYSTEM and not os.path.exists(f"{_VIRTIO}/devices/{virtio}/driver")


def use_known() -> bool:
    """Use the device that learn_share() has found, now that there is one again. False when there is nothing to use.

    Raises CallError when there is none in its place.
    """
    if not _known:
        return False
    _known.pop().use()
    return True
