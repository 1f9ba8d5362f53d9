"""Taking what processes in a network namespace connect to on its loopback, whatever the port.

Engines forward ports to a pod by entering its network namespace and connecting to ``localhost`` there, where nothing
listens when the pod is in a VM. A program in the kernel (``sk_lookup``, Linux 5.9) gives such connections to sockets
that listen here: no packet is changed, no rule is made, no address translated, and accept() tells the port that was
meant. It is attached to the namespace and goes when its descriptor is closed, kill -9 included.

Only TCP from the loopback to 127.0.0.1 and ::1 is taken. Facts: include/uapi/linux/bpf.h of the kernel (struct
bpf_sk_lookup).
"""

from __future__ import annotations

import contextlib
import os
import socket
import struct
import sys

from hako.errors import HostError
from hako.linux import bpf
from hako.network import namespace as namespaces

_SK_LOOKUP, _SOCKMAP = 30, 15  # a kind of programs, a kind of maps
_ATTACH = 36
_MAP_LOOKUP, _SK_RELEASE, _SK_ASSIGN = 1, 86, 124  # functions of the kernel's
#: struct bpf_sk_lookup; addresses in network byte order.
_FAMILY, _PROTOCOL, _REMOTE_IP4, _REMOTE_IP6, _LOCAL_IP4, _LOCAL_IP6 = 8, 12, 16, 20, 40, 44
_PASS = 1
#: The addresses at which connections are taken.
LOOPBACKS = ("127.0.0.1", "::1")
#: Where to listen, and the options IP_FREEBIND and IPV6_FREEBIND (include/uapi/linux/in.h, in6.h).
_LISTENERS = {
    socket.AF_INET: (LOOPBACKS[0], socket.IPPROTO_IP, 15),
    socket.AF_INET6: (LOOPBACKS[1], socket.IPPROTO_IPV6, 78),
}
_BACKLOG = 128


class Loopback:
    """Owns ``listeners``, non-blocking sockets that get the connections, as long as it is not closed."""

    def __init__(self, namespace: int) -> None:
        """Begin in the network namespace of the descriptor ``namespace``, which stays the caller's. Blocks.

        Raises HostError when the kernel cannot do it.
        """
        self.listeners: list[socket.socket] = []
        self._link = -1
        try:
            self.listeners += namespaces.inside(namespace, _listen)
            self._link = self._attach(namespace)
        except OSError as error:
            self.close()
            raise HostError(
                f"Connections to the loopback of the container's network cannot be taken: {error.strerror}."
            ) from error

    def _attach(self, namespace: int) -> int:
        with contextlib.ExitStack() as held:
            sockets = bpf.create_map(_SOCKMAP, 8, len(self.listeners))
            held.callback(os.close, sockets)
            for index, listener in enumerate(self.listeners):
                bpf.set_entry(sockets, index, struct.pack("=Q", listener.fileno()))
            code = program(sockets, [listener.family for listener in self.listeners])
            loaded = bpf.load(_SK_LOOKUP, _ATTACH, code, b"hako_loopback")
            held.callback(os.close, loaded)
            return bpf.attach(loaded, namespace, _ATTACH)

    def close(self) -> None:
        """Stop taking connections; those that were accepted stay. Can be repeated."""
        if self._link >= 0:
            os.close(self._link)
            self._link = -1
        for listener in self.listeners:
            listener.close()
        self.listeners.clear()


def _listen() -> list[socket.socket]:
    """A socket for each family that the kernel has. Raises OSError."""
    made: list[socket.socket] = []
    try:
        for family, (address, level, freebind) in _LISTENERS.items():
            try:
                listener = socket.socket(family, socket.SOCK_STREAM)
            except OSError:
                if family == socket.AF_INET:
                    raise
                continue
            made.append(listener)
            listener.setblocking(False)
            # The loopback may not have its addresses yet.
            listener.setsockopt(level, freebind, 1)
            listener.bind((address, 0))
            listener.listen(_BACKLOG)
    except BaseException:
        for listener in made:
            listener.close()
        raise
    return made


def program(sockets: int, families: list[socket.AddressFamily]) -> bytes:
    """Gives a connection to the socket at its family's place in the map ``sockets``; leaves others alone."""
    loopback = bytes(12) + b"\0\0\0\1"
    words = [loopback[at : at + 4] for at in range(0, 16, 4)]
    conditions = {
        socket.AF_INET: _when(_LOCAL_IP4, socket.inet_aton("127.0.0.1")) + _when(_REMOTE_IP4, b"\x7f\0\0\0", mask=1),
        socket.AF_INET6: [
            step
            for start in (_LOCAL_IP6, _REMOTE_IP6)
            for index, word in enumerate(words)
            for step in _when(start + 4 * index, word)
        ],
    }
    code = bpf.op(0xBF, 6, 1)  # r6 = context
    for index, family in enumerate(families):
        steps = [*_when(_PROTOCOL, _number(socket.IPPROTO_TCP)), *_when(_FAMILY, _number(family)), *conditions[family]]
        code += _block(steps, _assign(sockets, index))
    return code + bpf.op(0xB7, 0, value=_PASS) + bpf.op(0x95)  # return _PASS


def _number(value: int) -> bytes:
    return struct.pack("=I", value)


def _when(offset: int, word: bytes, mask: int = 4) -> list[bytes]:
    """Go on if the context has the first ``mask`` bytes of ``word`` at ``offset``; uses r2. The last step is a jump."""
    steps = [bpf.op(0x61, 2, 6, offset)]
    if mask < 4:
        steps.append(bpf.op(0x57, 2, value=int.from_bytes(b"\xff" * mask + bytes(4 - mask), sys.byteorder)))
    return [*steps, bpf.op(0x56, 2, value=int.from_bytes(word, sys.byteorder, signed=True))]


def _block(conditions: list[bytes], then: bytes) -> bytes:
    """``then``, unless a jump of the ``conditions`` leads past it."""
    code = b""
    for index, step in enumerate(conditions):
        if step[0] == 0x56:  # its offset is in the bytes 2 and 3
            past = len(conditions) - index - 1 + len(then) // 8
            step = step[:2] + struct.pack("=h", past) + step[4:]
        code += step
    return code + then


def _assign(sockets: int, index: int) -> bytes:
    """Give the connection to a socket of the map."""
    release = bpf.op(0xBF, 1, 7) + bpf.op(0x85, value=_SK_RELEASE)
    assign = bpf.op(0xBF, 7, 0) + bpf.op(0xBF, 1, 6) + bpf.op(0xBF, 2, 7) + bpf.op(0xB7, 3)
    assign += bpf.op(0x85, value=_SK_ASSIGN) + release
    find = bpf.op(0x62, 10, 0, -4, index) + bpf.op(0xBF, 2, 10) + bpf.op(0x07, 2, value=-4)  # r2 = &index
    find += bpf.op(0x18, 1, 1, 0, sockets) + bpf.op(0)  # r1 = the map, in two instructions
    find += bpf.op(0x85, value=_MAP_LOOKUP)
    return find + bpf.op(0x15, 0, 0, len(assign) // 8) + assign  # unless it is null
