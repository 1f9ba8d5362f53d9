"""9p over virtio: among the VM's devices from the start, works with private memory, needs no helper process."""

from __future__ import annotations

from collections.abc import Callable

from hako.errors import HakoError
from hako.hypervisor.base import Device, Share9p, ShareVirtiofs
from hako.storage.base import NAME, TAG, MountRequest


class NinePShare:
    """Shares a directory by QEMU's own 9p server; ``msize`` is the largest message in bytes.

    ``cache=mmap`` keeps pages only of files that are mapped, so that what another container or the host
    writes is seen at once. ``access=client`` leaves permission checks to the guest's kernel, which knows
    the containers' users; the server passes owners and modes through.
    """

    sharing = "private"
    pid = None

    def __init__(self, msize: int) -> None:
        self._msize = msize
        self.on_exit: Callable[[HakoError], None] | None = None
        self.lost: HakoError | None = None

    def device(self, path: str) -> Device | None:
        return Share9p(TAG, path)

    def plugged(self) -> ShareVirtiofs | None:
        return None

    async def start(self, path: str) -> int | None:  # noqa: ARG002 - the protocol has it
        return None

    def mount_request(self) -> MountRequest:
        options = f"trans=virtio,version=9p2000.L,msize={self._msize},cache=mmap,access=client"
        return MountRequest("9p", TAG, NAME, options)

    async def close(self) -> None:
        return
