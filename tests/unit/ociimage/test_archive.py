"""Archives are told apart by content, whatever their name and compression; damaged ones are refused in words."""

from __future__ import annotations

import bz2
import gzip
import io
import lzma
import shutil
import subprocess
import tarfile
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hako.errors import ImageError
from hako.ociimage import archive, reference


def _tar(*names: str, body: bytes = b"{}" * 400, kind: int = tarfile.GNU_FORMAT) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=kind) as tar:
        for name in names:
            member = tarfile.TarInfo(name)
            if name.endswith("/"):
                member.type = tarfile.DIRTYPE
                tar.addfile(member)
            else:
                member.size = len(body)
                tar.addfile(member, io.BytesIO(body))
    return buffer.getvalue()


_LONG = "blobs/" + "x" * 150
OCI = _tar("blobs/", _LONG, "./index.json", "oci-layout")
DOCKER = _tar("abc.json", "layer/", "layer/layer.tar", "manifest.json", kind=tarfile.PAX_FORMAT)
BOTH = _tar("manifest.json", "blobs/", "index.json", "oci-layout")


@pytest.mark.parametrize(
    ("data", "kind"),
    [(OCI, reference.OCI_ARCHIVE), (DOCKER, reference.DOCKER_ARCHIVE), (BOTH, reference.OCI_ARCHIVE)],
)
def test_kinds(tmp_path: Path, data: bytes, kind: str) -> None:
    (tmp_path / "a").write_bytes(data)
    assert archive.kind_of(str(tmp_path / "a"), "a") == kind


@pytest.mark.parametrize(
    ("data", "sentence"),
    [
        (b"", "neither index.json"),
        (b"hello world" * 100, "not a tar file"),
        (b"\0" * 10240, "neither index.json"),
        (_tar("bin/sh", "etc/passwd"), "neither index.json"),
        (_tar("bin/sh")[:600], "ends too early"),
        (_tar("bin/sh")[:1536] + b"garbage" * 200, "no tar header at byte 1536"),
        (_tar("dir/manifest.json"), "neither index.json"),
    ],
)
def test_what_is_no_image_archive(tmp_path: Path, data: bytes, sentence: str) -> None:
    (tmp_path / "a").write_bytes(data)
    with pytest.raises(ImageError, match=sentence):
        archive.kind_of(str(tmp_path / "a"), "app.tar")


def _zstd(data: bytes) -> bytes:
    return subprocess.run(["zstd", "-qc"], input=data, capture_output=True, check=True).stdout


_PACKERS = [
    gzip.compress,
    bz2.compress,
    lzma.compress,
    pytest.param(_zstd, marks=pytest.mark.skipif(shutil.which("zstd") is None, reason="needs zstd")),
]


@pytest.mark.parametrize("pack", _PACKERS)
def test_compressions(tmp_path: Path, pack: Callable[[bytes], bytes]) -> None:
    path = tmp_path / "app"
    path.write_bytes(pack(DOCKER))
    plain = archive.decompressed(str(path), str(tmp_path))
    assert Path(plain).read_bytes() == DOCKER
    path.write_bytes(pack(DOCKER)[:-40])
    with pytest.raises(ImageError, match="damaged: it cannot be decompressed"):
        archive.decompressed(str(path), str(tmp_path))


def test_a_plain_archive_is_not_copied(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(OCI)
    assert archive.decompressed(str(tmp_path / "a"), str(tmp_path)) == str(tmp_path / "a")


def test_a_missing_archive(tmp_path: Path) -> None:
    with pytest.raises(ImageError, match="No such file"):
        archive.decompressed(str(tmp_path / "none"), str(tmp_path))


@given(st.binary(max_size=2048), st.integers(0, len(DOCKER)))
def test_any_bytes_are_an_archive_or_refused(noise: bytes, position: int) -> None:
    import tempfile

    with tempfile.NamedTemporaryFile() as file:
        file.write(DOCKER[:position] + noise + DOCKER[position + len(noise) :])
        file.flush()
        problem = ""
        try:
            found = archive.kind_of(file.name, "app.tar")
        except ImageError as error:
            problem = str(error)
        assert "app.tar" in problem if problem else found in (reference.OCI_ARCHIVE, reference.DOCKER_ARCHIVE)
