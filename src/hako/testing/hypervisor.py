"""A VM that is none: it keeps the contract of ``hako.hypervisor.base.Hypervisor`` without QEMU, in no time.

The test plays the guest: ``guest_socket`` is the guest's end of the agent channel, ``say`` prints on the console, and
``end`` makes the VM die by itself.
"""

from __future__ import annotations

import asyncio
import fcntl
import os
import signal
import socket
import stat
from collections.abc import Awaitable, Sequence

from hako.errors import ConfigError, HypervisorError, NotFoundError, StateError
from hako.hypervisor.base import (
    AgentChannel,
    Backends,
    Balloon,
    Capabilities,
    Disk,
    MemoryDevice,
    Nic,
    ShareVirtiofs,
    VmExit,
    VmSpec,
)
from hako.hypervisor.console import BoundedLog

#: What freeze() writes, and a clone looks for.
_FROZEN = b"a pretended VM"
_MEMORY_BLOCK = 2 << 20


class FakeVm:
    """A pretended VM. ``failure``, if given, is what ``start`` raises after it has taken what it needs."""

    capabilities = Capabilities(pause=True, share_9p=True, accelerators=("tcg",))

    def __init__(
        self,
        spec: VmSpec,
        *,
        console_log: str | None = None,
        failure: HypervisorError | None = None,
        backends: Backends | None = None,
    ) -> None:
        self.spec = spec.checked()
        self._backends = backends or Backends()
        self._console_path = console_log
        self._failure = failure
        self._console = BoundedLog()
        self._sockets: tuple[socket.socket, socket.socket] | None = None
        self._exit: asyncio.Future[VmExit] | None = None
        self._requested = False
        self._state = "running"
        self.calls: list[str] = []  #: the driver's methods that were called, in order
        self.plugged: list[ShareVirtiofs | Nic | Disk] = []  #: what was added to it
        self.extra_memory = 0  #: bytes that were added to it; a test may take some away again
        self.vcpus = spec.vcpus
        self.balloon_size = spec.memory  #: what the guest has of its first memory

    # --- what a test does to it ---

    @property
    def guest_socket(self) -> socket.socket:
        """The guest's end of the agent channel, non-blocking."""
        if self._sockets is None:
            raise StateError(f"VM {self.spec.id} has no agent channel, or was not started.")
        return self._sockets[1]

    def say(self, data: bytes) -> None:
        """Print ``data`` on the guest's console."""
        self._console.write(data)

    def end(self, *, code: int | None = 0, signal: int | None = None, reason: str = "the guest powered off") -> None:
        """Let the VM end by itself. As with QEMU, its end of the channel is closed."""
        if self._exit is None:
            raise StateError(f"VM {self.spec.id} was not started.")
        if not self._exit.done():
            self._exit.set_result(VmExit(code, signal, reason, self.console_tail(), self._requested))
            if self._sockets is not None:
                self._sockets[1].close()

    # --- the contract ---

    @property
    def pid(self) -> int | None:
        return os.getpid() if self._exit is not None and not self._exit.done() else None

    @property
    def agent_socket(self) -> socket.socket:
        if self._sockets is None:
            raise StateError(f"VM {self.spec.id} has no agent channel, or was not started.")
        return self._sockets[0]

    def console_tail(self, lines: int = 20) -> list[str]:
        return self._console.tail(lines)

    async def start(self, memory_ready: Awaitable[None] | None = None) -> None:
        self.calls.append("start")
        if self._exit is not None:
            raise StateError(f"VM {self.spec.id} was started already.")
        self._exit = asyncio.get_running_loop().create_future()
        self._console = BoundedLog(self._console_path)
        if any(isinstance(device, AgentChannel) for device in self.spec.devices):
            self._sockets = socket.socketpair()
            for end in self._sockets:
                end.setblocking(False)
        try:
            if self._failure is not None:
                raise self._failure
            if self._backends.clone:
                await self._load(memory_ready)
        except BaseException:
            await self.kill()
            raise

    async def _load(self, memory_ready: Awaitable[None] | None) -> None:
        if memory_ready is not None:
            await memory_ready
        if self._backends.state is None or os.pread(self._backends.state, 64, 0) != _FROZEN:
            raise HypervisorError(f"VM {self.spec.id} cannot be cloned: this is no state of a pretended VM.")

    async def wait(self) -> VmExit:
        if self._exit is None:
            raise StateError(f"VM {self.spec.id} was not started.")
        return await asyncio.shield(self._exit)

    async def stop(self, timeout: float = 5.0) -> VmExit:  # noqa: ARG002  # nothing here takes time
        self.calls.append("stop")
        self._requested = True
        if self._exit is not None:
            self.end(reason="it was stopped")
        return await self.wait()

    async def kill(self) -> VmExit | None:
        self.calls.append("kill")
        self._requested = True
        if self._exit is None:
            return None
        self.end(code=None, signal=signal.SIGKILL, reason="it was killed")
        self._console.close()
        for end in self._sockets or ():
            end.close()
        return await self.wait()

    async def pause(self) -> None:
        self._set_state("pause", "paused")

    async def resume(self) -> None:
        self._set_state("resume", "running")

    async def freeze(self) -> None:
        if self._backends.state is None:
            raise StateError(f"VM {self.spec.id} was given no file for its state.")
        self._set_state("freeze", "paused")
        self.plugged = [device for device in self.plugged if not isinstance(device, ShareVirtiofs)]
        os.pwrite(self._backends.state, _FROZEN, 0)

    async def plug(self, device: ShareVirtiofs | Nic | Disk, fds: Sequence[int] = ()) -> None:
        self._must_run("plug")
        if isinstance(device, Disk):
            self._check_disk(device, *fds)
        if isinstance(device, Nic) and len(fds) != device.queues:
            raise HypervisorError("A card has as many queues as its tap.")
        self.plugged.append(device)

    def _check_disk(self, disk: Disk, fd: int) -> None:
        disk.check()
        there = [one for one in self.plugged if isinstance(one, Disk)]
        if any(one.serial == disk.serial for one in there):
            raise StateError(f"VM {self.spec.id} has a disk {disk.serial} already.")
        if len(there) >= self.capabilities.disks:
            raise StateError(f"VM {self.spec.id} has {len(there)} disks, and there is no room for another one.")
        mode = fcntl.fcntl(fd, fcntl.F_GETFL) & os.O_ACCMODE
        if mode != (os.O_RDONLY if disk.readonly else os.O_RDWR) or disk.block != stat.S_ISBLK(os.fstat(fd).st_mode):
            raise HypervisorError(f"VM {self.spec.id} was given another file for disk {disk.serial} than it is of.")

    async def unplug(self, disk: Disk) -> None:
        self._must_run("unplug")
        if disk not in self.plugged:
            raise NotFoundError(f"VM {self.spec.id} has no disk {disk.serial}.")
        self.plugged.remove(disk)

    async def resize_memory(self, extra: int, timeout: float = 30.0) -> int:  # noqa: ARG002  # as in stop()
        device = self.spec.find(MemoryDevice)
        if device is None:
            raise StateError(f"VM {self.spec.id} has no device by which its memory could grow.")
        self._must_run("resize_memory")
        wanted = -(-extra // _MEMORY_BLOCK) * _MEMORY_BLOCK
        if wanted > device.size:
            raise HypervisorError(f"VM {self.spec.id} cannot have {extra} bytes more: {device.size} at most.")
        self.extra_memory = wanted
        return wanted

    async def add_vcpus(self, count: int) -> int:
        limit = max(self.spec.vcpus, self.spec.max_vcpus)
        if count > limit:
            raise ConfigError(f"VM {self.spec.id} cannot have {count} vCPUs: it can have {limit} at most.")
        self._must_run("add_vcpus")
        self.vcpus = max(self.vcpus, count)
        return self.vcpus

    async def balloon(self, size: int | None = None) -> int:
        self._must_run("balloon")
        if self.spec.find(Balloon) is None:
            raise HypervisorError(f"VM {self.spec.id} has no balloon.")
        if size is not None:
            self.balloon_size = min(size, self.spec.memory)
        return self.balloon_size

    async def status(self) -> str:
        if self._exit is None:
            raise StateError(f"VM {self.spec.id} is not running.")
        return "exited" if self._exit.done() else self._state

    def _set_state(self, call: str, state: str) -> None:
        self._must_run(call)
        self._state = state

    def _must_run(self, call: str) -> None:
        self.calls.append(call)
        if self._exit is None:
            raise StateError(f"VM {self.spec.id} is not running.")
        if self._exit.done():
            raise HypervisorError(self._exit.result().sentence(self.spec.id))
