"""Templates on disk: complete or not there, noticed when damaged, removed when nobody needs them."""

from __future__ import annotations

import contextlib
import json
import os
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hako import store
from hako.errors import HostError, ImageError, NotFoundError
from hako.template import files, memory
from support import templates

_DAY = 86400.0


def load(template: files.Template) -> tuple[bytes, bytes]:
    """Memory and state, as clones get them."""
    fds = template.load()
    try:
        assert all(memory.is_sealed(fd) for fd in fds)
        memory_size = os.fstat(fds[0]).st_size
        return os.pread(fds[0], memory_size, 0), os.pread(fds[1], 1 << 20, 0)
    finally:
        for fd in fds:
            os.close(fd)


def test_what_is_published_is_found_and_loaded(tmp_path: Path) -> None:
    root = str(tmp_path / "templates")
    made = templates.publish(root, 7)
    found = files.find(root, made.key)
    assert found == made
    assert [one.key for one in files.list_all(root)] == files.names(root) == [made.key]
    with templates.guest(7) as (memory_fd, state_fd):
        expected = os.pread(memory_fd, templates.MEMORY, 0), os.pread(state_fd, 1 << 20, 0)
    assert load(made) == expected
    made.check()
    assert os.stat(root).st_mode & 0o077 == 0
    assert made.size == (1 << 20) + len(expected[1])
    text = json.dumps(made.describe())
    assert made.key in text
    assert json.loads(text)["memory"]["used"] == 1 << 20


def test_a_template_that_is_made_anew_replaces_the_old_one(tmp_path: Path) -> None:
    root = str(tmp_path)
    old = templates.publish(root, 1)
    new = templates.publish(root, 2)
    assert old.key == new.key
    assert load(new)[1].startswith(b"state 2")
    assert os.listdir(root) == [new.key]
    with pytest.raises(ImageError):
        old.check()


def test_what_killed_builders_have_left_goes(tmp_path: Path) -> None:
    left = tmp_path / f"{store.STAGING_PREFIX}abc"
    left.mkdir()
    (left / "memory").write_bytes(b"half")
    assert files.names(str(tmp_path)) == []
    made = templates.publish(str(tmp_path))
    assert os.listdir(tmp_path) == [made.key]


def test_nothing_is_left_of_a_failure(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise HostError("no room")

    monkeypatch.setattr(memory, "pack", fail)
    with pytest.raises(HostError, match="no room"):
        templates.publish(str(tmp_path))
    assert os.listdir(tmp_path) == []


def test_a_directory_that_cannot_be_is_a_sentence(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    for root in (tmp_path / "file", tmp_path / "file" / "below"):
        with pytest.raises(HostError):
            templates.publish(str(root))
        assert files.names(str(root)) == []


@pytest.mark.parametrize("damage", templates.damages())
def test_damage_is_noticed(tmp_path: Path, damage: str) -> None:
    made = templates.publish(str(tmp_path))
    before = set(os.listdir("/proc/self/fd"))
    templates.damages()[damage](made.path)
    for use in (lambda found: found.check(), lambda found: found.load()):
        with pytest.raises(ImageError, match="template"):
            use(files.find(str(tmp_path), made.key))
    assert files.names(str(tmp_path)) == [made.key]  # so that it can be removed
    files.remove(str(tmp_path), made.key)
    assert os.listdir(tmp_path) == []
    assert set(os.listdir("/proc/self/fd")) == before


@settings(deadline=None, max_examples=60)
@given(st.data())
def test_no_manifest_makes_anything_but_an_error(data: st.DataObject) -> None:
    with tempfile.TemporaryDirectory() as root:
        made = templates.publish(root, used=4096)
        path = os.path.join(made.path, "manifest.json")
        with open(path, "rb") as file:
            content = bytearray(file.read())
        content[data.draw(st.integers(0, len(content) - 1))] ^= data.draw(st.integers(1, 255))
        with open(path, "wb") as file:
            file.write(content)
        # What does not count may be another: when it was made, for example. What counts is right or refused.
        with contextlib.suppress(ImageError):
            found = files.find(root, made.key)
            assert found is not None
            assert found.identity == made.identity
            assert load(found) == load(made)


@pytest.mark.parametrize("value", [None, [], "x", 1, {}, {"size": -1, "used": 0, "sha256": ""}, {"size": "x"}])
@pytest.mark.parametrize("field", ["key", "created_ns", "identity", "memory", "state"])
def test_a_manifest_of_other_types_is_damage(tmp_path: Path, field: str, value: Any) -> None:
    made = templates.publish(str(tmp_path), used=4096)
    path = tmp_path / made.key / "manifest.json"
    if (field, value) == ("created_ns", 1):
        return  # a time like any other
    path.write_text(json.dumps({**json.loads(path.read_text()), field: value}))
    with pytest.raises(ImageError, match="template"):
        load(files.find(str(tmp_path), made.key) or made)


def test_another_templates_files_are_damage(tmp_path: Path) -> None:
    one, other = templates.publish(str(tmp_path), 1, image="a"), templates.publish(str(tmp_path), 2, image="b")
    os.rename(f"{other.path}/memory", f"{one.path}/memory")
    with pytest.raises(ImageError):
        one.load()
    os.rename(f"{other.path}/manifest.json", f"{one.path}/manifest.json")
    with pytest.raises(ImageError):
        files.find(str(tmp_path), one.key)


def test_names_can_be_shortened(tmp_path: Path) -> None:
    root = str(tmp_path)
    keys = [templates.publish(root, image=str(number), used=4096).key for number in range(20)]
    for key in keys:
        assert files.resolve(root, key) == key
        assert files.resolve(root, key[:12]) == key
    for wrong in ("", "z" * 12, keys[0] + "0", "../" + keys[0]):
        with pytest.raises(NotFoundError, match="does not exist"):
            files.resolve(root, wrong)
    ambiguous = next(key[0] for key in keys if sum(other[0] == key[0] for other in keys) > 1)
    with pytest.raises(NotFoundError, match="is not unique"):
        files.resolve(root, ambiguous)


def test_other_files_are_no_templates(tmp_path: Path) -> None:
    (tmp_path / "lock").touch()
    (tmp_path / "x").mkdir()
    (tmp_path / ("-" * 32)).mkdir()
    assert files.names(str(tmp_path)) == []
    assert files.names(str(tmp_path / "none")) == []
    assert files.find(str(tmp_path), "a" * 32) is None
    files.remove(str(tmp_path), "a" * 32)


@pytest.fixture
def shelf(tmp_path: Path) -> Callable[..., files.Template]:
    """Publishes templates that were last used some time ago."""

    def publish(image: str, days: float, **changes: Any) -> files.Template:
        made = templates.publish(str(tmp_path), used=1 << 20, image=image, **changes)
        made.touch()
        when = time.time() - days * _DAY
        os.utime(os.path.join(made.path, "used"), (when, when))
        return made

    return publish


def test_collecting_by_age(tmp_path: Path, shelf: Callable[..., files.Template]) -> None:
    keep, young, old = shelf("a", 99), shelf("b", 1), shelf("c", 3)
    assert files.collect(str(tmp_path), keep, 1 << 30, 2 * _DAY) == [old.key]
    assert set(files.names(str(tmp_path))) == {keep.key, young.key}


def test_collecting_by_size_takes_the_longest_unused(tmp_path: Path, shelf: Callable[..., files.Template]) -> None:
    keep, *others = [shelf(name, days) for name, days in (("a", 9), ("b", 1), ("c", 3), ("d", 2))]
    room = keep.size + others[0].size + others[2].size + 100
    assert files.collect(str(tmp_path), keep, room, 99 * _DAY) == [others[1].key]
    assert files.collect(str(tmp_path), keep, 0, 99 * _DAY) == [others[0].key, others[2].key]
    assert files.names(str(tmp_path)) == [keep.key]


@pytest.mark.parametrize("name", ["format", "hako", "protocol", "qemu"])
def test_collecting_what_was_replaced(tmp_path: Path, shelf: Callable[..., files.Template], name: str) -> None:
    keep, same, replaced = shelf("a", 0), shelf("b", 0), shelf("c", 0, **{name: "older"})
    assert files.collect(str(tmp_path), keep, 1 << 30, _DAY) == [replaced.key]
    assert set(files.names(str(tmp_path))) == {keep.key, same.key}


def test_collecting_what_is_damaged(tmp_path: Path, shelf: Callable[..., files.Template]) -> None:
    keep, damaged = shelf("a", 0), shelf("b", 0)
    (tmp_path / damaged.key / "manifest.json").write_text("{")
    assert files.collect(str(tmp_path), keep, 1 << 30, _DAY) == [damaged.key]
    assert files.names(str(tmp_path)) == [keep.key]


def test_using_one_is_remembered(tmp_path: Path, shelf: Callable[..., files.Template]) -> None:
    made = shelf("a", 5)
    before = made.used_ns()
    made.touch()
    assert made.used_ns() > before
    os.unlink(os.path.join(made.path, "used"))
    assert made.used_ns() == made.created_ns
