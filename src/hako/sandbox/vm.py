"""A sandbox's VM: what it is made of, and the first words with its agent."""

from __future__ import annotations

import asyncio
import base64
import logging
import os
import time
from typing import Any

from hako import digests
from hako.agent_client import AgentClient, field
from hako.config.settings import Config
from hako.errors import ConfigError, HypervisorError, TimedOutError
from hako.hypervisor.base import (
    MAX_VCPUS,
    MEMORY_STEP,
    AgentChannel,
    Balloon,
    Device,
    Hypervisor,
    MemoryDevice,
    Nic,
    Rng,
    VmExit,
    VmSpec,
)
from hako.named import NamedTuple
from hako.sandbox.spec import NO_NETWORK, SandboxSpec
from hako.storage import shares
from hako.storage.base import ShareDriver
from hako.template import identity
from hako.template.build import Recipe
from hako.wire.calls import PROTOCOL_VERSION

log = logging.getLogger(__name__)

#: What every guest kernel is told. A panic, or a fault in the kernel, ends the VM at once instead of hanging it.
#: Memory that is added later is used at once; 64 MiB for devices that cannot reach all memory would be set aside
#: because of it, and there are none.
#: The ten thousand files of tracefs, which nothing in a guest reads, take 9 MB and 0.4 s, and the five thousand of
#: /sys/kernel/slab (/proc/slabinfo is another matter) 1.2 MB. Of the security modules stay those that programs use
#: without somebody who loads a policy, for which there is nobody in a guest.
_CMDLINE = (
    "console=ttyS0 quiet rdinit=/init panic=-1 oops=panic swiotlb=noforce lsm=landlock,lockdown,yama,integrity "
    "memhp_default_state=online memory_hotplug.online_policy=auto-movable"
)
_BLACKLIST = "tracer_init_tracefs,slab_sysfs_init"
#: Under software emulation self-tests and calibration cost half a second of every boot and find nothing:
#: there is no real clock or processor to be wrong about. Key lists are for module signatures, which the
#: initrd's modules do not need. Interrupt routing by interpreted ACPI code costs another half, and as long for
#: each device that is plugged in later; virtio uses MSI-X, which needs none. On one processor the kernel would
#: take the lock prefix out of 9,000 instructions, one by one, which TCG then runs no quicker. The watchdog for a
#: processor that is stuck would only find the host busy.
_CMDLINE_TCG = "nowatchdog cryptomgr.notests tsc=reliable no_timer_check acpi=noirq noreplace-smp"
_BLACKLIST_TCG = "crypto_kdf108_init,init_kprobe_trace,load_system_certificate_list"
#: Would measure the time stamp counter once more, against an emulated timer, and replace what is right.
_BLACKLIST_TSC = "init_tsc_clocksource"
#: The processor's own timer is calibrated for a tenth of a second of waiting. The HPET needs none and serves one
#: processor as well: sleeps are as exact, and an idle VM is as idle. Several processors need their own timers.
_CMDLINE_TCG_SINGLE = "noapictimer"

#: Memory that a VM has from the start, which is what a template is made with; more is added where more is asked for.
#: Shared memory is copied for each clone, holes excepted, and what the guest frees goes back to the host, so there
#: may be much of it. A private view of a template cannot give anything back: it is small, and the rest is added.
_FIRST_MEMORY = {"shared": 512 << 20, "private": 256 << 20}
#: More vCPUs than the host has processors gain nothing, and each that may come takes memory in every guest.
_MOST_VCPUS = 16

#: Each pair takes memory in every guest, and is of use to a VM with as many processors only.
_MOST_QUEUES = 4

_ENTROPY_BYTES = 64
#: A clone's agent answers within a tenth of a second. One that does not is given up, and a VM booted.
CLONE_TIMEOUT = 15.0
#: The guest's clock is set again when it may be wrong by more than this, in nanoseconds.
_CLOCK_TOLERANCE = 10_000_000
_CLOCK_TRIES = 5


class Vm(NamedTuple):
    """A VM whose agent has answered. ``info`` is for people: kernel, accelerator, image."""

    hypervisor: Hypervisor
    agent: AgentClient
    info: dict[str, Any]


class Plan(NamedTuple):
    """What a sandbox's VM is made of."""

    spec: VmSpec
    recipe: Recipe  #: of the template that it can be a clone of
    image: str  #: digest
    modules: str = ""  #: directory of those that the guest's kernel may ask for


def plan(spec: SandboxSpec, config: Config, share: ShareDriver, path: str, *, nic: bool) -> Plan:
    """What the VM of a sandbox is made of: ``share`` serves ``path``; ``nic`` says whether there can be a NIC.

    Takes seconds when it must be found out whether KVM works here. Raises ImageError, HostError, ConfigError.
    """
    from hako.guestimage import api as guestimage
    from hako.hypervisor import accelerator, tsc

    guest, settings = config.guest, config.hypervisor
    if guest.kernel and not spec.guest_image:
        # Quick when nothing changed; otherwise the user's kernel is made into an image first.
        image = guestimage.build(
            log.info, kernel=guest.kernel, modules_dir=guest.kernel_modules or None, make_default=False
        )
    else:
        image = guestimage.find(spec.guest_image or guest.image or None)
    chosen = accelerator.choose(settings.accelerator, kernel=image.kernel, qemu=settings.qemu)
    vcpus = min(config.sandbox.vcpus, spec.vcpus)
    most = min(max(_MOST_VCPUS, spec.vcpus), max(os.cpu_count() or 1, spec.vcpus), MAX_VCPUS)
    first = share.device(path)
    devices: list[Device] = [AgentChannel(), Rng(), Balloon(), MemoryDevice(_most_memory())]
    devices += [Nic(mac_address(spec.id), network_queues())] if nic else []
    devices += [] if first is None else [first]
    vm_spec = VmSpec(
        id=spec.id,
        kernel=image.kernel,
        initrd=image.initrd,
        cmdline=command_line(
            chosen.name, guest.cmdline_extra, most, tsc.frequency_khz() if chosen.name == "tcg" else 0
        ),
        memory=min(_FIRST_MEMORY[share.sharing], config.sandbox.memory) & -(1 << 20),
        vcpus=vcpus,
        max_vcpus=most,
        accelerator=chosen.name,
        cpu=settings.cpu_model,
        sharing=share.sharing,
        devices=tuple(devices),
    )
    limit = vm_spec.memory + _most_memory()
    if spec.memory > limit:
        raise too_large(spec.memory, limit)
    what = identity.describe(vm_spec, image.digest, settings.qemu)
    recipe = Recipe(
        vm_spec, what, settings.user, settings.qemu, config.sandbox.start_timeout, lambda: shares.make(config.share)
    )
    return Plan(vm_spec, recipe, image.digest, image.modules or "")


def too_large(size: int, limit: int) -> ConfigError:
    """What to raise when somebody asks for a VM of ``size`` bytes where ``limit`` are possible."""
    return ConfigError(f"A VM on this host cannot have {size >> 20} MiB of memory: {limit >> 20} MiB at most.")


def mac_address(sandbox_id: str) -> str:
    """The MAC address of a sandbox's first NIC: locally administered, the same for the same sandbox, no two alike."""
    digest = digests.of(sandbox_id.encode())
    return ":".join(["02", *(digest[at : at + 2] for at in range(0, 10, 2))])


def own_mac(spec: SandboxSpec, vm_spec: VmSpec) -> str:
    """The address to give a clone's NIC, empty when its network will do that."""
    nic = vm_spec.find(Nic)
    return mac_address(spec.id) if nic is not None and spec.network == NO_NETWORK else ""


def network_queues() -> int:
    """How many pairs of queues a VM's network card has: one for each processor that it could make use of."""
    return min(os.cpu_count() or 1, _MOST_QUEUES)


def _most_memory() -> int:
    """What may be added to a VM: as much as the host has, in whole GiB so that small differences make no other VM."""
    total = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return max(-(-total // (1 << 30)) << 30, MEMORY_STEP)


async def greet(hypervisor: Hypervisor, vm_id: str, timeout: float) -> tuple[AgentClient, dict[str, Any]]:
    """The first call to the agent of a VM that has been started; returns its client and its answer.

    Raises HypervisorError, with the guest's last words, when the VM dies or does not answer in ``timeout``
    seconds. The caller kills the VM then.
    """
    agent = AgentClient(hypervisor.agent_socket)
    died = asyncio.ensure_future(hypervisor.wait())
    died.add_done_callback(lambda future: _on_death(agent, hypervisor.spec.id, future))
    try:
        hello = await agent.call("Hello", {"version": PROTOCOL_VERSION}, timeout)
    except TimedOutError:
        agent.close()
        tail = " | ".join(hypervisor.console_tail(5)) or "nothing"
        raise HypervisorError(
            f"The agent in the VM of {vm_id} did not answer within {timeout:g} s. The guest's console says: {tail}"
        ) from None
    except BaseException:
        agent.close()
        raise
    return agent, {"kernel": field(hello, "kernel", str), "agent": field(hello, "agent", str)}


async def configure(agent: AgentClient, spec: SandboxSpec, mac: str) -> None:
    """Make the guest differ from every other clone: entropy, time, names, addresses. Before any container starts."""
    hostname = spec.name if spec.name and "." not in spec.name else spec.id[:12]
    sent = time.time_ns()
    answer = await agent.call(
        "Configure",
        {
            "entropy": base64.b64encode(os.urandom(_ENTROPY_BYTES)).decode(),
            "hostname": hostname[:64],
            "machine_id": digests.of(spec.id.encode())[:32],
            "mac": mac,
            "time_ns": sent,
        },
    )
    for _ in range(_CLOCK_TRIES):
        # The guest has set its clock somewhen between the two; it is right if its time and ours agree now.
        error = time.time_ns() - field(answer, "time_ns", int)
        if 0 <= error < _CLOCK_TOLERANCE:
            break
        # By now the agent's code has been translated, and the call takes a millisecond, unless the host is busy.
        answer = await agent.call("Configure", {"time_ns": time.time_ns()})


def _on_death(agent: AgentClient, sandbox_id: str, future: asyncio.Future[VmExit]) -> None:
    if not future.cancelled() and future.exception() is None:
        agent.fail(HypervisorError(future.result().sentence(sandbox_id)))


def command_line(accelerator: str, extra: str, vcpus: int = 1, tsc_khz: int = 0) -> str:
    """The kernel command line of a VM that can have ``vcpus`` processors; ``extra`` comes last.

    ``tsc_khz`` is what an emulated guest is told of its time stamp counter; with 0 it measures that itself.
    """
    parts = [_CMDLINE]
    blacklist = _BLACKLIST
    if accelerator == "tcg":
        parts += [_CMDLINE_TCG, *([_CMDLINE_TCG_SINGLE] if vcpus == 1 else [])]
        blacklist += f",{_BLACKLIST_TCG}"
        if tsc_khz:
            parts.append(f"tsc_early_khz={tsc_khz}")
            blacklist += f",{_BLACKLIST_TSC}"
    parts.append(f"initcall_blacklist={blacklist}")
    return " ".join([*parts, extra] if extra else parts)
