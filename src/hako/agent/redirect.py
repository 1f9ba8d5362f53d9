"""Sends what the guest's processes address to port 53 of some loopback addresses to another port there, and hides that.

Port 53 itself stays free for a name server in a container, as it does where docker redirects by the packet filter. Here
programs in the kernel do it, one for each way in which a process names an address or is told one. They are attached
to the root of the control groups, above all containers, and go when their descriptors are closed.

Facts: include/uapi/linux/bpf.h of the kernel.
"""

from __future__ import annotations

import os
import struct
import sys

from hako.agent import cgroups
from hako.linux import bpf

TYPE_CHECKING = False
if TYPE_CHECKING:
    import socket
    from collections.abc import Iterable
else:
    import _socket as socket  # socket itself brings enum and selectors

PORT = 53

_CGROUP_SOCK_ADDR = 18
_CONNECT4, _CONNECT6, _SENDMSG4, _RECVMSG4, _RECVMSG6, _PEERNAME4, _PEERNAME6 = 10, 11, 14, 19, 20, 29, 30
#: Where processes name an address. What an IPv6 socket sends to an address of IPv4 passes SENDMSG4.
_TO = (_CONNECT4, _CONNECT6, _SENDMSG4)
#: Where they are told one.
_FROM = (_RECVMSG4, _RECVMSG6, _PEERNAME4, _PEERNAME6)
_IPV6 = (_CONNECT6, _RECVMSG6, _PEERNAME6)
#: struct bpf_sock_addr: user_ip4, user_ip6[0 to 3], user_port; all in network byte order.
_USER_IP4, _USER_IP6, _USER_PORT = 4, 8, 24


def install(servers: Iterable[tuple[bytes, int]]) -> list[int]:
    """Redirect port 53 of each IPv4 address (4 bytes) to the port beside it, until the descriptors are closed.

    Raises OSError.
    """
    ports = list(servers)
    links: list[int] = []
    root = os.open(cgroups.MOUNT, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        for kind in (*_TO, *_FROM):
            program = bpf.load(_CGROUP_SOCK_ADDR, kind, _program(kind, ports), b"hako_resolver")
            try:
                links.append(bpf.attach(program, root, kind))
            finally:
                os.close(program)
    except BaseException:
        for link in links:
            os.close(link)
        raise
    finally:
        os.close(root)
    return links


def _program(kind: int, servers: list[tuple[bytes, int]]) -> bytes:
    """Sets the port where address and port are one of the ``servers``; allows everything."""
    code = b""
    for address, port in servers:
        found, wanted = (PORT, port) if kind in _TO else (port, PORT)
        # r2 = port; r3 = the new one; context.user_port = r3
        steps = _unless(_USER_PORT, struct.pack(">HH", found, 0), 2)
        steps += bpf.op(0xB7, 3, 0, 0, socket.htons(wanted)) + bpf.op(0x63, 1, 3, _USER_PORT, 0)
        words = [(_USER_IP4, address)]
        if kind in _IPV6:
            mapped = bytes(10) + b"\xff\xff" + address
            words = [(_USER_IP6 + at, mapped[at : at + 4]) for at in range(0, 16, 4)]
        for offset, word in reversed(words):
            steps = _unless(offset, word, len(steps) // 8) + steps
        code += steps
    return code + bpf.op(0xB7, 0, 0, 0, 1) + bpf.op(0x95, 0, 0, 0, 0)  # return 1


def _unless(offset: int, word: bytes, skipped: int) -> bytes:
    """Skip so many instructions unless the context has these four bytes at ``offset``. Uses r2."""
    return bpf.op(0x61, 2, 1, offset, 0) + bpf.op(0x56, 2, 0, skipped, int.from_bytes(word, sys.byteorder, signed=True))
