"""Kernels: taken out of each kind of vmlinuz, checked, and refused in a sentence."""

from __future__ import annotations

import bz2
import gzip
import lzma
import pathlib
import shutil
import struct
import subprocess
from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hako.errors import ImageError
from hako.guestimage import compression
from hako.guestimage.compression import decompress
from hako.guestimage.kernel import load_kernel, parse_kernel
from hako.guestimage.kerneltree import from_files
from hako.guestimage.modules import REQUIRED
from support import elf

VMLINUX = elf.kernel("6.1.0-56-amd64")
SIZE = struct.pack("<I", len(VMLINUX))


def by_command(*argv: str) -> Callable[[bytes], bytes]:
    def run(data: bytes) -> bytes:
        if shutil.which(argv[0]) is None:
            pytest.skip(f"{argv[0]} is not installed")
        return subprocess.run([*argv, "-c"], input=data, capture_output=True, check=True).stdout

    return run


COMPRESSIONS: dict[str, Callable[[bytes], bytes]] = {
    "xz": lambda data: lzma.compress(data) + SIZE,
    "lzma": lambda data: lzma.compress(data, lzma.FORMAT_ALONE) + SIZE,
    "bzip2": lambda data: bz2.compress(data) + SIZE,
    "gzip": gzip.compress,  # its own last four bytes are the size
    "zstd": lambda data: by_command("zstd", "-q")(data) + SIZE,
    "lz4": lambda data: by_command("lz4", "-q", "-l")(data) + SIZE,
}


@pytest.mark.parametrize("kind", COMPRESSIONS)
def test_bzimage(kind: str) -> None:
    found = parse_kernel(elf.bzimage(COMPRESSIONS[kind](VMLINUX)), "vmlinuz")
    assert found == ("6.1.0-56-amd64", VMLINUX)


@pytest.mark.parametrize("pack", [bytes, gzip.compress, lzma.compress])
def test_vmlinux(pack: Callable[[bytes], bytes], tmp_path: pathlib.Path) -> None:
    (tmp_path / "vmlinux").write_bytes(pack(VMLINUX))
    assert load_kernel(str(tmp_path / "vmlinux")) == ("6.1.0-56-amd64", VMLINUX)


XZ = lzma.compress(VMLINUX)
REFUSED = {
    "empty": (b"", "is not an ELF file"),
    "text": (b"kernel", "is not an ELF file"),
    "no PVH": (elf.kernel(pvh=False), "built without CONFIG_PVH"),
    "other processor": (elf.kernel(machine=183), "is not a kernel for x86_64"),
    "library": (elf.library([]), "is not a kernel for x86_64"),
    "no version": (elf.elf(segments=[(4, 0, elf.note("Xen", 18, b"1234"))]), "does not tell its version"),
    "old header": (elf.bzimage(XZ + SIZE, protocol=0x207), "too old"),
    "cut header": (elf.bzimage(XZ + SIZE)[:0x220], "cut short"),
    "cut payload": (elf.bzimage(XZ + SIZE)[:-100], "outside the file"),
    "wrong size": (elf.bzimage(XZ + struct.pack("<I", 5)), "instead of 5"),
    "damaged xz": (elf.bzimage(XZ[:40] + b"oh no" + XZ[45:] + SIZE), "its xz data cannot be read"),
    "short xz": (elf.bzimage(XZ[:-30] + SIZE), "its xz data is cut short"),
    "lzo": (elf.bzimage(b"\x89LZO\x00\r\n\x1a\n" + bytes(30)), "compressed with lzo, which hako cannot read"),
    "unknown": (elf.bzimage(b"mystery" + bytes(30)), "its compression is unknown"),
    "zstd": (elf.bzimage(b"\x28\xb5\x2f\xfd" + bytes(30)), "zstd"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_is_refused(case: str) -> None:
    data, says = REFUSED[case]
    if case == "zstd" and shutil.which("zstd") is None:
        pytest.skip("zstd is not installed")
    with pytest.raises(ImageError, match=says) as caught:
        parse_kernel(data, "/boot/vmlinuz")
    assert "/boot/vmlinuz" in str(caught.value)


@given(st.binary(max_size=1200), st.sampled_from([b"", b"\x1f\x8b\x08", b"\xfd7zXZ\0", b"BZh9", b"\x5d\0\0"]))
def test_any_bytes_give_an_image_error(data: bytes, magic: bytes) -> None:
    for whole in (magic + data, elf.bzimage(magic + data)):
        with pytest.raises(ImageError):
            parse_kernel(whole, "x")


def test_a_bomb_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compression, "MAX_SIZE", 1000)
    for pack in (gzip.compress, lzma.compress, bz2.compress):
        assert decompress(pack(bytes(1000)), "x") == bytes(1000)
        with pytest.raises(ImageError, match="unpacks to more than"):
            decompress(pack(bytes(100_000)), "x")


def modules_for(path: pathlib.Path, version: str, without: str = "") -> str:
    path.mkdir()
    for name in REQUIRED:
        if name != without:
            (path / f"{name}.ko").write_bytes(elf.module(vermagic=f"{version} SMP preempt"))
    return str(path)


def test_own_kernel_with_its_modules(tmp_path: pathlib.Path) -> None:
    (tmp_path / "vmlinuz").write_bytes(elf.bzimage(XZ + SIZE))
    tree = from_files(str(tmp_path / "vmlinuz"), modules_for(tmp_path / "modules", "6.1.0-56-amd64"))
    assert tree.version == "6.1.0-56-amd64"
    assert set(tree.modules) == set(tree.plan.boot) == set(REQUIRED)
    assert tree.sha256() != tree._replace(vmlinux=b"").sha256()
    assert tree.sha256() != tree._replace(modules=tree.modules | {"overlay": b""}).sha256()


def test_modules_of_another_kernel(tmp_path: pathlib.Path) -> None:
    (tmp_path / "vmlinux").write_bytes(VMLINUX)
    with pytest.raises(ImageError, match=r"are for the kernel 5\.10\.0, but .*vmlinux is 6\.1\.0-56-amd64"):
        from_files(str(tmp_path / "vmlinux"), modules_for(tmp_path / "modules", "5.10.0"))


def test_own_kernel_without_a_module(tmp_path: pathlib.Path) -> None:
    (tmp_path / "vmlinux").write_bytes(VMLINUX)
    with pytest.raises(ImageError, match="lacks modules that the guest needs: overlay "):
        from_files(str(tmp_path / "vmlinux"), modules_for(tmp_path / "modules", "6.1.0-56-amd64", without="overlay"))


def test_no_such_kernel() -> None:
    with pytest.raises(ImageError, match=r"Cannot read the kernel /nowhere/vmlinuz: No such file"):
        load_kernel("/nowhere/vmlinuz")
