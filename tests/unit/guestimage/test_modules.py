"""Which modules go into an image and in which order they load."""

from __future__ import annotations

import gzip
import lzma
import os
import pathlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hako.errors import ImageError
from hako.guestimage import modules
from hako.guestimage.modules import ModuleDirectory, ModuleInfo, load_order, plan, strip_signature
from support import elf

VERSION = "6.1.0-test"


def order(graph: dict[str, ModuleInfo], *wanted: str, builtin: tuple[str, ...] = ()) -> list[str]:
    return load_order(wanted, graph.get, lambda name: {"an_alias": "soft"}.get(name), builtin)


def hard(*names: str) -> ModuleInfo:
    return ModuleInfo(names)


@pytest.mark.parametrize(
    ("graph", "wanted", "builtin", "expected"),
    [
        ({"a": hard()}, ["a"], (), ["a"]),
        ({"a": hard("b"), "b": hard("c"), "c": hard()}, ["a"], (), ["c", "b", "a"]),
        ({"a": hard("c"), "b": hard("c"), "c": hard()}, ["a", "b", "a"], (), ["c", "a", "b"]),
        ({"a_b": hard("c-d"), "c_d": hard()}, ["a-b"], (), ["c_d", "a_b"]),
        ({"a": hard("b")}, ["a"], ("b",), ["a"]),
        ({"a": hard()}, ["a", "x"], ("x",), ["a"]),
        ({"a": ModuleInfo((), ("soft",), ("late",)), "soft": hard(), "late": hard()}, ["a"], (), ["soft", "a", "late"]),
        ({"a": ModuleInfo((), ("an-alias",)), "soft": hard()}, ["a"], (), ["soft", "a"]),
        ({"a": ModuleInfo((), ("nowhere",))}, ["a"], (), ["a"]),
        ({"a": ModuleInfo((), ("b",)), "b": hard("nowhere")}, ["a"], (), ["a"]),
        ({"a": ModuleInfo((), ("b",)), "b": hard("c", "a"), "c": hard()}, ["a"], (), ["a"]),
        ({"a": ModuleInfo((), (), ("b",)), "b": hard("a")}, ["b"], (), ["a", "b"]),
    ],
    ids=[
        "alone", "chain", "shared", "dashes", "builtin dependency", "builtin wanted", "soft", "alias",
        "soft and missing", "soft whose need is missing", "soft circle", "wish that comes back",
    ],
)  # fmt: skip
def test_load_order(
    graph: dict[str, ModuleInfo], wanted: list[str], builtin: tuple[str, ...], expected: list[str]
) -> None:
    assert order(graph, *wanted, builtin=builtin) == expected


def test_a_circle_is_told() -> None:
    with pytest.raises(ImageError, match="in a circle: a → b → c → a"):
        order({"a": hard("b"), "b": hard("c"), "c": hard("a")}, "a")


def test_a_missing_dependency_is_told() -> None:
    with pytest.raises(ImageError, match="module c, which b needs, is missing"):
        order({"a": hard("b"), "b": hard("c")}, "a")


@given(st.dictionaries(st.integers(0, 9), st.sets(st.integers(0, 9), max_size=3), min_size=1))
def test_everything_comes_after_what_it_needs(numbers: dict[int, set[int]]) -> None:
    # Only to smaller numbers, so there is no circle.
    graph = {f"m{n}": hard(*(f"m{o}" for o in needs if o < n and o in numbers)) for n, needs in numbers.items()}
    result = order(graph, *graph)
    assert sorted(result) == sorted(graph)
    for position, name in enumerate(result):
        assert set(graph[name].depends) <= set(result[:position])


@pytest.mark.parametrize("signature", [b"", b"s", b"x" * 600])
def test_a_signature_is_taken_off(signature: bytes) -> None:
    data = elf.module(name="a")
    assert strip_signature(elf.signed(data, signature)) == data


def test_what_is_not_a_signature_stays() -> None:
    data = elf.module(name="a")
    too_long = data + bytes(8) + b"\xff\xff\xff\xff" + elf.signed(b"")[-28:]
    for whole in (data, b"", too_long, elf.signed(b"")[-28:]):
        assert strip_signature(whole) == whole


def directory(path: pathlib.Path, files: dict[str, bytes], builtin: tuple[str, ...] = ()) -> ModuleDirectory:
    for name, data in files.items():
        (path / name).parent.mkdir(parents=True, exist_ok=True)
        (path / name).write_bytes(data)
    if builtin:
        (path / "modules.builtin").write_text("".join(f"kernel/x/{name}.ko\n" for name in builtin))
    return ModuleDirectory(str(path))


def module(**info: str | list[str]) -> bytes:
    return elf.module(vermagic=f"{VERSION} SMP", **info)


def complete() -> dict[str, bytes]:
    """All the required modules, some with dashes in their names, one depending on another."""
    files = {f"kernel/{name.replace('_', '-')}.ko": module() for name in modules.REQUIRED}
    return files | {"kernel/9p.ko": module(depends="9pnet"), "kernel/net/9pnet.ko": module()}


def test_the_directory_reads_every_compression(tmp_path: pathlib.Path) -> None:
    data = module(depends="")
    found = directory(
        tmp_path,
        {"k/a.ko": data, "k/b-b.ko.xz": lzma.compress(data), "c.ko.gz": gzip.compress(data), "d.ko": elf.signed(data)},
        builtin=("in-side",),
    )
    for name in ("a", "b_b", "b-b", "c", "d"):
        assert found.read(name) == data
        assert found.kernel_version(name) == VERSION
    assert found.info("e") is None
    assert found.builtin == {"in_side"}
    assert found.file_of("b-b") == os.path.join(str(tmp_path), "k/b-b.ko.xz")


def test_soft_dependencies_by_alias(tmp_path: pathlib.Path) -> None:
    found = directory(
        tmp_path,
        {
            "fs/ext4.ko": module(softdep="pre: crypto-crc32c post: late extra"),
            "arch/x86/crypto/crc32c-intel.ko": module(alias=["crypto-crc32c"]),
            "crypto/crc32c_generic.ko": module(alias=["crypto-crc32c", "crc32c"]),
        },
    )
    assert found.info("ext4") == ModuleInfo((), ("crypto-crc32c",), ("late", "extra"))
    assert found.resolve("crypto-crc32c") == "crc32c_generic"
    assert found.resolve("nothing") is None


def test_the_plan(tmp_path: pathlib.Path) -> None:
    files = complete() | {"virtiofs.ko": module(depends="fuse,9pnet"), "fuse.ko": module(), "tun.ko": module()}
    files |= {"erofs.ko": module(depends="libcrc32c,fuse"), "libcrc32c.ko": module()}
    made = plan(directory(tmp_path, files, builtin=("virtio_net", "ext4")), extra=("tun",))
    required = ("virtio_pci", "virtio_console", "9pnet", "9p", "9pnet_virtio", "virtio_rng", "overlay")
    assert made.boot == (*required, "fuse", "virtiofs")
    assert made.demand == {"erofs": ("libcrc32c", "erofs"), "tun": ("tun",)}
    assert made.builtin == ("virtio_net", "ext4")
    disks = {"virtio_blk", "scsi_mod", "sd_mod", "virtio_scsi"}
    others = {"xfs", "btrfs", "squashfs", "vmw_vsock_virtio_transport", "loop"}
    assert set(made.absent) == {"virtio_balloon", "virtio_mem", *disks, *others}
    assert made.names() == [*made.boot, "libcrc32c", "erofs", "tun"]


def test_required_modules_may_be_built_in(tmp_path: pathlib.Path) -> None:
    made = plan(directory(tmp_path, {}, builtin=modules.REQUIRED))
    assert made.boot == ()
    assert made.builtin == modules.REQUIRED


def test_missing_modules_are_all_named(tmp_path: pathlib.Path) -> None:
    files = complete()
    del files["kernel/overlay.ko"], files["kernel/9p.ko"]
    with pytest.raises(ImageError, match=r"lacks modules that the guest needs: 9p, overlay, tun \(looked in"):
        plan(directory(tmp_path, files), extra=("tun",))


def test_no_such_directory(tmp_path: pathlib.Path) -> None:
    with pytest.raises(ImageError, match="does not exist"):
        ModuleDirectory(str(tmp_path / "none"))


def test_a_damaged_module_is_named(tmp_path: pathlib.Path) -> None:
    found = directory(tmp_path, complete() | {"kernel/overlay.ko": b"nonsense"})
    with pytest.raises(ImageError, match=r"overlay\.ko is not an ELF file"):
        plan(found)
