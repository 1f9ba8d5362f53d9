"""What a path of the host turns out to be."""

from __future__ import annotations

import fcntl
import os
import socket
from pathlib import Path

import pytest

from hako.errors import ConfigError
from hako.storage.sources import look, open_device, open_disk


def test_kinds(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    (tmp_path / "link").symlink_to("file")
    os.mkfifo(tmp_path / "fifo")
    with socket.socket(socket.AF_UNIX) as sock:
        sock.bind(str(tmp_path / "socket"))
    for name in ("file", "fifo", "socket"):
        assert look(str(tmp_path / name)).kind == name
    assert look(str(tmp_path)).kind == "directory"
    assert look(str(tmp_path / "link")).path == str(tmp_path / "file")
    assert (look("/dev/null").kind, look("/dev/null").device) == ("c", (1, 3))


def test_file_systems() -> None:
    assert look("/proc").filesystem == "proc"
    assert look("/sys/kernel").filesystem == "sysfs"
    shm = look("/dev/shm")
    space = os.statvfs("/dev/shm")
    assert (shm.filesystem, shm.capacity) == ("tmpfs", space.f_blocks * space.f_frsize)
    assert shm.origin == os.stat("/dev/shm").st_dev


def test_owner_and_mode(tmp_path: Path) -> None:
    tmp_path.chmod(0o1751)
    found = look(str(tmp_path))
    assert (found.mode & 0o7777, found.owner) == (0o1751, (os.getuid(), os.getgid()))


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("here", "'here' into the container: its path is not absolute"),
        ("/nonexistent/x", "Cannot mount /nonexistent/x into the container: No such file or directory"),
        ("/dev/null/x", "Not a directory"),
        ("/a\0b", "embedded null byte"),
    ],
)
def test_what_is_not_there(path: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        look(path)


def test_a_file_that_is_a_disk(tmp_path: Path) -> None:
    path = tmp_path / "disk"
    path.write_bytes(bytes(4096))
    (tmp_path / "link").symlink_to("disk")
    for readonly in (False, True):
        first, second = open_disk(str(path), readonly=readonly), open_disk(str(tmp_path / "link"), readonly=readonly)
        try:
            assert (first.readonly, first.block, first.sector) == (readonly, False, 512)
            assert fcntl.fcntl(first.fd, fcntl.F_GETFL) & os.O_ACCMODE == (os.O_RDONLY if readonly else os.O_RDWR)
            assert not os.get_inheritable(first.fd)
            assert first.key == second.key
        finally:
            os.close(first.fd)
            os.close(second.fd)
    assert open_key(path, readonly=True) != open_key(path, readonly=False)


def open_key(path: Path, *, readonly: bool) -> tuple[object, ...]:
    found = open_disk(str(path), readonly=readonly)
    os.close(found.fd)
    return found.key


def test_what_cannot_be_a_disk(tmp_path: Path) -> None:
    (tmp_path / "empty").touch()
    os.mkfifo(tmp_path / "fifo")  # opening it would wait for a writer
    before = os.listdir("/proc/self/fd")
    for path, reason in (
        (tmp_path, "neither a file nor a block device"),
        (tmp_path / "fifo", "neither a file nor a block device"),
        (Path("/dev/null"), "neither a file nor a block device"),
        (tmp_path / "empty", "it is empty"),
        (tmp_path / "missing", "No such file"),
    ):
        with pytest.raises(ConfigError, match=reason):
            open_disk(str(path), readonly=True)
    with pytest.raises(ConfigError, match="4095:0 cannot be opened"):
        open_device(4095, 0, readonly=True)
    assert os.listdir("/proc/self/fd") == before
