"""What a path of the host is that is to be mounted into a container."""

from __future__ import annotations

import fcntl
import os
import stat
import sys
from collections.abc import Iterator

from hako.errors import ConfigError
from hako.named import NamedTuple

# include/uapi/linux/fs.h
_BLKROGET = 0x125E  #: whether a device is read-only
_BLKSSZGET = 0x1268  #: the size of its logical blocks


class Source(NamedTuple):
    """A file or directory of the host, symbolic links followed."""

    path: str  #: without symbolic links
    mode: int  #: as stat(2) has it
    owner: tuple[int, int]  #: user and group
    device: tuple[int, int]  #: major and minor number of a device node
    filesystem: str  #: type of the file system that it is on; empty when no mount of this namespace tells
    origin: int  #: number of that file system, st_dev
    capacity: int  #: bytes that the file system can hold; 0 when it has no limit

    @property
    def kind(self) -> str:
        """directory, file, ``c`` or ``b`` for a device, socket or fifo."""
        names = {stat.S_IFDIR: "directory", stat.S_IFREG: "file", stat.S_IFCHR: "c", stat.S_IFBLK: "b"}
        names |= {stat.S_IFSOCK: "socket", stat.S_IFIFO: "fifo"}
        return names.get(stat.S_IFMT(self.mode), "file")


def look(path: str) -> Source:
    """What is at ``path``, as the calling thread sees it. Raises ConfigError when nothing is, or it is not absolute."""
    if not os.path.isabs(path):
        raise ConfigError(f"Cannot mount {path!r} into the container: its path is not absolute.")
    try:
        status = os.stat(path)
        space = os.statvfs(path)
        real = os.path.realpath(path)
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else str(error)
        raise ConfigError(f"Cannot mount {path} into the container: {reason}.") from error
    return Source(
        path=real,
        mode=status.st_mode,
        owner=(status.st_uid, status.st_gid),
        device=(os.major(status.st_rdev), os.minor(status.st_rdev)),
        filesystem=_filesystem(status.st_dev),
        origin=status.st_dev,
        capacity=space.f_blocks * space.f_frsize,
    )


class OpenDisk(NamedTuple):
    """A file or block device of the host that a VM gets as a disk. Close ``fd``."""

    fd: int
    path: str  #: for people
    readonly: bool
    block: bool  #: a block device, not a file
    sector: int  #: bytes of a logical block
    key: tuple[object, ...]  #: the same for all that are the same


def open_disk(path: str, *, readonly: bool) -> OpenDisk:
    """Open the file or block device ``path`` as the content of a disk. Raises ConfigError.

    A device that cannot be written to is a disk that cannot be written to.
    """
    try:
        # Whatever it is, looking at it has no effect, and what is opened then is what was looked at.
        handle = os.open(path, os.O_PATH | os.O_CLOEXEC)
        try:
            status = os.fstat(handle)
            block = stat.S_ISBLK(status.st_mode)
            if not block and not stat.S_ISREG(status.st_mode):
                raise ConfigError(f"{path} cannot be a disk of a VM: it is neither a file nor a block device.")
            path_of_handle = f"/proc/self/fd/{handle}"
            fd = os.open(path_of_handle, os.O_RDONLY | os.O_CLOEXEC)
            readonly = readonly or (block and _number(fd, _BLKROGET) != 0)
            if not readonly:
                os.close(fd)
                fd = os.open(path_of_handle, os.O_RDWR | os.O_CLOEXEC)
        finally:
            os.close(handle)
        try:
            sector = _number(fd, _BLKSSZGET) if block else 512
            if os.lseek(fd, 0, os.SEEK_END) == 0:
                raise ConfigError(f"{path} cannot be a disk of a VM: it is empty.")
        except BaseException:
            os.close(fd)
            raise
    except OSError as error:
        raise ConfigError(f"Cannot open {path} as a disk of a VM: {error.strerror}.") from error
    identity = ("device", status.st_rdev) if block else ("file", status.st_dev, status.st_ino)
    return OpenDisk(fd, path, readonly, block, sector, (*identity, readonly))


def open_device(major: int, minor: int, *, readonly: bool) -> OpenDisk:
    """The same of the block device with these numbers. Raises ConfigError."""
    name = device_name(major, minor)
    found = open_disk(f"/dev/{name}", readonly=readonly) if name else None
    if found is None or os.fstat(found.fd).st_rdev != os.makedev(major, minor):
        if found is not None:
            os.close(found.fd)
        raise ConfigError(f"The block device {major}:{minor} cannot be opened: it is not in /dev of the host.")
    return found


def device_name(major: int, minor: int) -> str:
    """The name below /dev of the host's block device with these numbers, empty when there is none that has content."""
    base = f"/sys/dev/block/{major}:{minor}"
    try:
        with open(f"{base}/size", encoding="ascii") as size, open(f"{base}/uevent", encoding="utf-8") as uevent:
            if int(size.read()) == 0:
                return ""
            lines = uevent.read().splitlines()
    except OSError:
        return ""
    return next((line.partition("=")[2] for line in lines if line.startswith("DEVNAME=")), "")


def _number(device: int, request: int) -> int:
    """What a block device answers to a ``request`` for an int."""
    return int.from_bytes(fcntl.ioctl(device, request, bytes(4)), sys.byteorder)


def has_mounts_below(path: str) -> bool:
    """Whether anything is mounted below the directory ``path``, as the calling thread sees it."""
    prefix = path.rstrip("/") + "/"
    # How the kernel writes what would end a field.
    prefix = prefix.replace("\\", "\\134").replace(" ", "\\040").replace("\t", "\\011").replace("\n", "\\012")
    return any(left.split(" ")[4].startswith(prefix) for left, _ in _mounts())


def _filesystem(device: int) -> str:
    wanted = f"{os.major(device)}:{os.minor(device)}"
    return next((right.split(" ")[0] for left, right in _mounts() if left.split(" ")[2] == wanted), "")


def _mounts() -> Iterator[tuple[str, str]]:
    """The lines of proc(5)'s mountinfo, left and right of the dash.

    36 35 98:0 /mnt1 /mnt2 rw,noatime master:1 - ext3 /dev/root rw,errors=continue
    """
    with open("/proc/thread-self/mountinfo", encoding="utf-8", errors="surrogateescape") as mounts:
        for line in mounts:
            left, _, right = line.partition(" - ")
            yield left, right
