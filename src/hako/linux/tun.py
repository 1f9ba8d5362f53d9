"""Tap devices (linux/if_tun.h): a network interface whose other end is a descriptor."""

from __future__ import annotations

import fcntl
import os
import struct

from hako.linux import syscalls

_TUNSETIFF = 0x400454CA
_IFF_TAP = 0x0002
_IFF_NO_PI = 0x1000
_IFF_VNET_HDR = 0x4000


def open_tap(name: str = "") -> int:
    """A new tap device in the calling thread's network namespace, with virtio headers; returns its descriptor.

    The kernel names it ``tapN`` when no name is given. It vanishes when the descriptor is closed. Raises OSError.
    """
    fd = os.open("/dev/net/tun", os.O_RDWR | os.O_CLOEXEC)
    try:
        flags = _IFF_TAP | _IFF_NO_PI | _IFF_VNET_HDR
        fcntl.ioctl(fd, _TUNSETIFF, struct.pack("16sH22x", name.encode(), flags))
    except BaseException:
        os.close(fd)
        raise
    return fd


def open_lonely_tap() -> int:
    """A tap device in a network namespace that holds nothing else and ends with it. Raises OSError.

    The calling thread is in that namespace afterwards: call it from a thread of its own, which ends then.
    """
    syscalls.unshare(syscalls.CLONE_NEWNET)
    return open_tap()
