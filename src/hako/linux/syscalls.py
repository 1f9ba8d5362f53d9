"""One thin wrapper per system call that the standard library lacks. Shared by host and guest.

Constants are the kernel's (include/uapi/linux). Every wrapper raises OSError with the path it worked on.
"""

from __future__ import annotations

import ctypes
import os

MS_RDONLY = 1
MS_NOSUID = 2
MS_NODEV = 4
MS_NOEXEC = 8
MS_SYNCHRONOUS = 16
MS_REMOUNT = 32
MS_DIRSYNC = 128
MS_NOATIME = 1024
MS_NODIRATIME = 2048
MS_BIND = 4096
MS_MOVE = 8192
MS_REC = 16384
MS_PRIVATE = 1 << 18
MS_SLAVE = 1 << 19
MS_SHARED = 1 << 20
MS_RELATIME = 1 << 21
MS_STRICTATIME = 1 << 24
MS_LAZYTIME = 1 << 25

MNT_DETACH = 2

CLONE_FS = 0x00000200
CLONE_NEWNS = 0x00020000
CLONE_NEWUTS = 0x04000000
CLONE_NEWIPC = 0x08000000
CLONE_NEWPID = 0x20000000
CLONE_NEWNET = 0x40000000

RB_AUTOBOOT = 0x01234567
RB_POWER_OFF = 0x4321FEDC

PR_SET_PDEATHSIG = 1
PR_SET_DUMPABLE = 4
PR_SET_NAME = 15
PR_SET_CHILD_SUBREAPER = 36

AT_FDCWD = -100
RESOLVE_NO_MAGICLINKS = 0x02
RESOLVE_IN_ROOT = 0x10

MOUNT_ATTR_RDONLY = 1
AT_RECURSIVE = 0x8000
AT_EMPTY_PATH = 0x1000
_OPEN_TREE_CLONE = 1
_MOVE_MOUNT_F_EMPTY_PATH = 0x04
_MOVE_MOUNT_T_EMPTY_PATH = 0x40
RLIMIT_NOFILE = 7

_NR_SETGROUPS = 116
_NR_SETRESUID = 117
_NR_SETRESGID = 119
_NR_PIVOT_ROOT = 155
_NR_FINIT_MODULE = 313
_NR_OPEN_TREE = 428
_NR_MOVE_MOUNT = 429
_NR_OPENAT2 = 437
_NR_MOUNT_SETATTR = 442

_libc = ctypes.CDLL(None, use_errno=True)
_libc.mount.argtypes = (ctypes.c_char_p, ctypes.c_char_p, ctypes.c_char_p, ctypes.c_ulong, ctypes.c_char_p)
_libc.umount2.argtypes = (ctypes.c_char_p, ctypes.c_int)
_libc.unshare.argtypes = (ctypes.c_int,)
_libc.setns.argtypes = (ctypes.c_int, ctypes.c_int)
_libc.reboot.argtypes = (ctypes.c_int,)
_libc.prctl.argtypes = (ctypes.c_int, ctypes.c_ulong, ctypes.c_ulong, ctypes.c_ulong, ctypes.c_ulong)
_libc.syscall.restype = ctypes.c_long


def _error(path: str) -> OSError:
    number = ctypes.get_errno()
    return OSError(number, os.strerror(number), path)


def mount(source: str, target: str, fstype: str = "", flags: int = 0, data: str = "") -> None:
    """mount(2)."""
    args = (os.fsencode(source), os.fsencode(target), fstype.encode() or None, flags, os.fsencode(data) or None)
    if _libc.mount(*args) != 0:
        raise _error(target)


class _MountAttr(ctypes.Structure):
    _fields_ = tuple((name, ctypes.c_uint64) for name in ("attr_set", "attr_clr", "propagation", "userns_fd"))


def make_readonly(target: str, *, recursive: bool = True) -> None:
    """Make the mount at ``target`` read-only, ``recursive``: with all below it, by mount_setattr(2)."""
    attributes = _MountAttr(attr_set=MOUNT_ATTR_RDONLY)
    result = _libc.syscall(
        ctypes.c_long(_NR_MOUNT_SETATTR),
        ctypes.c_int(AT_FDCWD),
        ctypes.c_char_p(os.fsencode(target)),
        ctypes.c_uint(AT_RECURSIVE if recursive else 0),
        ctypes.byref(attributes),
        ctypes.c_size_t(ctypes.sizeof(attributes)),
    )
    if result != 0:
        raise _error(target)


def clone_mount(source: str, *, dir_fd: int = AT_FDCWD, recursive: bool = True) -> int:
    """What is mounted at ``source``, or the part of it from there on, as a mount of its own that is nowhere yet.

    By open_tree(2). An empty ``source`` is ``dir_fd`` itself. Returns a descriptor for attach_mount(); closing it
    before that takes the mount away.
    """
    flags = _OPEN_TREE_CLONE | os.O_CLOEXEC | (AT_RECURSIVE if recursive else 0) | (0 if source else AT_EMPTY_PATH)
    number = ctypes.c_long(_NR_OPEN_TREE)
    fd = _libc.syscall(number, ctypes.c_int(dir_fd), ctypes.c_char_p(os.fsencode(source)), ctypes.c_uint(flags))
    if fd < 0:
        raise _error(source)
    return int(fd)


def attach_mount(mount_fd: int, target: str, *, dir_fd: int = AT_FDCWD) -> None:
    """Put the mount that clone_mount() made at ``target``; an empty one is ``dir_fd`` itself. By move_mount(2)."""
    flags = _MOVE_MOUNT_F_EMPTY_PATH | (0 if target else _MOVE_MOUNT_T_EMPTY_PATH)
    result = _libc.syscall(
        ctypes.c_long(_NR_MOVE_MOUNT),
        ctypes.c_int(mount_fd),
        ctypes.c_char_p(b""),
        ctypes.c_int(dir_fd),
        ctypes.c_char_p(os.fsencode(target)),
        ctypes.c_uint(flags),
    )
    if result != 0:
        raise _error(target)


def pivot_root(new_root: str, old_root: str) -> None:
    """pivot_root(2)."""
    number = ctypes.c_long(_NR_PIVOT_ROOT)
    if _libc.syscall(number, ctypes.c_char_p(os.fsencode(new_root)), ctypes.c_char_p(os.fsencode(old_root))) != 0:
        raise _error(new_root)


def umount(target: str, flags: int = 0) -> None:
    """umount2(2)."""
    if _libc.umount2(os.fsencode(target), flags) != 0:
        raise _error(target)


def unshare(flags: int) -> None:
    """unshare(2)."""
    if _libc.unshare(flags) != 0:
        raise _error("unshare")


def setns(fd: int, kind: int = 0) -> None:
    """setns(2)."""
    if _libc.setns(fd, kind) != 0:
        raise _error("setns")


def reboot(how: int) -> None:
    """reboot(2); does not sync first."""
    if _libc.reboot(ctypes.c_int(how & 0xFFFFFFFF).value) != 0:
        raise _error("reboot")


def prctl(option: int, value: int) -> None:
    """prctl(2) with one argument."""
    if _libc.prctl(option, value, 0, 0, 0) != 0:
        raise _error("prctl")


def set_thread_groups(groups: list[int]) -> None:
    """setgroups(2) of the calling thread alone."""
    array = (ctypes.c_uint32 * len(groups))(*groups)
    if _libc.syscall(ctypes.c_long(_NR_SETGROUPS), ctypes.c_size_t(len(groups)), array) != 0:
        raise _error("setgroups")


def set_thread_effective_ids(uid: int, gid: int) -> None:
    """setresgid(2) and setresuid(2) of the calling thread alone; real and saved ids stay."""
    same = ctypes.c_uint32(0xFFFFFFFF)
    for number, value in ((_NR_SETRESGID, gid), (_NR_SETRESUID, uid)):
        if _libc.syscall(ctypes.c_long(number), same, ctypes.c_uint32(value), same) != 0:
            raise _error("setresgid" if number == _NR_SETRESGID else "setresuid")


def set_open_files_limit(count: int) -> None:
    """setrlimit(2) of RLIMIT_NOFILE, soft and hard."""
    if _libc.setrlimit(ctypes.c_int(RLIMIT_NOFILE), (ctypes.c_ulong * 2)(count, count)) != 0:
        raise _error("RLIMIT_NOFILE")


def set_process_name(name: str) -> None:
    """Name the calling thread, at most 15 bytes, as ps and top show it."""
    buffer = ctypes.create_string_buffer(name.encode()[:15])
    if _libc.prctl(PR_SET_NAME, ctypes.addressof(buffer), 0, 0, 0) != 0:
        raise _error("prctl")


def write_memory(address: int, data: bytes) -> None:
    """Overwrite this process's own memory at ``address``."""
    ctypes.memmove(address, data, len(data))


def finit_module(path: str, parameters: str = "") -> None:
    """Load the kernel module in ``path``. One that is loaded already is fine."""
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        number = ctypes.c_long(_NR_FINIT_MODULE)
        if _libc.syscall(number, ctypes.c_int(fd), ctypes.c_char_p(parameters.encode()), ctypes.c_int(0)) != 0:
            error = _error(path)
            if not isinstance(error, FileExistsError):
                raise error
    finally:
        os.close(fd)


class _OpenHow(ctypes.Structure):
    _fields_ = (("flags", ctypes.c_uint64), ("mode", ctypes.c_uint64), ("resolve", ctypes.c_uint64))


def open_in_root(root: str, path: str, flags: int = os.O_RDONLY | os.O_CLOEXEC, mode: int = 0) -> int:
    """Open ``path`` as a process chrooted to ``root`` would: symbolic links and ``..`` never leave it.

    Uses openat2(2) with RESOLVE_IN_ROOT, so it also holds against a concurrent change of the tree.
    Returns the fd.
    """
    root_fd = os.open(root, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        return openat2(root_fd, path, flags, mode)
    finally:
        os.close(root_fd)


def openat2(root_fd: int, path: str, flags: int, mode: int = 0) -> int:
    """openat2(2) with RESOLVE_IN_ROOT and no magic links, below the directory ``root_fd``. Returns the fd."""
    how = _OpenHow(flags | os.O_CLOEXEC, mode, RESOLVE_IN_ROOT | RESOLVE_NO_MAGICLINKS)
    number = ctypes.c_long(_NR_OPENAT2)
    name = ctypes.c_char_p(os.fsencode(path) or b".")
    fd = _libc.syscall(number, ctypes.c_int(root_fd), name, ctypes.byref(how), ctypes.c_size_t(ctypes.sizeof(how)))
    if fd < 0:
        raise _error(path)
    return int(fd)
