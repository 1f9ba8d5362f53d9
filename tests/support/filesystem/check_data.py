"""Checks of files' content. Each gets an empty directory of its own and works in it."""

from __future__ import annotations

import ctypes
import errno
import fcntl
import mmap
import os
import struct
import time

from check_names import fails, get, put

_libc = ctypes.CDLL(None, use_errno=True)
_PAGE = 4096


def append(path: str, mark: str, count: int) -> None:
    """Add ``count`` lines to a file that others add to."""
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o666)
    for number in range(count):
        os.write(fd, f"{mark}{number:06}\n".encode())
    os.close(fd)


def read_text(path: str) -> str:
    """A file's content, in Latin-1."""
    return get(path).decode("latin-1")


def write_text(path: str, content: str) -> None:
    """Replace a file's content, in Latin-1."""
    put(path, content.encode("latin-1"))


def names(path: str) -> list[str]:
    """What is in a directory."""
    return sorted(os.listdir(path))


def status(path: str) -> list[int]:
    """Mode, owner, group, size and links."""
    value = os.lstat(path)
    return [value.st_mode, value.st_uid, value.st_gid, value.st_size, value.st_nlink]


def hold_open(path: str) -> int:
    """Open a file and keep it; for reading with reread()."""
    return os.open(path, os.O_RDONLY)


def reread(fd: int) -> str:
    """The content of an open file from its beginning."""
    return os.pread(fd, 1 << 20, 0).decode("latin-1")


def append_is_atomic(d: str) -> None:
    one = os.open(f"{d}/log", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    two = os.open(f"{d}/log", os.O_WRONLY | os.O_APPEND)
    for number in range(50):
        os.write(one if number % 2 else two, b"%03d\n" % number)
    os.pwrite(one, b"end\n", 0)
    os.close(one)
    os.close(two)
    assert get(f"{d}/log") == b"".join(b"%03d\n" % number for number in range(50)) + b"end\n"


def mmap_read(d: str) -> None:
    content = os.urandom(10 * _PAGE + 100)
    put(f"{d}/file", content)
    with open(f"{d}/file", "rb") as file, mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ) as view:
        assert view[:] == content
    with open(f"{d}/file", "rb") as file, mmap.mmap(file.fileno(), 0, flags=mmap.MAP_PRIVATE) as view:
        view[:3] = b"own"
        assert view[:] == b"own" + content[3:]
    assert get(f"{d}/file") == content


def mmap_write(d: str) -> None:
    put(f"{d}/file", b"a" * 3 * _PAGE)
    with open(f"{d}/file", "r+b") as file, mmap.mmap(file.fileno(), 0) as view:
        view[_PAGE - 2 : _PAGE + 2] = b"1234"
        view.flush()
        file.seek(_PAGE - 2)
        assert file.read(4) == b"1234"
        view[0:1] = b"z"
    assert get(f"{d}/file") == b"z" + b"a" * (_PAGE - 3) + b"1234" + b"a" * (2 * _PAGE - 2)


def mmap_and_write_agree(d: str) -> None:
    put(f"{d}/file", b"a" * _PAGE)
    with open(f"{d}/file", "r+b", buffering=0) as file, mmap.mmap(file.fileno(), 0) as view:
        assert view[:2] == b"aa"
        os.pwrite(file.fileno(), b"by write", 0)
        assert view[:8] == b"by write"
        view[:7] = b"by mmap"
        assert os.pread(file.fileno(), 8, 0) == b"by mmape"


def mmap_between_containers(path: str, turn: int) -> None:
    """Write the number ``turn`` + 1 where ``turn`` is, by a mapping."""
    with open(path, "r+b") as file, mmap.mmap(file.fileno(), 0) as view:
        assert struct.unpack("<I", view[:4])[0] == turn
        view[:4] = struct.pack("<I", turn + 1)


def truncate(d: str) -> None:
    put(f"{d}/file", b"x" * 10000)
    os.truncate(f"{d}/file", 5)
    assert get(f"{d}/file") == b"xxxxx"
    os.truncate(f"{d}/file", 9000)
    assert get(f"{d}/file") == b"xxxxx" + b"\0" * 8995
    os.close(os.open(f"{d}/file", os.O_WRONLY | os.O_TRUNC))
    assert os.stat(f"{d}/file").st_size == 0


def sparse_file(d: str) -> None:
    fd = os.open(f"{d}/sparse", os.O_RDWR | os.O_CREAT)
    os.pwrite(fd, b"end", 5 << 30)
    os.fsync(fd)
    found = os.fstat(fd)
    assert found.st_size == (5 << 30) + 3
    assert found.st_blocks * 512 < 1 << 20, found.st_blocks
    assert os.pread(fd, 3, 5 << 30) == b"end"
    assert os.pread(fd, 8, 3 << 30) == bytes(8)
    os.close(fd)


def seek_data_and_holes(d: str) -> None:
    fd = os.open(f"{d}/sparse", os.O_RDWR | os.O_CREAT)
    os.pwrite(fd, b"x" * (64 << 10), 8 << 20)
    os.fsync(fd)
    assert os.lseek(fd, 0, os.SEEK_DATA) == 8 << 20
    assert os.lseek(fd, 8 << 20, os.SEEK_HOLE) == (8 << 20) + (64 << 10)
    os.close(fd)


def fallocate(d: str) -> None:
    fd = os.open(f"{d}/file", os.O_RDWR | os.O_CREAT)
    assert _libc.fallocate64(fd, 0, ctypes.c_longlong(0), ctypes.c_longlong(1 << 20)) == 0, ctypes.get_errno()
    assert os.fstat(fd).st_size == 1 << 20
    assert os.fstat(fd).st_blocks * 512 >= 1 << 20
    os.close(fd)


def punch_holes(d: str) -> None:
    put(f"{d}/file", b"x" * (256 << 10))
    fd = os.open(f"{d}/file", os.O_RDWR)
    keep_size_punch_hole = 3
    done = _libc.fallocate64(fd, keep_size_punch_hole, ctypes.c_longlong(64 << 10), ctypes.c_longlong(64 << 10))
    assert done == 0, ctypes.get_errno()
    os.close(fd)
    assert get(f"{d}/file") == b"x" * (64 << 10) + bytes(64 << 10) + b"x" * (128 << 10)


def posix_fallocate(d: str) -> None:
    """What programs call: the C library writes when the file system cannot reserve."""
    fd = os.open(f"{d}/file", os.O_RDWR | os.O_CREAT)
    os.posix_fallocate(fd, 0, 200_000)
    assert os.fstat(fd).st_size == 200_000
    os.close(fd)


def unnamed_file(d: str) -> None:
    fd = os.open(d, os.O_RDWR | os.O_TMPFILE, 0o600)
    os.write(fd, b"unnamed")
    assert os.listdir(d) == []
    os.link(f"/proc/self/fd/{fd}", f"{d}/named", follow_symlinks=True)
    os.close(fd)
    assert get(f"{d}/named") == b"unnamed"


def direct_io(d: str) -> None:
    fd = os.open(f"{d}/file", os.O_RDWR | os.O_CREAT | os.O_DIRECT)
    with mmap.mmap(-1, 4 * _PAGE) as buffer:
        buffer[:] = b"direct__" * (_PAGE // 2)
        assert os.writev(fd, [buffer]) == 4 * _PAGE
        buffer[:] = bytes(4 * _PAGE)
        assert os.preadv(fd, [buffer], 0) == 4 * _PAGE
        assert buffer[:8] == b"direct__"
    os.close(fd)
    assert get(f"{d}/file") == b"direct__" * (_PAGE // 2)


def sync(d: str) -> None:
    fd = os.open(f"{d}/file", os.O_RDWR | os.O_CREAT | os.O_DSYNC)
    os.write(fd, b"x")
    os.fsync(fd)
    os.fdatasync(fd)
    os.close(fd)
    fd = os.open(d, os.O_RDONLY | os.O_DIRECTORY)
    os.fsync(fd)
    assert _libc.syncfs(fd) == 0
    os.close(fd)


def copy_file_range(d: str) -> None:
    content = os.urandom(300_000)
    put(f"{d}/from", content)
    source, target = os.open(f"{d}/from", os.O_RDONLY), os.open(f"{d}/to", os.O_WRONLY | os.O_CREAT)
    done = 0
    while done < len(content):
        done += os.copy_file_range(source, target, len(content) - done)
    os.close(source)
    os.close(target)
    assert get(f"{d}/to") == content
    with open(f"{d}/from", "rb") as a, open(f"{d}/sent", "wb") as b:
        assert os.sendfile(b.fileno(), a.fileno(), 0, 1000) == 1000
    assert get(f"{d}/sent") == content[:1000]


def statfs(d: str) -> None:
    found = os.statvfs(d)
    assert found.f_blocks * found.f_frsize > 1 << 28
    assert 0 < found.f_bavail <= found.f_blocks
    assert found.f_namemax == 255


def times(d: str) -> None:
    put(f"{d}/file", b"x")
    os.utime(f"{d}/file", (1, 2_000_000_000))
    found = os.stat(f"{d}/file")
    assert (found.st_atime, found.st_mtime) == (1, 2_000_000_000)
    before = found.st_ctime_ns
    os.chmod(f"{d}/file", 0o600)
    assert os.stat(f"{d}/file").st_ctime_ns >= before
    with open(f"{d}/file", "ab") as file:
        file.write(b"y")
    assert os.stat(f"{d}/file").st_mtime_ns < 2_000_000_000 * 10**9
    os.utime(f"{d}/file")
    assert abs(os.stat(f"{d}/file").st_mtime - time.time()) < 60


def times_to_the_nanosecond(d: str) -> None:
    put(f"{d}/file", b"x")
    assert os.stat(f"{d}/file").st_mtime_ns % 1000
    os.utime(f"{d}/file", ns=(1_000_000_001, 2_000_000_000_123_456_789))
    found = os.stat(f"{d}/file")
    assert (found.st_atime_ns, found.st_mtime_ns) == (1_000_000_001, 2_000_000_000_123_456_789)


def size_is_seen_at_once(d: str) -> None:
    with open(f"{d}/file", "wb", buffering=0) as writer:
        for size in range(1, 50):
            writer.write(b"x")
            assert os.stat(f"{d}/file").st_size == size
            assert len(get(f"{d}/file")) == size


def locks_within_a_container(d: str) -> None:
    put(f"{d}/lock", b"x" * 10)
    one, two = os.open(f"{d}/lock", os.O_RDWR), os.open(f"{d}/lock", os.O_RDWR)
    fcntl.flock(one, fcntl.LOCK_EX)
    fails(errno.EAGAIN, fcntl.flock, two, fcntl.LOCK_EX | fcntl.LOCK_NB)
    fcntl.flock(one, fcntl.LOCK_UN)
    fcntl.flock(two, fcntl.LOCK_EX | fcntl.LOCK_NB)
    os.close(one)
    os.close(two)


def locks_through_two_names(d: str) -> None:
    put(f"{d}/a")
    os.link(f"{d}/a", f"{d}/b")
    one, two = os.open(f"{d}/a", os.O_RDWR), os.open(f"{d}/b", os.O_RDWR)
    fcntl.flock(one, fcntl.LOCK_EX)
    fails(errno.EAGAIN, fcntl.flock, two, fcntl.LOCK_EX | fcntl.LOCK_NB)
    os.close(one)
    os.close(two)


def mappings_through_two_names(d: str) -> None:
    put(f"{d}/a", b"x" * _PAGE)
    os.link(f"{d}/a", f"{d}/b")
    with (
        open(f"{d}/a", "r+b") as a,
        open(f"{d}/b", "r+b") as b,
        mmap.mmap(a.fileno(), 0) as one,
        mmap.mmap(b.fileno(), 0) as two,
    ):
        assert two[:1] == b"x"
        one[:1] = b"y"
        assert two[:1] == b"y"


def lock(path: str, kind: str) -> int:
    """Take a lock of a kind: flock, posix or ofd. Returns the descriptor that holds it, -1 if another has it."""
    fd = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
    try:
        if kind == "flock":
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        elif kind == "posix":
            fcntl.lockf(fd, fcntl.LOCK_EX | fcntl.LOCK_NB, 100, 10)
        else:
            ofd_setlk = 37
            fcntl.fcntl(fd, ofd_setlk, struct.pack("hhqqi4x", fcntl.F_WRLCK, 0, 10, 100, 0))
    except (BlockingIOError, PermissionError):
        os.close(fd)
        return -1
    return fd


def close(fd: int) -> None:
    """Close a descriptor that lock() or hold_open() gave."""
    os.close(fd)
