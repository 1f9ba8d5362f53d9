"""Checks of owners, modes and extended attributes. Each gets an empty directory of its own and works in it."""

from __future__ import annotations

import errno
import os
import stat
import struct
import sys
import traceback
from collections.abc import Callable

from check_names import fails, get, put


def as_user(uid: int, body: Callable[[], None], groups: tuple[int, ...] = ()) -> None:
    """Run ``body`` in a process of another user."""
    pid = os.fork()
    if pid == 0:
        try:
            os.setgroups(groups)
            os.setresgid(uid, uid, uid)
            os.setresuid(uid, uid, uid)
            body()
        except BaseException:
            traceback.print_exc(file=sys.stderr)
            os._exit(1)
        os._exit(0)
    assert os.waitpid(pid, 0)[1] == 0, "it failed as another user; see standard error"


def ownership(d: str) -> None:
    put(f"{d}/file")
    for uid, gid in ((0, 0), (1000, 1000), (65534, 65534), (1 << 20, 3_000_000_000), (1, 0)):
        os.chown(f"{d}/file", uid, gid)
        assert (os.stat(f"{d}/file").st_uid, os.stat(f"{d}/file").st_gid) == (uid, gid)


def modes(d: str) -> None:
    put(f"{d}/file")
    for mode in (0o000, 0o644, 0o777, 0o1777, 0o2755, 0o4755, 0o6711):
        os.chmod(f"{d}/file", mode)
        assert stat.S_IMODE(os.stat(f"{d}/file").st_mode) == mode


def umask(d: str) -> None:
    old = os.umask(0o027)
    try:
        os.close(os.open(f"{d}/file", os.O_CREAT | os.O_WRONLY, 0o666))
        os.mkdir(f"{d}/directory", 0o777)
    finally:
        os.umask(old)
    assert stat.S_IMODE(os.stat(f"{d}/file").st_mode) == 0o640
    assert stat.S_IMODE(os.stat(f"{d}/directory").st_mode) == 0o750


def new_files_belong_to_their_maker(d: str) -> None:
    os.chmod(d, 0o777)

    def body() -> None:
        put(f"{d}/file")
        os.mkdir(f"{d}/directory")
        os.symlink("x", f"{d}/link")

    as_user(1234, body)
    for name in ("file", "directory", "link"):
        assert (os.lstat(f"{d}/{name}").st_uid, os.lstat(f"{d}/{name}").st_gid) == (1234, 1234), name


def group_of_the_directory(d: str) -> None:
    os.chown(d, 0, 77)
    os.chmod(d, 0o2777)

    def body() -> None:
        put(f"{d}/file")
        os.mkdir(f"{d}/directory")

    as_user(1234, body)
    assert os.stat(f"{d}/file").st_gid == 77
    assert os.stat(f"{d}/directory").st_gid == 77
    assert os.stat(f"{d}/directory").st_mode & stat.S_ISGID


def no_rights_for_others(d: str) -> None:
    put(f"{d}/secret", b"x")
    os.chmod(f"{d}/secret", 0o600)
    os.mkdir(f"{d}/closed", 0o700)
    put(f"{d}/closed/file")
    os.chmod(d, 0o755)

    def body() -> None:
        fails(errno.EACCES, os.open, f"{d}/secret", os.O_RDONLY)
        fails(errno.EACCES, os.stat, f"{d}/closed/file")
        fails(errno.EACCES, os.listdir, f"{d}/closed")
        fails(errno.EACCES, put, f"{d}/new")
        fails(errno.EACCES, os.unlink, f"{d}/secret")
        fails(errno.EPERM, os.chmod, f"{d}/secret", 0o777)
        fails(errno.EPERM, os.chown, f"{d}/secret", 1234, 1234)
        assert not os.access(f"{d}/secret", os.R_OK)

    as_user(1234, body)


def rights_of_groups(d: str) -> None:
    put(f"{d}/file", b"x")
    os.chown(f"{d}/file", 0, 500)
    os.chmod(f"{d}/file", 0o040)

    def member() -> None:
        assert get(f"{d}/file") == b"x"

    as_user(1234, member, (500,))


def a_closed_file_is_open_to_root_alone(d: str) -> None:
    put(f"{d}/file", b"x")
    os.chown(f"{d}/file", 1234, 1234)
    os.chmod(f"{d}/file", 0)
    assert get(f"{d}/file") == b"x"

    def owner() -> None:
        fails(errno.EACCES, os.open, f"{d}/file", os.O_RDONLY)
        os.chmod(f"{d}/file", 0o400)
        assert get(f"{d}/file") == b"x"

    os.chmod(d, 0o755)
    as_user(1234, owner)


def a_file_opened_for_writing_before_its_mode(d: str) -> None:
    os.chmod(d, 0o777)

    def body() -> None:
        fd = os.open(f"{d}/file", os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o444)
        os.write(fd, b"read-only now")
        os.close(fd)
        assert get(f"{d}/file") == b"read-only now"
        fails(errno.EACCES, os.open, f"{d}/file", os.O_WRONLY)

    as_user(1234, body)


def sticky_directory(d: str) -> None:
    os.chmod(d, 0o1777)
    put(f"{d}/roots")
    as_user(1234, lambda: fails(errno.EPERM, os.unlink, f"{d}/roots"))


def setuid_is_cleared_by_a_write(d: str) -> None:
    put(f"{d}/program", b"x")
    os.chown(f"{d}/program", 0, 0)
    os.chmod(f"{d}/program", 0o6777)

    def write() -> None:
        fd = os.open(f"{d}/program", os.O_WRONLY)
        os.write(fd, b"y")
        os.close(fd)

    as_user(1234, write)
    assert not os.stat(f"{d}/program").st_mode & (stat.S_ISUID | stat.S_ISGID)


def setuid_is_cleared_by_truncation(d: str) -> None:
    put(f"{d}/program", b"x")
    os.chmod(f"{d}/program", 0o6777)
    as_user(1234, lambda: os.truncate(f"{d}/program", 0))
    assert not os.stat(f"{d}/program").st_mode & (stat.S_ISUID | stat.S_ISGID)


def setuid_is_cleared_by_a_new_owner(d: str) -> None:
    put(f"{d}/program", b"x")
    os.chmod(f"{d}/program", 0o6755)
    os.chown(f"{d}/program", 1, 1)
    assert not os.stat(f"{d}/program").st_mode & (stat.S_ISUID | stat.S_ISGID)


def user_attributes(d: str) -> None:
    put(f"{d}/file")
    os.setxattr(f"{d}/file", "user.one", b"1")
    os.setxattr(f"{d}/file", "user.two", b"\0\xff" * 1000)
    assert os.getxattr(f"{d}/file", "user.two") == b"\0\xff" * 1000
    assert {"user.one", "user.two"} <= set(os.listxattr(f"{d}/file"))
    fails(errno.EEXIST, os.setxattr, f"{d}/file", "user.one", b"2", os.XATTR_CREATE)
    fails(errno.ENODATA, os.setxattr, f"{d}/file", "user.three", b"2", os.XATTR_REPLACE)
    os.removexattr(f"{d}/file", "user.one")
    fails(errno.ENODATA, os.getxattr, f"{d}/file", "user.one")
    os.setxattr(d, "user.directory", b"yes")
    assert os.getxattr(d, "user.directory") == b"yes"


def empty_attributes(d: str) -> None:
    put(f"{d}/file")
    os.setxattr(f"{d}/file", "user.empty", b"")
    assert os.getxattr(f"{d}/file", "user.empty") == b""


def file_capabilities(d: str) -> None:
    put(f"{d}/program")
    net_raw = struct.pack("<5I", 0x02000001, 1 << 13, 0, 0, 0)
    os.setxattr(f"{d}/program", "security.capability", net_raw)
    assert os.getxattr(f"{d}/program", "security.capability") == net_raw


def trusted_attributes(d: str) -> None:
    put(f"{d}/file")
    os.setxattr(f"{d}/file", "trusted.mark", b"x")
    assert os.getxattr(f"{d}/file", "trusted.mark") == b"x"


def access_lists(d: str) -> None:
    """A POSIX ACL that lets one more user read is obeyed."""
    put(f"{d}/file", b"x")
    os.chmod(f"{d}/file", 0o600)
    entries = ((1, 6, -1), (2, 4, 1234), (4, 0, -1), (16, 4, -1), (32, 0, -1))
    value = struct.pack("<I", 2)
    for tag, rights, who in entries:
        value += struct.pack("<HHI", tag, rights, who & 0xFFFFFFFF)
    os.setxattr(f"{d}/file", "system.posix_acl_access", value)
    assert os.getxattr(f"{d}/file", "system.posix_acl_access") == value
    os.chmod(d, 0o755)

    def reader() -> None:
        assert get(f"{d}/file") == b"x"

    as_user(1234, reader)
    as_user(1235, lambda: fails(errno.EACCES, os.open, f"{d}/file", os.O_RDONLY))


def executing(d: str) -> None:
    """A program on the share runs, and cannot be written meanwhile or executed without the right to."""
    put(f"{d}/program", get("/proc/self/exe"))
    fails(errno.EACCES, os.execv, f"{d}/program", ["x"])
    os.chmod(f"{d}/program", 0o755)
    pid = os.fork()
    if pid == 0:
        os.execv(f"{d}/program", ["python3", "-ISc", "raise SystemExit(7)"])
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 7


def read_only(path: str) -> None:
    """Nothing below ``path`` can be changed, by root either."""
    assert get(f"{path}/file") == b"a file of the host\n"
    fails(errno.EROFS, put, f"{path}/new")
    fails(errno.EROFS, os.open, f"{path}/file", os.O_WRONLY)
    fails(errno.EROFS, os.unlink, f"{path}/file")
    fails(errno.EROFS, os.mkdir, f"{path}/directory")
    fails(errno.EROFS, os.chmod, f"{path}/file", 0o777)
    fails(errno.EROFS, os.rename, f"{path}/file", f"{path}/other")
    fails(errno.EROFS, os.setxattr, f"{path}/file", "user.x", b"x")
    fails(errno.EROFS, os.utime, f"{path}/file")
