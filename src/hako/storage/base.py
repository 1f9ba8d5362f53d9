"""How directories of the host reach the guest: what a driver has to offer, whatever the technique.

One share per VM carries everything: ``SharedTree`` (tree.py) puts the root file systems and volumes of all
containers into one directory of the host, and a driver makes that directory appear in the guest.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

from hako.errors import HakoError
from hako.hypervisor.base import Device, ShareVirtiofs
from hako.named import NamedTuple

#: Tag of the share and its name in the guest, below /run/hako/shares.
TAG = "hako.shared"
NAME = "shared"


class MountRequest(NamedTuple):
    """What the agent is asked to mount: file system type, tag, name below its shares, mount options."""

    driver: str
    tag: str
    name: str
    options: str

    def params(self) -> dict[str, object]:
        """Parameters of the agent's MountShare call."""
        return self._asdict()


class ShareDriver(Protocol):
    """One technique of sharing a directory with one VM.

    A directory is shared by what is among the VM's devices (``device``), or by a helper process (``start``) and what
    is added to the VM (``plugged``). The owner calls ``close`` on every path.
    """

    sharing: str  #: how the VM may have its memory: any of VmSpec's ways for "private", only "shared" for "shared"
    #: told why the helper has ended by itself; the share is of no use from then on
    on_exit: Callable[[HakoError], None] | None
    #: the same, to be asked: a better reason than QEMU's when a share could not be added
    lost: HakoError | None

    @property
    def pid(self) -> int | None:
        """Process id of the running helper, None when there is none. It leads a process group of its own."""

    def device(self, path: str) -> Device | None:
        """The device that must be among the VM's from the start, None when it is added later."""

    def plugged(self) -> ShareVirtiofs | None:
        """What is added to the running VM, None when nothing is."""

    async def start(self, path: str) -> int | None:
        """Start the helper that serves ``path``; return its connected vhost-user socket for ``Backends.share``.

        The descriptor stays the driver's. None when there is no helper. Call it where SharedTree's mounts are seen,
        once, from a thread that lives as long as the VM. Raises HostError.
        """

    def mount_request(self) -> MountRequest:
        """How the guest mounts the share."""

    async def close(self) -> None:
        """End the helper and give back everything. Can be repeated."""
