"""Published images: names, the default, checks, removal; and what a damaged one does."""

from __future__ import annotations

import json
import multiprocessing
import os
import pathlib
import re
from typing import Any

import pytest

from hako import store
from hako.errors import ImageError
from hako.guestimage import api, images, manifest
from hako.guestimage.manifest import GuestImage
from hako.paths import guest_images_dir


@pytest.fixture(autouse=True)
def data_root(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HAKO_DATA_ROOT", str(tmp_path / "data"))


def about(files: dict[str, bytes], inputs: str = "") -> dict[str, Any]:
    return {
        "format": manifest.FORMAT,
        "form": "initrd",
        "inputs": inputs,
        "kernel": {"version": "6.1"},
        "files": {name: manifest.describe(data) for name, data in files.items()},
    }


def publish(content: bytes = b"initrd", *, default: bool = True) -> GuestImage:
    files = {"vmlinux": b"kernel", "initrd": content, "licences/crun": b"GPL"}
    with store.staging_dir(guest_images_dir()) as staging:
        for name, data in files.items():
            path = os.path.join(staging, name)
            store.ensure_dir(os.path.dirname(path))
            store.write_atomic(path, data)
        return images.publish(staging, about(files, f"inputs of {content!r}"), make_default=default)


def entries() -> set[str]:
    return {name for name in os.listdir(guest_images_dir()) if name != ".lock"}


def test_publish_and_find() -> None:
    image = publish()
    assert re.fullmatch("[0-9a-f]{64}", image.digest)
    assert image.directory == os.path.join(guest_images_dir(), image.digest)
    assert entries() == {image.digest, "default"}
    assert pathlib.Path(image.kernel).read_bytes() == b"kernel"
    assert pathlib.Path(image.initrd).read_bytes() == b"initrd"
    assert (image.form, image.root, image.kernel_version) == ("initrd", None, "6.1")
    for name in (None, "", image.digest, image.digest[:5], image.directory, image.directory + "/"):
        assert api.find(name) == image
    assert os.stat(image.directory).st_mode & 0o777 == 0o755
    api.verify(image)


def test_the_same_content_is_one_image() -> None:
    assert publish() == publish()
    assert len(entries()) == 2


def test_publishing_mends_a_broken_image() -> None:
    image = publish()
    os.unlink(image.initrd)
    assert publish() == image
    api.verify(image)


def test_the_default() -> None:
    assert api.default_digest() is None
    first = publish(b"1")
    second = publish(b"2", default=False)
    assert api.default_digest() == first.digest
    api.set_default(second)
    assert api.find() == second
    assert api.default_digest() == second.digest
    with pytest.raises(ImageError, match="is not a published guest image"):
        api.set_default(second._replace(directory="/tmp/x"))


def test_names_that_find_nothing() -> None:
    with pytest.raises(ImageError, match="There is no guest image yet; run `hako image build`"):
        api.find()
    digests = [publish(bytes([number])).digest for number in range(20)]
    prefix = next(d[0] for d in digests if sum(other[0] == d[0] for other in digests) > 1)
    with pytest.raises(ImageError, match=f"{prefix} is the beginning of [0-9]+ guest images"):
        api.find(prefix)
    unknown = next(f"{n:02x}" for n in range(256) if not any(d.startswith(f"{n:02x}") for d in digests))
    with pytest.raises(ImageError, match=f"There is no guest image {unknown}"):
        api.find(unknown)
    for name in ("latest", "default", "../x", "ABC", "a" * 65, "0x12", " "):
        with pytest.raises(ImageError, match="names no guest image"):
            api.find(name)


def test_a_default_that_is_gone() -> None:
    image = publish()
    store.remove_tree(image.directory)
    with pytest.raises(ImageError, match="is gone; run `hako image build`"):
        api.find()


def test_list_shows_the_newest_first_and_no_damaged_ones() -> None:
    found = [publish(bytes([number])) for number in range(4)]
    for age, image in enumerate(found):
        os.utime(os.path.join(image.directory, "manifest.json"), (1000 - age, 1000 - age))
    pathlib.Path(found[1].directory, "manifest.json").write_text("{")
    os.unlink(found[2].initrd)
    os.mkdir(os.path.join(guest_images_dir(), "f" * 64))
    assert api.list_images() == [found[0], found[3]]
    assert api.built_at(found[3]) == 997


def test_list_without_any() -> None:
    assert api.list_images() == []


def test_inspect() -> None:
    image = publish()
    shown = api.inspect(image.digest[:8])
    assert shown["digest"] == image.digest
    assert shown["default"] is True
    assert shown["size"] == len(b"kernel") + len(b"initrd") + len(b"GPL")
    assert shown["kernel"] == {"version": "6.1"}
    assert json.dumps(shown)


@pytest.mark.parametrize("name", ["vmlinux", "initrd", "licences/crun"])
def test_verify_names_the_changed_file(name: str) -> None:
    image = publish()
    path = pathlib.Path(image.directory, name)
    path.write_bytes(b"X" * path.stat().st_size)
    with pytest.raises(ImageError, match=f"{name} is not the file"):
        api.verify(image)
    path.unlink()
    with pytest.raises(ImageError, match=f"{name} cannot be read"):
        api.verify(image)


def test_verify_sees_a_changed_manifest() -> None:
    image = publish()
    path = pathlib.Path(image.directory, "manifest.json")
    path.write_text(path.read_text() + " ")
    with pytest.raises(ImageError, match="its manifest was changed"):
        api.verify(image)


def test_remove() -> None:
    first, second = publish(b"1"), publish(b"2")
    assert api.remove(first.digest[:10]) == first.digest
    assert entries() == {second.digest, "default"}
    with pytest.raises(ImageError, match="is the default guest image"):
        api.remove(second.digest)
    assert api.find() == second
    api.remove(second.digest, force=True)
    assert entries() == set()
    with pytest.raises(ImageError, match="There is no guest image"):
        api.remove(second.digest)


def copy_of(image: GuestImage, to: pathlib.Path) -> pathlib.Path:
    import shutil

    return pathlib.Path(shutil.copytree(image.directory, to))


def test_a_directory_of_the_users(tmp_path: pathlib.Path) -> None:
    published = publish()
    directory = copy_of(published, tmp_path / "mine")
    image = api.find(str(directory))
    assert image.directory == str(directory)
    assert image.digest != published.digest
    assert api.find(str(directory)) == image
    api.verify(image)
    (directory / "initrd").write_bytes(b"another initrd")
    changed = api.find(str(directory))
    assert changed.digest != image.digest
    with pytest.raises(ImageError, match="initrd is not the file"):
        api.verify(changed)
    with pytest.raises(ImageError, match="is not among hako's own images"):
        api.remove(str(directory))
    assert directory.exists()


def test_a_directory_without_an_image(tmp_path: pathlib.Path) -> None:
    with pytest.raises(ImageError, match=r"is not a guest image: manifest\.json cannot be read"):
        api.find(str(tmp_path))


WHOLE = about({"vmlinux": b"k", "initrd": b"i"})
MANIFESTS: dict[str, Any] = {
    "a list": [],
    "another format": WHOLE | {"format": 99},
    "no form": {key: value for key, value in WHOLE.items() if key != "form"},
    "an unknown form": WHOLE | {"form": "floppy"},
    "a form that is no text": WHOLE | {"form": ["initrd"]},
    "a kernel that is no object": WHOLE | {"kernel": "6.1"},
    "no kernel version": WHOLE | {"kernel": {"version": 6}},
    "no files": WHOLE | {"files": []},
    "no initrd": about({"vmlinux": b"k"}),
    "no erofs file": WHOLE | {"form": "erofs"},
    "a path that leads out": about({"vmlinux": b"k", "initrd": b"i", "../x": b""}),
    "an absolute path": about({"vmlinux": b"k", "initrd": b"i", "/etc/passwd": b""}),
    "a size that is no number": WHOLE | {"files": {"vmlinux": {"size": "1", "sha256": ""}}},
    "an entry that is no object": WHOLE | {"files": {"vmlinux": 5}},
}


@pytest.mark.parametrize("case", MANIFESTS)
def test_manifests_that_are_refused(case: str, tmp_path: pathlib.Path) -> None:
    for name in ("vmlinux", "initrd"):
        (tmp_path / name).write_bytes(b"x")
    (tmp_path / "manifest.json").write_text(json.dumps(MANIFESTS[case]))
    with pytest.raises(ImageError, match="cannot be used: its manifest "):
        api.find(str(tmp_path))


@pytest.mark.parametrize("raw", [b"", b"{", b"\xff\xfe", b"[" * 100_000])
def test_manifests_that_are_no_json(raw: bytes, tmp_path: pathlib.Path) -> None:
    (tmp_path / "manifest.json").write_bytes(raw)
    with pytest.raises(ImageError, match="is not JSON"):
        api.find(str(tmp_path))


@pytest.mark.parametrize(("form", "file"), [("erofs", "root.erofs"), ("disk", "root.img")])
def test_the_other_forms(form: str, file: str, tmp_path: pathlib.Path) -> None:
    files = {"vmlinux": b"k", "initrd": b"i", file: b"root"}
    for name, data in files.items():
        (tmp_path / name).write_bytes(data)
    (tmp_path / "manifest.json").write_text(json.dumps(about(files) | {"form": form}))
    image = api.find(str(tmp_path))
    assert image.root == str(tmp_path / file)
    (tmp_path / file).unlink()
    with pytest.raises(ImageError, match=f"{file}"):
        api.find(str(tmp_path))


def test_find_by_inputs() -> None:
    image = publish(b"1")
    publish(b"2")
    assert images.find_by_inputs("inputs of b'1'") == image
    assert images.find_by_inputs("others") is None
    pathlib.Path(image.initrd).write_bytes(b"longer")
    assert images.find_by_inputs("inputs of b'1'") is None


def _publish_and_remove(number: int) -> None:
    for _ in range(5):
        image = publish(b"shared")
        assert image.kernel_version == "6.1"
        own = publish(bytes([number]), default=False)
        api.remove(own.digest)


def test_publishing_from_many_processes() -> None:
    context = multiprocessing.get_context("fork")
    workers = [context.Process(target=_publish_and_remove, args=(number,)) for number in range(6)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(60)
    assert [worker.exitcode for worker in workers] == [0] * 6
    assert entries() == {publish(b"shared").digest, "default"}
    api.verify(api.find())
