"""The directory a VM sees, made of mounts. Each test works in a mount namespace of a process of its own."""

from __future__ import annotations

import errno
import os
import traceback
from collections.abc import Callable
from pathlib import Path

import pytest

from hako.errors import ConfigError, HostError
from hako.linux import syscalls
from hako.storage.tree import SharedTree, private_mounts

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="needs root")


def in_namespace(body: Callable[[], None]) -> None:
    """Run ``body`` in a child process with its own mounts."""
    before = mounts()
    pid = os.fork()
    if pid == 0:
        status = 1
        try:
            private_mounts()
            body()
            status = 0
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(status)
    assert os.waitpid(pid, 0)[1] == 0, "it failed in the child; see standard error"
    assert mounts() == before, "mounts have leaked to the host"


def mounts(below: str = "/") -> list[str]:
    """The mount points at and below a path."""
    with open("/proc/self/mountinfo", encoding="utf-8") as file:
        points = [line.split()[4] for line in file]
    return [point for point in points if point == below or point.startswith(below.rstrip("/") + "/")]


def files(root: Path) -> dict[str, bytes]:
    """What is below ``root``."""
    return {str(path.relative_to(root)): path.read_bytes() for path in sorted(root.rglob("*")) if path.is_file()}


@pytest.fixture
def lower(tmp_path: Path) -> Path:
    directory = tmp_path / "image"
    (directory / "etc").mkdir(parents=True)
    (directory / "etc" / "name").write_bytes(b"image")
    os.chmod(directory, 0o751)
    return directory


@pytest.fixture
def data(tmp_path: Path) -> Path:
    directory = tmp_path / "data"
    (directory / "deep").mkdir(parents=True)
    (directory / "deep" / "file").write_bytes(b"precious")
    return directory


def test_overlay(tmp_path: Path, lower: Path) -> None:
    layer, shared = tmp_path / "layer", tmp_path / "shared"
    os.chown(lower, 1000, 1001)

    def body() -> None:
        tree = SharedTree(str(shared))
        tree.add_overlay("c", str(lower), str(layer))
        root = shared / "c" / "rootfs"
        assert tree.rootfs("c") == str(root)
        assert (root / "etc" / "name").read_bytes() == b"image"
        status = os.stat(root)
        assert (status.st_mode & 0o7777, status.st_uid, status.st_gid) == (0o751, 1000, 1001)
        (root / "etc" / "name").write_bytes(b"changed")
        (root / "new").write_bytes(b"new")
        tree.add_overlay("d", str(lower), str(tmp_path / "other"))
        assert (shared / "d" / "rootfs" / "etc" / "name").read_bytes() == b"image"
        tree.close()
        assert not shared.exists()

    in_namespace(body)
    assert files(lower) == {"etc/name": b"image"}
    assert files(layer / "upper") == {"etc/name": b"changed", "new": b"new"}


@pytest.mark.parametrize("char", [",", ":", "\\", '"'])
def test_layers_that_mount_options_cannot_name(char: str, tmp_path: Path, lower: Path) -> None:
    def body() -> None:
        tree = SharedTree(str(tmp_path / "shared"))
        with pytest.raises(HostError, match="its name contains"):
            tree.add_overlay("c", str(lower), str(tmp_path / f"a{char}b"))
        tree.remove("c")
        tree.close()

    in_namespace(body)


def test_a_directory_as_root_with_what_is_mounted_in_it(tmp_path: Path, lower: Path, data: Path) -> None:
    def body() -> None:
        syscalls.mount(str(data), str(lower / "etc"), flags=syscalls.MS_BIND)
        tree = SharedTree(str(tmp_path / "shared"))
        tree.add_rootfs("c", str(lower))
        assert (tmp_path / "shared" / "c" / "rootfs" / "etc" / "deep" / "file").read_bytes() == b"precious"
        with pytest.raises(ConfigError, match="is not a directory"):
            tree.add_rootfs("d", str(lower / "missing"))
        tree.close()

    in_namespace(body)
    assert files(data) == {"deep/file": b"precious"}


def test_volumes(tmp_path: Path, data: Path) -> None:
    file = tmp_path / "file"
    file.write_bytes(b"one file")
    shared = tmp_path / "shared"

    def body() -> None:
        tree = SharedTree(str(shared))
        paths = [
            tree.add_volume("c", str(data), readonly=False),
            tree.add_volume("c", str(file), readonly=False),
            tree.add_volume("d", str(data), readonly=False),
        ]
        assert paths == [".volumes/0", ".volumes/1", ".volumes/0"]
        readonly = tree.add_volume("d", str(data), readonly=True)
        assert readonly == ".volumes/2"
        (shared / paths[0] / "written").write_bytes(b"here")
        (shared / paths[1]).write_bytes(b"changed")
        assert (shared / paths[2] / "written").read_bytes() == b"here"
        tree.remove("c")
        # The other container has it still, and a number is not used again.
        assert sorted(os.listdir(shared / ".volumes")) == ["0", "2"]
        assert (shared / paths[2] / "written").read_bytes() == b"here"
        assert tree.add_volume("c", str(file), readonly=False) == ".volumes/3"
        tree.remove("d")
        assert os.listdir(shared / ".volumes") == ["3"]
        tree.close()

    in_namespace(body)
    assert files(data) == {"deep/file": b"precious", "written": b"here"}
    assert file.read_bytes() == b"changed"


def test_another_directory_of_the_same_name_is_another_volume(tmp_path: Path, data: Path) -> None:
    def body() -> None:
        tree = SharedTree(str(tmp_path / "shared"))
        first = tree.add_volume("c", str(data), readonly=False)
        os.rename(data, tmp_path / "moved")
        data.mkdir()
        assert tree.add_volume("d", str(data), readonly=False) != first
        tree.close()

    in_namespace(body)


def test_mounts_reach_a_helper_in_a_namespace_of_its_own(tmp_path: Path, data: Path) -> None:
    """A volume is never seen there before it is read-only."""

    def body() -> None:
        tree = SharedTree(str(tmp_path / "shared"))
        go, ready = os.pipe(), os.pipe()
        pid = os.fork()
        if pid == 0:
            private_mounts()
            os.write(ready[1], b"x")
            os.read(go[0], 1)
            volume = tmp_path / "shared" / ".volumes" / "0"
            seen = (volume / "deep" / "file").read_bytes() == b"precious"
            try:
                (volume / "new").write_bytes(b"no")
            except OSError as error:
                os._exit(0 if seen and error.errno == errno.EROFS else 1)
            os._exit(1)
        os.read(ready[0], 1)
        tree.add_volume("c", str(data), readonly=True)
        os.write(go[1], b"x")
        assert os.waitpid(pid, 0)[1] == 0
        tree.close()

    in_namespace(body)


def test_readonly_volumes_are_so_on_the_host_and_below(tmp_path: Path, data: Path, lower: Path) -> None:
    """The guest's own check is worth nothing once the guest has been taken over."""

    def body() -> None:
        syscalls.mount(str(lower), str(data / "deep"), flags=syscalls.MS_BIND)
        tree = SharedTree(str(tmp_path / "shared"))
        volume = tmp_path / "shared" / tree.add_volume("c", str(data), readonly=True, deep=True)
        for path in (volume / "x", volume / "deep" / "x"):
            with pytest.raises(OSError, match="Read-only file system"):
                path.write_bytes(b"no")
        assert tree.has_mounts_below(str(data))
        assert not tree.has_mounts_below(str(data / "deep"))
        (data / "y").write_bytes(b"the host itself may write")
        tree.close()

    in_namespace(body)
    assert files(lower) == {"etc/name": b"image"}


def test_only_what_was_asked_for_is_readonly(tmp_path: Path, data: Path, lower: Path) -> None:
    """As with runc, whose option ``ro`` is for the mount itself."""

    def body() -> None:
        syscalls.mount(str(lower), str(data / "deep"), flags=syscalls.MS_BIND)
        tree = SharedTree(str(tmp_path / "shared"))
        volume = tmp_path / "shared" / tree.add_volume("c", str(data), readonly=True)
        with pytest.raises(OSError, match="Read-only file system"):
            (volume / "x").write_bytes(b"no")
        (volume / "deep" / "x").write_bytes(b"yes")
        tree.close()

    in_namespace(body)
    assert files(lower) == {"etc/name": b"image", "x": b"yes"}


def test_the_guest_cannot_change_what_leads_to_the_mounts(tmp_path: Path, data: Path, lower: Path) -> None:
    """Or else a symbolic link in their place would turn the next clean-up against the host."""
    shared = tmp_path / "shared"

    def body() -> None:
        tree = SharedTree(str(shared))
        tree.add_overlay("c", str(lower), str(tmp_path / "layer"))
        tree.add_volume("c", str(data), readonly=False)
        refused: list[Callable[[], object]] = [
            lambda: (shared / "evil").mkdir(),
            lambda: (shared / "c" / "evil").symlink_to("/etc"),
            lambda: os.rename(shared / ".volumes", shared / "c" / "moved"),
            lambda: os.rename(shared / "c", shared / "moved"),
            lambda: (shared / ".volumes" / "9").mkdir(),
            lambda: os.chmod(shared / "c", 0o777),
            lambda: os.chmod(shared, 0o777),
            lambda: os.rename(shared / ".volumes" / "0", shared / ".volumes" / "1"),
        ]
        for change in refused:
            with pytest.raises(OSError, match=r"Read-only file system|Device or resource busy"):
                change()
        (shared / "c" / "rootfs" / "fine").write_bytes(b"x")
        (shared / ".volumes" / "0" / "fine").write_bytes(b"x")
        tree.close()

    in_namespace(body)


def test_removing_never_deletes_what_was_mounted(tmp_path: Path, data: Path, lower: Path) -> None:
    """Not even where the mount cannot be undone."""
    shared = tmp_path / "shared"

    def body() -> None:
        tree = SharedTree(str(shared))
        tree.add_rootfs("c", str(lower))
        tree.add_volume("c", str(data), readonly=False)
        tree.add_volume("c", str(data / "deep" / "file"), readonly=False)
        with pytest.MonkeyPatch.context() as patch:

            def stuck(_target: str, _flags: int = 0) -> None:
                raise OSError(22, "Invalid argument")

            patch.setattr(syscalls, "umount", stuck)
            with pytest.raises(OSError, match="busy"):
                tree.close()
        tree.close()

    in_namespace(body)
    assert files(data) == {"deep/file": b"precious"}
    assert files(lower) == {"etc/name": b"image"}


def test_the_source_of_a_volume_may_be_a_link(tmp_path: Path, data: Path) -> None:
    link = tmp_path / "link"
    link.symlink_to(data)

    def body() -> None:
        tree = SharedTree(str(tmp_path / "shared"))
        volume = tmp_path / "shared" / tree.add_volume("c", str(link), readonly=False)
        assert not volume.is_symlink()
        assert (volume / "deep" / "file").read_bytes() == b"precious"
        tree.close()

    in_namespace(body)
    assert link.is_symlink()
    assert files(data) == {"deep/file": b"precious"}


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("missing", "No such file or directory"),
        ("relative", "its path is not absolute"),
        ("fifo", "neither a directory nor a file"),
        ("/dev/null", "neither a directory nor a file"),
        ("loop", "Too many levels of symbolic links"),
    ],
)
def test_sources_that_are_refused(source: str, message: str, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo")
    (tmp_path / "loop").symlink_to("loop")

    def body() -> None:
        tree = SharedTree(str(tmp_path / "shared"))
        with pytest.raises(ConfigError, match=message):
            tree.add_volume("c", source if source == "relative" else str(tmp_path / source), readonly=False)
        tree.close()
        assert not (tmp_path / "shared").exists()

    in_namespace(body)


def test_removing_what_is_not_there(tmp_path: Path) -> None:
    def body() -> None:
        tree = SharedTree(str(tmp_path / "shared"))
        tree.remove("nobody")
        tree.close()

    in_namespace(body)


def test_mounts_go_with_their_process(tmp_path: Path, data: Path) -> None:
    """A sandbox process that is killed leaves directories without anything in them, which can be deleted."""

    def body() -> None:
        tree = SharedTree(str(tmp_path / "shared"))
        tree.add_volume("c", str(data), readonly=False)
        assert len(mounts(str(tmp_path))) == 2

    in_namespace(body)
    assert mounts(str(tmp_path)) == []
    assert list((tmp_path / "shared").iterdir()) == []
    assert files(tmp_path / "shared.points") == {}


def test_a_host_that_cannot_unshare(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(_flags: int) -> None:
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr(syscalls, "unshare", refuse)
    with pytest.raises(HostError, match="hako must run as root"):
        private_mounts()


def test_kernel_modules(tmp_path: Path, data: Path) -> None:
    shared = tmp_path / "shared"
    other = tmp_path / "other"
    other.mkdir()

    def body() -> None:
        tree = SharedTree(str(shared))
        for _ in range(2):
            tree.show_modules(str(data))
            assert files(shared / ".modules") == {"deep/file": b"precious"}
            for path in (shared / ".modules" / "new", shared / ".modules" / "deep" / "file"):
                with pytest.raises(OSError, match="Read-only"):
                    path.write_bytes(b"x")
        assert len(mounts(str(shared / ".modules"))) == 1
        tree.show_modules(str(other))
        assert files(shared / ".modules") == {}
        tree.show_modules("")
        assert not (shared / ".modules").exists()
        with pytest.raises(HostError, match="Cannot mount"):
            tree.show_modules(str(tmp_path / "none"))
        assert not (shared / ".modules").exists()
        tree.show_modules(str(data))
        tree.close()

    in_namespace(body)
    assert files(data) == {"deep/file": b"precious"}
    assert not shared.exists()
