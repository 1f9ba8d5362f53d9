"""What a hypervisor driver is: the description of a VM, what the driver can do, and how a VM's end is reported.

A driver is one object per VM. QemuVm (qemu.py) is the real one, FakeVm (hako.testing.hypervisor) the one tests use; the
same contract tests run against both.
"""

from __future__ import annotations

import socket
from typing import NamedTuple, Protocol

from hako.errors import ConfigError

#: Name of the virtio-serial port on which the agent is reached, as the guest sees it in /sys/class/virtio-ports/*/name.
AGENT_PORT = "hako.agent"

#: A 9p mount tag is a virtio configuration field; Linux copies at most this many bytes of it.
MAX_TAG = 31

MIN_MEMORY = 64 << 20


class AgentChannel(NamedTuple):
    """A virtio-serial port tied to a socket; the VM's owner finds the other end in ``agent_socket``."""

    name: str = AGENT_PORT


class Rng(NamedTuple):
    """A virtio entropy source fed by the host's random number generator."""


class Share9p(NamedTuple):
    """A host directory the guest can mount with 9p under ``tag``. Owners and modes pass through unchanged."""

    tag: str
    path: str
    readonly: bool = False


Device = AgentChannel | Rng | Share9p


class VmSpec(NamedTuple):
    """Everything that decides what a VM is. The same description always gives the same virtual hardware.

    Every VM has a serial console; its other devices are listed in ``devices`` and get their places on the bus in
    that order.
    """

    id: str
    kernel: str  #: path of an ELF kernel with a PVH entry point
    initrd: str | None  #: path of the initrd
    cmdline: str  #: kernel command line
    memory: int  #: bytes
    vcpus: int = 1
    accelerator: str = "tcg"  #: "kvm" or "tcg"
    cpu: str = ""  #: CPU model; empty: the architecture's for the accelerator
    machine: str = ""  #: machine type; empty: the architecture's
    devices: tuple[Device, ...] = (AgentChannel(), Rng())

    def checked(self) -> VmSpec:
        """Return the description if a VM can be made of it. Raises ConfigError naming what is wrong."""
        from hako import ids

        ids.check(self.id, "VM id")
        if self.accelerator not in ("kvm", "tcg"):
            raise ConfigError(f"Accelerator {self.accelerator!r} is not known: use kvm or tcg.")
        if self.memory < MIN_MEMORY:
            raise ConfigError(
                f"{self.memory >> 20} MiB of memory is too little for a VM: give it at least {MIN_MEMORY >> 20} MiB."
            )
        if not 1 <= self.vcpus <= 255:
            raise ConfigError(f"A VM cannot have {self.vcpus} vCPUs: give it 1 to 255.")
        paths = [device.path for device in self.devices if isinstance(device, Share9p)]
        if any("\0" in text for text in (self.kernel, self.initrd or "", self.cmdline, self.cpu, self.machine, *paths)):
            raise ConfigError(f"The description of VM {self.id} contains a NUL character.")
        self._check_devices()
        return self

    def _check_devices(self) -> None:
        tags = [device.tag for device in self.devices if isinstance(device, Share9p)]
        for tag in tags:
            if not tag or len(tag.encode()) > MAX_TAG or not tag.isprintable() or tags.count(tag) > 1:
                raise ConfigError(f"Mount tag {tag!r} is not valid: use 1 to {MAX_TAG} characters, each tag once.")
        for kind in (AgentChannel, Rng):
            if sum(isinstance(device, kind) for device in self.devices) > 1:
                raise ConfigError(f"VM {self.id} has more than one {kind.__name__} device.")


class Capabilities(NamedTuple):
    """What a driver can do beyond starting and stopping VMs."""

    pause: bool
    share_9p: bool
    accelerators: tuple[str, ...]


class VmExit(NamedTuple):
    """How a VM ended."""

    code: int | None  #: exit status of the hypervisor process, None when a signal ended it
    signal: int | None  #: the signal that ended it
    reason: str  #: for people: a clause such as "the guest powered off"
    console_tail: list[str]  #: the guest's last console lines, made printable
    requested: bool  #: True when stop() or kill() ended it

    def sentence(self, vm_id: str) -> str:
        """One sentence for the user, with the guest's last words."""
        text = f"The VM of {vm_id} ended: {self.reason}."
        return f"{text} Last console lines: {' | '.join(self.console_tail[-5:])}" if self.console_tail else text


class Hypervisor(Protocol):
    """One VM. Methods other than ``kill`` and ``wait`` raise HypervisorError once the VM is dead.

    The owner calls ``kill`` at the end on every path, also when the VM died by itself or ``start`` failed: it gives
    back the process, the sockets and the log. Call everything from one event loop, and start VMs from a thread that
    lives as long as they do: a VM dies with the thread that started it.
    """

    @property
    def capabilities(self) -> Capabilities:
        """What this driver can do."""

    @property
    def pid(self) -> int | None:
        """Process id of the running hypervisor process, None before start and after its end."""

    @property
    def agent_socket(self) -> socket.socket:
        """Connected non-blocking stream socket whose other end is the guest's agent port.

        Raises StateError before ``start`` and for a VM without AgentChannel. Stop using it before ``kill``, which
        closes it.
        """

    def console_tail(self, lines: int = 20) -> list[str]:
        """The guest's last console lines, made printable."""

    async def start(self) -> None:
        """Start the VM and return when the hypervisor runs; the guest boots meanwhile.

        Raises ConfigError for a description that cannot be, HostError when the host lacks something, and
        HypervisorError with the hypervisor's own words when it refuses.
        """

    async def wait(self) -> VmExit:
        """Wait for the VM's end, however it comes. Can be called many times and by many tasks."""

    async def stop(self, timeout: float = 5.0) -> VmExit:
        """End the hypervisor in an orderly way, by force after ``timeout`` seconds. The guest is not asked."""

    async def kill(self) -> VmExit | None:
        """End the VM at once and give back all it holds; None when it never ran. Can be repeated."""

    async def pause(self) -> None:
        """Freeze the VM's CPUs."""

    async def resume(self) -> None:
        """Let a paused VM go on."""

    async def status(self) -> str:
        """``running``, ``paused``, ``exited`` or another of QEMU's run states, such as ``internal-error``."""
