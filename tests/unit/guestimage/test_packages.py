"""Debian packages: reading apt's answers, the cache of downloads, taking files out of a package."""

from __future__ import annotations

import hashlib
import os
import pathlib
import subprocess
from collections.abc import Sequence

import pytest

from hako.errors import ImageError
from hako.guestimage import packages
from hako.guestimage.licences import copyright_text, licence_names
from hako.guestimage.packages import Apt, Package, merged_path, parse_stanzas, unpack
from hako.guestimage.userland import is_named_after

STANZA = """Package: crun
Version: 1.8.1-1
Depends: libc6 (>= 2.34), libelogind0 [linux-any] | libsystemd0, python3:any
Pre-Depends: dpkg, libc6
Description: a runtime
 Version: not this one
Filename: pool/c.deb
SHA256: abc
"""


def test_parse_stanzas() -> None:
    no_file = "Package: local\nVersion: 1\nStatus: install ok installed\n"
    older = STANZA.replace("1.8.1-1", "1.0")
    found = parse_stanzas("\n".join([STANZA, no_file, older, ""]))
    assert found == {"crun": Package("crun", "1.8.1-1", "abc", ("dpkg", "libc6", "libelogind0", "python3"))}


@pytest.mark.parametrize("text", ["", "\n\n\n", "nonsense", ":", "Package: a\nVersion: 1\n"])
def test_nothing_to_parse(text: str) -> None:
    assert parse_stanzas(text) == {}


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("./lib/x86_64-linux-gnu/libc.so.6", "usr/lib/x86_64-linux-gnu/libc.so.6"),
        ("./lib64/ld.so", "usr/lib64/ld.so"),
        ("./bin/sh", "usr/bin/sh"),
        ("/usr/bin/crun", "usr/bin/crun"),
        ("./library/x", "library/x"),
        (".", None),
        ("./", None),
        ("../etc/passwd", None),
        ("./usr/../../etc/passwd", None),
        ("/../x", None),
    ],
)
def test_merged_path(name: str, expected: str | None) -> None:
    assert merged_path(name) == expected


@pytest.mark.parametrize(
    ("package", "soname", "expected"),
    [
        ("libcap2", "libcap.so.2", True),
        ("liblz4-1", "liblz4.so.1", True),
        ("libgpg-error0", "libgpg-error.so.0", True),
        ("libgcrypt20", "libgcrypt.so.20", True),
        ("libfoo2t64", "libfoo.so.2", True),
        ("libcap-ng0", "libcap.so.2", False),
        ("zlib1g", "libz.so.1", False),
    ],
)
def test_is_named_after(package: str, soname: str, expected: bool) -> None:
    assert is_named_after(package, soname) is expected


@pytest.fixture
def data_root(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> pathlib.Path:
    monkeypatch.setenv("HAKO_DATA_ROOT", str(tmp_path / "data"))
    return tmp_path / "data"


class FakeDownloads:
    """Stands in for apt-get: ``download`` makes the files of ``content``, by package name."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, content: dict[str, bytes]) -> None:
        self.asked: list[str] = []
        self._content = content
        monkeypatch.setattr(packages, "run", self._run)

    def _run(self, argv: Sequence[str], *, cwd: str, missing: str, timeout: float) -> None:
        names = argv[argv.index("download") + 1 :]
        self.asked += names
        for name in names:
            with open(os.path.join(cwd, f"{name}_amd64.deb"), "wb") as file:
                file.write(self._content[name.partition("=")[0]])


def package(name: str, content: bytes, version: str = "1") -> Package:
    return Package(name, version, hashlib.sha256(content).hexdigest(), ())


def test_downloads_are_kept_and_checked(data_root: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    server = FakeDownloads(monkeypatch, {"a": b"A", "b": b"B"})
    said: list[str] = []
    wanted = [package("a", b"A"), package("b", b"B", "2")]
    first = Apt(said.append).fetch(wanted)
    assert [pathlib.Path(path).read_bytes() for path in first] == [b"A", b"B"]
    assert server.asked == ["a=1", "b=2"]
    assert said == ["downloading a 1, b 2"]

    assert Apt(said.append).fetch(wanted) == first
    assert len(server.asked) == 2

    pathlib.Path(first[0]).write_bytes(b"damaged")
    assert Apt(said.append).fetch(wanted) == first
    assert server.asked[2:] == ["a=1"]
    assert pathlib.Path(first[0]).read_bytes() == b"A"


def test_a_download_with_another_content_is_refused(data_root: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    FakeDownloads(monkeypatch, {"a": b"something else"})
    with pytest.raises(ImageError, match="package a does not have the SHA-256"):
        Apt(lambda line: None).fetch([package("a", b"A")])
    assert os.listdir(data_root / "cache" / "packages") == []


def test_old_downloads_are_forgotten(data_root: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    FakeDownloads(monkeypatch, {"a": b"A", "b": b"B"})
    apt = Apt(lambda line: None)
    old, other = apt.fetch([package("a", b"A"), package("b", b"B")])
    FakeDownloads(monkeypatch, {"a": b"A2"})
    (new,) = apt.fetch([package("a", b"A2", "2")])
    apt.forget_old([package("a", b"A2", "2")])
    assert sorted(os.listdir(data_root / "cache" / "packages")) == sorted(map(os.path.basename, [new, other]))
    assert not os.path.exists(old)


def make_deb(path: pathlib.Path) -> str:
    tree = path / "tree"
    for name, text in {
        "DEBIAN/control": "Package: x\nVersion: 1\nArchitecture: all\nMaintainer: m <m@example.org>\nDescription: d\n",
        "lib/libx.so.1": "library",
        "usr/bin/x": "program",
        "usr/share/doc/x/copyright": "text",
    }.items():
        (tree / name).parent.mkdir(parents=True, exist_ok=True)
        (tree / name).write_text(text)
    (tree / "usr/bin/x").chmod(0o755)
    (tree / "lib/libx.so").symlink_to("libx.so.1")
    subprocess.run(["dpkg-deb", "--root-owner-group", "-b", tree, path / "x.deb"], check=True, capture_output=True)
    return str(path / "x.deb")


def test_unpack(tmp_path: pathlib.Path) -> None:
    root = tmp_path / "root"
    found = unpack(make_deb(tmp_path), str(root), lambda path: "/doc/" not in path)
    assert sorted(found) == ["usr/bin/x", "usr/lib/libx.so", "usr/lib/libx.so.1"]
    assert (root / "usr/lib/libx.so").read_text() == "library"
    assert os.access(root / "usr/bin/x", os.X_OK)
    assert not os.access(root / "usr/lib/libx.so.1", os.X_OK)
    assert not (root / "usr/share").exists()


@pytest.mark.parametrize("content", [b"", b"not a package", None])
def test_what_is_no_package(content: bytes | None, tmp_path: pathlib.Path) -> None:
    deb = tmp_path / "x.deb"
    deb.write_bytes(pathlib.Path(make_deb(tmp_path)).read_bytes()[:-200] if content is None else content)
    with pytest.raises(ImageError, match=r"package .*x\.deb cannot be unpacked"):
        unpack(str(deb), str(tmp_path / "root"))


DEP5 = b"""Format: https://www.debian.org/doc/packaging-manuals/copyright-format/1.0/
License: GPL-2

Files: *
License: MIT
 Not a License: this line
License: GPL-2
"""


@pytest.mark.parametrize(
    ("text", "names"),
    [
        (DEP5, ["GPL-2", "MIT"]),
        (
            b"See `/usr/share/common-licenses/LGPL-2.1'.\n/usr/share/common-licenses/GPL-2.",
            ["GPL-2", "LGPL-2.1", "see copyright"],
        ),
        (b"Do what you like.\xff", ["see copyright"]),
        (b"", ["see copyright"]),
    ],
)
def test_licence_names(text: bytes, names: list[str]) -> None:
    assert licence_names(text) == names


def test_copyright_is_found_through_links_inside_the_tree_only(tmp_path: pathlib.Path) -> None:
    docs = tmp_path / "root/usr/share/doc"
    (docs / "a").mkdir(parents=True)
    (docs / "a/copyright").write_text("text of a")
    (docs / "b").symlink_to("a")
    (tmp_path / "outside").mkdir()
    (tmp_path / "outside/copyright").write_text("the host's")
    (docs / "c").symlink_to(tmp_path / "outside")
    root = str(tmp_path / "root")
    assert [copyright_text(root, name) for name in "abcd"] == [b"text of a", b"text of a", None, None]
