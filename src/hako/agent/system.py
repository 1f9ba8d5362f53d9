"""The guest as a whole: first mounts, modules, clock, entropy, shares."""

from __future__ import annotations

import fcntl
import json
import os
import struct
import time

from hako.linux import syscalls
from hako.wire import calls

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

_MODULES = "/usr/lib/hako/modules.json"
_SHARES = "/run/hako/shares"
_RNDADDENTROPY = 0x40085203  # include/uapi/linux/random.h
_RNDRESEEDCRNG = 0x5207

_NOSUID_NODEV_NOEXEC = syscalls.MS_NOSUID | syscalls.MS_NODEV | syscalls.MS_NOEXEC
#: source, target, type, flags, data; in order.
_FIRST_MOUNTS = (
    ("proc", "/proc", "proc", _NOSUID_NODEV_NOEXEC, ""),
    ("sysfs", "/sys", "sysfs", _NOSUID_NODEV_NOEXEC, ""),
    ("dev", "/dev", "devtmpfs", syscalls.MS_NOSUID, "mode=0755"),
    ("devpts", "/dev/pts", "devpts", syscalls.MS_NOSUID | syscalls.MS_NOEXEC, "mode=0620,ptmxmode=0666"),
    ("shm", "/dev/shm", "tmpfs", _NOSUID_NODEV_NOEXEC, "mode=1777"),
    ("run", "/run", "tmpfs", syscalls.MS_NOSUID | syscalls.MS_NODEV, "mode=0755,size=64m"),
    ("tmp", "/tmp", "tmpfs", syscalls.MS_NOSUID | syscalls.MS_NODEV, "mode=1777,size=64m"),
    ("cgroup", "/sys/fs/cgroup", "cgroup2", _NOSUID_NODEV_NOEXEC, ""),
)


def leave_initial_root() -> None:
    """Put the root directory on a mount of its own, for pivot_root(2) refuses the kernel's initial one."""
    syscalls.mount("/", "/newroot", flags=syscalls.MS_BIND | syscalls.MS_REC)
    os.chdir("/newroot")
    syscalls.mount(".", "/", flags=syscalls.MS_MOVE)
    os.chroot(".")
    os.chdir("/")


def mount_first() -> None:
    """The file systems every process expects."""
    for source, target, fstype, flags, data in _FIRST_MOUNTS:
        os.makedirs(target, exist_ok=True)
        syscalls.mount(source, target, fstype, flags, data)
    syscalls.mount("", "/", flags=syscalls.MS_SHARED | syscalls.MS_REC)


def load_boot_modules() -> None:
    """Load the kernel modules every VM needs, in the order the image gives."""
    for path in _modules()["boot"]:
        syscalls.finit_module(path)


def load_on_demand(name: str) -> None:
    """Load one of the image's other modules with what it depends on. Raises CallError when it has none such."""
    paths = _modules()["demand"].get(name)
    if paths is None:
        raise calls.CallError(calls.NOT_FOUND, f"the guest image has no kernel module {name}")
    for path in paths:
        syscalls.finit_module(path)


def _modules() -> dict[str, Any]:
    with open(_MODULES, "rb") as file:
        value: dict[str, Any] = json.loads(file.read())
    return value


def find_port(name: str) -> str | None:
    """The device of the virtio-serial port called ``name``, or None as long as there is none."""
    base = "/sys/class/virtio-ports"
    try:
        ports = os.listdir(base)
    except FileNotFoundError:
        return None
    for port in ports:
        try:
            with open(f"{base}/{port}/name", encoding="ascii") as file:
                if file.read(64).strip() == name:
                    return f"/dev/{port}"
        except FileNotFoundError:
            continue
    return None


def uptime_ns() -> int:
    """Nanoseconds since the kernel started."""
    return time.clock_gettime_ns(time.CLOCK_BOOTTIME)


def set_clock(time_ns: int) -> None:
    """Set the wall clock to ``time_ns`` since 1970."""
    time.clock_settime_ns(time.CLOCK_REALTIME, time_ns)


def set_hostname(name: str) -> None:
    """Set the VM's host name; containers with a UTS namespace have their own."""
    with open("/proc/sys/kernel/hostname", "w", encoding="ascii") as file:
        file.write(name[:64])


def add_entropy(data: bytes) -> None:
    """Feed ``data``, full entropy, to the kernel's generator and have it reseed at once."""
    with open("/dev/urandom", "wb", buffering=0) as device:
        fcntl.ioctl(device, _RNDADDENTROPY, struct.pack("ii", len(data) * 8, len(data)) + data)
        fcntl.ioctl(device, _RNDRESEEDCRNG)


def mount_share(driver: str, tag: str, name: str, options: str) -> str:
    """Mount the host share ``tag`` and return its path."""
    path = f"{_SHARES}/{name}"
    if os.path.ismount(path):
        raise calls.CallError(calls.ALREADY_EXISTS, f"share {name} is mounted already")
    os.makedirs(path, exist_ok=True)
    try:
        syscalls.mount(tag, path, driver, syscalls.MS_NODEV, options)
    except OSError:
        os.rmdir(path)
        raise
    return path


def unmount_shares() -> None:
    """Write everything to the host and let go of its shares."""
    os.sync()
    if os.path.isdir(_SHARES):
        for name in os.listdir(_SHARES):
            path = f"{_SHARES}/{name}"
            if os.path.ismount(path):
                syscalls.umount(path, syscalls.MNT_DETACH)
            os.rmdir(path)


def memory() -> dict[str, int]:
    """Bytes of memory: total, free and available."""
    wanted = {"MemTotal": "total", "MemFree": "free", "MemAvailable": "available"}
    found = {}
    with open("/proc/meminfo", encoding="ascii") as file:
        for line in file:
            name, _, rest = line.partition(":")
            if name in wanted:
                found[wanted[name]] = int(rest.split()[0]) << 10
    return found


def bring_up_loopback() -> None:
    """Bring up ``lo``; without it not even 127.0.0.1 answers."""
    import _socket

    control = _socket.socket(_socket.AF_INET, _socket.SOCK_DGRAM | _socket.SOCK_CLOEXEC)
    try:
        up_and_running = 0x1 | 0x40  # IFF_UP, IFF_RUNNING
        fcntl.ioctl(control.fileno(), 0x8914, struct.pack("16sh14x", b"lo", up_and_running))  # SIOCSIFFLAGS
    finally:
        control.close()
