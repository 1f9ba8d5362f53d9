"""How directories of the host reach the guest: what a driver has to offer, whatever the technique.

One share per VM carries everything: ``SharedTree`` (tree.py) puts the root file systems and volumes of all
containers into one directory of the host, and a driver makes that directory appear in the guest.
"""

from __future__ import annotations

from typing import NamedTuple, Protocol

from hako.hypervisor.base import Device

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
    """One technique of sharing the directory ``path`` with a VM."""

    def device(self, path: str) -> Device | None:
        """The device that must be among the VM's from the start, None when it is added later."""

    def mount_request(self) -> MountRequest:
        """How the guest mounts the share."""
