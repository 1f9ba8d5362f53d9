"""Container images from a real registry, layouts and archives, with the real skopeo and umoci, as root."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import stat
import subprocess
import sys
import tarfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from hako.errors import HakoError, HostError, ImageError, NotFoundError, StateError
from hako.ociimage import api
from support import images, leaks
from support.images import Entry, Registry

pytestmark = pytest.mark.system

BASE = images.layer(
    Entry("bin", kind=tarfile.DIRTYPE, mode=0o755),
    Entry("bin/tool", b"#!\n", mode=0o4755),
    Entry("bin/same", kind=tarfile.LNKTYPE, link="bin/tool"),
    Entry("etc", kind=tarfile.DIRTYPE, mode=0o755),
    Entry("etc/gone", b"x"),
    Entry("etc/name", b"old"),
    Entry("etc/link", kind=tarfile.SYMTYPE, link="/etc/name"),
    Entry("data", kind=tarfile.DIRTYPE, mode=0o1777, uid=1000),
    Entry("data/old", b"x", uid=1000),
    Entry("attr", b"x", xattrs={"user.hako": "yes"}),
)
TOP = images.layer(
    Entry("etc/.wh.gone"),
    Entry("etc/name", b"new"),
    Entry("data/.wh..wh..opq"),
    Entry("data/new", b"y"),
)


@pytest.fixture
def data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty data directory of the test's own."""
    monkeypatch.setenv("HAKO_DATA_ROOT", str(tmp_path / "data"))
    return tmp_path / "data"


@pytest.fixture
def layout(tmp_path: Path) -> Path:
    """An OCI layout with the image ``v1`` of two layers."""
    path = tmp_path / "layout"
    images.write_layout(str(path), {"v1": ([BASE, TOP], images.config("tool", Env=["A=1"], User="web"))})
    return path


@pytest.fixture(scope="module")
def registry(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Registry]:
    with images.registry(str(tmp_path_factory.mktemp("registry"))) as running:
        yield running


def _layout_of(path: Path, command: str, tag: str = "v1", architecture: str = "amd64") -> Path:
    images.write_layout(str(path), {tag: ([BASE], images.config(command, architecture=architecture))})
    return path


def _is_clean(data: Path) -> bool:
    return not [name for name in os.listdir(data / "images") if name.startswith((".new", ".del"))]


def test_a_pulled_image_is_what_was_pushed(registry: Registry, layout: Path, data: Path) -> None:
    name = registry.push(f"oci:{layout}:v1", "whole:v1")
    lines: list[str] = []
    image = api.resolve(name, progress=lines.append)
    assert image.names == (name,)
    assert image.config == {"Cmd": ["tool"], "Env": ["A=1"], "User": "web"}
    assert image.architecture == "amd64"
    assert image.size > 0
    root = Path(image.rootfs)
    assert stat.S_IMODE((root / "bin/tool").stat().st_mode) == 0o4755
    assert (root / "bin/same").stat().st_ino == (root / "bin/tool").stat().st_ino
    assert not (root / "etc/gone").exists()
    assert (root / "etc/name").read_bytes() == b"new"
    assert os.readlink(root / "etc/link") == "/etc/name"
    assert os.listdir(root / "data") == ["new"]
    assert (root / "data").stat().st_uid == 1000
    assert os.getxattr(root / "attr", "user.hako") == b"yes"
    assert {"Copying blob 1 of 2", "Copying blob 2 of 2", "Unpacking 2 layers"} <= set(lines)
    assert _is_clean(data)
    kept = {entry.name for entry in (data / "images" / image.digest[7:]).iterdir()}
    assert kept == {"rootfs", "config.json", "manifest.json", "record.json"}, "one copy of the content only"
    assert stat.S_IMODE((data / "images").stat().st_mode) == 0o700, "users must not reach set-user-id programs"


def test_pull_policies(registry: Registry, tmp_path: Path, data: Path) -> None:
    name = registry.push(f"oci:{_layout_of(tmp_path / 'a', 'first')}:v1", "moving:v1")
    with pytest.raises(NotFoundError, match="get it with hako pull"):
        api.resolve(name, pull="never")
    first = api.resolve(name)
    registry.push(f"oci:{_layout_of(tmp_path / 'b', 'second')}:v1", "moving:v1")
    assert api.resolve(name) == first
    assert api.resolve(name, pull="never") == first
    second = api.resolve(name, pull="always")
    assert second.config["Cmd"] == ["second"]
    lines: list[str] = []
    assert api.pull(name, lines.append) == second
    assert lines == [], "what is up to date is not fetched again"
    old = api.resolve(first.digest[7:19], pull="never")
    assert (old.digest, old.names) == (first.digest, ())
    assert api.prune() == [first.digest]
    assert [image.digest for image in api.list_images()] == [second.digest]


def test_digests_and_names(registry: Registry, layout: Path, data: Path) -> None:
    name = registry.push(f"oci:{layout}:v1", "digests:v1")
    other = registry.push(f"oci:{layout}:v1", "digests/other:v1")
    image = api.resolve(name)
    lines: list[str] = []
    assert api.resolve(other, progress=lines.append).digest == image.digest
    assert lines == [], "the same manifest under another name is not fetched again"
    manifest = json.loads((layout / "index.json").read_text())["manifests"][0]["digest"]
    exact = api.resolve(f"{name.rpartition(':')[0]}@{manifest}", pull="never")
    assert exact.digest == image.digest
    assert api.resolve(image.digest).names == tuple(sorted((name, other)))
    with pytest.raises(NotFoundError):
        api.resolve("sha256:" + "0" * 64)


def test_what_a_registry_does_not_have(registry: Registry, layout: Path, data: Path) -> None:
    registry.push(f"oci:{layout}:v1", "here:v1")
    for name in ("here:v2", "nowhere:v1"):
        with pytest.raises(NotFoundError, match=f"There is no image {registry.address}/{name} in {registry.address}"):
            api.resolve(f"{registry.address}/{name}")
    with pytest.raises(ImageError, match=r"Cannot reach 127\.0\.0\.1:1 .*connection refused"):
        api.resolve("127.0.0.1:1/a")
    assert api.list_images() == []
    assert _is_clean(data)


def test_another_architecture(registry: Registry, tmp_path: Path, data: Path) -> None:
    arm = registry.push(f"oci:{_layout_of(tmp_path / 'arm', 'sh', architecture='arm64')}:v1", "arm:v1")
    with pytest.raises(ImageError, match="is for linux/arm64, but this host runs linux/amd64"):
        api.resolve(arm)
    both = {name: ([BASE], images.config(name, architecture=name)) for name in ("arm64", "amd64")}
    images.write_index(str(tmp_path / "both"), "v1", both)
    name = registry.push(f"oci:{tmp_path / 'both'}:v1", "both:v1")
    assert api.resolve(name).config["Cmd"] == ["amd64"]
    assert api.resolve(f"oci:{tmp_path / 'both'}").config["Cmd"] == ["amd64"]
    images.write_index(str(tmp_path / "no"), "v1", {"s390x": ([BASE], images.config(architecture="s390x"))})
    name = registry.push(f"oci:{tmp_path / 'no'}:v1", "no:v1")
    with pytest.raises(ImageError, match="is for linux/s390x, but this host runs linux/amd64"):
        api.resolve(name)


def test_a_blob_that_was_changed_in_the_registry(registry: Registry, tmp_path: Path, data: Path) -> None:
    odd = images.layer(Entry("odd", os.urandom(100_000)))
    images.write_layout(str(tmp_path / "odd"), {"v1": ([odd], images.config())})
    name = registry.push(f"oci:{tmp_path / 'odd'}:v1", "damaged:v1")
    manifest = json.loads((tmp_path / "odd/index.json").read_text())["manifests"][0]["digest"][7:]
    digest = json.loads((tmp_path / f"odd/blobs/sha256/{manifest}").read_text())["layers"][0]["digest"][7:]
    with open(f"{registry.storage}/docker/registry/v2/blobs/sha256/{digest[:2]}/{digest}/data", "r+b") as file:
        file.seek(5000)
        file.write(b"not what it was")
    with pytest.raises(ImageError, match="is damaged"):
        api.resolve(name)
    assert api.list_images() == []
    assert _is_clean(data)


def test_two_pullers_make_one_image(registry: Registry, tmp_path: Path, data: Path) -> None:
    name = registry.push(f"oci:{_layout_of(tmp_path / 'l', 'twice')}:v1", "twice:v1")
    lines: list[str] = []
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(lambda _: api.resolve(name, progress=lines.append), range(4)))
    assert len({image.digest for image in found}) == 1
    assert lines.count("Unpacking 1 layer") == 1


@pytest.mark.parametrize("step", ["Copying blob 1 of 1", "Unpacking 1 layer"])
def test_a_killed_pull_leaves_nothing_that_counts(step: str, registry: Registry, tmp_path: Path, data: Path) -> None:
    name = registry.push(f"oci:{_layout_of(tmp_path / 'l', step)}:v1", "killed:v1")
    program = (
        "import os, signal, sys\n"
        "from hako.ociimage import api\n"
        f"die = lambda line: line == {step!r} and os.kill(os.getpid(), signal.SIGKILL)\n"
        f"api.pull({name!r}, die)\n"
    )
    killed = subprocess.run(
        [sys.executable, "-c", program], env={**os.environ, "PYTHONPATH": ":".join(sys.path)}, check=False
    )
    assert killed.returncode == -signal.SIGKILL
    assert leaks.wait_gone(str(data), 10) == {}, "skopeo and umoci end with their caller"
    assert not _is_clean(data), "the test kills too early or too late"
    assert api.list_images() == []
    assert api.resolve(name).config["Cmd"] == [step]
    assert _is_clean(data)


def _archive(layout: Path, target: str) -> None:
    subprocess.run(["skopeo", "copy", "-q", f"oci:{layout}:v1", target], check=True, timeout=60)


@pytest.mark.parametrize("transport", ["docker-archive", "oci-archive"])
@pytest.mark.parametrize("packer", ["", "gzip", "xz", "zstd"])
def test_archives(transport: str, packer: str, layout: Path, tmp_path: Path, data: Path) -> None:
    path = tmp_path / "file.of:any-name"
    _archive(layout, f"{transport}:{tmp_path / 'app.tar'}:app:v1")
    if packer:
        with open(tmp_path / "app.tar", "rb") as plain, open(path, "wb") as packed:
            subprocess.run([packer, "-c"], stdin=plain, stdout=packed, check=True)
    else:
        os.rename(tmp_path / "app.tar", path)
    image = api.resolve(str(path), pull="never")
    assert image.config["Cmd"] == ["tool"]
    assert (Path(image.rootfs) / "etc/name").read_bytes() == b"new"
    assert api.resolve(f"{transport}:{path}").digest == image.digest
    lines: list[str] = []
    assert api.resolve(str(path), progress=lines.append).digest == image.digest
    assert lines == [], "an archive that has not changed is not unpacked again"


def test_an_archive_that_changes(tmp_path: Path, data: Path) -> None:
    for command in ("one", "two"):
        _archive(_layout_of(tmp_path / command, command), f"oci-archive:{tmp_path / 'new.tar'}")
        os.replace(tmp_path / "new.tar", tmp_path / "app.tar")
        assert api.resolve(str(tmp_path / "app.tar")).config["Cmd"] == [command]


def test_damaged_archives(layout: Path, tmp_path: Path, data: Path) -> None:
    for transport in ("docker-archive", "oci-archive"):
        path = tmp_path / f"{transport}.tar"
        _archive(layout, f"{transport}:{path}:app:v1")
        whole = path.read_bytes()
        for size in (0, 100, 700, len(whole) // 2):
            path.write_bytes(whole[:size])
            with pytest.raises(ImageError, match=r"damaged|is not an image archive"):
                api.resolve(str(path))
    assert api.list_images() == []
    assert _is_clean(data)


def test_archives_and_layouts_of_several_images(tmp_path: Path, data: Path) -> None:
    both = {tag: ([BASE], images.config(tag)) for tag in ("v1", "v2")}
    images.write_layout(str(tmp_path / "both"), both)
    path = str(tmp_path / "both")
    with pytest.raises(ImageError, match=r"more than one image.*\(v1, v2\)"):
        api.resolve(path)
    assert api.resolve(f"{path}:v2").config["Cmd"] == ["v2"]
    with pytest.raises(NotFoundError, match="There is no image"):
        api.resolve(f"{path}:v3")
    archive = tmp_path / "both.tar"
    with tarfile.open(archive, "w") as tar:
        tar.add(path, arcname=".")
    with pytest.raises(ImageError, match="more than one image"):
        api.resolve(str(archive))
    assert api.resolve(f"{archive}:v1").config["Cmd"] == ["v1"]


def test_layers_in_zstd(layout: Path, tmp_path: Path, data: Path) -> None:
    target = tmp_path / "zstd"
    subprocess.run(
        [
            "skopeo",
            "copy",
            "-q",
            "--dest-compress",
            "--dest-compress-format",
            "zstd",
            f"oci:{layout}:v1",
            f"oci:{target}:v1",
        ],
        check=True,
    )
    assert "+zstd" in "".join(path.read_text(errors="replace") for path in (target / "blobs/sha256").iterdir())
    image = api.resolve(str(target))
    assert (Path(image.rootfs) / "etc/name").read_bytes() == b"new"


def test_a_layout_with_a_damaged_configuration(tmp_path: Path, data: Path) -> None:
    images.write_layout(str(tmp_path / "l"), {"v1": ([BASE], images.config(Env="PATH=/"))})
    with pytest.raises(ImageError, match=r"config\.Env is not a list"):
        api.resolve(str(tmp_path / "l"))
    assert _is_clean(data)


def test_a_root_directory_is_used_where_it_is(tmp_path: Path, data: Path) -> None:
    (tmp_path / "root/bin").mkdir(parents=True)
    image = api.resolve(str(tmp_path / "root"))
    assert (image.rootfs, image.config) == (str(tmp_path / "root"), {})
    assert api.hold(image.digest) is None
    assert api.list_images() == []


def test_a_layer_cannot_write_outside(tmp_path: Path, data: Path) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    evil = images.layer(
        Entry("door", kind=tarfile.SYMTYPE, link=str(outside)),
        Entry("door/in", b"x"),
        Entry("../../../../../../../../../../.." + str(outside) + "/up", b"x"),
        Entry(str(outside) + "/absolute", b"x"),
    )
    images.write_layout(str(tmp_path / "l"), {"v1": ([evil], images.config())})
    with contextlib.suppress(ImageError):
        api.resolve(str(tmp_path / "l"))
    assert os.listdir(outside) == []


def test_no_room_for_an_image(registry: Registry, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    small = tmp_path / "small"
    small.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=4m", "hako-test", str(small)], check=True)
    try:
        monkeypatch.setenv("HAKO_DATA_ROOT", str(small))
        noise = images.layer(Entry("noise", os.urandom(1 << 20)))
        images.write_layout(str(tmp_path / "noise"), {"v1": ([noise], images.config())})
        name = registry.push(f"oci:{tmp_path / 'noise'}:v1", "noise:v1")
        with pytest.raises(HostError, match=r"Not enough disk space for the image .*noise"):
            api.resolve(name)
        zeros = images.layer(Entry("zeros", bytes(16 << 20)))  # compresses too well for any estimate
        images.write_layout(str(tmp_path / "zeros"), {"v1": ([zeros], images.config())})
        name = registry.push(f"oci:{tmp_path / 'zeros'}:v1", "zeros:v1")
        with pytest.raises(HostError, match=r"No disk space left while fetching or unpacking .*zeros"):
            api.resolve(name)
        assert api.list_images() == []
        assert _is_clean(small)
    finally:
        subprocess.run(["umount", str(small)], check=True)


def test_removal(registry: Registry, layout: Path, data: Path) -> None:
    name = registry.push(f"oci:{layout}:v1", "removal:v1")
    other = registry.push(f"oci:{layout}:v1", "removal/other:v1")
    image = api.resolve(name)
    api.resolve(other)
    assert api.remove(other) == [other]
    held = api.hold(image.digest)
    assert held is not None
    with pytest.raises(StateError, match="is used by a container"):
        api.remove(name)
    os.close(held)
    with pytest.raises(StateError, match="is used by a container"):
        api.remove(name, in_use=lambda digest: digest == image.digest)
    assert api.prune() == []
    api.resolve(other)
    with pytest.raises(StateError, match="has 2 names"):
        api.remove(image.digest)
    assert api.remove(image.digest[:20], force=True) == [*sorted((name, other)), image.digest]
    assert api.list_images() == []
    assert not os.path.exists(image.rootfs)
    for gone in (name, image.digest, "never-was"):
        with pytest.raises(NotFoundError):
            api.remove(gone)
    with pytest.raises(NotFoundError, match="just been removed"):
        api.hold(image.digest)


def test_removal_by_path(layout: Path, data: Path) -> None:
    image = api.resolve(str(layout))
    shutil.rmtree(layout)
    assert api.remove(str(layout)) == [f"oci:{layout}", image.digest]


def test_an_image_that_was_damaged_later(layout: Path, data: Path) -> None:
    image = api.resolve(str(layout))
    config = data / "images" / image.digest[7:] / "config.json"
    for content in (b"", b"{}x", b'{"config": {"Cmd": 5}}'):
        config.write_bytes(content)
        with pytest.raises(ImageError, match="damaged"):
            api.resolve(image.digest)
    assert api.list_images() == []
    shutil.rmtree(config.parent)
    assert api.resolve(str(layout)) == image


def test_the_index_survives_nonsense(layout: Path, data: Path) -> None:
    image = api.resolve(str(layout))
    index = data / "images" / "index.json"
    for content in (b"", b"[]", b'{"names": 5}', b'{"names": {"a": 5, "b": {"digest": 1}}}'):
        index.write_bytes(content)
        assert [found.digest for found in api.list_images()] == [image.digest]
    assert api.resolve(str(layout)).names == (f"oci:{layout}",)


def test_bad_policies_and_names(data: Path) -> None:
    for ref, pull in (("busybox", "sometimes"), ("", "never"), ("Bad Name", "never")):
        with pytest.raises(HakoError):
            api.resolve(ref, pull=pull)


def test_the_sample_image(registry: Registry, roots: object, data: Path) -> None:
    from hako.ociimage import sample

    lines: list[str] = []
    image = sample.make_sample(progress=lines.append)
    assert image.names == ("busybox:latest",)
    assert image.config["Cmd"] == ["sh"]
    root = Path(image.rootfs)
    said = subprocess.run(
        ["chroot", root, "/bin/sh", "-c", "id -un; ls -d /tmp"], capture_output=True, text=True, check=True
    )
    assert said.stdout.split() == ["root", "/tmp"]
    assert stat.S_IMODE((root / "tmp").stat().st_mode) == 0o1777
    assert (root / "home/hako").stat().st_uid == 1000
    again: list[str] = []
    assert sample.make_sample(progress=again.append) == image
    assert again == [], "made once"
    assert api.resolve("busybox", pull="never") == image
    shutil.rmtree(data / "images")
    assert sample.make_sample().digest == image.digest, "the same package makes the same image"
