"""What a user's text means: names in docker's grammar, paths, transports."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hako.errors import ConfigError, HakoError, ImageError, NotFoundError
from hako.ociimage import reference

DIGEST = "sha256:" + "0123456789abcdef" * 4


@pytest.mark.parametrize(
    ("name", "location", "selector", "key"),
    [
        ("busybox", "docker.io/library/busybox", "latest", "busybox:latest"),
        ("busybox:1.35", "docker.io/library/busybox", "1.35", "busybox:1.35"),
        ("docker.io/busybox", "docker.io/library/busybox", "latest", "busybox:latest"),
        ("index.docker.io/library/busybox", "docker.io/library/busybox", "latest", "busybox:latest"),
        ("me/app", "docker.io/me/app", "latest", "me/app:latest"),
        ("ghcr.io/me/app:v1", "ghcr.io/me/app", "v1", "ghcr.io/me/app:v1"),
        ("localhost/app", "localhost/app", "latest", "localhost/app:latest"),
        ("localhost:5000/app:v1", "localhost:5000/app", "v1", "localhost:5000/app:v1"),
        ("[::1]:5000/app", "[::1]:5000/app", "latest", "[::1]:5000/app:latest"),
        ("10.0.0.1/a/b-c/d__e", "10.0.0.1/a/b-c/d__e", "latest", "10.0.0.1/a/b-c/d__e:latest"),
        (f"busybox@{DIGEST}", "docker.io/library/busybox", DIGEST, f"busybox@{DIGEST}"),
        (f"r.io/a:v1@{DIGEST}", "r.io/a", DIGEST, f"r.io/a@{DIGEST}"),
    ],
)
def test_names(name: str, location: str, selector: str, key: str) -> None:
    source = reference.parse(name)
    assert source == reference.Source(reference.REGISTRY, location, selector)
    assert source.key == key
    assert reference.parse(f"docker://{name}") == source
    assert reference.parse_name(source.key) == source


@pytest.mark.parametrize(
    "name",
    [
        "Busybox", "a b", "a:", "a:b c", "a@", "a@sha256:12", f"a@{DIGEST}0", "a//b", "-a", "a/", "a..b",
        "a:" + "t" * 129, "x" * 256, "localhost:port/a", "a:b:c", "docker://", "é", "a\n", "--help",
    ],
)  # fmt: skip
def test_what_is_no_name(name: str) -> None:
    with pytest.raises(ConfigError):
        reference.parse(name)


@pytest.mark.parametrize("name", ["", "a\0b", "a\nb"])
def test_no_name_at_all(name: str) -> None:
    with pytest.raises(ConfigError, match="has no name"):
        reference.parse(name)


@pytest.mark.parametrize("name", ["docker-daemon:a:b", "containers-storage:x", "dir:/x"])
def test_foreign_transports_get_a_remedy(name: str) -> None:
    with pytest.raises(ImageError, match=f"skopeo copy {name}"):
        reference.parse(name)


@pytest.fixture
def tree(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "root" / "bin").mkdir(parents=True)
    (tmp_path / "lay:out").mkdir()
    (tmp_path / "lay:out" / "oci-layout").write_text("{}")
    (tmp_path / "app.tar").write_bytes(b"")
    os.mkfifo(tmp_path / "fifo")
    os.symlink("app.tar", tmp_path / "link.tar")
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize(
    ("ref", "kind", "path", "selector"),
    [
        ("./root", reference.ROOTFS, "root", ""),
        ("rootfs:root", reference.ROOTFS, "root", ""),
        ("root/bin", reference.ROOTFS, "root/bin", ""),
        (".", reference.ROOTFS, "", ""),
        ("./lay:out", reference.LAYOUT, "lay:out", ""),
        ("./lay:out:v1", reference.LAYOUT, "lay:out", "v1"),
        ("oci:lay:out:v1", reference.LAYOUT, "lay:out", "v1"),
        ("./app.tar", reference.ARCHIVE, "app.tar", ""),
        ("./app.tar:a/b:v1", reference.ARCHIVE, "app.tar", "a/b:v1"),
        ("docker-archive:app.tar", reference.DOCKER_ARCHIVE, "app.tar", ""),
        ("oci-archive:app.tar:x", reference.OCI_ARCHIVE, "app.tar", "x"),
        ("./link.tar", reference.ARCHIVE, "app.tar", ""),
    ],
)
def test_paths(tree: Path, ref: str, kind: str, path: str, selector: str) -> None:
    assert reference.parse(ref) == reference.Source(kind, os.path.normpath(tree / path), selector)


def test_a_bare_word_is_a_name_even_when_it_exists(tree: Path) -> None:
    assert reference.parse("root").kind == reference.REGISTRY


@pytest.mark.parametrize(
    ("ref", "error", "sentence"),
    [
        ("./none", NotFoundError, "no image at ./none"),
        ("/none/at/all", NotFoundError, "no such file"),
        ("oci:none", NotFoundError, "no image at none"),
        ("./fifo", ImageError, "neither a directory nor a file"),
        ("oci:root", ImageError, "not an OCI layout"),
        ("oci:app.tar", ImageError, "not a directory"),
        ("docker-archive:root", ImageError, "not a file"),
        ("./root:v1", ImageError, "has no tags"),
        ("rootfs:root:v1", NotFoundError, "no root directory"),
    ],
)
def test_paths_that_are_no_images(tree: Path, ref: str, error: type[HakoError], sentence: str) -> None:
    with pytest.raises(error, match=sentence):
        reference.parse(ref)


@pytest.mark.parametrize(
    ("ref", "expected"),
    [(DIGEST, DIGEST[7:]), ("sha256:0123", "0123"), ("cafe", "cafe"), ("caf", None), ("busybox", None), ("CAFE", None)],
)
def test_digest_prefix(ref: str, expected: str | None) -> None:
    assert reference.digest_prefix(ref) == expected


@given(st.text(max_size=40))
def test_any_text_is_a_source_or_an_error(text: str) -> None:
    try:
        source = reference.parse(text)
    except HakoError as error:
        source = None
        message = str(error)
    assert source.key if source is not None else message
