"""Disks of containers: finding them by their serial numbers, mounting what is on them, letting go of them.

What is mounted for a container is at /run/hako/disks/<container>/<number>, numbered in the order of mounting.
"""

from __future__ import annotations

import os

from hako.agent import pci, system
from hako.agent.loop import Loop
from hako.linux import syscalls
from hako.wire import calls

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

_MOUNTS = "/run/hako/disks"
_BLOCKS = "/sys/class/block"
_HOSTS = "/sys/class/scsi_host"
#: scsi_mod would look for 256 disks at once when it finds the controller, most of which there are not.
_SCAN = "/sys/module/scsi_mod/parameters/scan"
#: Page 0x80 of a disk's vital product data: 4 bytes of header, then the serial number (SPC-4, 7.8.13).
_SERIAL_PAGE = "vpd_pg80"
_MAX_SERIAL = 20
_MAX_DISKS = 256
_MAX_MOUNTS = 512
_MAX_TEXT = 64 << 10
_ALNUM = frozenset("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789")

#: Disks that have just been plugged in are there within 10 s; what uses a mount lets go of it within 2 s.
_FIND_TRIES = 2000
_FIND_PAUSE = 0.005
_UNMOUNT_TRIES = 100
_UNMOUNT_PAUSE = 0.02


def _bad(text: str) -> calls.CallError:
    return calls.CallError(calls.INVALID_ARGUMENT, text)


def _checked(value: object, key: str, kind: type, limit: int) -> list[Any]:
    if isinstance(value, list) and len(value) <= limit and all(type(one) is kind for one in value):
        return value
    raise _bad(f"{key}: not an array of at most {limit} of {kind.__name__}")


def _text(given: dict[str, Any], key: str) -> str:
    value = given.get(key)
    if isinstance(value, str) and len(value) <= _MAX_TEXT and "\0" not in value:
        return value
    raise _bad(f"mounts.{key}: not a text of at most {_MAX_TEXT} characters")


def serials(value: object, key: str) -> list[str]:
    """``value`` as serial numbers of disks. Raises CallError."""
    found: list[str] = _checked(value, key, str, _MAX_DISKS)
    if all(0 < len(serial) <= _MAX_SERIAL and _ALNUM.issuperset(serial) for serial in found):
        return found
    raise _bad(f"{key}: not serial numbers of disks")


async def attach(
    loop: Loop, container_id: str, disks: list[str], mounts: object, modules: object
) -> dict[str, dict[str, Any]]:
    """Find ``disks`` and do the mounts of a container; return each disk's node and its numbers. Raises CallError.

    A failure leaves nothing mounted.
    """
    wanted = [_Mount(one, disks) for one in _checked(mounts, "mounts", dict, _MAX_MOUNTS)]
    for name in _checked(modules, "modules", str, 16):
        system.load_on_demand(name)
    if disks:
        _load_driver()
    found = await _find(loop, disks)
    directory = f"{_MOUNTS}/{container_id}"
    if wanted:
        os.makedirs(directory)
    try:
        for number, one in enumerate(wanted):
            # Relative paths, for the options of a mount have 4095 bytes.
            os.chdir(directory)
            try:
                one.do(str(number), found)
            finally:
                os.chdir("/")
    except BaseException:
        await _unmount_all(loop, directory)
        raise
    return {serial: _describe(name) for serial, name in found.items()}


async def detach(loop: Loop, container_id: str, disks: list[str]) -> None:
    """Unmount what was mounted for a container, and let go of ``disks``, everything written to them."""
    await _unmount_all(loop, f"{_MOUNTS}/{container_id}")
    names = _names()
    for serial in disks:
        if serial in names:
            # The kernel has the disk write out what it has cached, and forgets it.
            system.write(f"{_BLOCKS}/{names[serial]}/device/delete", b"1")


async def unmount_all(loop: Loop) -> None:
    """Unmount everything: the VM is about to end."""
    if os.path.isdir(_MOUNTS):
        for container_id in os.listdir(_MOUNTS):
            await _unmount_all(loop, f"{_MOUNTS}/{container_id}")


class _Mount:
    """One mount, checked."""

    def __init__(self, given: dict[str, Any], disks: list[str]) -> None:
        self._fstype, self._source, self._data = (_text(given, key) for key in ("type", "source", "data"))
        if type(given.get("flags")) is not int:
            raise _bad("mounts.flags: not a number")
        self._flags: int = given["flags"]
        self._disk = serials([given["disk"]] if "disk" in given else [], "mounts.disk")
        self._devices = serials(given.get("devices", []), "mounts.devices")
        if not set(disks).issuperset(self._disk + self._devices):
            raise _bad("mounts: a disk that is not among the container's")
        self._directories = [_Directory(one) for one in _checked(given.get("make", []), "mounts.make", dict, 16)]
        self._inside: list[str] = _checked(given.get("inside", []), "mounts.inside", str, _MAX_MOUNTS)

    def do(self, target: str, found: dict[str, str]) -> None:
        """Mount it at ``target``, in the directory of the container's mounts. Raises CallError, OSError."""
        for directory in self._directories:
            directory.make()
        for path in self._inside:
            _check_inside(path)
        source = f"/dev/{found[self._disk[0]]}" if self._disk else self._source
        devices = [f"device=/dev/{found[one]}" for one in self._devices]
        data = ",".join([*([self._data] if self._data else []), *devices])
        os.mkdir(target)
        try:
            syscalls.mount(source, target, self._fstype, self._flags, data)
            if self._flags & syscalls.MS_BIND and self._flags & ~(syscalls.MS_BIND | syscalls.MS_REC):
                syscalls.mount("", target, "", self._flags & ~syscalls.MS_REC | syscalls.MS_REMOUNT)
        except OSError as error:
            what = f"disk {self._disk[0]}" if self._disk else source
            message = f"cannot mount {what} as {self._fstype or 'a bind'} with the options {data or 'none'}"
            raise calls.CallError(calls.FAILED_PRECONDITION, f"{message}: {error.strerror}") from error


class _Directory:
    """A directory that is made on a mounted file system before the next mount uses it."""

    def __init__(self, given: dict[str, Any]) -> None:
        self._path = _text(given, "path")
        numbers = [given.get(key) for key in ("mode", "uid", "gid")]
        if any(type(number) is not int for number in numbers):
            raise _bad("mounts.make: not a path with mode, uid and gid")
        self._numbers: list[int] = [number for number in numbers if number is not None]

    def make(self) -> None:
        """Make it. Raises CallError, OSError."""
        _check_inside(os.path.dirname(self._path))
        if not os.path.lexists(self._path):
            mode, uid, gid = self._numbers
            os.mkdir(self._path)
            os.chmod(self._path, mode & 0o7777)
            os.chown(self._path, uid, gid)


def _check_inside(path: str) -> None:
    """Raises CallError unless ``path`` is a directory below the current one, without a symbolic link on the way.

    What is on a disk may be anybody's: no link of it may lead out of it.
    """
    if not path or os.path.realpath(path) != f"{os.getcwd()}/{path}" or not os.path.isdir(path):
        raise calls.CallError(calls.FAILED_PRECONDITION, f"{path[:256]} is not a directory of the container's disks")


def _load_driver() -> None:
    system.load_on_demand("scsi_mod")
    system.write(_SCAN, b"manual")
    system.load_on_demand("sd_mod")
    system.load_on_demand("virtio_scsi")


async def _find(loop: Loop, disks: list[str]) -> dict[str, str]:
    """Names of the disks in /sys/class/block, waiting until they are there. Raises CallError."""
    missing = set(disks)
    names: dict[str, str] = {}
    for attempt in range(_FIND_TRIES):
        if missing:
            names = _names()
            missing = {serial for serial in missing if serial not in names or not _is_ready(names[serial])}
        if not missing:
            return {serial: names[serial] for serial in disks}
        if not attempt & attempt - 1:  # now, and ever more seldom
            pci.find_plugged()
            _scan()
        await loop.sleep(_FIND_PAUSE)
    raise calls.CallError(calls.NOT_FOUND, f"disk {missing.pop()} did not appear")


def _names() -> dict[str, str]:
    """Names of all SCSI disks by their serial numbers."""
    found = {}
    for name in os.listdir(_BLOCKS):
        if name.startswith("sd"):
            try:
                with open(f"{_BLOCKS}/{name}/device/{_SERIAL_PAGE}", "rb") as file:
                    found[file.read(64)[4:].strip(b" \0").decode("ascii", "replace")] = name
            except OSError:
                continue  # a partition, or it goes away
    return found


def _is_ready(name: str) -> bool:
    """Whether a disk can be opened: it is in /sys a moment before that."""
    try:
        os.close(os.open(f"/dev/{name}", os.O_RDONLY | os.O_CLOEXEC))
    except OSError:
        return False
    return True


def _scan() -> None:
    """Have the kernel look for disks at the only address where there are any."""
    for host in os.listdir(_HOSTS) if os.path.isdir(_HOSTS) else ():
        system.write(f"{_HOSTS}/{host}/scan", b"0 0 -")


def _describe(name: str) -> dict[str, Any]:
    number = os.stat(f"/dev/{name}").st_rdev
    return {"path": f"/dev/{name}", "major": os.major(number), "minor": os.minor(number)}


async def _unmount_all(loop: Loop, directory: str) -> None:
    """Unmount what is in ``directory``, last things first, and remove it."""
    if not os.path.isdir(directory):
        return
    for number in sorted(map(int, os.listdir(directory)), reverse=True):
        point = f"{directory}/{number}"
        if os.path.ismount(point) and not await _unmounted(loop, point):
            # Nothing of a container is left by now that could write.
            os.sync()
            syscalls.umount(point, syscalls.MNT_DETACH)
        os.rmdir(point)
    os.rmdir(directory)


async def _unmounted(loop: Loop, point: str) -> bool:
    """Whether ``point`` can be unmounted in time: namespaces of processes that have ended go a moment later."""
    for _ in range(_UNMOUNT_TRIES):
        try:
            syscalls.umount(point)
        except OSError:
            await loop.sleep(_UNMOUNT_PAUSE)
        else:
            return True
    return False
