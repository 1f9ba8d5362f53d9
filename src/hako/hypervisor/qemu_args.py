"""From the description of a VM to QEMU's command line: a pure function, so that tests compare whole command lines."""

from __future__ import annotations

from collections.abc import Mapping

from hako import arch
from hako.hypervisor.base import AgentChannel, Rng, Share9p, VmSpec

# QEMU's own system call filter: no new programs, no other user, no other scheduling, no long obsolete calls.
SANDBOX = "on,obsolete=deny,elevateprivileges=deny,spawn=deny,resourcecontrol=deny"

# By default QEMU's TCG keeps up to 1 GiB of translated code for each VM, on top of the guest's memory.
TCG_CODE_MIB = 256

# Port 0 of virtio-serial is reserved for consoles, so one usable port makes two. The default, 31, has the guest
# set up 64 queues that nothing uses.
SERIAL_PORTS = 2

# Virtio 1 only: probing a device that also speaks the older dialect takes the guest longer.
_MODERN = "disable-legacy=on"


def build_argv(spec: VmSpec, fds: Mapping[str, int], binary: str = "") -> list[str]:
    """QEMU's arguments for ``spec``, the program first.

    ``fds`` holds the descriptors QEMU inherits: sockets ``qmp``, ``console`` and (for an AgentChannel) ``agent``, and
    the open files ``kernel`` and ``initrd``. ``binary`` is QEMU's path; empty: the architecture's program name.
    """
    here = arch.current()
    cpu = spec.cpu or (here.kvm_cpu if spec.accelerator == "kvm" else here.tcg_cpu)
    accel = "kvm" if spec.accelerator == "kvm" else f"tcg,tb-size={TCG_CODE_MIB}"
    # fmt: off
    argv = [
        binary or here.qemu_binary,
        "-name", f"guest={spec.id}",
        "-nodefaults",
        "-no-user-config",
        "-display", "none",
        # A guest that reboots is finished: containers do not survive it. A panicking one reboots too (panic=-1).
        "-no-reboot",
        "-sandbox", SANDBOX,
        "-accel", accel,
        "-machine", f"{_escape(spec.machine or here.machine)},usb=off,vmport=off,dump-guest-core=off",
        "-cpu", cpu,
        "-smp", f"cpus={spec.vcpus}",
        "-m", f"size={spec.memory >> 10}k",
        "-chardev", f"socket,id=qmp,fd={fds['qmp']}",
        "-mon", "chardev=qmp,mode=control",
        "-chardev", f"socket,id=console,fd={fds['console']}",
        "-serial", "chardev:console",
        "-kernel", f"/proc/self/fd/{fds['kernel']}",
    ]
    # fmt: on
    if spec.initrd is not None:
        argv += ["-initrd", f"/proc/self/fd/{fds['initrd']}"]
    argv += ["-append", spec.cmdline]
    share = 0
    for device in spec.devices:
        match device:
            case AgentChannel(name):
                argv += _agent(name, fds["agent"])
            case Rng():
                argv += ["-object", "rng-builtin,id=rng", "-device", f"virtio-rng-pci,rng=rng,{_MODERN}"]
            case Share9p():
                argv += _share(device, f"share{share}")
                share += 1
    return argv


def _agent(name: str, fd: int) -> list[str]:
    # fmt: off
    return [
        "-chardev", f"socket,id=agent,fd={fd}",
        "-device", f"virtio-serial-pci,id=serial,max_ports={SERIAL_PORTS},{_MODERN}",
        "-device", f"virtserialport,bus=serial.0,nr=1,chardev=agent,name={_escape(name)}",
    ]
    # fmt: on


def _share(share: Share9p, name: str) -> list[str]:
    # multidevs=remap: the directory may contain other file systems, whose inode numbers must not collide.
    readonly = ",readonly=on" if share.readonly else ""
    return [
        "-fsdev",
        f"local,id={name},path={_escape(share.path)},security_model=passthrough,multidevs=remap{readonly}",
        "-device",
        f"virtio-9p-pci,fsdev={name},mount_tag={_escape(share.tag)},{_MODERN}",
    ]


def _escape(value: str) -> str:
    """QEMU's options are separated by commas; a doubled one stands for itself."""
    return value.replace(",", ",,")
