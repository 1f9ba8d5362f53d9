"""System call wrappers: what they do, and that errors are the kernel's, with the path in them."""

from __future__ import annotations

import errno
import os
import resource
import traceback
from collections.abc import Callable
from pathlib import Path

import pytest

from hako.linux import syscalls

needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="needs root")


def in_child(body: Callable[[], None]) -> None:
    """Run ``body`` in a process of its own."""
    pid = os.fork()
    if pid == 0:
        status = 1
        try:
            body()
            status = 0
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(status)
    assert os.waitpid(pid, 0)[1] == 0, "it failed in the child; see standard error"


def private() -> None:
    syscalls.unshare(syscalls.CLONE_NEWNS)
    syscalls.mount("", "/", flags=syscalls.MS_PRIVATE | syscalls.MS_REC)


@needs_root
def test_mounting(tmp_path: Path) -> None:
    def body() -> None:
        private()
        syscalls.mount("t", str(tmp_path), "tmpfs", syscalls.MS_NODEV, "size=64k,mode=0711")
        assert os.path.ismount(tmp_path)
        assert os.stat(tmp_path).st_mode & 0o777 == 0o711
        (tmp_path / "inner").mkdir()
        syscalls.mount("i", str(tmp_path / "inner"), "tmpfs")
        syscalls.make_readonly(str(tmp_path))
        for path in (tmp_path / "x", tmp_path / "inner" / "x"):
            with pytest.raises(OSError, match="Read-only"):
                path.touch()
        syscalls.umount(str(tmp_path), syscalls.MNT_DETACH)
        assert not os.path.ismount(tmp_path)

    in_child(body)


@needs_root
@pytest.mark.parametrize(
    ("call", "number"),
    [
        (lambda path: syscalls.mount("x", path, "nosuchfs"), errno.ENODEV),
        (lambda path: syscalls.mount("x", path + "/missing", "tmpfs"), errno.ENOENT),
        (lambda path: syscalls.umount(path), errno.EINVAL),
        (lambda path: syscalls.make_readonly(path), errno.EINVAL),
        (lambda path: syscalls.finit_module(path + "/missing.ko"), errno.ENOENT),
    ],
)
def test_errors_name_the_path(call: Callable[[str], None], number: int, tmp_path: Path) -> None:
    with pytest.raises(OSError, match=str(tmp_path)) as raised:
        call(str(tmp_path))
    assert raised.value.errno == number


@needs_root
def test_joining_a_namespace() -> None:
    def body() -> None:
        fd = os.open("/proc/self/ns/mnt", os.O_RDONLY)
        before = os.readlink("/proc/self/ns/mnt")
        private()
        assert os.readlink("/proc/self/ns/mnt") != before
        syscalls.setns(fd, syscalls.CLONE_NEWNS)
        assert os.readlink("/proc/self/ns/mnt") == before

    in_child(body)


def test_errors_of_the_others() -> None:
    with pytest.raises(OSError, match="Bad file descriptor"):
        syscalls.setns(-1)
    with pytest.raises(OSError, match="Invalid argument"):
        syscalls.unshare(0x7FFFFFFF)
    with pytest.raises(OSError, match="Invalid argument"):
        syscalls.prctl(0x7FFFFFFF, 0)


def test_a_module_file_that_is_none(tmp_path: Path) -> None:
    path = tmp_path / "x.ko"
    path.write_bytes(b"not a module")
    with pytest.raises(OSError, match=r"x\.ko"):
        syscalls.finit_module(str(path))


def test_the_name_of_a_process() -> None:
    def body() -> None:
        syscalls.set_process_name("a-name-longer-than-fits")
        with open("/proc/self/comm", encoding="ascii") as file:
            assert file.read() == "a-name-longer-t\n"

    in_child(body)


def test_the_limit_of_open_files() -> None:
    def body() -> None:
        syscalls.set_open_files_limit(100)
        assert resource.getrlimit(resource.RLIMIT_NOFILE) == (100, 100)
        if os.geteuid() != 0:
            with pytest.raises(OSError, match="RLIMIT_NOFILE"):
                syscalls.set_open_files_limit(200)

    in_child(body)


def read_in_root(root: Path, path: str) -> bytes:
    fd = syscalls.open_in_root(str(root), path)
    try:
        return os.read(fd, 100)
    finally:
        os.close(fd)


def test_open_in_root_never_leaves_it(tmp_path: Path) -> None:
    root = tmp_path / "root"
    (root / "etc").mkdir(parents=True)
    (root / "etc" / "hostname").write_bytes(b"inside")
    (tmp_path / "outside").write_bytes(b"outside")
    links = {"absolute": "/etc/hostname", "up": "../../../../etc/hostname", "away": "../outside", "loop": "loop"}
    for name, target in links.items():
        (root / name).symlink_to(target)
    for path in ("etc/hostname", "/etc/hostname", "../../etc/hostname", "absolute", "up"):
        assert read_in_root(root, path) == b"inside"
    for path, number in (("away", errno.ENOENT), ("loop", errno.ELOOP), ("../outside", errno.ENOENT)):
        with pytest.raises(OSError, match=path.replace(".", r"\.")) as raised:
            syscalls.open_in_root(str(root), path)
        assert raised.value.errno == number


def test_open_in_root_refuses_magic_links(tmp_path: Path) -> None:
    with pytest.raises(OSError, match="exe") as raised:
        syscalls.open_in_root("/proc", "self/exe")
    assert raised.value.errno == errno.ELOOP


def test_open_in_root_makes_files(tmp_path: Path) -> None:
    fd = syscalls.open_in_root(str(tmp_path), "new", os.O_WRONLY | os.O_CREAT, 0o640)
    assert not os.get_inheritable(fd)
    os.close(fd)
    assert os.stat(tmp_path / "new").st_mode & 0o777 == 0o640
    root = syscalls.open_in_root(str(tmp_path), "")
    assert os.listdir(root) == ["new"]
    os.close(root)
