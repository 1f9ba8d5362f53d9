"""What a hypervisor driver is: the description of a VM, what the driver can do, and how a VM's end is reported.

A driver is one object per VM. QemuVm (qemu.py) is the real one, FakeVm (hako.testing.hypervisor) the one tests use; the
same contract tests run against both.
"""

from __future__ import annotations

import re
import socket
from collections.abc import Awaitable, Sequence
from typing import Protocol, TypeVar

from hako.errors import ConfigError, HypervisorError
from hako.named import NamedTuple

_MAC = re.compile(r"[0-9a-f]{2}(:[0-9a-f]{2}){5}")

#: Name of the virtio-serial port on which the agent is reached, as the guest sees it in /sys/class/virtio-ports/*/name.
AGENT_PORT = "hako.agent"

#: A 9p mount tag is a virtio configuration field; Linux copies at most this many bytes of it.
MAX_TAG = 31

#: Serial numbers of disks: what SCSI and virtio disks alike can tell the guest.
_SERIAL = re.compile(r"[0-9A-Za-z]{1,20}")

#: Sizes of a disk's logical blocks in bytes.
_SECTORS = (512, 1024, 2048, 4096)

MIN_MEMORY = 64 << 20

MAX_VCPUS = 255


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


class ShareVirtiofs(NamedTuple):
    """A share served by a virtiofs server, whose connected vhost-user socket is ``Backends.share``.

    The server reads and writes the guest's memory, which therefore has to be ``shared``. A VM that has had one from its
    start cannot be frozen; one that was plugged in is left out of what is frozen, and each clone gets its own by
    ``Backends.plugged``.
    """

    tag: str


class Balloon(NamedTuple):
    """A memory balloon, through which the guest reports pages it does not use, so that the host gets them back."""


class Nic(NamedTuple):
    """A virtio network card tied to a tap device: that of ``Backends.nic``, or the one it is plugged in with."""

    mac: str  #: aa:bb:cc:dd:ee:ff
    queues: int = 1  #: pairs of queues, as many as the tap has; the guest uses one for each of its processors

    def check(self) -> None:
        """Raises ConfigError when the address is none."""
        if not _MAC.fullmatch(self.mac):
            raise ConfigError(f"The MAC address {self.mac!r} is not valid: write it as 02:00:00:00:00:01.")


class Disk(NamedTuple):
    """A disk that is plugged in with an open file or block device of the host, whose bytes are its content as they are.

    The guest finds it by its serial number. What the guest flushes is on the host's storage when the flush is done.
    """

    serial: str  #: 1 to 20 letters and digits, no two alike
    readonly: bool = False  #: its descriptor is open for reading only
    block: bool = False  #: the descriptor is a block device's; others may use that too, while a file is guarded
    sector: int = 512  #: bytes of a logical block

    def check(self) -> None:
        """Raises ConfigError for a disk that cannot be."""
        if not _SERIAL.fullmatch(self.serial):
            raise ConfigError(f"The serial number {self.serial!r} is not valid: use 1 to 20 letters and digits.")
        if self.sector not in _SECTORS:
            raise ConfigError(f"A disk cannot have blocks of {self.sector} bytes: use {_SECTORS[0]} to {_SECTORS[-1]}.")


class MemoryDevice(NamedTuple):
    """A virtio-mem device: up to ``size`` bytes that can be added while the VM runs, none to begin with."""

    size: int


Device = AgentChannel | Rng | Share9p | ShareVirtiofs | Balloon | Nic | MemoryDevice

_D = TypeVar("_D", AgentChannel, Rng, Share9p, ShareVirtiofs, Balloon, Nic, MemoryDevice)

#: At most one of each.
_SINGLE = (AgentChannel, Rng, ShareVirtiofs, Balloon, Nic, MemoryDevice)

#: Granularity of memory that is added: the size of a memory block of the guest's kernel.
MEMORY_STEP = 128 << 20


class Backends(NamedTuple):
    """What stands behind a VM's devices: open descriptors, which change from clone to clone.

    They are the caller's; the driver uses them during ``start`` only, and QEMU has copies.
    """

    memory: int | None = None  #: file of the guest's memory, as large as it; None: the hypervisor makes its own
    #: device state of a frozen VM: where ``freeze`` writes it, or, for a ``clone``, an own open file to read it from
    state: int | None = None
    clone: bool = False  #: go on where the frozen VM stopped instead of booting
    plugged: ShareVirtiofs | None = None  #: added to a clone before it goes on
    share: int | None = None  #: connected socket of the virtiofs server
    nic: tuple[int, ...] = ()  #: the queues of a tap device with IFF_TAP, IFF_NO_PI and IFF_VNET_HDR


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
    max_vcpus: int = 0  #: how many there can be when some are added later; 0: no more than ``vcpus``
    #: "own" memory, "shared" with other processes through ``Backends.memory``, or a "private" copy-on-write view of it
    sharing: str = "own"
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
        if not 1 <= max(self.vcpus, self.max_vcpus) <= MAX_VCPUS or self.vcpus < 1:
            raise ConfigError(f"A VM cannot have {self.vcpus} vCPUs: give it 1 to {MAX_VCPUS}.")
        if self.sharing not in ("own", "shared", "private"):
            raise ConfigError(f"A VM's memory cannot be {self.sharing!r}: use own, shared or private.")
        paths = [device.path for device in self.devices if isinstance(device, Share9p)]
        if any("\0" in text for text in (self.kernel, self.initrd or "", self.cmdline, self.cpu, self.machine, *paths)):
            raise ConfigError(f"The description of VM {self.id} contains a NUL character.")
        self._check_devices()
        return self

    def _check_devices(self) -> None:
        tags = [device.tag for device in self.devices if isinstance(device, Share9p | ShareVirtiofs)]
        for tag in tags:
            if not tag or len(tag.encode()) > MAX_TAG or not tag.isprintable() or tags.count(tag) > 1:
                raise ConfigError(f"Mount tag {tag!r} is not valid: use 1 to {MAX_TAG} characters, each tag once.")
        for kind in _SINGLE:
            if sum(isinstance(device, kind) for device in self.devices) > 1:
                raise ConfigError(f"VM {self.id} has more than one {kind.__name__} device.")
        if any(isinstance(device, ShareVirtiofs) for device in self.devices) and self.sharing != "shared":
            raise ConfigError(f"VM {self.id} has a virtiofs share, for which its memory has to be shared.")
        for device in self.devices:
            if isinstance(device, Nic):
                device.check()
            if isinstance(device, MemoryDevice) and (device.size <= 0 or device.size % MEMORY_STEP):
                raise ConfigError(f"Memory is added in steps of {MEMORY_STEP >> 20} MiB; {device.size} bytes are none.")

    def find(self, kind: type[_D]) -> _D | None:
        """The device of this kind, None when there is none."""
        return next((device for device in self.devices if isinstance(device, kind)), None)


class Capabilities(NamedTuple):
    """What a driver can do beyond starting and stopping VMs."""

    pause: bool
    share_9p: bool
    accelerators: tuple[str, ...]
    share_virtiofs: bool = True
    clone: bool = True  #: freeze, and start from a frozen VM
    grow: bool = True  #: memory and vCPUs can be added to a running VM
    disks: int = 256  #: how many can be plugged in at a time


class VmExit(NamedTuple):
    """How a VM ended."""

    code: int | None  #: exit status of the hypervisor process, None when a signal ended it
    signal: int | None  #: the signal that ended it
    reason: str  #: for people: a clause such as "the guest powered off"
    console_tail: list[str]  #: the guest's last console lines, made printable
    requested: bool  #: True when stop() or kill() ended it

    @property
    def killed(self) -> bool:
        """Whether somebody else has killed it, which says nothing about the VM."""
        return self.signal is not None and not self.requested

    def sentence(self, vm_id: str) -> str:
        """One sentence for the user, with the guest's last words."""
        text = f"The VM of {vm_id} ended: {self.reason}."
        return f"{text} Last console lines: {' | '.join(self.console_tail[-5:])}" if self.console_tail else text


class FreezeError(HypervisorError):
    """A VM cannot be frozen because the share that was plugged in cannot be left out of what is frozen."""


class CloneError(HypervisorError):
    """A VM cannot be a clone of what it was given: the state does not fit, or is damaged."""


class Hypervisor(Protocol):
    """One VM. Methods other than ``kill`` and ``wait`` raise HypervisorError once the VM is dead.

    The owner calls ``kill`` at the end on every path, also when the VM died by itself or ``start`` failed: it gives
    back the process, the sockets and the log. Call everything from one event loop, and start VMs from a thread that
    lives as long as they do: a VM dies with the thread that started it.
    """

    spec: VmSpec

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

    async def start(self, memory_ready: Awaitable[None] | None = None) -> None:
        """Start the VM and return when the hypervisor runs; the guest boots meanwhile, a clone runs already.

        A clone whose memory file is still being filled goes on when ``memory_ready`` is done.

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

    async def freeze(self) -> None:
        """Stop the VM for good and write the state of its devices to ``Backends.state``.

        Together with its memory file this is all that a clone needs. Kill the VM afterwards. A share that was plugged
        in is taken away before, of which the guest learns nothing: a clone finds another one where it knows it to be.

        Raises FreezeError when that is not possible.
        """

    async def plug(self, device: ShareVirtiofs | Nic | Disk, fds: Sequence[int] = ()) -> None:
        """Add a share, a card whose tap has the queues ``fds``, or a disk whose file is the only one of ``fds``.

        The descriptors stay the caller's. Raises HypervisorError when it is refused, as a disk is whose file another
        VM writes to, and StateError when there is no room for another disk.
        """

    async def unplug(self, disk: Disk) -> None:
        """Take a disk away that was plugged in, whether the guest has let go of it or not.

        When it returns the hypervisor has nothing of it any more. Raises NotFoundError for a disk that there is not.
        """

    async def resize_memory(self, extra: int, timeout: float = 30.0) -> int:
        """Have the MemoryDevice give the guest ``extra`` bytes (rounded up to its granularity); return what it has.

        Growing takes milliseconds. Shrinking depends on what the guest can give up, and may end short of the wish
        after ``timeout`` seconds; the guest goes on giving then, as it can. Raises StateError without MemoryDevice.
        """

    async def add_vcpus(self, count: int) -> int:
        """Add vCPUs until the VM has ``count``, which the guest must bring online; return how many it has now.

        There are never fewer. Raises ConfigError for more than ``max_vcpus``.
        """

    async def balloon(self, size: int | None = None) -> int:
        """Ask the guest to get by on ``size`` bytes of its first memory (None: only ask); return what it has now."""

    async def status(self) -> str:
        """``running``, ``paused``, ``exited`` or another of QEMU's run states, such as ``internal-error``."""
