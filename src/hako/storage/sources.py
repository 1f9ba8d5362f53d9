"""What a path of the host is that is to be mounted into a container."""

from __future__ import annotations

import os
import stat
from typing import NamedTuple

from hako.errors import ConfigError


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


def _filesystem(device: int) -> str:
    wanted = f"{os.major(device)}:{os.minor(device)}"
    # 36 35 98:0 /mnt1 /mnt2 rw,noatime master:1 - ext3 /dev/root rw,errors=continue; see proc(5)
    with open("/proc/thread-self/mountinfo", encoding="utf-8", errors="surrogateescape") as mounts:
        for line in mounts:
            left, _, right = line.partition(" - ")
            if left.split(" ")[2] == wanted:
                return right.split(" ")[0]
    return ""
