"""The real guest image: built from Debian's packages, twice, by many at once, from a user's kernel; and booted."""

from __future__ import annotations

import glob
import json
import os
import pathlib
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

import pytest

from hako.arch import current
from hako.errors import ImageError
from hako.guestimage import api
from hako.guestimage.manifest import FORMAT
from hako.paths import cache_dir
from support import source

if TYPE_CHECKING:
    from hako.guestimage.api import GuestImage

pytestmark = pytest.mark.system

_BUILD = """
import sys
from hako.guestimage import api
said = []
image = api.build(said.append)
print(image.digest, sum("built guest image" in line for line in said))
"""


def build_elsewhere(data: pathlib.Path) -> tuple[str, int]:
    """Build in a process of its own with the data root ``data``: the digest, and how many images it really built."""
    env = {**os.environ, "HAKO_DATA_ROOT": str(data), "PYTHONPATH": source.SOURCE}
    done = subprocess.run(
        [sys.executable, "-c", _BUILD], env=env, capture_output=True, text=True, timeout=280, check=False
    )
    assert done.returncode == 0, done.stderr
    digest, built = done.stdout.split()
    return digest, int(built)


def new_root(path: pathlib.Path) -> pathlib.Path:
    """An empty data root that has the downloaded packages, and nothing that was made of them."""
    packages = path / "cache" / "packages"
    packages.mkdir(parents=True)
    for deb in glob.glob(os.path.join(cache_dir(), "packages", "*.deb")):
        os.symlink(os.path.realpath(deb), packages / os.path.basename(deb))
    return path


@pytest.mark.slow
def test_ten_builds_at_once_make_one_image_with_the_same_bytes(guest_image: GuestImage, tmp_path: pathlib.Path) -> None:
    data = new_root(tmp_path)
    with ThreadPoolExecutor(10) as pool:
        results = list(pool.map(build_elsewhere, [data] * 10))
    assert {digest for digest, _ in results} == {guest_image.digest}
    assert sum(built for _, built in results) == 1
    other = data / "guest-images" / guest_image.digest
    for name in guest_image.files:
        assert (other / name).read_bytes() == pathlib.Path(guest_image.directory, name).read_bytes(), name
    left = {name for name in os.listdir(data / "guest-images") if not name.startswith(".")}
    assert left == {guest_image.digest, "default"}
    assert not glob.glob(str(data / "**" / ".new-*"), recursive=True)


def test_a_second_build_does_nothing_and_is_quick(guest_image: GuestImage) -> None:
    said: list[str] = []
    start = time.monotonic()
    again = api.build(said.append)
    assert time.monotonic() - start < 1
    assert again == guest_image
    assert said == []


def test_the_image_is_as_its_manifest_says(guest_image: GuestImage) -> None:
    api.verify(guest_image)
    shown = api.inspect()
    assert shown["digest"] == guest_image.digest
    assert shown["format"] == FORMAT
    assert shown["form"] == "initrd"
    assert shown["files"]["initrd"]["size"] <= 16_000_000
    packages = {package["name"]: package for package in shown["packages"]}
    assert {"crun", "libc6", "libseccomp2", f"linux-image-{guest_image.kernel_version}"} <= packages.keys()
    assert not {"perl-base", "dpkg", "debconf"} & packages.keys()
    assert not {"libsystemd0", "libgcrypt20"} & packages.keys(), "crun does without"
    for name, package in packages.items():
        assert package["version"]
        assert package["licences"], name
        assert os.path.getsize(os.path.join(guest_image.directory, "licences", name)) > 100
    assert "GPL-2" in packages[f"linux-image-{guest_image.kernel_version}"]["licences"]


def test_modules_load_in_order(guest_image: GuestImage) -> None:
    modules = guest_image.manifest["modules"]
    boot = modules["boot"]
    for first, later in (
        ("virtio", "virtio_pci"),
        ("9pnet", "9p"),
        ("9pnet", "9pnet_virtio"),
        ("virtio", "virtio_net"),
    ):
        assert boot.index(first) < boot.index(later)
    assert {"virtio_console", "virtio_rng", "overlay", "virtio_balloon"} <= set(boot)
    assert boot.index("fuse") < boot.index("virtiofs")
    assert "virtio_mem" in boot
    # ext4 asks for crc32c by an alias when it is mounted; modprobe would find that, but takes longer.
    assert "crc32c_generic" in modules["demand"]["ext4"]
    assert {"virtio_blk", "erofs", "vmw_vsock_virtio_transport"} <= set(modules["demand"])
    assert not set(boot) & {name for chain in modules["demand"].values() for name in chain}


def test_the_guest_carries_few_python_modules(guest_image: GuestImage) -> None:
    modules = set(guest_image.manifest["python"]["modules"])
    assert {"_json", "ctypes", "encodings.utf_8"} <= modules
    assert not modules & {"asyncio", "typing", "dataclasses", "logging", "subprocess", "unittest"}
    assert not modules & {"json", "re", "enum", "functools", "signal"}
    assert len(modules) < 80


def own_modules(path: pathlib.Path, image: GuestImage) -> pathlib.Path:
    """The image's own modules, in a directory as a user's kernel has it."""
    path.mkdir()
    kept = next(
        os.path.dirname(about)
        for about in glob.glob(os.path.join(cache_dir(), "guest-kernel", "*", "tree.json"))
        if json.loads(pathlib.Path(about).read_bytes())["version"] == image.kernel_version
    )
    for file in glob.glob(os.path.join(kept, "*.ko")):
        os.symlink(os.path.realpath(file), path / os.path.basename(file))
    return path


@pytest.fixture
def own_kernel_image(guest_image: GuestImage, tmp_path: pathlib.Path) -> GuestImage:
    """An image of a kernel from a file, in a data root of its own."""
    modules = own_modules(tmp_path / "modules", guest_image)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HAKO_DATA_ROOT", str(new_root(tmp_path / "data")))
        return api.build(
            lambda line: None, kernel=guest_image.kernel, modules_dir=str(modules), extra_modules=["virtio-blk"]
        )


def test_a_kernel_of_the_users(
    own_kernel_image: GuestImage, guest_image: GuestImage, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HAKO_DATA_ROOT", str(tmp_path / "data"))
    assert own_kernel_image.digest != guest_image.digest
    assert own_kernel_image.kernel_version == guest_image.kernel_version
    assert own_kernel_image.manifest["kernel"]["from"] == "file"
    assert not any(p["name"].startswith("linux-image") for p in own_kernel_image.manifest["packages"])

    def build() -> GuestImage:
        return api.build(
            lambda line: None,
            kernel=guest_image.kernel,
            modules_dir=str(tmp_path / "modules"),
            extra_modules=["virtio-blk"],
        )

    start = time.monotonic()
    assert build() == own_kernel_image
    assert time.monotonic() - start < 1
    os.unlink(tmp_path / "modules" / "overlay.ko")
    with pytest.raises(ImageError, match="lacks modules that the guest needs: overlay "):
        build()


@pytest.mark.slow
def test_the_agent_starts_in_the_guest(guest_image: GuestImage) -> None:
    """Without its channel the agent gives up, says so and powers off: Python, modules and agent are all there."""
    arch = current()
    # fmt: off
    argv = [
        arch.qemu_binary, "-nodefaults", "-no-user-config", "-display", "none", "-serial", "stdio", "-no-reboot",
        "-M", f"{arch.machine},accel=tcg", "-cpu", arch.tcg_cpu, "-m", "256",
        "-kernel", guest_image.kernel, "-initrd", guest_image.initrd,
        "-append", "console=ttyS0 quiet panic=-1 tsc=reliable",
        "-device", "virtio-serial-pci",
    ]
    # fmt: on
    done = subprocess.run(argv, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=120, check=False)
    assert "hako-agent: FileNotFoundError: no virtio-serial port named hako.agent" in done.stdout, done.stdout[-2000:]
    assert "Power down" in done.stdout
    assert "panic" not in done.stdout
