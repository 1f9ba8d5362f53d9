"""The network of one VM: the namespace an engine prepared, its endpoints and their taps.

    network = Network.open("/run/netns/x", queues=2)
    for attachment in network.attach_all():
        ...                              # give attachment.tap.fds to QEMU as a NIC with attachment.endpoint.mac
    ...                                  # tell the guest: [a.endpoint.description for a in network.attachments]
    async for changes in watch(network): # network/watch.py: something has appeared, vanished or changed
    network.close()

Everything here waits for the kernel, mostly for less than a millisecond, but as long as others change the network of
the host; so an asyncio program calls it by asyncio.to_thread(), one call at a time.
"""

from __future__ import annotations

import errno
import os
from types import TracebackType
from typing import Any

from hako.errors import HostError, StateError
from hako.linux import rtnetlink
from hako.linux.netlink import Netlink
from hako.named import NamedTuple
from hako.network import namespace as namespaces
from hako.network.endpoint import Attachment, Endpoint, discover
from hako.network.tap import Tap

_GROUPS = (
    rtnetlink.GROUP_LINK
    | rtnetlink.GROUP_IPV4_ADDR
    | rtnetlink.GROUP_IPV6_ADDR
    | rtnetlink.GROUP_IPV4_ROUTE
    | rtnetlink.GROUP_IPV6_ROUTE
)


class Changes(NamedTuple):
    """What has become of the namespace's interfaces since they were last looked at."""

    appeared: list[Endpoint]  #: not attached yet
    vanished: list[Attachment]  #: for the caller to unplug and detach
    changed: list[Attachment]  #: with new descriptions of addresses, routes, MTU, …; the guest does not know them yet

    def __bool__(self) -> bool:
        return bool(self.appeared or self.vanished or self.changed)


class Network:
    """Owns the taps of a VM. Use it as a context manager, or close it. Methods raise HostError and StateError."""

    def __init__(self, path: str, namespace: int, kernel: Netlink, monitor: Netlink, queues: int) -> None:
        self.path = path
        self.attachments: list[Attachment] = []
        self._namespace = namespace
        self._kernel = kernel
        self._monitor = monitor
        self._queues = queues

    @classmethod
    def open(cls, path: str, queues: int = 1) -> Network:
        """The network namespace at ``path``; each tap gets ``queues`` queues, best as many as the VM has vCPUs.

        Raises NotFoundError when there is no such file, and StateError for the host's own namespace: to give its
        interfaces away would cut the host off.
        """
        namespace = namespaces.open_namespace(path)
        kernel = None
        try:
            if namespaces.is_hosts(namespace):
                raise StateError(f"The network namespace {path} is the host's; a virtual machine cannot be part of it.")
            kernel = namespaces.open_socket(namespace)
            monitor = namespaces.open_socket(namespace, _GROUPS)
        except BaseException as error:
            if kernel is not None:
                kernel.close()
            os.close(namespace)
            if isinstance(error, OSError):
                raise _failed("look into", path, error) from error
            raise
        return cls(path, namespace, kernel, monitor, queues)

    def __enter__(self) -> Network:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def endpoints(self) -> list[Endpoint]:
        """The interfaces that can be attached, as they are now; attached ones too."""
        try:
            return discover(self._kernel, [attachment.endpoint.index for attachment in self.attachments])
        except OSError as error:
            raise _failed("list", self.path, error) from error

    def attach(self, endpoint: Endpoint, tap: Tap | None = None) -> Attachment:
        """Tie ``endpoint`` to a new tap, or to ``tap``; one that is tied already is returned as it is."""
        for attachment in self.attachments:
            if attachment.endpoint.index == endpoint.index:
                return attachment
        made = Attachment.make(self._kernel, self._namespace, endpoint, self._queues, tap)
        self.attachments.append(made)
        return made

    def attach_all(self) -> list[Attachment]:
        """Attach what is there; if one fails, none stays attached that was not before. Returns all attachments."""
        before = list(self.attachments)
        try:
            for endpoint in self.endpoints():
                self.attach(endpoint)
        except BaseException:
            for attachment in [attachment for attachment in self.attachments if attachment not in before]:
                self.detach(attachment)
            raise
        return list(self.attachments)

    def detach(self, attachment: Attachment) -> None:
        """Untie an endpoint and remove its tap; the endpoint may be gone, and a second call does nothing."""
        if attachment in self.attachments:
            self.attachments.remove(attachment)
        try:
            attachment.detach(self._kernel)
        except OSError as error:
            raise _failed("change", self.path, error) from error

    def descriptions(self) -> list[dict[str, Any]]:
        """What the guest is to have, for the agent's method Network: one object for each attachment."""
        return [attachment.endpoint.description for attachment in self.attachments]

    def fileno(self) -> int:
        """A descriptor that can be read when something may have changed; then call changes().

        An engine makes an interface in many small steps, so wait some 20 ms for the rest before that.
        """
        return self._monitor.fileno()

    def changes(self) -> Changes:
        """Compare the namespace with what is attached. Attachments get new descriptions where they have changed."""
        try:
            self._monitor.drain()
        except OSError as error:
            if error.errno != errno.ENOBUFS:  # some were lost, which does not matter: everything is looked at anew
                raise _failed("watch", self.path, error) from error
        now = {endpoint.index: endpoint for endpoint in self.endpoints()}
        found = Changes([], [], [])
        for attachment in self.attachments:
            endpoint = now.pop(attachment.endpoint.index, None)
            if endpoint is None:
                found.vanished.append(attachment)
            elif endpoint.description != attachment.endpoint.description:
                self._follow(attachment, endpoint)
                found.changed.append(attachment)
        found.appeared.extend(now.values())
        return found

    def _follow(self, attachment: Attachment, endpoint: Endpoint) -> None:
        mtu = endpoint.description["mtu"]
        if mtu != attachment.endpoint.description["mtu"]:
            try:
                attachment.set_mtu(self._kernel, mtu)
            except OSError as error:
                raise _failed("change", self.path, error) from error
        attachment.endpoint = endpoint

    def close(self) -> None:
        """Detach everything and let go of the namespace. A second call does nothing."""
        if self._namespace < 0:
            return
        try:
            for attachment in list(self.attachments):
                self.detach(attachment)
        finally:
            for attachment in self.attachments:
                attachment.tap.close()
            self._kernel.close()
            self._monitor.close()
            os.close(self._namespace)
            self._namespace = -1


def _failed(what: str, path: str, error: OSError) -> HostError:
    about = f" ({error.filename})" if error.filename else ""
    return HostError(f"Cannot {what} the interfaces of the network namespace {path}: {error.strerror}{about}.")
