"""Booting a sandbox's VM: which image, which accelerator, how much memory, and the first words with the agent."""

from __future__ import annotations

import asyncio
import base64
import logging
import os
import time
from typing import Any, NamedTuple

from hako.config.settings import Config
from hako.errors import HypervisorError, TimedOutError
from hako.hypervisor.base import AgentChannel, Device, Hypervisor, Rng, VmExit, VmSpec
from hako.sandbox.agent_client import AgentClient, field
from hako.sandbox.spec import SandboxSpec
from hako.storage.base import ShareDriver
from hako.wire.calls import PROTOCOL_VERSION

log = logging.getLogger(__name__)

#: What every guest kernel is told. A panic ends the VM at once instead of hanging it.
_CMDLINE = "console=ttyS0 quiet rdinit=/init panic=-1"
#: Under software emulation self-tests and calibration cost half a second of every boot and find nothing:
#: there is no real clock or processor to be wrong about. Key lists are for module signatures, which the
#: initrd's modules do not need. Interrupt routing by interpreted ACPI code costs another half, and as long for
#: each device that is plugged in later; virtio uses MSI-X, which needs none. On one processor the kernel would
#: take the lock prefix out of 9,000 instructions, one by one, which TCG then runs no quicker.
_CMDLINE_TCG = (
    "cryptomgr.notests tsc=reliable no_timer_check acpi=noirq noreplace-smp "
    "initcall_blacklist=crypto_kdf108_init,init_kprobe_trace,load_system_certificate_list"
)
#: The processor's own timer is calibrated for a tenth of a second of waiting. The HPET needs none and serves one
#: processor as well: sleeps are as exact, and an idle VM is as idle. Several processors need their own timers.
_CMDLINE_TCG_SINGLE = "noapictimer"
_ENTROPY_BYTES = 64


class Vm(NamedTuple):
    """A VM whose agent has answered. ``info`` is for people: kernel, accelerator, image."""

    hypervisor: Hypervisor
    agent: AgentClient
    info: dict[str, Any]


class Trace:
    """When each phase of a start ended, in nanoseconds of the monotonic clock."""

    def __init__(self) -> None:
        self.phases: list[tuple[str, int]] = []

    def mark(self, name: str) -> None:
        """The phase ``name`` ends now."""
        self.phases.append((name, time.monotonic_ns()))


def prepare(spec: SandboxSpec, config: Config, share: Device | None, run_dir: str) -> tuple[Hypervisor, dict[str, Any]]:
    """The VM for a sandbox, not started, and what to tell people about it.

    Takes seconds when it must be found out whether KVM works here. Raises ImageError, HostError, ConfigError.
    """
    from hako.guestimage import api as guestimage
    from hako.hypervisor import accelerator
    from hako.hypervisor.qemu import QemuVm

    guest = config.guest
    if guest.kernel and not spec.guest_image:
        # Quick when nothing changed; otherwise the user's kernel is made into an image first.
        image = guestimage.build(
            log.info, kernel=guest.kernel, modules_dir=guest.kernel_modules or None, make_default=False
        )
    else:
        image = guestimage.find(spec.guest_image or guest.image or None)
    settings = config.hypervisor
    chosen = accelerator.choose(settings.accelerator, kernel=image.kernel, qemu=settings.qemu)
    vm_spec = VmSpec(
        id=spec.id,
        kernel=image.kernel,
        initrd=image.initrd,
        cmdline=command_line(chosen.name, guest.cmdline_extra, spec.vcpus),
        memory=spec.memory,
        vcpus=spec.vcpus,
        accelerator=chosen.name,
        cpu=settings.cpu_model,
        devices=(AgentChannel(), Rng(), *(() if share is None else (share,))),
    )
    console = os.path.join(run_dir, "console.log")
    vm = QemuVm(
        vm_spec, console_log=console, console_cap=config.console.max_size, user=settings.user, binary=settings.qemu
    )
    return vm, {"accelerator": chosen.name, "image": image.digest, "memory": spec.memory, "vcpus": spec.vcpus}


async def boot(hypervisor: Hypervisor, spec: SandboxSpec, share: ShareDriver, timeout: float, trace: Trace) -> Vm:
    """Start ``hypervisor`` and return when its agent has answered and the share is mounted.

    Raises HypervisorError, with the guest's last words, when the VM dies or does not answer in ``timeout``
    seconds. The caller kills the VM then.
    """
    await hypervisor.start()
    trace.mark("QEMU started")
    agent = AgentClient(hypervisor.agent_socket)
    died = asyncio.ensure_future(hypervisor.wait())
    died.add_done_callback(lambda future: _on_death(agent, spec.id, future))
    try:
        hello = await agent.call("Hello", {"version": PROTOCOL_VERSION}, timeout)
    except TimedOutError:
        tail = " | ".join(hypervisor.console_tail(5)) or "nothing"
        raise HypervisorError(
            f"The agent in the VM of {spec.id} did not answer within {timeout:g} s. The guest's console says: {tail}"
        ) from None
    trace.mark("agent ready")
    entropy = base64.b64encode(os.urandom(_ENTROPY_BYTES)).decode()
    hostname = spec.name if spec.name and "." not in spec.name else spec.id[:12]
    await agent.call("Configure", {"time_ns": time.time_ns(), "hostname": hostname[:64], "entropy": entropy})
    await agent.call("MountShare", share.mount_request().params())
    trace.mark("share mounted")
    return Vm(hypervisor, agent, {"kernel": field(hello, "kernel", str), "agent": field(hello, "agent", str)})


def _on_death(agent: AgentClient, sandbox_id: str, future: asyncio.Future[VmExit]) -> None:
    if not future.cancelled() and future.exception() is None:
        agent.fail(HypervisorError(future.result().sentence(sandbox_id)))


def command_line(accelerator: str, extra: str, vcpus: int = 1) -> str:
    """The kernel command line of a VM with ``vcpus`` processors; ``extra`` comes last."""
    parts = [_CMDLINE]
    if accelerator == "tcg":
        parts += [_CMDLINE_TCG, *([_CMDLINE_TCG_SINGLE] if vcpus == 1 else [])]
    return " ".join([*parts, extra] if extra else parts)
