"""UNIX sockets of the host that are mounted into containers: the guest's clients reach the host's servers.

The agent listens in the guest at a path of its own, which is what the container has mounted, and tells who connects;
then a connection is made here to the host's socket and carried (links.py). That socket was looked up once, when the
container was made, and is held by a descriptor: nothing that the guest says becomes a path, and the server that
can be reached stays the one that was mounted, as with a bind mount.

The server learns the user and group of the guest's client, not those of this process, and the host's kernel checks
whether they may connect.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import logging
import os
import socket
import stat
from typing import Any

from hako.agent_client import AgentClient, field
from hako.errors import AgentError, ConfigError, HakoError, HostError, ProtocolError
from hako.linux import syscalls
from hako.sandbox import links
from hako.storage.sources import Source
from hako.storage.tree import SharedTree
from hako.threads import in_thread_of_its_own

log = logging.getLogger(__name__)

#: Sockets of one sandbox, and connections to all of them together. Further clients wait in the guest.
MAX_SOCKETS = 64
MAX_CONNECTIONS = 256
#: Seconds for a server whose queue is full to take a connection; looked at so often.
_QUEUE_SECONDS = 10.0
_QUEUE_PAUSE = 0.05
#: Seconds before the next client is asked for after that has failed.
_RETRY_PAUSE = 1.0
_LAST_ID = (1 << 32) - 2
_MAX_GROUPS = 256


class HostSocket:
    """One socket of the host, for as long as any container has it mounted. Owns ``fd``, which stands for its file."""

    def __init__(self, source: str, found: Source, fd: int) -> None:
        self.source = source
        self.fd = fd
        self.name = os.urandom(8).hex()  #: how the guest calls it
        self.mode = stat.S_IMODE(found.mode)
        self.owner = found.owner
        self.users: set[str] = set()
        self.serving: asyncio.Task[None] | None = None

    @property
    def guest_path(self) -> str:
        """Where the guest has it."""
        return f"/run/hako/sockets/{self.name}/socket"

    def is_same(self, fd: int) -> bool:
        """Whether the descriptor stands for the same file."""
        return os.path.samestat(os.fstat(fd), os.fstat(self.fd))


class HostSockets:
    """Owns the host's sockets of one sandbox and their connections. ``allowed`` is the setting."""

    def __init__(self, *, allowed: bool) -> None:
        self._allowed = allowed
        self._loop = asyncio.get_running_loop()
        self._sockets: list[HostSocket] = []
        self._connections: set[asyncio.Task[None]] = set()
        self._freed = asyncio.Event()
        self._ending: set[asyncio.Task[None]] = set()
        self._agent: AgentClient | None = None

    def add(self, container_id: str, where: str, source: str, found: Source, tree: SharedTree) -> str:
        """The path in the guest of the socket ``source``, for a container; listen() makes it. ``where`` is for errors.

        Raises ConfigError when it cannot be had, HostError.
        """
        if not self._allowed:
            raise ConfigError(
                f"{where}: {source} is a socket of the host, and the setting sandbox.host_sockets does not allow a "
                "container to connect to one."
            )
        fd = tree.open_path(source)
        try:
            _refuse_other_kinds(where, source, fd)
            same = next((one for one in self._sockets if one.is_same(fd)), None)
            if same is None and len(self._sockets) >= MAX_SOCKETS:
                raise ConfigError(f"{where}: a VM can have at most {MAX_SOCKETS} sockets of the host.")
        except BaseException:
            os.close(fd)
            raise
        if same is None:
            same = HostSocket(source, found, fd)
            self._sockets.append(same)
        else:
            os.close(fd)
        same.users.add(container_id)
        return same.guest_path

    async def listen(self, container_id: str, agent: AgentClient) -> None:
        """Have the guest listen for what add() was called with. Raises HakoError."""
        self._agent = agent
        for one in self._sockets:
            if container_id in one.users and one.serving is None:
                uid, gid = one.owner
                # Before anything is waited for: a second container with the same socket finds it begun.
                one.serving = asyncio.ensure_future(self._serve(one, agent))
                await agent.call("Listen", {"socket": one.name, "mode": one.mode, "uid": uid, "gid": gid})

    async def _serve(self, one: HostSocket, agent: AgentClient) -> None:
        while True:
            while len(self._connections) >= MAX_CONNECTIONS:
                self._freed.clear()
                await self._freed.wait()
            streams = links.Streams(agent)
            try:
                client = await agent.call("Accept", {"socket": one.name, **streams.numbers}, None)
                identity = _identity(client)
            except AgentError as error:
                streams.close()
                log.warning("Clients of %s in the guest cannot be taken: %s", one.source, error)
                await asyncio.sleep(_RETRY_PAUSE)
                continue
            except HakoError:
                streams.close()
                return  # the VM is gone, has broken the protocol, or does not listen any more
            except BaseException:
                streams.close()
                raise
            task = asyncio.ensure_future(_connect_and_carry(one, identity, streams))
            self._connections.add(task)
            task.add_done_callback(self._on_end)

    def _on_end(self, task: asyncio.Task[None]) -> None:
        self._connections.discard(task)
        self._freed.set()

    def remove(self, container_id: str) -> None:
        """A container is gone: what only it had is given back. Its connections end with its processes.

        Can be called from any thread, and does not wait for it.
        """
        self._loop.call_soon_threadsafe(self._remove, container_id)

    def _remove(self, container_id: str) -> None:
        for one in list(self._sockets):
            one.users.discard(container_id)
            if not one.users:
                self._sockets.remove(one)
                self._end(one)

    def _end(self, one: HostSocket) -> None:
        os.close(one.fd)
        one.fd = -1
        if one.serving is not None:
            one.serving.cancel()
            assert self._agent is not None
            task = asyncio.ensure_future(_unlisten(one, one.serving, self._agent))
            self._ending.add(task)
            task.add_done_callback(self._ending.discard)

    async def close(self) -> None:
        """End all connections. Can be repeated."""
        tasks = [*self._connections, *self._ending, *(one.serving for one in self._sockets if one.serving is not None)]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        for one in self._sockets:
            os.close(one.fd)
        self._sockets.clear()


async def _unlisten(one: HostSocket, serving: asyncio.Task[None], agent: AgentClient) -> None:
    await asyncio.gather(serving, return_exceptions=True)
    with contextlib.suppress(HakoError):
        await agent.call("Unlisten", {"socket": one.name})


def _refuse_other_kinds(where: str, source: str, fd: int) -> None:
    """Raise ConfigError unless the socket is one of SOCK_STREAM, or nobody has it open at the moment.

    Only a socket of the same kind can connect; the kernel tells others before the server notices anything.
    """
    for kind in (socket.SOCK_DGRAM, socket.SOCK_SEQPACKET):
        with socket.socket(socket.AF_UNIX, kind) as probe:
            probe.setblocking(False)
            result = probe.connect_ex(_path(fd))
        if result in (errno.EPROTOTYPE, errno.ECONNREFUSED):
            continue
        if result in (0, errno.EAGAIN, errno.EPERM):
            raise ConfigError(
                f"{where}: {source} is a socket of the kind {kind.name}, and a container in a VM can be connected with "
                "those of SOCK_STREAM alone."
            )
        raise HostError(f"Cannot connect to the socket {source}: {os.strerror(result)}.")


def _path(fd: int) -> str:
    return f"/proc/self/fd/{fd}"


class _Identity:
    """User, group and further groups of a client, which the guest has told."""

    def __init__(self, uid: int, gid: int, groups: list[int]) -> None:
        self.uid = uid
        self.gid = gid
        self.groups = groups


def _identity(client: dict[str, Any]) -> _Identity:
    """Check what the agent has told of a client. Raises ProtocolError."""
    uid, gid, groups = (field(client, name, kind) for name, kind in (("uid", int), ("gid", int), ("groups", list)))
    if len(groups) > _MAX_GROUPS or not all(type(one) is int and 0 <= one <= _LAST_ID for one in (uid, gid, *groups)):
        raise ProtocolError("The agent's answer has no valid user or groups of a client.")
    return _Identity(uid, gid, groups)


async def _connect_and_carry(one: HostSocket, client: _Identity, streams: links.Streams) -> None:
    try:
        connected = await _connect(one, client)
    except OSError as error:
        # The guest may repeat it as often as it likes.
        log.debug("A client in the guest could not be connected to %s: %s", one.source, error.strerror)
        streams.close()
        return
    except BaseException:
        streams.close()
        raise
    await links.carry(connected, streams)


async def _connect(one: HostSocket, client: _Identity) -> socket.socket:
    """A connection to the host's socket on behalf of ``client``. Raises OSError."""
    deadline = asyncio.get_running_loop().time() + _QUEUE_SECONDS
    made = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        made.setblocking(False)
        while True:
            if one.fd < 0:
                raise OSError(errno.ECONNREFUSED, os.strerror(errno.ECONNREFUSED))
            result = _connect_as(made, _path(one.fd), client)
            if result == 0:
                return made
            if result != errno.EAGAIN or asyncio.get_running_loop().time() >= deadline:
                raise OSError(result, os.strerror(result))
            await asyncio.sleep(_QUEUE_PAUSE)  # its queue is full; no event tells when it is not
    except BaseException:
        made.close()
        raise


def _connect_as(made: socket.socket, path: str, client: _Identity) -> int:
    """connect(2) with the client's effective user and groups, which the server is told; its error number."""

    def work() -> int:
        # Real and saved ids stay ours: no other process of that user may signal or trace this thread.
        syscalls.set_thread_groups(client.groups)
        syscalls.set_thread_effective_ids(client.uid, client.gid)
        return made.connect_ex(path)

    if client.uid == os.geteuid() and client.gid == os.getegid():
        return made.connect_ex(path)
    try:
        return in_thread_of_its_own(work)
    except OSError as error:
        return error.errno or errno.EPERM
    finally:
        # To change the ids of a thread has made /proc/self somebody else's for the whole process.
        syscalls.prctl(syscalls.PR_SET_DUMPABLE, 1)
