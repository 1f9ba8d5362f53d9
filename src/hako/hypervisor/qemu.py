"""The QEMU driver: one object per VM, owner of the process, its sockets and its console log."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import socket
import stat
import subprocess
from collections.abc import Awaitable, Sequence
from typing import TYPE_CHECKING, Any

from hako import arch, log, proc
from hako.errors import ConfigError, HostError, HypervisorError, StateError, TimedOutError
from hako.hypervisor import confine, hotplug, migration
from hako.hypervisor.base import (
    AgentChannel,
    Backends,
    Capabilities,
    CloneError,
    Disk,
    MemoryDevice,
    Nic,
    ShareVirtiofs,
    VmExit,
    VmSpec,
)
from hako.hypervisor.console import LOG_CAP, BoundedLog, SocketReader
from hako.hypervisor.disks import DiskBus
from hako.hypervisor.qemu_args import SHARE_DEVICE, backend_fds, build_argv, virtiofs_device
from hako.proc import BASE_ENV

if TYPE_CHECKING:
    from hako.hypervisor.qmp import Qmp

_log = log.get("hypervisor")

#: Seconds QEMU has to answer on its control socket after its start; it takes 0.03 on an idle machine.
START_TIMEOUT = 30.0

# Seconds a killed process has to disappear. One that hangs in the kernel is reported, not waited for.
_REAP_TIMEOUT = 30.0

# Seconds after QEMU's end in which what it last said may still have to be read from its socket.
_LAST_WORDS = 0.2

_CONSOLE_LINES = 20

# QEMU's word for why the guest stopped, and ours.
_SHUTDOWN = {
    "guest-shutdown": "the guest powered off",
    "guest-reset": "the guest rebooted, which a kernel panic does too",
    "guest-panic": "the guest's kernel panicked",
    "host-qmp-quit": "it was stopped",
    "host-signal": "QEMU was told to end by a signal from the host",
    "subsystem-reset": "the guest was reset",
}

# Run states QEMU stops a guest in when it cannot be continued.
_FATAL_STATES = ("internal-error", "guest-panicked")


def find_qemu(binary: str = "") -> str:
    """The path of QEMU: ``binary`` (a name or path) or the architecture's program. Raises HostError when missing."""
    name = binary or arch.current().qemu_binary
    found = proc.find(name)
    if found is None:
        raise HostError(f"QEMU is not installed: there is no program {name}. Install the package qemu-system-x86.")
    return found


class QemuVm:
    """A VM run by QEMU; see ``hako.hypervisor.base.Hypervisor`` for the contract."""

    capabilities = Capabilities(pause=True, share_9p=True, accelerators=("kvm", "tcg"))

    def __init__(
        self,
        spec: VmSpec,
        *,
        console_log: str | None = None,
        console_cap: int = LOG_CAP,
        user: str = confine.DEFAULT_USER,
        binary: str = "",
        backends: Backends | None = None,
    ) -> None:
        """``console_log`` is the file for the guest's console (None: memory only), of which at most ``console_cap``
        bytes are kept; ``user`` the system user QEMU runs as where it exists; ``binary`` QEMU's name or path (empty:
        the architecture's); ``backends`` what stands behind the devices that need it.

        Raises ConfigError for a description that cannot be."""
        self.spec = spec.checked()
        self._console_path = console_log
        self._console_cap = console_cap
        self._user = user
        self._binary = binary
        self._backends = backends or Backends()
        self._stack = contextlib.AsyncExitStack()
        self._console = BoundedLog()
        self._stderr = BoundedLog()
        self._readers: list[SocketReader] = []
        self._process: subprocess.Popen[bytes] | None = None
        self._agent: socket.socket | None = None
        self._qmp: Qmp | None = None
        self._exit: asyncio.Future[VmExit] | None = None
        self._last_rites: asyncio.Task[None] | None = None
        self._requested = False
        self._fatal = ""
        self._cards = 0  # that were plugged in
        self._share_plugged = False
        self._disks = DiskBus(self.spec.id, self.capabilities.disks)

    @property
    def pid(self) -> int | None:
        return self._process.pid if self._process is not None and self._process.returncode is None else None

    @property
    def agent_socket(self) -> socket.socket:
        if self._agent is None:
            raise StateError(f"VM {self.spec.id} has no agent channel, or was not started.")
        return self._agent

    def console_tail(self, lines: int = _CONSOLE_LINES) -> list[str]:
        return self._console.tail(lines)

    async def start(self, memory_ready: Awaitable[None] | None = None) -> None:
        if self._exit is not None:
            raise StateError(f"VM {self.spec.id} was started already.")
        self._exit = asyncio.get_running_loop().create_future()
        try:
            qmp_socket = self._spawn()
            await self._shake_hands(qmp_socket)
            if self._backends.clone:
                await self._load(memory_ready)
        except BaseException:
            await self.kill()
            if self._process is None:
                self._exit = None  # there will be no end to wait for
            raise

    async def _load(self, memory_ready: Awaitable[None] | None) -> None:
        assert self._exit is not None
        if memory_ready is not None:
            await memory_ready
        try:
            await migration.load(self._monitor(), self._backends.state)
        except HypervisorError as error:
            # A QEMU that cannot read the state says why, and ends.
            await asyncio.wait({self._exit}, timeout=1)
            if self._exit.done() and self._exit.result().signal is not None:
                raise HypervisorError(self._exit.result().sentence(self.spec.id)) from error
            words = self._stderr_words() or str(error)
            raise CloneError(f"VM {self.spec.id} cannot be cloned: {words.rstrip('.')}.") from error
        if self._backends.plugged is not None:
            # While the guest stands still this takes 3 ms instead of 50.
            await self.plug(self._backends.plugged)
        await self.resume()

    async def wait(self) -> VmExit:
        if self._exit is None:
            raise StateError(f"VM {self.spec.id} was not started.")
        return await asyncio.shield(self._exit)

    async def stop(self, timeout: float = 5.0) -> VmExit:
        self._requested = True
        if self.pid is not None and self._qmp is not None:
            try:
                async with asyncio.timeout(timeout):
                    await self._qmp.execute("quit", timeout=timeout)
                    return await self.wait()
            except (TimeoutError, HypervisorError, TimedOutError) as error:
                # An answer that got lost because QEMU ended is the normal case.
                _log.debug("QEMU did not confirm its end.", vm=self.spec.id, error=str(error))
        self._signal(signal.SIGKILL)
        return await self.wait()

    async def kill(self) -> VmExit | None:
        self._requested = True
        try:
            if self._process is None:
                return None
            self._signal(signal.SIGKILL)
            async with asyncio.timeout(_REAP_TIMEOUT):
                return await self.wait()
        except TimeoutError as error:
            raise HypervisorError(
                f"QEMU of VM {self.spec.id} (process {self.pid}) does not end after SIGKILL; look for it with ps."
            ) from error
        finally:
            await self._stack.aclose()

    async def pause(self) -> None:
        await self._command("stop")

    async def resume(self) -> None:
        await self._command("cont")

    async def status(self) -> str:
        if self._exit is not None and self._exit.done():
            return "exited"
        answer = await self._command("query-status")
        status = answer.get("status") if isinstance(answer, dict) else None
        return status if isinstance(status, str) else "unknown"

    async def freeze(self) -> None:
        if self._backends.state is None:
            raise StateError(f"VM {self.spec.id} was given no file for its state.")
        await self._command("stop")
        if self._share_plugged:
            await hotplug.take_away(self._monitor(), SHARE_DEVICE)
            self._share_plugged = False
        await migration.save(self._monitor(), self._backends.state)

    async def plug(self, device: ShareVirtiofs | Nic | Disk, fds: Sequence[int] = ()) -> None:
        if isinstance(device, Disk):
            await self._disks.add(self._monitor(), device, *fds)
        elif isinstance(device, Nic):
            self._cards += 1
            await hotplug.add_nic(self._monitor(), device, f"nic{self._cards}", fds)
        else:
            await self._monitor().execute("device_add", virtiofs_device(device))
            self._share_plugged = True

    async def unplug(self, disk: Disk) -> None:
        await self._disks.remove(self._monitor(), disk)

    async def resize_memory(self, extra: int, timeout: float = 30.0) -> int:
        if self.spec.find(MemoryDevice) is None:
            raise StateError(f"VM {self.spec.id} has no device by which its memory could grow.")
        return await hotplug.resize_memory(self._monitor(), extra, timeout)

    async def add_vcpus(self, count: int) -> int:
        if count > max(self.spec.vcpus, self.spec.max_vcpus):
            limit = max(self.spec.vcpus, self.spec.max_vcpus)
            raise ConfigError(f"VM {self.spec.id} cannot have {count} vCPUs: it can have {limit} at most.")
        return await hotplug.add_vcpus(self._monitor(), count)

    async def balloon(self, size: int | None = None) -> int:
        return await hotplug.balloon(self._monitor(), size)

    async def _command(self, name: str) -> object:
        return await self._monitor().execute(name)

    def _monitor(self) -> Qmp:
        if self._qmp is None or self._exit is None:
            raise StateError(f"VM {self.spec.id} is not running.")
        if self._exit.done():
            raise HypervisorError(self._exit.result().sentence(self.spec.id))
        return self._qmp

    # --- start ---

    def _spawn(self) -> socket.socket:
        """Start QEMU and everything that watches it; return our end of its control socket."""
        root = os.geteuid() == 0
        binary = find_qemu(self._binary)
        account = confine.find_account(self._user, self.spec.accelerator)
        prefix = confine.launch_prefix(account, confine.capabilities(self.spec), root=root)
        self._console = BoundedLog(self._console_path, self._console_cap)
        self._stack.callback(self._console.close)
        # QEMU's ends are closed when this block ends: the child has them by then, or will never need them.
        with contextlib.ExitStack() as theirs:
            sockets, fds = self._make_channels(theirs, account)
            read_end, write_end = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
            self._stack.callback(os.close, read_end)
            theirs.callback(os.close, write_end)
            argv = [*prefix, *build_argv(self.spec, fds, binary)]
            _log.debug("Starting QEMU.", vm=self.spec.id, argv=argv)
            try:
                self._process = subprocess.Popen(
                    argv,
                    stdin=subprocess.DEVNULL,
                    stdout=write_end,
                    stderr=write_end,
                    pass_fds=tuple(fds.values()),
                    env=BASE_ENV,
                    cwd="/",
                    # A Ctrl-C meant for a program that uses hako must not reach the VM behind its back.
                    start_new_session=True,
                )
                self._watch(self._process)
            except OSError as error:
                raise HostError(f"Cannot start {argv[0]}: {error.strerror}.") from error
        for source, target in ((sockets["console"], self._console), (read_end, self._stderr)):
            reader = SocketReader(source, target)
            self._stack.callback(reader.stop)
            self._readers.append(reader)
        return sockets["qmp"]

    def _make_channels(
        self, theirs: contextlib.ExitStack, account: confine.Account | None
    ) -> tuple[dict[str, socket.socket], dict[str, int]]:
        """Our sockets by name, owned by the VM, and the descriptors for QEMU, owned by ``theirs``."""
        names = ["qmp", "console"]
        if any(isinstance(device, AgentChannel) for device in self.spec.devices):
            names.append("agent")
        ours: dict[str, socket.socket] = {}
        fds: dict[str, int] = {}
        for name in names:
            ours[name], other = socket.socketpair()
            self._stack.callback(ours[name].close)
            theirs.callback(other.close)
            ours[name].setblocking(False)
            fds[name] = other.fileno()
        self._agent = ours.get("agent")
        fds |= backend_fds(self._backends)
        files = {"kernel": self.spec.kernel, "initrd": self.spec.initrd}
        for name, path in files.items():
            if path is not None:
                fds[name] = _open_for_qemu(path, name, account)
                theirs.callback(os.close, fds[name])
        return ours, fds

    async def _shake_hands(self, sock: socket.socket) -> None:
        assert self._exit is not None
        from hako.hypervisor.qmp import Qmp

        self._qmp = Qmp(self.spec.id)
        self._stack.push_async_callback(self._qmp.close)
        connect = asyncio.create_task(self._qmp.connect(sock))
        either: set[asyncio.Future[Any]] = {connect, self._exit}
        try:
            await asyncio.wait(either, timeout=START_TIMEOUT, return_when=asyncio.FIRST_COMPLETED)
            if self._exit.done():
                # Its socket is closed, so this ends too; it does not take well to being cancelled.
                await asyncio.wait({connect}, timeout=1)
            # A VM that came up and died at once was started; wait() tells the rest.
            if connect.done() and connect.exception() is None:
                stops = asyncio.create_task(self._watch_stops(self._qmp))
                self._stack.callback(stops.cancel)
                return
            if not connect.done() and not self._exit.done():
                raise HypervisorError(
                    f"QEMU of VM {self.spec.id} did not answer on its control socket within {START_TIMEOUT:g} s: "
                    f"{self._stderr_words() or 'it said nothing'}."
                )
        finally:
            connect.cancel()
            await asyncio.wait({connect})
        # A QEMU that refuses its arguments closes the socket a moment before it is gone.
        await asyncio.wait({self._exit}, timeout=1)
        if not self._exit.done():
            await connect  # raises what went wrong
        end = await self.wait()
        raise HypervisorError(f"QEMU did not start VM {self.spec.id}: {self._stderr_words() or end.reason}.")

    def _stderr_words(self) -> str:
        prefix = f"{arch.current().qemu_binary}: "
        return " | ".join(line.removeprefix(prefix).rstrip(".") for line in self._stderr.tail(3))

    # --- end ---

    def _watch(self, process: subprocess.Popen[bytes]) -> None:
        """Learn of the process's end from the kernel, at once, without signals or polling."""
        loop = asyncio.get_running_loop()
        try:
            pidfd = os.pidfd_open(process.pid)
        except OSError:
            self._process = None
            process.kill()
            process.wait()
            raise

        def ended() -> None:
            loop.remove_reader(pidfd)
            os.close(pidfd)
            process.wait()
            self._last_rites = loop.create_task(self._report(process.returncode))

        loop.add_reader(pidfd, ended)

    async def _watch_stops(self, qmp: Qmp) -> None:
        """Turn a guest that QEMU stopped for good into a dead VM: there is nothing to resume."""
        while True:
            await qmp.wait_stopped()
            with contextlib.suppress(HypervisorError, StateError, TimedOutError):
                status = await self.status()
                if status in _FATAL_STATES:
                    self._fatal = f"the guest's CPU cannot go on (QEMU's state is {status})"
                    self._signal(signal.SIGKILL)

    async def _report(self, returncode: int) -> None:
        """Gather the last words and settle the VM's exit. Never fails: everybody waits for it."""
        assert self._exit is not None
        reason: str | None = None
        try:
            for reader in self._readers:
                reader.drain()
            if self._qmp is not None:
                reason = await self._qmp.shutdown_reason(_LAST_WORDS)
        except Exception as error:
            _log.failure("The last words of a VM are lost.", error, vm=self.spec.id)
        self._exit.set_result(
            VmExit(
                code=returncode if returncode >= 0 else None,
                signal=-returncode if returncode < 0 else None,
                reason=self._reason(returncode, reason),
                console_tail=self.console_tail(),
                requested=self._requested,
            )
        )

    def _reason(self, returncode: int, shutdown: str | None) -> str:
        words = self._stderr_words()
        if self._fatal:
            return f"{self._fatal}: {words}" if words else self._fatal
        if returncode < 0:
            if self._requested and returncode == -signal.SIGKILL:
                return "it was killed"
            try:
                name = signal.Signals(-returncode).name
            except ValueError:
                name = str(-returncode)
            return f"QEMU was ended by signal {name}" + (f": {words}" if words else "")
        if returncode > 0:
            return f"QEMU failed with status {returncode}: {words or 'it said nothing'}"
        return _SHUTDOWN.get(shutdown or "", f"QEMU ended by itself ({shutdown or 'it did not say why'})")

    def _signal(self, number: int) -> None:
        # Popen knows whether the process was reaped, so this cannot reach another one with the same id.
        if self._process is not None and self._process.returncode is None:
            self._process.send_signal(number)


def _open_for_qemu(path: str, what: str, account: confine.Account | None) -> int:
    """Open a file whose descriptor QEMU gets. QEMU opens it once more, through /proc, with its own rights."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except OSError as error:
        raise HostError(f"Cannot open the guest {what} {path}: {error.strerror}.") from error
    if account is not None and not os.fstat(fd).st_mode & stat.S_IROTH:
        os.close(fd)
        raise HostError(f"QEMU's user may not read the guest {what} {path}: make it readable with chmod o+r.")
    return fd
