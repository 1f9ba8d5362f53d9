"""What a path of the host turns out to be."""

from __future__ import annotations

import os
import socket
from pathlib import Path

import pytest

from hako.errors import ConfigError
from hako.storage.sources import look


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
