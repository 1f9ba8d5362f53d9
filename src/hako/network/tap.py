"""Tap devices: the host's end of a guest's NIC."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import struct

from hako.errors import HostError
from hako.linux import rtnetlink
from hako.linux.netlink import Netlink
from hako.network import namespace as namespaces

_DEVICE = "/dev/net/tun"
# include/uapi/linux/if_tun.h
_TUNSETIFF = 0x400454CA
_TUNSETOFFLOAD = 0x400454D0
_IFF_TAP = 0x0002
_IFF_MULTI_QUEUE = 0x0100
_IFF_NO_PI = 0x1000
_IFF_VNET_HDR = 0x4000
_REQUEST = struct.Struct("=16sH22x")
#: Checksums left to the receiver, and TCP over IPv4 (with ECN too) and IPv6 in frames larger than the MTU.
_OFFLOADS = 0x01 | 0x02 | 0x04 | 0x08

#: The device's limit: 65535 less an Ethernet header.
MAX_MTU = 65521
MAX_QUEUES = 256


class Tap:
    """A tap device and its queues' descriptors. It exists as long as somebody has one of them open.

    Frames on the descriptors begin with a virtio_net_hdr of 10 bytes, as QEMU wants it. QEMU itself says which
    offloads it takes, once the guest's driver has said so.
    """

    def __init__(self, name: str, index: int, fds: list[int]) -> None:
        self.name = name
        self.index = index
        self.fds = fds

    @classmethod
    def open(cls, namespace: int, queues: int = 1) -> Tap:
        """Make the first free ``tapN`` in the namespace of the descriptor ``namespace``; it is down.

        Nothing of the namespace's own, no address and no router solicitation, appears on it. Raises HostError.
        """
        fds: list[int] = []
        try:
            fds += namespaces.inside(namespace, lambda: [_open_device() for _ in range(queues)])
            name = "tap%d"
            for fd in fds:
                name = _attach(fd, name, multi_queue=queues > 1)
            return cls(name, namespaces.inside(namespace, lambda: _prepare(name)), fds)
        except BaseException as error:
            for fd in fds:
                os.close(fd)
            if isinstance(error, OSError):
                raise HostError(_explain(error)) from error
            raise

    def set_offloads(self) -> None:
        """Accept frames with checksums to be filled in and TCP segments to be cut; for users other than QEMU."""
        for fd in self.fds:
            fcntl.ioctl(fd, _TUNSETOFFLOAD, _OFFLOADS)

    def close(self) -> None:
        """Close this process's descriptors; the device goes with the last one."""
        while self.fds:
            os.close(self.fds.pop())


def _open_device() -> int:
    """The device belongs to the network namespace in which this is called."""
    return os.open(_DEVICE, os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC)


def _attach(fd: int, name: str, *, multi_queue: bool) -> str:
    flags = _IFF_TAP | _IFF_NO_PI | _IFF_VNET_HDR | (_IFF_MULTI_QUEUE if multi_queue else 0)
    answer = fcntl.ioctl(fd, _TUNSETIFF, _REQUEST.pack(name.encode(), flags))
    return str(_REQUEST.unpack(answer)[0].split(b"\0", 1)[0].decode())


def _prepare(name: str) -> int:
    """Keep the namespace's own IPv6 off the device; return its index."""
    with (
        contextlib.suppress(FileNotFoundError),
        open(f"/proc/sys/net/ipv6/conf/{name}/disable_ipv6", "w", encoding="ascii") as file,
    ):
        file.write("1")
    with Netlink() as kernel:
        return rtnetlink.find_link(kernel, name).index


def _explain(error: OSError) -> str:
    if error.errno in (errno.ENOENT, errno.ENODEV, errno.ENXIO):
        return f"This host has no {_DEVICE}: load the kernel module tun (modprobe tun) and try again."
    return f"Cannot make a tap device for the virtual machine: {error.strerror}."
