"""Templates with real VMs: one is made, whoever asks; what is wrong with one costs a boot and nothing else."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from conftest import Roots
from hako.template import files
from support import clones, leaks, templates
from support.places import Place, make_place

pytestmark = [pytest.mark.system, pytest.mark.slow, pytest.mark.usefixtures("guest_image", "busybox_image")]


@pytest.fixture
def place(roots: Roots, hako_cmd: list[str]) -> Iterator[Place]:
    made = make_place(roots, hako_cmd, "place")
    yield made
    leaks.clean(made.base)


@pytest.fixture(scope="module")
def first(roots: Roots, hako_cmd: list[str]) -> Iterator[Place]:
    """Where ten starts at once were the first."""
    made = make_place(roots, hako_cmd, "first")
    argv = [*hako_cmd, "run", "--rm", "busybox", "echo", "hello"]
    children = [
        subprocess.Popen(argv, env=made.env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        for _ in range(10)
    ]
    for child in children:
        assert child.communicate(timeout=200) == ("hello\n", "")
        assert child.returncode == 0
    yield made
    leaks.clean(made.base)


def test_ten_first_starts_make_one_template(first: Place) -> None:
    (key,) = first.made()
    template = files.find(first.templates, key)
    assert template is not None
    template.check()
    assert first.hako("template", "list", "-q").stdout == f"{key}\n"
    # Each of the ten would have replaced what the others made.
    assert template.created_ns == files.find(first.templates, key).created_ns  # type: ignore[union-attr]
    assert len(leaks.processes(first.base, keepers=True)) == 1


def test_it_is_small(first: Place) -> None:
    (key,) = first.made()
    template = files.find(first.templates, key)
    assert template is not None
    assert template.memory.used <= 60 << 20
    assert template.state_size <= 2 << 20


def _with_copy(place: Place, source: Place) -> str:
    """Give ``place`` the template of ``source``; return its key."""
    (key,) = source.made()
    os.makedirs(place.templates)
    shutil.copytree(os.path.join(source.templates, key), os.path.join(place.templates, key))
    return key


def test_a_copied_template_is_a_template(place: Place, first: Place) -> None:
    key = _with_copy(place, first)
    before = files.find(place.templates, key)
    place.hako("run", "-d", "--name", "one", "busybox", "sleep", "1000")
    assert place.info("one")["template"] == key
    assert files.find(place.templates, key) == before
    place.hako("rm", "-f", "one")


def test_what_does_not_match_makes_another_and_the_old_stay_while_there_is_room(place: Place, first: Place) -> None:
    key = _with_copy(place, first)
    size = files.find(place.templates, key).size  # type: ignore[union-attr]
    run = ("run", "--rm", "busybox", "grep", "-o", "hako.test", "/proc/cmdline")
    config = Path(place.env["HAKO_CONFIG"])
    config.write_text('[guest]\ncmdline_extra = "hako.test"\n')
    assert place.hako(*run).stdout == "hako.test\n"
    assert key in place.made()
    assert len(place.made()) == 2
    # With room for one and a half, the one that was not used for longest goes.
    config.write_text(
        f'[template]\nmax_size = {size * 5 // 2}\n[hypervisor]\ncpu_model = "max,-erms,-fsrm,-la57,-avx2"\n'
    )
    assert place.hako(*run, check=False).returncode == 1
    kept = place.made()
    assert len(kept) == 2
    assert key not in kept


@pytest.mark.parametrize("damage", ["flip-memory", "cut-state", "flip-manifest.json"])
def test_a_damaged_template_is_made_again_meanwhile_vms_boot(place: Place, first: Place, damage: str) -> None:
    key = _with_copy(place, first)
    path = os.path.join(place.templates, key)
    templates.damages()[damage](path)
    before = os.stat(path).st_ino
    place.hako("run", "-d", "--name", "one", "busybox", "sleep", "1000")
    assert place.info("one")["template"] == ""
    assert place.log("one").count("damaged") >= 1
    assert len([line for line in place.log("one").splitlines() if "is made again" in line]) == 1
    assert clones.until(lambda: os.path.isdir(path) and os.stat(path).st_ino != before)
    place.hako("template", "verify", key)
    assert len(place.log("one").splitlines()) == 1
    place.hako("run", "-d", "--name", "two", "busybox", "sleep", "1000")
    assert place.info("two")["template"] == key
    assert place.log("two") == ""
    place.hako("rm", "-f", "one", "two")


def test_no_room_for_a_template(place: Place) -> None:
    os.makedirs(place.templates)
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=16m", "tmpfs", place.templates], check=True)
    try:
        place.hako("run", "-d", "--name", "one", "busybox", "sleep", "1000")
        assert place.info("one")["template"] == ""
        assert "Not enough disk space for a template" in place.log("one")
        # It is not tried each time.
        place.hako("run", "-d", "--name", "two", "busybox", "sleep", "1000")
        assert place.log("two") == ""
        assert set(os.listdir(place.templates)) <= {"lock"}
        place.hako("rm", "-f", "one", "two")
    finally:
        subprocess.run(["umount", place.templates], check=True)


def test_a_directory_that_cannot_be_written(place: Place) -> None:
    os.makedirs(place.templates)
    subprocess.run(["mount", "-t", "tmpfs", "-o", "ro", "tmpfs", place.templates], check=True)
    try:
        place.hako("run", "-d", "--name", "one", "busybox", "sleep", "1000")
        assert place.info("one")["template"] == ""
        assert "Read-only file system" in place.log("one")
        place.hako("rm", "-f", "one")
    finally:
        subprocess.run(["umount", place.templates], check=True)


def test_templates_can_be_switched_off(place: Place) -> None:
    Path(place.env["HAKO_CONFIG"]).write_text("[template]\nenabled = false\n")
    place.hako("run", "-d", "--name", "one", "busybox", "sleep", "1000")
    assert place.info("one")["template"] == ""
    assert place.log("one") == ""
    assert place.made() == []
    place.hako("rm", "-f", "one")
