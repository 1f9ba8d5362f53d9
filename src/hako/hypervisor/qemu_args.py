"""From the description of a VM to QEMU's command line: a pure function, so that tests compare whole command lines."""

from __future__ import annotations

from collections.abc import Mapping

from hako import arch
from hako.hypervisor.base import (
    AgentChannel,
    Backends,
    Balloon,
    Device,
    Disk,
    MemoryDevice,
    Nic,
    Rng,
    Share9p,
    ShareVirtiofs,
    VmSpec,
)

# QEMU's own system call filter: no new programs, no other user, no other scheduling, no long obsolete calls.
SANDBOX = "on,obsolete=deny,elevateprivileges=deny,spawn=deny,resourcecontrol=deny"

# By default QEMU's TCG keeps up to 1 GiB of translated code for each VM, on top of the guest's memory.
TCG_CODE_MIB = 256

# Port 0 of virtio-serial is reserved for consoles, so one usable port makes two. The default, 31, has the guest
# set up 64 queues that nothing uses.
SERIAL_PORTS = 2

# Names of devices and objects, for commands to a running VM.
MEMORY_DEVICE = "memory1"
SHARE_CHARDEV = "virtiofs"
SHARE_DEVICE = "virtiofs0"
DISK_CONTROLLER = "disks"

# Virtio 1 only: probing a device that also speaks the older dialect takes the guest longer.
_MODERN = "disable-legacy=on"


def build_argv(spec: VmSpec, fds: Mapping[str, int], binary: str = "") -> list[str]:
    """QEMU's arguments for ``spec``, the program first.

    ``fds`` holds the descriptors QEMU inherits: sockets ``qmp``, ``console`` and (for an AgentChannel) ``agent``, the
    open files ``kernel`` and ``initrd``, and those of ``Backends`` that there are: ``memory``, ``state``, ``share``,
    ``nic0`` and further queues, and ``incoming`` for a clone. ``binary`` is QEMU's path; empty: the architecture's
    program name.
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
        "-machine", _machine(spec, here.machine),
        "-cpu", cpu,
        "-smp", f"cpus={spec.vcpus}" + (f",maxcpus={spec.max_vcpus}" if spec.max_vcpus > spec.vcpus else ""),
        *_memory(spec, fds),
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
    if "share" in fds:
        argv += ["-chardev", f"socket,id={SHARE_CHARDEV},fd={fds['share']}"]
    shares = 0
    for device in spec.devices:
        argv += _device(device, spec, fds, f"share{shares}")
        shares += isinstance(device, Share9p)
    if "incoming" in fds:
        argv += ["-incoming", "defer"]
    return argv


def backend_fds(backends: Backends) -> dict[str, int]:
    """The descriptors of ``backends`` by the names that build_argv() knows them by."""
    state = "incoming" if backends.clone else "state"
    named = {"memory": backends.memory, state: backends.state, "share": backends.share}
    queues = {f"nic{number}": fd for number, fd in enumerate(backends.nic)}
    return {name: fd for name, fd in named.items() if fd is not None} | queues


def virtiofs_device(share: ShareVirtiofs) -> dict[str, object]:
    """The properties of a virtiofs share, as for QMP's device_add."""
    return {"driver": "vhost-user-fs-pci", "id": SHARE_DEVICE, "chardev": SHARE_CHARDEV, "tag": share.tag}


def nic_device(nic: Nic, name: str) -> dict[str, object]:
    """The properties of a network card tied to the back end ``name``, as for QMP's device_add."""
    # No boot ROM: nothing is booted from the network.
    properties: dict[str, object] = {"driver": "virtio-net-pci", "id": name, "netdev": name, "mac": nic.mac}
    # A clone's card is tied to a network when it runs, with another address: nothing is to be announced before.
    properties |= {"romfile": "", "disable-legacy": "on", "guest_announce": "off"}
    # One interrupt for each queue of each pair, one for the configuration and one for the control queue.
    return properties if nic.queues == 1 else {**properties, "mq": "on", "vectors": 2 * nic.queues + 2}


def controller_device() -> dict[str, object]:
    """The properties of what disks are plugged into, as for QMP's device_add."""
    # The guest is told by its agent of what comes and goes, which is quicker than its kernel's finding out.
    properties: dict[str, object] = {"driver": "virtio-scsi-pci", "id": DISK_CONTROLLER, "hotplug": False}
    return {**properties, "num_queues": 1, "disable-legacy": "on"}


def disk_node(disk: Disk, path: str) -> dict[str, object]:
    """What is behind a disk, as for QMP's blockdev-add: the file ``path`` as it is, whatever format it may look like.

    Through the host's page cache, which the guest's flushes write out. A file that is written to is locked against
    other VMs; a block device is as open to others as it is to programs of the host.
    """
    properties: dict[str, object] = {"driver": "host_device" if disk.block else "file", "filename": path}
    properties |= {"node-name": f"file-{disk.serial}", "read-only": disk.readonly, "auto-read-only": False}
    properties |= {"locking": "off" if disk.block else "auto", "aio": "threads", "discard": "unmap"}
    return {**properties, "cache": {"direct": False, "no-flush": False}}


def disk_device(disk: Disk, unit: int) -> dict[str, object]:
    """The properties of a disk that is the controller's unit ``unit``, as for QMP's device_add."""
    properties: dict[str, object] = {"driver": "scsi-hd", "id": f"disk-{disk.serial}", "drive": f"file-{disk.serial}"}
    properties |= {"bus": f"{DISK_CONTROLLER}.0", "channel": 0, "scsi-id": 0, "lun": unit, "serial": disk.serial}
    properties |= {"logical_block_size": disk.sector, "physical_block_size": max(disk.sector, 4096)}
    # A rotation rate of 1 stands for none.
    return {**properties, "share-rw": disk.block, "write-cache": "on", "rotation_rate": 1}


def _machine(spec: VmSpec, default: str) -> str:
    backend = "" if spec.sharing == "own" else ",memory-backend=ram"
    return f"{_escape(spec.machine or default)},usb=off,vmport=off,dump-guest-core=off{backend}"


def _memory(spec: VmSpec, fds: Mapping[str, int]) -> list[str]:
    extra = spec.find(MemoryDevice)
    # Memory that is added has its place in the address space behind the VM's own.
    limit = f",maxmem={(spec.memory + extra.size) >> 10}k" if extra is not None else ""
    argv = ["-m", f"size={spec.memory >> 10}k{limit}"]
    if spec.sharing == "own":
        return argv
    share = "on" if spec.sharing == "shared" else "off"
    # QEMU opens the file for writing, also for a private view; a template's is sealed.
    backend = f"memory-backend-file,id=ram,mem-path=/proc/self/fd/{fds['memory']},size={spec.memory},share={share}"
    return [*argv, "-object", backend]


def _device(device: Device, spec: VmSpec, fds: Mapping[str, int], share_name: str) -> list[str]:
    match device:
        case AgentChannel(name):
            return _agent(name, fds["agent"])
        case Rng():
            return ["-object", "rng-builtin,id=rng", "-device", f"virtio-rng-pci,rng=rng,{_MODERN}"]
        case Share9p():
            return _share(device, share_name)
        case ShareVirtiofs():
            driver, *properties = virtiofs_device(device).items()
            return [
                "-device",
                ",".join([str(driver[1]), *(f"{key}={_escape(str(value))}" for key, value in properties)]),
            ]
        case Balloon():
            return ["-device", f"virtio-balloon-pci,id=balloon,free-page-reporting=on,{_MODERN}"]
        case Nic():
            driver, *properties = nic_device(device, "nic0").items()
            options = ",".join([str(driver[1]), *(f"{key}={value}" for key, value in properties)])
            queues = [str(fds[f"nic{number}"]) for number in range(device.queues)]
            tap = f"fds={':'.join(queues)}" if len(queues) > 1 else f"fd={queues[0]}"
            return ["-netdev", f"tap,id=nic0,{tap},vhost=off", "-device", options]
        case MemoryDevice(size):
            # A virtiofs server has to reach all of the guest's memory. Nothing is set aside for what is not used.
            backend = "memory-backend-memfd" if spec.sharing == "shared" else "memory-backend-ram"
            share = "on" if spec.sharing == "shared" else "off"
            return [
                "-object",
                f"{backend},id=extra,size={size},share={share},reserve=off",
                "-device",
                f"virtio-mem-pci,id={MEMORY_DEVICE},memdev=extra,block-size=2M,unplugged-inaccessible=on",
            ]


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
