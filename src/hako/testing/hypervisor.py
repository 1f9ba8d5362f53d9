"""A VM that is none: it keeps the contract of ``hako.hypervisor.base.Hypervisor`` without QEMU, in no time.

The test plays the guest: ``guest_socket`` is the guest's end of the agent channel, ``say`` prints on the console, and
``end`` makes the VM die by itself.
"""

from __future__ import annotations

import asyncio
import os
import signal
import socket

from hako.errors import HypervisorError, StateError
from hako.hypervisor.base import AgentChannel, Capabilities, VmExit, VmSpec
from hako.hypervisor.console import BoundedLog


class FakeVm:
    """A pretended VM. ``failure``, if given, is what ``start`` raises after it has taken what it needs."""

    capabilities = Capabilities(pause=True, share_9p=True, accelerators=("tcg",))

    def __init__(self, spec: VmSpec, *, console_log: str | None = None, failure: HypervisorError | None = None) -> None:
        self.spec = spec.checked()
        self._console_path = console_log
        self._failure = failure
        self._console = BoundedLog()
        self._sockets: tuple[socket.socket, socket.socket] | None = None
        self._exit: asyncio.Future[VmExit] | None = None
        self._requested = False
        self._state = "running"
        self.calls: list[str] = []  #: the driver's methods that were called, in order

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

    async def start(self) -> None:
        self.calls.append("start")
        if self._exit is not None:
            raise StateError(f"VM {self.spec.id} was started already.")
        self._exit = asyncio.get_running_loop().create_future()
        self._console = BoundedLog(self._console_path)
        if any(isinstance(device, AgentChannel) for device in self.spec.devices):
            self._sockets = socket.socketpair()
            for end in self._sockets:
                end.setblocking(False)
        if self._failure is not None:
            await self.kill()
            raise self._failure

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

    async def status(self) -> str:
        if self._exit is None:
            raise StateError(f"VM {self.spec.id} is not running.")
        return "exited" if self._exit.done() else self._state

    def _set_state(self, call: str, state: str) -> None:
        self.calls.append(call)
        if self._exit is None:
            raise StateError(f"VM {self.spec.id} is not running.")
        if self._exit.done():
            raise HypervisorError(self._exit.result().sentence(self.spec.id))
        self._state = state
