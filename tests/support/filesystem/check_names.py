"""Checks of names, links, directories and special files. Each gets an empty directory of its own and works in it."""

from __future__ import annotations

import ctypes
import errno
import os
import select
import socket
import stat
import threading

_libc = ctypes.CDLL(None, use_errno=True)
_AT_FDCWD = -100
_RENAME_NOREPLACE = 1
_RENAME_EXCHANGE = 2


def put(path: str | bytes, content: bytes = b"") -> str | bytes:
    """Write a file."""
    with open(path, "wb") as file:
        file.write(content)
    return path


def get(path: str | bytes) -> bytes:
    """Read a file."""
    with open(path, "rb") as file:
        return file.read()


def fails(number: int, function: object, *args: object) -> None:
    """Check that a call fails with one error and no other."""
    assert callable(function)
    failure: OSError | None = None
    try:
        function(*args)
    except OSError as error:
        failure = error
    assert failure is not None, f"it did not fail with {errno.errorcode[number]}"
    assert failure.errno == number, f"{failure!r} instead of {errno.errorcode[number]}"


def renameat2(old: str, new: str, flags: int) -> None:
    """renameat2(2)."""
    if _libc.renameat2(_AT_FDCWD, old.encode(), _AT_FDCWD, new.encode(), flags) != 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))


def rename_over_open_file(d: str) -> None:
    put(f"{d}/old", b"old")
    put(f"{d}/new", b"new")
    with open(f"{d}/old", "rb") as reader:
        os.rename(f"{d}/new", f"{d}/old")
        assert get(f"{d}/old") == b"new"
        assert reader.read() == b"old"
    assert os.listdir(d) == ["old"]


def rename_a_file_that_is_written(d: str) -> None:
    with open(f"{d}/first", "wb", buffering=0) as writer:
        writer.write(b"one ")
        os.rename(f"{d}/first", f"{d}/second")
        writer.write(b"two")
        assert os.fstat(writer.fileno()).st_size == 7
    assert get(f"{d}/second") == b"one two"


def rename_of_directories(d: str) -> None:
    os.makedirs(f"{d}/a/b")
    put(f"{d}/a/b/file", b"x")
    os.rename(f"{d}/a", f"{d}/c")
    assert get(f"{d}/c/b/file") == b"x"
    fails(errno.EINVAL, os.rename, f"{d}/c", f"{d}/c/b/c")
    os.mkdir(f"{d}/full")
    put(f"{d}/full/file")
    fails(errno.ENOTEMPTY, os.rename, f"{d}/c", f"{d}/full")


def rename_noreplace(d: str) -> None:
    put(f"{d}/a", b"a")
    put(f"{d}/b", b"b")
    fails(errno.EEXIST, renameat2, f"{d}/a", f"{d}/b", _RENAME_NOREPLACE)
    renameat2(f"{d}/a", f"{d}/c", _RENAME_NOREPLACE)
    assert sorted(os.listdir(d)) == ["b", "c"]


def rename_exchange(d: str) -> None:
    put(f"{d}/a", b"a")
    put(f"{d}/b", b"b")
    renameat2(f"{d}/a", f"{d}/b", _RENAME_EXCHANGE)
    assert (get(f"{d}/a"), get(f"{d}/b")) == (b"b", b"a")


def unlink_while_open(d: str) -> None:
    with open(f"{d}/file", "w+b", buffering=0) as file:
        file.write(b"before")
        os.unlink(f"{d}/file")
        assert os.listdir(d) == []
        file.write(b" after")
        file.seek(0)
        assert file.read() == b"before after"
        put(f"{d}/file", b"another")
        file.seek(0)
        assert file.read() == b"before after"


def stat_of_an_unlinked_file(d: str) -> None:
    with open(f"{d}/file", "w+b", buffering=0) as file:
        file.write(b"some")
        os.unlink(f"{d}/file")
        status = os.fstat(file.fileno())
        assert (status.st_nlink, status.st_size) == (0, 4)


def change_of_an_unlinked_file(d: str) -> None:
    with open(f"{d}/file", "w+b", buffering=0) as file:
        file.write(b"some")
        os.unlink(f"{d}/file")
        os.ftruncate(file.fileno(), 2)
        os.fchmod(file.fileno(), 0o600)
        assert os.fstat(file.fileno()).st_size == 2


def hard_links(d: str) -> None:
    put(f"{d}/a", b"one")
    os.link(f"{d}/a", f"{d}/b")
    one, two = os.stat(f"{d}/a"), os.stat(f"{d}/b")
    assert (one.st_ino, one.st_dev, one.st_nlink, two.st_nlink) == (two.st_ino, two.st_dev, 2, 2)
    with open(f"{d}/b", "ab") as file:
        file.write(b" two")
    assert get(f"{d}/a") == b"one two"
    os.unlink(f"{d}/a")
    assert os.stat(f"{d}/b").st_nlink == 1
    assert get(f"{d}/b") == b"one two"
    fails(errno.EEXIST, os.link, f"{d}/b", f"{d}/b")


def symbolic_links(d: str) -> None:
    put(f"{d}/file", b"x")
    os.symlink("file", f"{d}/link")
    assert os.readlink(f"{d}/link") == "file"
    assert os.lstat(f"{d}/link").st_size == 4
    assert get(f"{d}/link") == b"x"
    os.symlink("nowhere", f"{d}/broken")
    fails(errno.ENOENT, os.stat, f"{d}/broken")
    os.symlink("loop", f"{d}/loop")
    fails(errno.ELOOP, os.stat, f"{d}/loop")
    long = "x/" * 2000
    os.symlink(long, f"{d}/long")
    assert os.readlink(f"{d}/long") == long
    os.chown(f"{d}/link", 12, 34, follow_symlinks=False)
    assert (os.lstat(f"{d}/link").st_uid, os.stat(f"{d}/file").st_uid) == (12, 0)


def links_that_point_outside(d: str, secret: str) -> None:
    """``secret`` is the path of a file that only the host has."""
    for number, target in enumerate((secret, "/.." * 40 + secret, "../" * 40 + secret[1:], "/proc/1/root" + secret)):
        os.symlink(target, f"{d}/{number}")
        fails(errno.ENOENT, os.stat, f"{d}/{number}")
        fails(errno.ENOENT, os.open, f"{d}/{number}", os.O_RDONLY)
        fails(errno.ENOENT, os.listdir, f"{d}/{number}")
    os.symlink(os.path.dirname(secret), f"{d}/directory")
    fails(errno.ENOENT, os.open, f"{d}/directory/made", os.O_WRONLY | os.O_CREAT)
    fails(errno.ENOENT, os.stat, f"{d}/" + "../" * 60 + secret[1:])


def long_names(d: str) -> None:
    name = "n" * 255
    put(f"{d}/{name}", b"x")
    os.mkdir(f"{d}/{'m' * 255}")
    assert get(f"{d}/{name}") == b"x"
    assert sorted(os.listdir(d)) == ["m" * 255, name]
    fails(errno.ENAMETOOLONG, os.mkdir, f"{d}/{name}n")


def odd_names(d: str) -> None:
    base = d.encode()
    names = [b"\xff\xfe", b"new\nline", b"tab\t", b" ", b"-", b"a,b", b"\\", b"%s%n", b'"', b"..."]
    names += [b"\xc3\xa4", b"a\xcc\x88"]  # one letter, written in two ways
    for name in names:
        put(base + b"/" + name, name)
    assert sorted(os.listdir(base)) == sorted(names)
    for name in names:
        assert get(base + b"/" + name) == name
        os.rename(base + b"/" + name, base + b"/x" + name)
    assert sorted(os.listdir(base)) == sorted(b"x" + name for name in names)


def large_directory(d: str) -> None:
    wanted = [f"{number:05}-{'x' * 40}" for number in range(5000)]
    for name in wanted:
        os.close(os.open(f"{d}/{name}", os.O_WRONLY | os.O_CREAT | os.O_EXCL))
    assert sorted(os.listdir(d)) == wanted
    with os.scandir(d) as entries:
        assert sum(entry.is_file() for entry in entries) == len(wanted)


def list_while_it_changes(d: str) -> None:
    for number in range(400):
        put(f"{d}/stays{number}")
        put(f"{d}/goes{number}")
    seen = []
    with os.scandir(d) as entries:
        for entry in entries:
            seen.append(entry.name)
            if entry.name.startswith("goes"):
                os.unlink(entry.path)
            elif len(seen) % 5 == 0:
                put(f"{d}/new{len(seen)}")
    stays = [name for name in seen if name.startswith("stays")]
    assert sorted(stays) == sorted(f"stays{number}" for number in range(400))
    assert not [name for name in os.listdir(d) if name.startswith("goes")]


def directories(d: str) -> None:
    os.mkdir(f"{d}/a")
    before = os.stat(d).st_nlink
    os.mkdir(f"{d}/a/b")
    fails(errno.ENOTEMPTY, os.rmdir, f"{d}/a")
    fails(errno.EEXIST, os.mkdir, f"{d}/a")
    fails(errno.EISDIR, os.unlink, f"{d}/a")
    fails(errno.ENOTDIR, os.rmdir, put(f"{d}/file"))
    os.rmdir(f"{d}/a/b")
    os.rmdir(f"{d}/a")
    assert os.stat(d).st_nlink <= before
    os.mkdir(f"{d}/gone")
    fd = os.open(f"{d}/gone", os.O_RDONLY)
    os.rmdir(f"{d}/gone")
    assert os.listdir(fd) == []
    os.close(fd)


def inode_numbers(d: str) -> None:
    """The numbers in a directory are those of its files, and no two files have the same."""
    put(f"{d}/other")
    put(f"{d}/file")
    with os.scandir(d) as entries:
        for entry in entries:
            assert entry.inode() == os.stat(entry.path).st_ino
    paths = [d, f"{d}/file", f"{d}/other", "/usr", "/usr/bin"]
    assert len({(os.stat(path).st_dev, os.stat(path).st_ino) for path in paths}) == len(paths)


def fifo(d: str) -> None:
    os.mkfifo(f"{d}/fifo", 0o640)
    assert stat.filemode(os.stat(f"{d}/fifo").st_mode) == "prw-r-----"
    reader = os.open(f"{d}/fifo", os.O_RDONLY | os.O_NONBLOCK)
    writer = os.open(f"{d}/fifo", os.O_WRONLY)
    os.write(writer, b"through")
    assert os.read(reader, 100) == b"through"
    os.close(writer)
    os.close(reader)


def unix_socket(d: str) -> None:
    os.chdir(d)
    try:
        with socket.socket(socket.AF_UNIX) as server, socket.socket(socket.AF_UNIX) as client:
            server.bind("socket")
            assert stat.S_ISSOCK(os.stat("socket").st_mode)
            server.listen()
            client.connect("socket")
            peer = server.accept()[0]
            with peer:
                client.sendall(b"hello")
                assert select.select([peer], [], [], 5)[0]
                assert peer.recv(100) == b"hello"
        os.unlink("socket")
    finally:
        os.chdir("/")


def device_node(d: str) -> None:
    os.mknod(f"{d}/null", 0o666 | stat.S_IFCHR, os.makedev(1, 3))
    assert os.stat(f"{d}/null").st_rdev == os.makedev(1, 3)


def many_threads(d: str) -> None:
    failed: list[BaseException] = []

    def work(number: int) -> None:
        try:
            for turn in range(30):
                put(f"{d}/{number}-{turn}", b"x" * turn)
                os.rename(f"{d}/{number}-{turn}", f"{d}/{number}")
                assert get(f"{d}/{number}") == b"x" * turn
        except BaseException as error:
            failed.append(error)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failed, failed
    assert len(os.listdir(d)) == 8
