"""Disks of containers in a real VM: root file systems, devices, what is written to them, and that they are given back.

One VM serves most tests, whose containers come and go in it as those of a pod do.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import hako
from hako.errors import CommandError, HakoError
from hako.ociimage import api as ociimage
from hako.sandbox import capture, client
from support import blockfiles, leaks
from support.specguest import Guest, Spec, mount

pytestmark = [pytest.mark.system, pytest.mark.usefixtures("guest_image", "busybox_image")]

Mounts = list[dict[str, Any]]


@pytest.fixture(scope="module")
def rootfs(guest_image: object, busybox_image: object, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A root file system with the places that things are mounted at."""
    rootfs = tmp_path_factory.mktemp("rootfs")
    shutil.copytree(ociimage.resolve("busybox").rootfs, rootfs, symlinks=True, dirs_exist_ok=True)
    rootfs.chmod(0o755)
    for name in ("proc", "dev", "sys", "mnt"):
        (rootfs / name).mkdir(exist_ok=True)
    return rootfs


@pytest.fixture(scope="module")
def guest(rootfs: Path) -> Iterator[Guest]:
    with hako.Sandbox(image="busybox", memory="512m") as sandbox:
        yield Guest(sandbox, rootfs)


@pytest.fixture(autouse=True)
def nothing_left(guest: Guest, tmp_path: Path) -> Iterator[None]:
    """After each test neither the guest nor anybody on the host has anything of its disks."""
    yield
    assert guest.shell("ls /sys/class/block; ls /dev/block 2>&1 | grep -v 'No such'; true") == ""
    for pid in leaks.processes(os.environ["HAKO_TEST_ROOT"]):
        with contextlib.suppress(FileNotFoundError):
            for name in os.listdir(f"/proc/{pid}/fd"):
                with contextlib.suppress(FileNotFoundError):
                    target = os.readlink(f"/proc/{pid}/fd/{name}")
                    assert not target.startswith((str(tmp_path), "/dev/loop")), (pid, target)


def on_disk(fstype: str, source: Path, *options: str) -> dict[str, Any]:
    return {"type": fstype, "source": str(source), "options": ["loop", *options]}


def stacked(*layers: Path, writable: Path) -> Mounts:
    """An overlay as containerd's erofs snapshotter describes it, the upper layers first."""
    options = [f"X-containerd.mkdir.path={{{{ mount 0 }}}}/{name}:0755" for name in ("upper", "work")]
    options += ["workdir={{ mount 0 }}/work", "upperdir={{ mount 0 }}/upper"]
    lower = "{{ mount 1 }}" if len(layers) == 1 else f"{{{{ overlay 1 {len(layers)} }}}}"
    overlay = {"type": "format/mkdir/overlay", "source": "overlay", "options": [*options, f"lowerdir={lower}"]}
    return [on_disk("ext4", writable, "rw"), *(on_disk("erofs", layer, "ro") for layer in layers), overlay]


def run(guest: Guest, script: str, rootfs: Mounts) -> list[str]:
    """The lines that ``script`` says in a container with this root file system."""
    return guest.run(guest.spec("sh", "-c", script), rootfs=rootfs).splitlines()


def digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def device(spec: Spec, path: str, host: str, access: str = "rwm") -> None:
    """Give a container a device of the host, as engines do."""
    number = os.stat(host).st_rdev
    numbers = {"major": os.major(number), "minor": os.minor(number)}
    linux = spec["linux"]
    linux.setdefault("devices", []).append(
        {"path": path, "type": "b", **numbers, "fileMode": 0o600, "uid": 0, "gid": 0}
    )
    rules = linux.setdefault("resources", {}).setdefault("devices", [{"allow": False, "access": "rwm"}])
    rules.append({"allow": True, "type": "b", **numbers, "access": access})


# --- root file systems ---


def test_a_root_on_ext4_is_written_to(guest: Guest, rootfs: Path, tmp_path: Path) -> None:
    image = blockfiles.ext4(tmp_path / "ext4", rootfs)
    script = "echo kept > /written; mknod /null c 1 3; stat -f -c %T /; grep ' / ' /proc/mounts | cut -d' ' -f3"
    assert run(guest, script, [on_disk("ext4", image, "rw", "noatime")])[-1] == "ext4"
    assert blockfiles.text_in(image, "/written") == "kept\n"
    assert blockfiles.is_clean(image)
    assert run(guest, "cat /written", [on_disk("ext4", image)]) == ["kept"]


def test_what_is_written_to_a_root_is_there_when_its_sandbox_has_ended(rootfs: Path, tmp_path: Path) -> None:
    image = blockfiles.ext4(tmp_path / "ext4", rootfs)
    with hako.Sandbox(image="busybox", memory="512m") as sandbox:
        guest = Guest(sandbox, rootfs)
        spec = guest.spec("sh", "-c", "echo kept > /written; sleep 60")
        created = guest.created(spec, {}, start=True, rootfs=[on_disk("ext4", image)])
        with contextlib.suppress(HakoError), created as container:
            container.exec(["sh", "-c", "until [ -s /written ]; do :; done"])
            sandbox.stop()
    assert blockfiles.text_in(image, "/written") == "kept\n"
    assert blockfiles.is_clean(image)


def test_a_read_only_root_on_ext4(guest: Guest, rootfs: Path, tmp_path: Path) -> None:
    image = blockfiles.ext4(tmp_path / "ext4", rootfs)
    before = digest(image)
    said = run(guest, "touch /x 2>&1; cat /sys/class/block/sd?/ro", [on_disk("ext4", image, "ro")])
    assert said == ["touch: /x: Read-only file system", "1"]
    assert digest(image) == before


def test_a_root_on_erofs(guest: Guest, rootfs: Path, tmp_path: Path) -> None:
    image = blockfiles.erofs(tmp_path / "erofs", rootfs)
    script = "touch /x 2>&1; grep ' / ' /proc/mounts | cut -d' ' -f3"
    assert run(guest, script, [on_disk("erofs", image, "ro")]) == ["touch: /x: Read-only file system", "erofs"]


@pytest.mark.parametrize(
    ("kind", "command"),
    [
        ("btrfs", ["mkfs.btrfs", "-q", "--rootdir", "{tree}", "--shrink", "{image}"]),
        ("squashfs", ["mksquashfs", "{tree}", "{image}", "-quiet", "-no-progress", "-noappend"]),
    ],
)
def test_a_root_on_other_file_systems(
    kind: str, command: list[str], guest: Guest, rootfs: Path, tmp_path: Path
) -> None:
    image = tmp_path / "image"
    image.touch()
    os.truncate(image, 256 << 20)
    argv = [word.format(tree=rootfs, image=image) for word in command]
    subprocess.run(argv, check=True, stdout=subprocess.DEVNULL)
    script = "grep ' / ' /proc/mounts | cut -d' ' -f3"
    assert run(guest, script, [on_disk(kind, image, "ro")]) == [kind]


def test_layers_with_a_writable_disk_on_top(guest: Guest, rootfs: Path, tmp_path: Path) -> None:
    (tmp_path / "top").mkdir()
    (tmp_path / "top" / "layer").write_text("upper\n")
    lower, upper = blockfiles.erofs(tmp_path / "0", rootfs), blockfiles.erofs(tmp_path / "1", tmp_path / "top")
    writable = blockfiles.ext4(tmp_path / "rw")
    root = stacked(upper, lower, writable=writable)
    script = "cat /layer; echo changed > /layer; rm -r /bin/wget; grep ' / ' /proc/mounts | cut -d' ' -f3"
    assert run(guest, script, root) == ["upper", "overlay"]
    assert blockfiles.text_in(writable, "/upper/layer") == "changed\n"
    assert run(guest, "cat /layer; ls /bin/wget 2>&1; true", root) == [
        "changed",
        "ls: /bin/wget: No such file or directory",
    ]
    assert blockfiles.is_clean(writable)


def test_very_many_layers(guest: Guest, rootfs: Path, tmp_path: Path) -> None:
    layers = [blockfiles.erofs(tmp_path / "base", rootfs)]
    for number in range(70):
        tree = tmp_path / "tree"
        tree.mkdir()
        (tree / f"layer{number}").touch()
        layers.insert(0, blockfiles.erofs(tmp_path / str(number), tree))
        shutil.rmtree(tree)
    said = run(guest, "ls / | grep -c layer", stacked(*layers, writable=blockfiles.ext4(tmp_path / "rw")))
    assert said == ["70"]


def test_one_file_system_on_two_disks(guest: Guest, rootfs: Path, tmp_path: Path) -> None:
    argv = ["mkfs.erofs", f"--blobdev={tmp_path / 'blob'}", "--chunksize=4096", str(tmp_path / "meta"), str(rootfs)]
    subprocess.run(argv, check=True, stdout=subprocess.DEVNULL)
    os.truncate(tmp_path / "blob", -(-os.path.getsize(tmp_path / "blob") // 4096) * 4096)
    root = [on_disk("erofs", tmp_path / "meta", "ro", f"device={tmp_path / 'blob'}")]
    assert run(guest, "ls -d /sys/class/block/sd? | wc -l; sha256sum < /bin/busybox", root) == [
        "2",
        f"{digest(rootfs / 'bin' / 'busybox')}  -",
    ]


def test_a_command_that_is_not_there_leaves_no_disks(guest: Guest, rootfs: Path, tmp_path: Path) -> None:
    image = blockfiles.ext4(tmp_path / "ext4", rootfs)
    with pytest.raises(CommandError, match="no-such-program"):
        guest.run(guest.spec("no-such-program"), rootfs=[on_disk("ext4", image)])
    assert blockfiles.is_clean(image)


def test_containers_share_a_disk_that_both_only_read(guest: Guest, rootfs: Path, tmp_path: Path) -> None:
    image = blockfiles.erofs(tmp_path / "erofs", rootfs)
    first, second = blockfiles.ext4(tmp_path / "1"), blockfiles.ext4(tmp_path / "2")
    with guest.created(guest.spec("sleep", "60"), {}, start=True, rootfs=stacked(image, writable=first)):
        assert run(guest, "ls -d /sys/class/block/sd? | wc -l", stacked(image, writable=second)) == ["3"]


def test_a_disk_that_is_written_to_is_nobody_elses(guest: Guest, rootfs: Path, tmp_path: Path) -> None:
    image = blockfiles.ext4(tmp_path / "ext4", rootfs)
    with hako.Sandbox(image="busybox", memory="512m") as sandbox:
        other = Guest(sandbox, rootfs)
        with guest.created(guest.spec("sleep", "60"), {}, start=True, rootfs=[on_disk("ext4", image)]):
            for options in ((), ("ro",)):
                with pytest.raises(HakoError, match=r"cannot be a disk of the VM: .* lock"):
                    run(other, "true", [on_disk("ext4", image, *options)])
        assert run(other, "echo ok", [on_disk("ext4", image)]) == ["ok"]


@pytest.mark.parametrize(
    ("mounts", "reason"),
    [
        ([{"type": "ext4", "source": "{}/none"}], "none.*No such file"),
        ([{"type": "ext4", "source": "{}"}], "neither a file nor a block device"),
        ([{"type": "ext4", "source": "{}/zeros"}], "cannot mount disk .* as ext4.*Invalid argument"),
        ([{"type": "xfs", "source": "{}/zeros"}], "cannot mount disk .* as xfs.*Invalid argument"),
        ([{"type": "ext4", "source": "{}/zeros", "options": ["usrjquota=/x"]}], "usrjquota=/x is not known"),
        ([{"type": "ext4", "source": "{}/empty"}], "is empty"),
    ],
)
def test_a_root_that_cannot_be(guest: Guest, tmp_path: Path, mounts: Mounts, reason: str) -> None:
    (tmp_path / "zeros").write_bytes(bytes(1 << 20))
    (tmp_path / "empty").touch()
    mounts = [{**one, "source": one["source"].format(tmp_path)} for one in mounts]
    with pytest.raises(HakoError, match=reason):
        run(guest, "true", mounts)


def test_a_link_on_a_disk_does_not_lead_out_of_it(guest: Guest, rootfs: Path, tmp_path: Path) -> None:
    (tmp_path / "tree").mkdir()
    (tmp_path / "tree" / "upper").symlink_to("/run")
    writable = blockfiles.ext4(tmp_path / "rw", tmp_path / "tree")
    with pytest.raises(HakoError, match="0/upper is not a directory of the container's disks"):
        run(guest, "true", stacked(blockfiles.erofs(tmp_path / "erofs", rootfs), writable=writable))


# --- mounts and devices ---


def test_a_mount_of_a_file_system_in_a_file(guest: Guest, tmp_path: Path) -> None:
    image = blockfiles.ext4(tmp_path / "ext4")

    def change(spec: Spec) -> None:
        mount(spec, "/mnt", "ext4", str(image), "rw", "nosuid")

    guest.shell("echo kept > /mnt/written", change)
    assert blockfiles.text_in(image, "/written") == "kept\n"
    assert blockfiles.is_clean(image)


def test_a_block_device_of_the_host(guest: Guest, tmp_path: Path) -> None:
    image = tmp_path / "raw"
    image.write_bytes(b"from the host".ljust(1 << 20, b"\0"))
    with blockfiles.loop(image) as host:

        def change(spec: Spec) -> None:
            device(spec, "/dev/xvda", host)
            device(spec, "/data/volume", host)

        script = (
            "head -c 13 /dev/xvda; echo; blockdev --getsize64 /dev/xvda; stat -c %a /dev/xvda;"
            "printf 'from the guest' | dd of=/dev/xvda bs=512 seek=1 conv=notrunc,sync 2>/dev/null;"
            "dd if=/data/volume bs=512 skip=1 count=1 2>/dev/null | head -c 14; echo; ls /sys/class/block | wc -l"
        )
        said = guest.shell(script, change).splitlines()
        assert said == ["from the host", str(1 << 20), "600", "from the guest", "1"]
        with open(host, "rb") as file:
            file.seek(512)
            assert file.read(14) == b"from the guest"


def test_a_block_device_that_is_bound(guest: Guest, tmp_path: Path) -> None:
    image = tmp_path / "raw"
    image.write_bytes(b"from the host".ljust(1 << 20, b"\0"))
    with blockfiles.loop(image) as host:

        def change(spec: Spec) -> None:
            device(spec, "/dev/xvda", host)
            mount(spec, "/mnt", "bind", host, "bind")

        def place(spec: Spec) -> None:
            change(spec)
            spec["mounts"][-1]["destination"] = "/dev/volume"

        assert guest.shell("head -c 13 /dev/volume", place) == "from the host"


def test_blocks_are_as_large_as_the_hosts(guest: Guest, tmp_path: Path) -> None:
    image = tmp_path / "raw"
    image.write_bytes(bytes(1 << 20))
    with blockfiles.loop(image, "--sector-size", "4096") as host:
        script = "cat /sys/class/block/sd?/queue/logical_block_size"
        assert guest.shell(script, lambda spec: device(spec, "/dev/xvda", host)) == "4096\n"


def test_device_rules_survive_an_update(guest: Guest, tmp_path: Path) -> None:
    image = tmp_path / "raw"
    image.write_bytes(b"from the host".ljust(1 << 20, b"\0"))
    with blockfiles.loop(image) as host:
        spec = guest.spec("sleep", "60")
        device(spec, "/dev/xvda", host)
        with guest.created(spec, {}, start=True) as container:
            # All that config.json has, as containerd sends it.
            resources = {**spec["linux"]["resources"], "memory": {"limit": 64 << 20}}
            client.call(guest.sandbox.id, "Update", {"container": container.id, "resources": resources})
            with capture.Pipes(None) as pipes:
                head = container.exec(["head", "-c", "13", "/dev/xvda"], **pipes.child())
                assert pipes.finish(head, 60).stdout == "from the host"


@pytest.mark.parametrize("how", ["device", "rule"])
def test_a_block_device_that_is_only_read(guest: Guest, tmp_path: Path, how: str) -> None:
    image = tmp_path / "raw"
    image.write_bytes(b"from the host".ljust(1 << 20, b"\0"))
    with blockfiles.loop(image, *(["--read-only"] if how == "device" else [])) as host:

        def change(spec: Spec) -> None:
            device(spec, "/dev/xvda", host, "rwm" if how == "device" else "rm")

        script = "cat /sys/class/block/sd?/ro; head -c 13 /dev/xvda; (echo x > /dev/xvda) 2>&1 | grep -c xvda"
        assert guest.shell(script, change).splitlines() == ["1", "from the host1"]
    assert image.read_bytes().startswith(b"from the host")


def test_a_container_reaches_no_disk_of_another(guest: Guest, rootfs: Path, tmp_path: Path) -> None:
    image = blockfiles.ext4(tmp_path / "ext4", rootfs)
    with guest.created(guest.spec("sleep", "60"), {}, start=True, rootfs=[on_disk("ext4", image)]):
        # The guest's number of that disk, of which an engine says that it is another one of the host's.
        rules = [
            {"allow": False, "access": "rwm"},
            {"allow": True, "type": "b", "major": 8, "minor": 0, "access": "rwm"},
        ]
        rules.append({"allow": True, "type": "b", "major": 8, "access": "rwm"})

        def change(spec: Spec) -> None:
            names = [*spec["process"]["capabilities"]["bounding"], "CAP_MKNOD"]
            spec["process"]["capabilities"] = dict.fromkeys(("bounding", "effective", "permitted"), names)

        script = "cat /sys/class/block/sd?/dev; mknod /dev/mine b 8 0 2>&1; head -c 1 /dev/mine 2>&1; true"
        said = guest.shell(script, change, resources={"devices": rules})
        assert said == "8:0\nhead: /dev/mine: Operation not permitted\n"


# --- ends ---


def test_nothing_is_left_of_a_sandbox_that_is_killed(rootfs: Path, tmp_path: Path) -> None:
    image = blockfiles.ext4(tmp_path / "ext4", rootfs)
    with blockfiles.loop(image) as host, hako.Sandbox(image="busybox", memory="512m") as sandbox:
        guest = Guest(sandbox, rootfs)
        spec = guest.spec("sh", "-c", "echo kept > /written; sync; sleep 60")
        mount(spec, "/mnt", "ext4", host)
        created = guest.created(
            spec, {}, start=True, rootfs=[on_disk("erofs", blockfiles.erofs(tmp_path / "e", rootfs))]
        )
        pid = 0
        with contextlib.suppress(HakoError), created:
            pid = client.call(sandbox.id, "State", {})["state"]["vm_pid"]
            os.kill(sandbox_pid(pid), signal.SIGKILL)
        deadline = time.monotonic() + 20
        while os.path.exists(f"/proc/{pid}") and time.monotonic() < deadline:
            time.sleep(0.05)
        assert not os.path.exists(f"/proc/{pid}")
    assert subprocess.run(["e2fsck", "-fp", str(image)], check=False, capture_output=True).returncode in (0, 1)


def sandbox_pid(vm_pid: int) -> int:
    """The process that has started a VM."""
    with open(f"/proc/{vm_pid}/stat", encoding="ascii") as file:
        return int(file.read().rpartition(")")[2].split()[1])
