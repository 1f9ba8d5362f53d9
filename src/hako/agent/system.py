"""The guest as a whole: first mounts, modules, clock, entropy, shares."""

from __future__ import annotations

import _socket
import fcntl
import gc
import os
import struct
import sys
import time

from hako.linux import syscalls
from hako.wire import calls, jsontext

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

_MODULES = "/usr/lib/hako/modules.json"
_SHARES = "/run/hako/shares"
_RNDADDENTROPY = 0x40085203  # include/uapi/linux/random.h
_RNDRESEEDCRNG = 0x5207
_ENTROPY = struct.Struct("ii")  # its amount in bits, and the length of what follows in bytes

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


#: So many objects may come and not go again before the agent looks for garbage.
_NEW_OBJECTS = 10_000
#: Paths of the host's shares.
_mounted: set[str] = set()
#: Modules that load_on_demand() has loaded.
_loaded: set[str] = set()
#: What reserve_memory() found when it was first called.
_usual_reserve: list[bytes] = []


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
    os.makedirs(_SHARES)


def load_boot_modules() -> None:
    """Load the kernel modules every VM needs, in the order the image gives, and give back their files' memory."""
    for path in _modules()["boot"]:
        syscalls.finit_module(path)
        os.unlink(path)


def forget_bytecode() -> None:
    """Give back the memory of the files that the modules imported so far came from; they are not read again."""
    for module in list(sys.modules.values()):
        path = getattr(module, "__file__", None)
        if path and path.endswith(".pyc") and os.path.exists(path):
            os.unlink(path)


def load_on_demand(name: str) -> None:
    """Load one of the image's other modules with what it depends on. Raises CallError when it has none such."""
    if name in _loaded:
        return
    paths = _modules()["demand"].get(name)
    if paths is None:
        raise calls.CallError(calls.NOT_FOUND, f"the guest image has no kernel module {name}")
    for path in paths:
        try:
            syscalls.finit_module(path)
        except FileNotFoundError as error:
            message = f"the kernel module {name} is not where the guest image's modules are"
            raise calls.CallError(calls.NOT_FOUND, message) from error
    _loaded.add(name)


def _modules() -> dict[str, Any]:
    with open(_MODULES, "rb") as file:
        value: dict[str, Any] = jsontext.loads(file.read())
    return value


def forget_garbage() -> None:
    """Let go of objects that nothing uses, and from now on look at new ones only, and seldom.

    The usual threshold is reached while a clone makes its first container, and looking takes an emulated guest longer
    than anything else of the agent's.
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(_NEW_OBJECTS)


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


def write(path: str, data: bytes) -> None:
    """Write a small file. A clone does it for the first time, and Python's file objects are a lot of code for that."""
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o644)
    try:
        os.write(fd, data)
    finally:
        os.close(fd)


def set_clock(time_ns: int) -> None:
    """Set the wall clock to ``time_ns`` since 1970."""
    time.clock_settime_ns(time.CLOCK_REALTIME, time_ns)


def set_hostname(name: str) -> None:
    """Set the VM's host name; containers with a UTS namespace have their own."""
    _socket.sethostname(name[:64])


def set_machine_id(text: str) -> None:
    """Give the VM the machine id ``text`` (machine-id(5)); containers have files of their own."""
    write("/etc/machine-id", f"{text}\n".encode())


def set_mac(mac: bytes) -> None:
    """Give the first network card the address ``mac``: a clone starts with its template's."""
    names = sorted(name for name in os.listdir("/sys/class/net") if name != "lo")
    if not names:
        raise calls.CallError(calls.FAILED_PRECONDITION, "the VM has no network card")
    control = _socket.socket(_socket.AF_INET, _socket.SOCK_DGRAM | _socket.SOCK_CLOEXEC)
    try:
        # struct ifreq with a sockaddr of type ARPHRD_ETHER (1)
        request = struct.pack("16sH6s8x", names[0].encode(), 1, mac)
        fcntl.ioctl(control.fileno(), 0x8924, request)  # SIOCSIFHWADDR
    finally:
        control.close()


def reserve_memory(*, little: bool) -> None:
    """Have the kernel keep the usual memory for emergencies, or so ``little`` that a balloon can take nearly all."""
    path = "/proc/sys/vm/min_free_kbytes"
    if not _usual_reserve:
        with open(path, "rb") as file:
            _usual_reserve.append(file.read(32))
    write(path, b"256" if little else _usual_reserve[0])


def drop_caches() -> None:
    """Write everything out and let go of what can be read again: the VM is about to be frozen."""
    os.sync()
    write("/proc/sys/vm/drop_caches", b"3")


def online_vcpus(wanted: int) -> int:
    """Bring processors online until ``wanted`` are, or take some offline; return how many are online."""
    base = "/sys/devices/system/cpu"
    numbers = sorted(int(name[3:]) for name in os.listdir(base) if name[:3] == "cpu" and name[3:].isdigit())
    online = 1
    for number in numbers[1:]:
        path = f"{base}/cpu{number}/online"
        with open(path, encoding="ascii") as file:
            is_online = file.read(1) == "1"
        if is_online != (online < wanted):
            write(path, b"1" if online < wanted else b"0")
        online += online < wanted
    return online


def add_entropy(data: bytes) -> None:
    """Feed ``data``, full entropy, to the kernel's generator and have it reseed at once."""
    device = os.open("/dev/urandom", os.O_WRONLY | os.O_CLOEXEC)
    try:
        fcntl.ioctl(device, _RNDADDENTROPY, _ENTROPY.pack(len(data) * 8, len(data)) + data)
        fcntl.ioctl(device, _RNDRESEEDCRNG)
    finally:
        os.close(device)


def mount_share(driver: str, tag: str, name: str, options: str) -> str:
    """Mount the host share ``tag`` and return its path."""
    path = f"{_SHARES}/{name}"
    if path in _mounted:
        raise calls.CallError(calls.ALREADY_EXISTS, f"share {name} is mounted already")
    os.mkdir(path)
    try:
        syscalls.mount(tag, path, driver, syscalls.MS_NODEV, options)
    except OSError:
        os.rmdir(path)
        raise
    _mounted.add(path)
    return path


def forget_files() -> None:
    """Let go of the names and files of virtiofs shares that nothing uses.

    The server holds each file that this kernel remembers, so what was removed on the host would still take up space.
    9p remembers nothing.
    """
    with open("/proc/self/mounts", encoding="utf-8", errors="replace") as mounts:
        if not any(line.split(" ")[2] == "virtiofs" for line in mounts):
            return
    with open("/proc/sys/vm/drop_caches", "w", encoding="ascii") as file:
        file.write("2")


def unmount_shares() -> None:
    """Write everything to the host and let go of its shares."""
    os.sync()
    for path in list(_mounted):
        syscalls.umount(path, syscalls.MNT_DETACH)
        os.rmdir(path)
        _mounted.remove(path)


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
    control = _socket.socket(_socket.AF_INET, _socket.SOCK_DGRAM | _socket.SOCK_CLOEXEC)
    try:
        up_and_running = 0x1 | 0x40  # IFF_UP, IFF_RUNNING
        fcntl.ioctl(control.fileno(), 0x8914, struct.pack("16sh14x", b"lo", up_and_running))  # SIOCSIFFLAGS
    finally:
        control.close()
