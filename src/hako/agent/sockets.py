"""Connections between the guest and the host: sockets that stand for some of the host's, and the guest's own servers.

Imported when it is needed. What a connection carries is links.py's.
"""

from __future__ import annotations

import errno
import os
import struct

from hako.agent.channel import Channel
from hako.agent.links import Link
from hako.agent.loop import READ, WRITE, Future, Loop
from hako.wire import calls

TYPE_CHECKING = False
if TYPE_CHECKING:
    import socket
    from collections import deque
    from typing import Any
else:
    import _socket as socket  # socket itself brings enum and selectors
    from _collections import deque  # collections itself brings operator and reprlib

#: One directory for each socket, with nothing else in it; containers are shown the socket alone.
_DIRECTORY = "/run/hako/sockets"
_NAME = "socket"
#: Clients that the kernel lets wait until the host takes them.
_BACKLOG = 128
_CONNECT_SECONDS = 10.0
_SO_PEERGROUPS = 59  # include/uapi/asm-generic/socket.h
#: What getsockopt() of Python's can take: 256 groups of a client's.
_MAX_GROUPS = 1024
_LOOPBACKS = ((socket.AF_INET, "127.0.0.1"), (socket.AF_INET6, "::1"))


class Listener:
    """A socket in the guest that stands for one of the host's: clients are taken when the host asks for the next."""

    def __init__(self, loop: Loop, name: str, mode: int, uid: int, gid: int) -> None:
        self._loop = loop
        self._directory = f"{_DIRECTORY}/{name}"
        self.path = f"{self._directory}/{_NAME}"
        self._waiting: deque[tuple[Link, Future]] = deque()
        os.makedirs(self._directory, 0o711)
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC)
        try:
            self._socket.bind(self.path)
            os.chown(self.path, uid, gid)
            os.chmod(self.path, mode)
            self._socket.listen(_BACKLOG)
        except BaseException:
            self.close()
            raise

    async def accept(self, link: Link) -> dict[str, Any]:
        """Give the next client to ``link``; who it is: ``uid``, ``gid``, ``groups``. Raises CallError, OSError."""
        accepted = Future()
        self._waiting.append((link, accepted))
        link.on_closed = lambda: self._forget(link, accepted)
        self._watch()
        client = await accepted
        if isinstance(client, BaseException):
            link.close()
            raise client
        link.on_closed = lambda: None
        _, uid, gid = struct.unpack("=3I", client.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12))
        found = {"uid": uid, "gid": gid, "groups": _groups(client)}
        link.connect(client)
        return found

    def _forget(self, link: Link, accepted: Future) -> None:
        """The host has ended the streams of a client that has not come."""
        self._waiting = deque(one for one in self._waiting if one[0] is not link)
        accepted.set(_gone("the connection has been given up"))
        self._watch()

    def _watch(self) -> None:
        if self._socket.fileno() >= 0:
            self._loop.watch(self._socket.fileno(), READ if self._waiting else 0, self._on_client)

    def _on_client(self, _events: int) -> None:
        try:
            fd, _ = self._socket._accept()  # type: ignore[attr-defined]  # what socket.accept() is made of
        except BlockingIOError:
            return
        except OSError as error:
            self._next().set(error)
        else:
            self._next().set(socket.socket(fileno=fd))

    def _next(self) -> Future:
        _, accepted = self._waiting.popleft()
        self._watch()
        return accepted

    def close(self) -> None:
        """Remove the socket; clients that have been taken stay. Can be repeated."""
        if self._socket.fileno() >= 0:
            self._loop.forget(self._socket.fileno())
            self._socket.close()
        while self._waiting:
            self._waiting.popleft()[1].set(_gone("the socket has been removed"))
        for remove, path in ((os.unlink, self.path), (os.rmdir, self._directory)):
            try:
                remove(path)
            except FileNotFoundError:
                continue


def _groups(client: socket.socket) -> list[int]:
    """The supplementary groups of whoever has connected; none when they are too many."""
    try:
        data = client.getsockopt(socket.SOL_SOCKET, _SO_PEERGROUPS, _MAX_GROUPS)
    except OSError:
        return []
    return list(struct.unpack(f"={len(data) // 4}I", data))


def _gone(text: str) -> calls.CallError:
    return calls.CallError(calls.NOT_FOUND, text)


class Sockets:
    """The sockets of this guest that stand for the host's, by name."""

    def __init__(self, loop: Loop) -> None:
        self._loop = loop
        self._listeners: dict[str, Listener] = {}

    def listen(self, name: str, mode: int, uid: int, gid: int) -> str:
        """Make the socket ``name``; its path. Raises CallError, OSError."""
        if name in self._listeners:
            raise calls.CallError(calls.ALREADY_EXISTS, f"socket {name} exists already")
        self._listeners[name] = Listener(self._loop, name, mode, uid, gid)
        return self._listeners[name].path

    def get(self, name: str) -> Listener:
        """The socket ``name``. Raises CallError."""
        if name not in self._listeners:
            raise _gone(f"socket {name} does not exist")
        return self._listeners[name]

    def unlisten(self, name: str) -> None:
        """Remove the socket ``name``. Raises CallError."""
        self.get(name).close()
        del self._listeners[name]


async def dial(loop: Loop, channel: Channel, port: int, incoming: int, outgoing: int, *, ipv6: bool) -> None:
    """Connect two streams with what listens at ``port`` of the guest's loopback, ``ipv6``: at ::1 before 127.0.0.1.

    Raises CallError when nothing does.
    """
    link = Link(loop, channel, incoming, outgoing)
    try:
        for family, address in _LOOPBACKS[::-1] if ipv6 else _LOOPBACKS:
            connected = await _connect(loop, family, address, port)
            if connected is not None:
                link.connect(connected)
                return
    except BaseException:
        link.close()
        raise
    link.close()
    raise _gone(f"nothing in the VM listens at port {port} of the loopback")


async def _connect(loop: Loop, family: int, address: str, port: int) -> socket.socket | None:
    """A connection, or None when there is nobody."""
    try:
        made = socket.socket(family, socket.SOCK_STREAM | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC)
    except OSError:  # a kernel without IPv6
        return None
    result = made.connect_ex((address, port))
    if result == errno.EINPROGRESS:
        decided = Future()
        loop.watch(made.fileno(), WRITE, lambda _events: decided.set(None))
        loop.after(_CONNECT_SECONDS, lambda: decided.set(errno.ETIMEDOUT))
        result = await decided or made.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
        loop.forget(made.fileno())
    if result == 0:
        return made
    made.close()
    return None
