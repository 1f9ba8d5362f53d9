"""Files that are never half-written, locks that vanish with their holder."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from hako import store
from hako.errors import HostError
from support import source


def test_write_atomic_replaces_the_content_and_leaves_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "file"
    store.write_atomic(str(path), b"one")
    store.write_atomic(str(path), b"two" * 100_000)
    assert path.read_bytes() == b"two" * 100_000
    assert os.listdir(tmp_path) == ["file"]


@pytest.mark.parametrize("mode", [0o600, 0o640, 0o400])
def test_write_atomic_sets_the_mode(tmp_path: Path, mode: int) -> None:
    path = tmp_path / "file"
    store.write_atomic(str(path), b"", mode)
    assert path.stat().st_mode & 0o777 == mode


def test_a_reader_keeps_the_old_content_while_it_is_replaced(tmp_path: Path) -> None:
    path = tmp_path / "file"
    store.write_atomic(str(path), b"old")
    with path.open("rb") as reader:
        store.write_atomic(str(path), b"new")
        assert reader.read() == b"old"


def test_write_atomic_says_what_failed_and_keeps_the_old_content(tmp_path: Path) -> None:
    with pytest.raises(HostError, match=r"Cannot write .*/missing/file: No such file or directory\."):
        store.write_atomic(str(tmp_path / "missing" / "file"), b"")


def test_write_atomic_on_a_full_disk(tmp_path: Path) -> None:
    """/dev/full is how a full disk looks; the temporary file is linked to it beforehand."""
    path = tmp_path / "file"
    path.write_bytes(b"old")
    (tmp_path / f"file.{os.getpid()}.tmp").symlink_to("/dev/full")
    with pytest.raises(HostError, match="No space left on device"):
        store.write_atomic(str(path), b"new")
    assert path.read_bytes() == b"old"
    assert os.listdir(tmp_path) == ["file"]


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (b'{"a": 1}', {"a": 1}),
        (b"", None),
        (b'{"a": ', None),
        (b"[1]", None),
        (b"\xff\xfe", None),
        (b"null", None),
    ],
)
def test_read_json_takes_only_whole_objects(tmp_path: Path, content: bytes, expected: object) -> None:
    path = tmp_path / "file"
    path.write_bytes(content)
    assert store.read_json(str(path)) == expected


def test_read_json_of_what_is_missing(tmp_path: Path) -> None:
    assert store.read_json(str(tmp_path / "none")) is None
    (tmp_path / "file").touch()
    assert store.read_json(str(tmp_path / "file" / "below")) is None


def test_json_comes_back_as_it_was(tmp_path: Path) -> None:
    value = {"text": "箱 \n \u2028", "number": 1 << 60, "list": [None, True, 1.5], "empty": {}}
    store.write_json(str(tmp_path / "file"), value)
    assert store.read_json(str(tmp_path / "file")) == value


def test_a_lock_is_held_by_one_and_shared_by_many(tmp_path: Path) -> None:
    path = str(tmp_path / "lock")
    first = store.lock(path)
    assert first is not None
    assert store.lock(path, wait=False) is None
    assert store.lock(path, wait=False, shared=True) is None
    os.close(first)
    readers = [store.lock(path, wait=False, shared=True) for _ in range(2)]
    assert None not in readers
    assert store.lock(path, wait=False) is None
    for reader in readers:
        assert reader is not None
        os.close(reader)


def test_a_lock_vanishes_with_its_holder(tmp_path: Path) -> None:
    path = str(tmp_path / "lock")
    code = "import sys; from hako import store; store.lock(sys.argv[1]); print('held', flush=True); sys.stdin.read()"
    environment = {**os.environ, "PYTHONPATH": source.SOURCE}
    with subprocess.Popen(
        [sys.executable, "-c", code, path], stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=environment
    ) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == b"held\n"
        assert store.lock(path, wait=False) is None
        holder.kill()
        fd = store.lock(path)
        assert fd is not None
        os.close(fd)


def test_locked_gives_the_lock_back_when_the_block_fails(tmp_path: Path) -> None:
    path = str(tmp_path / "lock")
    with pytest.raises(TypeError, match="held"), store.locked(path):
        raise TypeError("held" if store.lock(path, wait=False) is None else "free")
    fd = store.lock(path, wait=False)
    assert fd is not None
    os.close(fd)


def test_a_lock_is_not_inherited(tmp_path: Path) -> None:
    with store.locked(str(tmp_path / "lock")):
        done = subprocess.run(
            ["ls", "-l", "/proc/self/fd"], capture_output=True, text=True, check=True, close_fds=False
        )
    assert str(tmp_path / "lock") not in done.stdout


def test_staging_dir_goes_away_unless_renamed(tmp_path: Path) -> None:
    parent = str(tmp_path / "a" / "b")
    with store.staging_dir(parent) as staged:
        Path(staged, "file").touch()
    assert os.listdir(parent) == []
    with store.staging_dir(parent) as staged:
        Path(staged, "file").touch()
        os.rename(staged, os.path.join(parent, "final"))
    assert os.listdir(parent) == ["final"]
    with pytest.raises(KeyError), store.staging_dir(parent):
        raise KeyError
    assert os.listdir(parent) == ["final"]


def test_remove_tree_does_not_follow_links(tmp_path: Path) -> None:
    kept = tmp_path / "kept"
    kept.mkdir()
    (kept / "file").touch()
    tree = tmp_path / "tree"
    tree.mkdir()
    (tree / "link").symlink_to(kept)
    store.remove_tree(str(tree))
    assert not tree.exists()
    assert (kept / "file").exists()
    store.remove_tree(str(tree))
    store.remove_tree(str(kept / "file" / "below"))


def test_ensure_dir_makes_parents_and_says_what_is_in_the_way(tmp_path: Path) -> None:
    path = str(tmp_path / "a" / "b")
    assert store.ensure_dir(path) == path
    assert store.ensure_dir(path) == path
    (tmp_path / "file").touch()
    with pytest.raises(HostError, match=r"Cannot create .*/file/below: Not a directory\."):
        store.ensure_dir(str(tmp_path / "file" / "below"))


def test_check_free_space(tmp_path: Path) -> None:
    store.check_free_space(str(tmp_path), 1, "a byte")
    with pytest.raises(HostError, match=r"Not enough disk space for everything: .* MiB free, 1099511627776 MiB are"):
        store.check_free_space(str(tmp_path), 1 << 60, "everything")
