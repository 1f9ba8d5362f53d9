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
_MOST_NAMES = 1 << 12


class Tap:
    """A tap device and its queues' descriptors. It exists as long as somebody has one of them open.

    Frames on the descriptors begin with a virtio_net_hdr of 10 bytes, as QEMU wants it. QEMU itself says which
    offloads it takes, once the guest's driver has said so.
    """

    def __init__(self, name: str, index: int, fds: list[int], home: int = -1) -> None:
        """``home`` is the descriptor of a namespace of its own, where it is while it is tied to nothing."""
        self.name = name
        self.index = index
        self.fds = fds
        self._home = home
        self._namespace = home

    @classmethod
    def alone(cls, queues: int = 1) -> Tap:
        """A tap that nothing can reach, in a namespace of its own; move() takes it where it is needed.

        A VM has its card from the start that way, whatever network it is given later. The kernel takes 10 ms for it,
        but not for the one of keep_spare(). Raises HostError.
        """
        if _spare and len(_spare[0].fds) == queues:
            return _spare.pop()
        home = namespaces.create_unnamed(lambda _: None)
        try:
            made = cls.open(home, queues)
        except BaseException:
            os.close(home)
            raise
        return cls(made.name, made.index, made.fds, home)

    @property
    def has_home(self) -> bool:
        """Whether it was made by alone()."""
        return self._home >= 0

    def move(self, namespace: int) -> None:
        """Take it to the namespace of the descriptor ``namespace``, where it gets the first name that is free.

        It is down then. Stays the caller's: the descriptor. Raises HostError.
        """
        try:
            with namespaces.open_socket(self._namespace) as here, namespaces.open_socket(namespace) as there:
                rtnetlink.set_link(here, self.index, up=False)
                taken = {link.name for link in rtnetlink.links(there)}
                self.name = next(name for name in map("tap{}".format, range(_MOST_NAMES)) if name not in taken)
                rtnetlink.set_link(here, self.index, name=self.name, namespace=namespace)
            self._namespace = namespace
            self.index = namespaces.inside(namespace, lambda: _prepare(self.name))
        except OSError as error:
            raise HostError(_explain(error)) from error

    def go_home(self) -> None:
        """Take it back to its own namespace. Raises HostError."""
        if self._namespace != self._home:
            self.move(self._home)

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

    def release(self) -> None:
        """QEMU has its descriptors: close all but one.

        The device goes with the last one, which takes the kernel 20 ms; this way these are not part of QEMU's end.
        """
        while len(self.fds) > 1:
            os.close(self.fds.pop())

    def close(self) -> None:
        """Close everything that this process has of it."""
        while self.fds:
            os.close(self.fds.pop())
        if self._home >= 0:
            os.close(self._home)
        self._home = -1


#: The one that was made ahead, if there is one.
_spare: list[Tap] = []


def keep_spare(queues: int) -> None:
    """Have a tap for the next Tap.alone() of this process, or of one that is forked from it. Raises HostError."""
    if not _spare:
        _spare.append(Tap.alone(queues))


def spare_fds() -> tuple[int, ...]:
    """The descriptors of what keep_spare() has made."""
    return tuple(fd for tap in _spare for fd in (*tap.fds, tap._home))


def give_spare_away() -> None:
    """A process that was forked has what keep_spare() has made: close this one's descriptors."""
    while _spare:
        _spare.pop().close()


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
