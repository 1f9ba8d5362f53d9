"""Endpoints: the interfaces that an engine has put into a network namespace, and how each is tied to a tap.

    host's bridge ── veth │ eth0 ──tc ingress, mirred──▶ tap0 ── QEMU ── guest's eth0
                          │ eth0 ◀──tc ingress, mirred── tap0
                            network namespace

Each frame that arrives on one of the two is sent out of the other; the namespace's own network stack sees none.
"""

from __future__ import annotations

import contextlib
import errno
from collections.abc import Collection, Iterator
from typing import Any

from hako.errors import HostError, StateError
from hako.linux import interfaces, rtnetlink, tc
from hako.linux.interfaces import Everything
from hako.linux.netlink import Netlink
from hako.linux.rtnetlink import Link
from hako.network.tap import MAX_MTU, Tap

#: The priority of hako's filters, by which they are known again.
FILTER_PRIORITY = 0x4A40
#: Kinds of links that lead to no other machine: taps of VMs, and what carries frames within a host.
_NOT_ENDPOINTS = frozenset({"tun", "ifb"})


class Endpoint:
    """One interface of a namespace. ``description`` is what the guest is told (linux/interfaces.py)."""

    def __init__(self, index: int, kind: str, description: dict[str, Any]) -> None:
        self.index = index
        self.kind = kind  #: the driver: ``veth``, ``macvlan``, …; empty for hardware
        self.description = description

    @property
    def name(self) -> str:
        """Its name in the namespace, and in the guest."""
        return str(self.description["name"])

    @property
    def mac(self) -> str:
        """Its hardware address."""
        return str(self.description["mac"])


def discover(kernel: Netlink, known: Collection[int] = ()) -> list[Endpoint]:
    """The endpoints of the namespace of ``kernel``, in the order in which they came. Raises OSError.

    Those are the Ethernet interfaces that are up, except taps and ports of bridges. The links whose indices are
    ``known`` to be endpoints may be down.
    """
    everything = Everything(kernel)
    found = []
    for link in interfaces.ethernet(everything.links):
        is_endpoint = link.flags & rtnetlink.IFF_UP and not link.master and link.kind not in _NOT_ENDPOINTS
        if is_endpoint or link.index in known:
            description = everything.describe(link)
            description["mtu"] = min(link.mtu, MAX_MTU)
            found.append(Endpoint(link.index, link.kind, description))
    return found


class Attachment:
    """An endpoint tied to a tap. detach() undoes it; so does the end of all processes that hold the tap open."""

    def __init__(self, endpoint: Endpoint, tap: Tap, *, set_allmulti: bool) -> None:
        self.endpoint = endpoint
        self.tap = tap
        self._set_allmulti = set_allmulti
        self._tied = True

    @classmethod
    def make(
        cls, kernel: Netlink, namespace: int, endpoint: Endpoint, queues: int = 1, tap: Tap | None = None
    ) -> Attachment:
        """Tie ``endpoint`` to a new tap with ``queues`` queues, or to ``tap``, which is alone so far.

        What a dead owner has left is replaced. Raises StateError when a VM has the endpoint already or another
        program filters its packets, and HostError.
        """
        link = _link(kernel, endpoint)
        _clear(kernel, endpoint, {other.index for other in rtnetlink.links(kernel)})
        if tap is None:
            tap = Tap.open(namespace, queues)
        else:
            tap.move(namespace)
        made = cls(endpoint, tap, set_allmulti=not link.flags & rtnetlink.IFF_ALLMULTI)
        try:
            made._tie(kernel)
        except BaseException as error:
            made.detach(kernel)
            if isinstance(error, OSError):
                raise HostError(f"Cannot tie {endpoint.name} to the virtual machine: {error.strerror}.") from error
            raise
        return made

    def _tie(self, kernel: Netlink) -> None:
        tap, endpoint = self.tap.index, self.endpoint.index
        rtnetlink.set_link(kernel, tap, mtu=int(self.endpoint.description["mtu"]))
        for source, target in ((endpoint, tap), (tap, endpoint)):
            tc.add_ingress(kernel, source)
            tc.add_redirect(kernel, source, target, FILTER_PRIORITY)
        rtnetlink.set_link(kernel, tap, up=True)
        # Which groups the guest joins is not known here: a macvlan would drop their packets.
        rtnetlink.set_link(kernel, endpoint, up=True, allmulti=True if self._set_allmulti else None)

    def set_mtu(self, kernel: Netlink, mtu: int) -> None:
        """Follow a change of the endpoint's MTU. Raises OSError."""
        rtnetlink.set_link(kernel, self.tap.index, mtu=mtu)

    def detach(self, kernel: Netlink) -> None:
        """Untie both and remove the tap, or send it home. What is gone already is fine; a second call does nothing.

        Raises OSError.
        """
        if not self.tap.has_home:
            self.tap.close()
        if not self._tied:
            return
        self._tied = False
        tc.delete_ingress(kernel, self.endpoint.index)
        if self.tap.has_home:
            tc.delete_ingress(kernel, self.tap.index)
            # A network namespace that is gone has taken it along.
            with contextlib.suppress(HostError):
                self.tap.go_home()
        else:
            with _gone_is_fine():
                # QEMU may still hold it open.
                rtnetlink.delete_link(kernel, self.tap.index)
        if self._set_allmulti:
            with _gone_is_fine():
                rtnetlink.set_link(kernel, self.endpoint.index, allmulti=False)


@contextlib.contextmanager
def _gone_is_fine() -> Iterator[None]:
    try:
        yield
    except OSError as error:
        if error.errno != errno.ENODEV:
            raise


def _link(kernel: Netlink, endpoint: Endpoint) -> Link:
    for link in rtnetlink.links(kernel):
        if link.index == endpoint.index:
            return link
    raise StateError(f"The interface {endpoint.name} has vanished from the network namespace.")


def _clear(kernel: Netlink, endpoint: Endpoint, links: set[int]) -> None:
    """Remove the filters of an owner that is dead. Raises StateError for filters of anybody else's."""
    for filter in tc.filters(kernel, endpoint.index):
        if filter.priority != FILTER_PRIORITY or filter.kind != "u32":
            raise StateError(
                f"Another program filters the packets of {endpoint.name} in the network namespace (tc filter, "
                f"priority {filter.priority}); hako cannot pass them on to a virtual machine as well."
            )
        if filter.target in links:
            raise StateError(f"The interface {endpoint.name} belongs to another virtual machine already.")
    tc.delete_ingress(kernel, endpoint.index)
