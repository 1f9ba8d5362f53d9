"""``hako cp``: docker's rules for paths, and trees that nobody can lead astray."""

from __future__ import annotations

import io
import os
import stat
import tarfile
from pathlib import Path

import pytest

from hako.cli import copying, copytar, copytree, cp
from hako.cli.copying import Place
from hako.cli.copytree import DIRECTORY, FILE, LINK, Entry, TreeWriter
from hako.errors import ConfigError, HakoError, NotFoundError, StateError
from hako.linux import syscalls


class RootPlace(Place):
    """Paths inside a directory, as those of a container are resolved."""

    special_bits = True

    def __init__(self, root: Path) -> None:
        self._root = os.open(root, os.O_PATH | os.O_DIRECTORY)

    def open(self, path: str, flags: int) -> int:
        return syscalls.openat2(self._root, path, flags)

    def describe(self, path: str) -> str:
        return f"box:{path}"


@pytest.fixture
def host(tmp_path: Path) -> Path:
    """The host's side: a file, a directory with a tree in it, links to both."""
    host = tmp_path / "host"
    (host / "tree" / "sub").mkdir(parents=True)
    (host / "file").write_bytes(b"content\x00\xff")
    (host / "tree" / "a").write_text("a")
    (host / "tree" / "sub" / "b").write_text("b")
    (host / "tree" / "link").symlink_to("sub/b")
    (host / "tree" / "dangling").symlink_to("/no/such")
    (host / "to-file").symlink_to("file")
    (host / "to-tree").symlink_to("tree")
    os.chmod(host / "file", 0o4751)
    os.utime(host / "file", ns=(10**9, 1_234_567_890_123_456_789))
    os.chmod(host / "tree" / "sub", 0o750)
    os.utime(host / "tree" / "sub", ns=(10**9, 1_000_000_000 * 10**9))
    return host


@pytest.fixture
def box(tmp_path: Path) -> Path:
    """The container's root: a directory, a file in it, and links that point out of the root."""
    box = tmp_path / "box"
    (box / "etc").mkdir(parents=True)
    (box / "etc" / "old").write_text("old content")
    (box / "up").symlink_to("../../../../..")
    (box / "abs").symlink_to("/etc")
    (box / "etc" / "passwd").write_text("the box's")
    return box


def copy(source: Path | str, box: Path, destination: str, *, follow: bool = False) -> list[str]:
    """Copy ``source`` of the host into ``box``; returns what was left out."""
    skipped: list[str] = []
    place = RootPlace(box)
    found = copying.find_source(Place(), str(source), follow=follow)
    to = copying.find_destination(place, destination)
    copying.copy_path(found, to, place, place.describe(destination), skipped.append)
    return skipped


def tree(path: Path) -> set[str]:
    """The names below ``path``."""
    return {str(found.relative_to(path)) for found in path.rglob("*")}


TREE = {"a", "sub", "sub/b", "link", "dangling"}


@pytest.mark.parametrize(
    ("source", "destination", "made"),
    [
        ("file", "/etc", {"etc/file"}),
        ("file", "/etc/", {"etc/file"}),
        ("file", "/etc/new", {"etc/new"}),
        ("file", "/etc/old", set()),
        ("file", "/abs/new", {"etc/new"}),
        ("file", "/up/etc/new", {"etc/new"}),
        ("file", "/../../etc/new", {"etc/new"}),
        ("to-file", "/etc", {"etc/to-file"}),
        ("tree", "/etc", {"etc/tree", *(f"etc/tree/{name}" for name in TREE)}),
        ("tree/", "/etc", {"etc/tree", *(f"etc/tree/{name}" for name in TREE)}),
        ("tree/.", "/etc", {f"etc/{name}" for name in TREE}),
        ("tree", "/new", {"new", *(f"new/{name}" for name in TREE)}),
        ("tree", "/new/", {"new", *(f"new/{name}" for name in TREE)}),
        ("tree/.", "/new", {"new", *(f"new/{name}" for name in TREE)}),
        ("to-tree", "/etc", {"etc/to-tree"}),
        ("to-tree/", "/etc", {"etc/to-tree", *(f"etc/to-tree/{name}" for name in TREE)}),
    ],
)
def test_where_things_go(host: Path, box: Path, source: str, destination: str, made: set[str]) -> None:
    before = tree(box)
    copy(f"{host}/{source}", box, destination)
    assert tree(box) - before == made


@pytest.mark.parametrize(
    ("source", "destination", "error", "wanted"),
    [
        ("gone", "/etc", NotFoundError, "No such file or directory"),
        ("file/", "/etc", NotFoundError, "Not a directory"),
        ("file", "/gone/new", NotFoundError, "box:/gone: No such file"),
        ("file", "/new/", ConfigError, "there is no such directory"),
        ("tree", "/etc/old", ConfigError, "Cannot copy a directory to box:/etc/old, which is a file"),
        ("tree", "/etc/old/x", NotFoundError, "Not a directory"),
    ],
)
def test_what_cannot_be_copied(
    host: Path, box: Path, source: str, destination: str, error: type[HakoError], wanted: str
) -> None:
    before = tree(box)
    with pytest.raises(error, match=wanted):
        copy(f"{host}/{source}", box, destination)
    assert tree(box) == before


def test_links_are_followed_on_request(host: Path, box: Path) -> None:
    copy(host / "to-file", box, "/etc", follow=True)
    copy(host / "to-tree", box, "/etc", follow=True)
    assert (box / "etc" / "to-file").read_bytes() == b"content\x00\xff"
    assert tree(box / "etc" / "to-tree") == TREE


def test_content_modes_times_and_links_are_kept(host: Path, box: Path) -> None:
    copy(host / "file", box, "/etc")
    copy(host / "tree", box, "/etc")
    status = (box / "etc" / "file").stat()
    assert (box / "etc" / "file").read_bytes() == b"content\x00\xff"
    assert stat.S_IMODE(status.st_mode) == 0o4751
    assert status.st_mtime_ns == 1_234_567_890_123_456_789
    sub = (box / "etc" / "tree" / "sub").stat()
    assert stat.S_IMODE(sub.st_mode) == 0o750
    assert sub.st_mtime_ns == 1_000_000_000 * 10**9
    assert os.readlink(box / "etc" / "tree" / "link") == "sub/b"
    assert os.readlink(box / "etc" / "tree" / "dangling") == "/no/such"


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root")
def test_owners_are_kept_by_root(host: Path, box: Path) -> None:
    os.chown(host / "tree" / "a", 1234, 5678)
    copy(host / "tree", box, "/etc")
    status = (box / "etc" / "tree" / "a").stat()
    assert (status.st_uid, status.st_gid) == (1234, 5678)


def test_files_for_the_host_lose_special_bits(host: Path, tmp_path: Path) -> None:
    source = copying.find_source(Place(), str(host / "file"))
    to = copying.find_destination(Place(), str(tmp_path / "out"))
    copying.copy_path(source, to, Place(), "out", lambda _: None)
    assert stat.S_IMODE((tmp_path / "out").stat().st_mode) == 0o751


def test_an_existing_file_is_written_in_place(host: Path, box: Path) -> None:
    with open(box / "etc" / "old", "rb") as reader:
        copy(host / "file", box, "/etc/old")
        assert reader.read() == b"content\x00\xff"


def test_hard_links_stay_hard_links(host: Path, box: Path) -> None:
    os.link(host / "tree" / "a", host / "tree" / "sub" / "again")
    copy(host / "tree", box, "/new")
    assert (box / "new" / "a").samefile(box / "new" / "sub" / "again")


def test_what_is_no_file_is_left_out(host: Path, box: Path) -> None:
    os.mkfifo(host / "tree" / "pipe")
    assert copy(host / "tree", box, "/new") == ["pipe"]
    assert "pipe" not in tree(box / "new")


@pytest.mark.parametrize("path", ["/up/etc/passwd", "/abs/passwd", "/../etc/passwd", "etc/passwd"])
def test_paths_in_a_container_do_not_leave_it(box: Path, tmp_path: Path, path: str) -> None:
    source = copying.find_source(RootPlace(box), cp._absolute(path))
    to = copying.find_destination(Place(), str(tmp_path / "out"))
    copying.copy_path(source, to, Place(), "out", lambda _: None)
    assert (tmp_path / "out").read_text() == "the box's"


def test_links_in_the_way_are_not_followed(tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "victim").write_text("untouched")
    target = tmp_path / "target"
    target.mkdir()
    (target / "directory").symlink_to(outside)
    (target / "file").symlink_to(outside / "victim")
    parent = os.open(target, os.O_PATH | os.O_DIRECTORY)
    common = (0o644, 0, 0, 0)
    for entry in (
        Entry(("file",), FILE, *common, data=io.BytesIO(b"evil")),
        Entry(("made", "up"), DIRECTORY, *common),
    ):
        TreeWriter(parent, ".").write(entry)
    assert (target / "file").read_text() == "evil"
    assert not (target / "file").is_symlink()
    assert (target / "made" / "up").is_dir()
    for kind in (FILE, DIRECTORY, LINK):
        with pytest.raises(ConfigError, match="directory"):
            TreeWriter(parent, ".").write(Entry(("directory", "victim"), kind, *common, data=io.BytesIO(b"evil")))
    assert (outside / "victim").read_text() == "untouched"
    assert tree(outside) == {"victim"}
    os.close(parent)


@pytest.mark.parametrize(
    ("existing", "entry", "wanted"),
    [("file", DIRECTORY, "is a directory here and something else there"), ("directory", FILE, "is a directory there")],
)
def test_a_directory_and_a_file_do_not_replace_each_other(
    tmp_path: Path, existing: str, entry: str, wanted: str
) -> None:
    (tmp_path / "x").mkdir() if existing == "directory" else (tmp_path / "x").write_text("")
    parent = os.open(tmp_path, os.O_PATH | os.O_DIRECTORY)
    with pytest.raises(ConfigError, match=wanted):
        TreeWriter(parent, ".").write(Entry(("x",), entry, 0o755, 0, 0, 0, data=io.BytesIO(b"")))
    os.close(parent)


def test_a_tree_without_end_is_refused(tmp_path: Path) -> None:
    fd = os.open(tmp_path, os.O_PATH | os.O_DIRECTORY)
    for _ in range(310):
        os.mkdir("d", dir_fd=fd)
        below = os.open("d", os.O_PATH | os.O_DIRECTORY, dir_fd=fd)
        os.close(fd)
        fd = below
    os.close(fd)
    top = os.open(tmp_path, os.O_PATH | os.O_DIRECTORY)
    with pytest.raises(StateError, match="nested more than"):
        list(copytree.read_tree(top, ".", lambda _: None))
    os.close(top)


def test_archives_hold_the_same(host: Path, box: Path) -> None:
    os.link(host / "tree" / "a", host / "tree" / "sub" / "again")
    source = copying.find_source(Place(), str(host / "tree"))
    stream = io.BytesIO()
    copytar.write_tar(copytree.read_tree(source.parent, source.name, lambda _: None), stream, "tree")
    stream.seek(0)
    with tarfile.open(fileobj=stream) as archive:
        assert set(archive.getnames()) == {"tree", *(f"tree/{name}" for name in TREE | {"sub/again"})}
    stream.seek(0)
    parent = os.open(box / "etc", os.O_PATH | os.O_DIRECTORY)
    copytree.copy(copytar.read_tar(stream, []), TreeWriter(parent, "."), "there")
    os.close(parent)
    assert tree(box / "etc" / "tree") == TREE | {"sub/again"}
    assert (box / "etc" / "tree" / "a").samefile(box / "etc" / "tree" / "sub" / "again")
    assert (box / "etc" / "tree" / "sub" / "b").read_text() == "b"
    assert os.readlink(box / "etc" / "tree" / "link") == "sub/b"


def archive(*members: tarfile.TarInfo, mode: str = "w") -> io.BytesIO:
    """An archive of empty ``members``."""
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode=mode) as made:  # type: ignore[call-overload]
        for member in members:
            made.addfile(member)
    stream.seek(0)
    return stream


def member(name: str, kind: bytes = tarfile.REGTYPE, link: str = "") -> tarfile.TarInfo:
    """One member of an archive."""
    made = tarfile.TarInfo(name)
    made.type, made.linkname = kind, link
    return made


@pytest.mark.parametrize(
    "members",
    [
        [member("../evil")],
        [member("a/../../evil")],
        [member("link", tarfile.SYMTYPE, "../.."), member("link/evil")],
        [member("link", tarfile.SYMTYPE, "/"), member("link/evil")],
        [member("hard", tarfile.LNKTYPE, "../../secret")],
        [member("link", tarfile.SYMTYPE, ".."), member("hard", tarfile.LNKTYPE, "link/secret")],
    ],
)
def test_archives_that_lead_out_are_refused(tmp_path: Path, members: list[tarfile.TarInfo]) -> None:
    (tmp_path / "secret").write_text("secret")
    (tmp_path / "in").mkdir()
    parent = os.open(tmp_path / "in", os.O_PATH | os.O_DIRECTORY)
    with pytest.raises(HakoError):
        copytree.copy(copytar.read_tar(archive(*members), []), TreeWriter(parent, "."), "there")
    os.close(parent)
    assert {name for name in tree(tmp_path) if not name.startswith("in")} == {"secret"}
    assert not (tmp_path / "in" / "hard").exists()


def test_compressed_archives_are_read(tmp_path: Path) -> None:
    parent = os.open(tmp_path, os.O_PATH | os.O_DIRECTORY)
    copytree.copy(copytar.read_tar(archive(member("/abs/x"), mode="w:gz"), []), TreeWriter(parent, "."), "there")
    os.close(parent)
    assert tree(tmp_path) == {"abs", "abs/x"}


@pytest.mark.parametrize("content", [b"no archive", b"\x1f\x8b broken", b""])
def test_damaged_archives_give_one_sentence(content: bytes, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="is not a usable tar archive"):
        list(copytar.read_tar(io.BytesIO(content), []))


def test_devices_in_archives_are_left_out() -> None:
    skipped: list[str] = []
    assert list(copytar.read_tar(archive(member("dev", tarfile.CHRTYPE)), skipped)) == []
    assert skipped == ["dev"]


def test_a_file_that_shrinks_leaves_the_archive_whole() -> None:
    entry = Entry(("short",), FILE, 0o644, 0, 0, 0, size=1000, data=io.BytesIO(b"less"))
    stream = io.BytesIO()
    copytar.write_tar([entry], stream, "top")
    stream.seek(0)
    with tarfile.open(fileobj=stream) as made:
        extracted = made.extractfile("top/short")
        assert extracted is not None
        assert extracted.read() == b"less" + bytes(996)


@pytest.mark.parametrize(
    ("text", "container", "path"),
    [
        ("box:/etc", "box", "/etc"),
        ("box:etc", "box", "etc"),
        ("box/inner:/etc", "box/inner", "/etc"),
        ("./a:b", "", "./a:b"),
        ("/a:b", "", "/a:b"),
        ("-", "", "-"),
        ("file", "", "file"),
    ],
)
def test_arguments(text: str, container: str, path: str) -> None:
    assert cp.split(text) == (container, path)


@pytest.mark.parametrize(
    ("words", "wanted"),
    [
        (["a", "b"], "One of the two paths must be"),
        (["a:/x", "b:/y"], "One of the two"),
        (["a:", "b"], "no path after"),
    ],
)
def test_wrong_arguments(words: list[str], wanted: str) -> None:
    with pytest.raises(ConfigError, match=wanted):
        cp.main(words)
