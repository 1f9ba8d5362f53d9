"""Whatever is wrong with what ``hako`` is given: one sentence that says what, and the exit code 125."""

from __future__ import annotations

import contextlib
import os
import subprocess
import tarfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from conftest import Roots
from hako import arch
from hako.ociimage import layout
from support import leaks, settings

pytestmark = [pytest.mark.e2e, pytest.mark.usefixtures("guest_image", "busybox_image")]

Fails = Callable[..., str]


@pytest.fixture
def fails(hako_cmd: list[str], roots: Roots) -> Fails:
    """Run ``hako`` with something wrong; returns its one sentence."""

    def run(*words: str, **environment: str) -> str:
        done = subprocess.run(
            [*hako_cmd, *words],
            env={**os.environ, **environment},
            capture_output=True,
            text=True,
            timeout=90,
            check=False,
        )
        assert done.returncode == 125, done.stdout + done.stderr
        # Steps on the way there are told as well.
        *steps, sentence = done.stderr.splitlines()
        assert not any(line.startswith(("hako:", "Traceback", " ")) for line in steps), done.stderr
        assert sentence.startswith("hako: "), done.stderr
        assert sentence.endswith((".", "?")), sentence
        assert leaks.files(roots.state) == []
        return sentence

    return run


@contextlib.contextmanager
def file_system(place: Path, size: str) -> Iterator[str]:
    """A file system of ``size`` at ``place``."""
    place.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size}", "none", place], check=True)
    try:
        yield str(place)
    finally:
        subprocess.run(["umount", place], check=True)


def make_layout(place: Path, architecture: str) -> Path:
    """An OCI layout with an image for ``architecture``."""
    tar = place / "root.tar"
    (place / "content").write_bytes(os.urandom(4 << 20))
    with tarfile.open(tar, "w") as archive:
        archive.add(place / "content", "content")
    layout.write(
        str(place / "layout"), str(tar), config={"Cmd": ["/content"]}, architecture=architecture,
        created="2026-01-01T00:00:00Z", tag="latest",
    )  # fmt: skip
    return place / "layout"


def test_a_missing_image(fails: Fails) -> None:
    assert "There is no image nothing-like-it:latest here" in fails("run", "--pull", "never", "nothing-like-it")
    assert "There is no image at ./nothing" in fails("run", "./nothing")


@pytest.mark.parametrize("content", [b"", b"no archive at all", bytes(10240)])
def test_a_corrupt_archive(fails: Fails, tmp_path: Path, content: bytes) -> None:
    (tmp_path / "image.tar").write_bytes(content)
    assert "image.tar" in fails("run", f"{tmp_path}/image.tar")


def test_a_truncated_archive(fails: Fails, tmp_path: Path) -> None:
    made = make_layout(tmp_path, arch.current().oci)
    with tarfile.open(tmp_path / "image.tar", "w") as archive:
        archive.add(made, ".")
    os.truncate(tmp_path / "image.tar", os.path.getsize(tmp_path / "image.tar") // 2)
    assert "image.tar" in fails("run", f"oci-archive:{tmp_path}/image.tar")


def test_a_layer_that_was_changed(fails: Fails, tmp_path: Path) -> None:
    made = make_layout(tmp_path, arch.current().oci)
    layer = max((made / "blobs" / "sha256").iterdir(), key=lambda path: path.stat().st_size)
    with open(layer, "r+b") as file:
        file.seek(2 << 20)
        file.write(b"changed")
    assert "layout" in fails("run", str(made))


def test_an_image_of_another_architecture(fails: Fails, tmp_path: Path) -> None:
    sentence = fails("run", str(make_layout(tmp_path, "riscv64")))
    assert "riscv64" in sentence
    assert arch.current().oci in sentence


def test_no_space_for_the_image(fails: Fails, tmp_path: Path) -> None:
    made = make_layout(tmp_path, arch.current().oci)
    with file_system(tmp_path / "small", "3m") as data:
        sentence = fails("run", str(made), HAKO_DATA_ROOT=data)
    assert "disk space" in sentence or "No space left" in sentence


def test_no_space_for_the_sandbox(fails: Fails, roots: Roots, tmp_path: Path) -> None:
    with file_system(tmp_path / "small", "64k") as state:
        subprocess.run(["dd", "if=/dev/zero", f"of={state}/full", "bs=4k"], capture_output=True, check=False)
        assert "No space left" in fails("run", "busybox", HAKO_STATE_ROOT=state)


@pytest.mark.parametrize(
    ("content", "wanted"),
    [
        ("[hypervisor]\nqemo = 'x'\n", "did you mean 'hypervisor.qemu'?"),
        ("[sandbox]\nmemory = true\n", "sandbox.memory"),
        ("[sandbox]\nmemory = '1k'\n", "sandbox.memory"),
        ("sandbox = 3\n", "sandbox is a section"),
        ("[sandbox\n", "is not TOML"),
        ("[hypervisor]\nqemu = '/no/such/qemu'\n", "/no/such/qemu"),
        ("[hypervisor]\nqemu = '/bin/false'\n", "QEMU failed with status 1"),
        ("[guest]\nimage = 'abcdef'\n", "There is no guest image abcdef"),
        ("[guest]\nimage = '/no/such/image'\n", "/no/such/image is not a guest image"),
    ],
)
def test_a_wrong_configuration(fails: Fails, tmp_path: Path, content: str, wanted: str) -> None:
    (tmp_path / "config.toml").write_text(content)
    settings.without_network(tmp_path)
    assert wanted in fails("--config", f"{tmp_path}/config.toml", "run", "busybox", "true")


def test_a_configuration_that_is_not_there(fails: Fails) -> None:
    assert "/no/such/config.toml does not exist" in fails("--config", "/no/such/config.toml", "run", "busybox")


def test_no_guest_image(fails: Fails, tmp_path: Path) -> None:
    (tmp_path / "root").mkdir()
    sentence = fails("run", f"{tmp_path}/root", "/true", HAKO_DATA_ROOT=str(tmp_path / "data"))
    assert sentence == "hako: There is no guest image yet; run `hako image build`."


def test_a_kernel_without_the_modules_it_needs(fails: Fails, tmp_path: Path, guest_image: object) -> None:
    (tmp_path / "modules").mkdir()
    (tmp_path / "modules" / "modules.builtin").write_text("")
    (tmp_path / "modules" / "modules.dep").write_text("")
    kernel = f"{guest_image.directory}/vmlinux"  # type: ignore[attr-defined]
    sentence = fails("image", "build", "--kernel", kernel, "--modules", f"{tmp_path}/modules", "--no-default")
    assert "virtio" in sentence or "9p" in sentence


def test_a_kernel_that_is_none(fails: Fails, tmp_path: Path) -> None:
    (tmp_path / "kernel").write_bytes(b"not a kernel")
    sentence = fails("image", "build", "--kernel", f"{tmp_path}/kernel", "--modules", str(tmp_path), "--no-default")
    assert f"{tmp_path}/kernel" in sentence


def test_a_user_that_the_image_does_not_know(fails: Fails) -> None:
    assert "nobody-there" in fails("run", "--rm", "-u", "nobody-there", "busybox", "true")


def test_paths_in_the_container_that_are_not_absolute(fails: Fails, tmp_path: Path) -> None:
    assert "must be absolute" in fails("run", "-v", f"{tmp_path}:data", "busybox")
    assert "must be an absolute path" in fails("run", "-w", "srv", "busybox")
    assert "must be absolute" in fails("run", "--tmpfs", "scratch", "busybox")


def test_two_mounts_at_one_place(fails: Fails, tmp_path: Path) -> None:
    assert "Two mounts" in fails("run", "-v", f"{tmp_path}:/data", "--tmpfs", "/data", "busybox")
