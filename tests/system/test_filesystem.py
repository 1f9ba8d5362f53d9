"""The file systems that containers see, by both drivers: what works, what does not, and what a hostile guest may try.

What is known not to work is said in docs/filesystem.md, whose table these tests read: a gap that has been closed makes
them fail too.
"""

from __future__ import annotations

import ast
import os
import pathlib
import re
import shutil
from collections.abc import Iterator
from typing import Any

import pytest

import hako
from support.filesystem.harness import Filesystem

pytestmark = [pytest.mark.system, pytest.mark.slow]

_ROOT = pathlib.Path(__file__).parents[2]
_DRIVERS = ("9p", "virtiofs")


def _checks() -> list[str]:
    """The functions of the check modules that get a directory and nothing else."""
    found = []
    for path in sorted((_ROOT / "tests/support/filesystem").glob("check_*.py")):
        functions = [node for node in ast.parse(path.read_text()).body if isinstance(node, ast.FunctionDef)]
        found += [function.name for function in functions if [arg.arg for arg in function.args.args] == ["d"]]
    return found


def _gaps() -> dict[str, dict[str, bool]]:
    """What the documentation says does not work: by driver, the checks and whether they pass."""
    rows = re.findall(r"^\|[^|]+\| (yes|no) \| (yes|no) \| `(\w+)` \|$", _documentation(), re.MULTILINE)
    columns = {driver: {row[2]: row[number] == "yes" for row in rows} for number, driver in enumerate(_DRIVERS)}
    assert rows
    return columns


def _documentation() -> str:
    return (_ROOT / "docs/filesystem.md").read_text(encoding="utf-8")


_GAPS = _gaps()
_CHECKS = _checks()


@pytest.fixture(scope="module", params=_DRIVERS)
def driver(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="module")
def files(guest_image: Any, tmp_path_factory: pytest.TempPathFactory, driver: str) -> Iterator[Filesystem]:
    """A VM with its containers, for all tests of one driver."""
    directory = tmp_path_factory.mktemp(driver) / "files"
    started = Filesystem(guest_image, driver, directory)
    try:
        yield started
    finally:
        started.close()
        shutil.rmtree(directory)


def test_the_documented_gaps_are_checks() -> None:
    assert set(_GAPS["9p"]) <= set(_CHECKS)
    assert not [name for name in _GAPS["9p"] if _GAPS["9p"][name] and _GAPS["virtiofs"][name]]


@pytest.mark.parametrize("name", _CHECKS)
def test_check(files: Filesystem, driver: str, name: str) -> None:
    # Making 5,000 files takes a while; once is enough.
    places = ["/volume"] if name == "large_directory" else ["/data", "/volume"]
    for place in places:
        if _GAPS[driver].get(name, True):
            files.call("one", "check", name, place)
        else:
            with pytest.raises(AssertionError, match=rf", in {name}\n"):
                files.call("one", "check", name, place)


def test_links_that_point_outside_are_not_followed_on_the_host(files: Filesystem, tmp_path: pathlib.Path) -> None:
    secret = tmp_path / "secret"
    secret.write_text("the host's")
    for place in ("/data", "/volume"):
        files.call("one", "check", "links_that_point_outside", place, str(secret))
    assert os.listdir(tmp_path) == ["secret"]
    # They are kept as they were written, for the guest to follow in its own tree.
    assert os.readlink(files.volume / "links_that_point_outside" / "0") == str(secret)


def test_containers_append_to_one_file(files: Filesystem) -> None:
    files.begin("one", "append", "/volume/log", "a", 300)
    files.call("two", "append", "/volume/log", "b", 300)
    files.end("one")
    lines = (files.volume / "log").read_text().split()
    assert [line for line in lines if line[0] == "a"] == [f"a{number:06}" for number in range(300)]
    assert [line for line in lines if line[0] == "b"] == [f"b{number:06}" for number in range(300)]
    assert len(lines) == 600


def test_containers_share_a_mapping(files: Filesystem) -> None:
    files.call("one", "write_text", "/volume/mapped", "\0" * 4096)
    for turn in range(6):
        files.call("two" if turn % 2 else "one", "mmap_between_containers", "/volume/mapped", turn)


@pytest.mark.parametrize("kind", ["flock", "posix", "ofd"])
def test_containers_lock_each_other_out(files: Filesystem, kind: str) -> None:
    held = files.call("one", "lock", f"/volume/{kind}", kind)
    assert held >= 0
    assert files.call("two", "lock", f"/volume/{kind}", kind) == -1
    files.call("one", "close", held)
    held = files.call("two", "lock", f"/volume/{kind}", kind)
    assert held >= 0
    files.call("two", "close", held)


def test_roots_are_apart_and_the_image_stays_as_it_is(files: Filesystem) -> None:
    files.call("one", "write_text", "/data/mine", "one")
    files.call("one", "write_text", "/checks/check_names.py", "changed")
    assert "mine" not in files.call("two", "names", "/data")
    assert files.call("two", "read_text", "/checks/check_names.py") != "changed"
    assert (files.directory / "lower/checks/check_names.py").read_text() != "changed"
    assert (files.directory / "layer-one/upper/data/mine").read_text() == "one"


def test_read_only_volumes(files: Filesystem) -> None:
    files.call("two", "read_only", "/readonly")
    assert os.listdir(files.volume).count("file") == 1
    # What another container writes is seen there all the same.
    files.call("one", "write_text", "/volume/written", "by one")
    assert files.call("two", "read_text", "/readonly/written") == "by one"


def test_a_volume_that_is_a_file(files: Filesystem) -> None:
    assert files.call("two", "read_text", "/file") == "a file of the host\n"
    assert files.call("two", "status", "/file") == files.call("two", "status", "/volume/file")


def test_what_the_host_changes_is_seen_within_a_second(files: Filesystem) -> None:
    host = files.volume
    (host / "changing").write_text("before")
    assert files.call("one", "read_text", "/volume/changing") == "before"
    held = files.call("one", "hold_open", "/volume/changing")
    (host / "changing").write_text("after, and longer")
    files.until(lambda: files.call("one", "read_text", "/volume/changing") == "after, and longer")
    files.until(lambda: files.call("one", "reread", held) == "after, and longer")
    files.call("one", "close", held)
    (host / "new").write_text("new")
    files.until(lambda: "new" in files.call("one", "names", "/volume"))
    os.rename(host / "new", host / "renamed")
    files.until(lambda: {"new", "renamed"} & set(files.call("one", "names", "/volume")) == {"renamed"})
    assert files.call("one", "read_text", "/volume/renamed") == "new"
    os.unlink(host / "renamed")
    files.until(lambda: "renamed" not in files.call("one", "names", "/volume"))
    os.chmod(host / "changing", 0o751)
    files.until(lambda: files.call("one", "status", "/volume/changing")[0] & 0o777 == 0o751)


def test_what_the_guest_writes_is_there_for_the_host(files: Filesystem) -> None:
    files.call("one", "write_text", "/volume/from-guest", "content")
    assert (files.volume / "from-guest").read_text() == "content"
    status = os.stat(files.volume / "from-guest")
    assert (status.st_uid, status.st_gid, status.st_mode & 0o777) == (0, 0, 0o644)


def test_containers_come_and_go(files: Filesystem) -> None:
    for _ in range(2):
        files.do("add", "guest")
        files.call("guest", "write_text", "/data/file", "third")
        assert files.call("guest", "read_text", "/volume/file") == "a file of the host\n"
        assert (files.directory / "layer-guest/upper/data/file").read_text() == "third"
        files.do("remove", "guest")
        assert not (files.directory / "shared/guest").exists()
        assert (files.volume / "file").exists()


@pytest.fixture
def helper(files: Filesystem, driver: str) -> int:
    """The process of virtiofsd that does the work."""
    if driver != "virtiofs":
        pytest.skip("9p has no helper")
    pid = files.do("about")["helper"]
    children = pathlib.Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    assert len(children) == 1
    return int(children[0])


def test_the_helper_is_shut_in(files: Filesystem, helper: int) -> None:
    status = dict(line.split(":\t", 1) for line in pathlib.Path(f"/proc/{helper}/status").read_text().splitlines())
    # chown, dac_override, fowner, fsetid, setgid, setuid, setfcap
    assert int(status["CapPrm"], 16) == sum(1 << bit for bit in (0, 1, 3, 4, 6, 7, 31))
    assert status["CapAmb"] == status["CapInh"] == "0" * 16
    assert (status["NoNewPrivs"], status["Seccomp"]) == ("1", "2")
    assert set(os.listdir(f"/proc/{helper}/root")) == {".volumes", "one", "two"}
    for kind in ("mnt", "net", "pid"):
        assert os.readlink(f"/proc/{helper}/ns/{kind}") != os.readlink(f"/proc/self/ns/{kind}")


def test_nothing_of_a_removed_container_is_kept(files: Filesystem, helper: int) -> None:
    before = len(os.listdir(f"/proc/{helper}/fd"))
    files.do("add", "guest")
    files.call("guest", "check", "list_while_it_changes", "/data")
    assert len(os.listdir(f"/proc/{helper}/fd")) > before + 400
    files.do("remove", "guest")
    mounts = pathlib.Path(f"/proc/{helper}/mountinfo").read_text()
    assert "/one/" in mounts
    assert "guest" not in mounts
    files.until(lambda: len(os.listdir(f"/proc/{helper}/fd")) < before + 50)


def test_the_end_of_the_helper_is_reported(guest_image: Any, tmp_path: pathlib.Path) -> None:
    started = Filesystem(guest_image, "virtiofs", tmp_path / "files")
    try:
        said = started.do("kill_helper")
        assert said == "virtiofsd, which serves the files of the VM, was ended by signal SIGKILL: it said nothing."
    finally:
        started.close()
        shutil.rmtree(tmp_path / "files")


def test_the_library_uses_the_driver_that_an_annotation_names(
    guest_image: Any, busybox_image: Any, tmp_path: pathlib.Path
) -> None:
    annotations = {"dev.hako.share-driver": "virtiofs", "dev.hako.template": "false"}
    with hako.Sandbox(image="busybox", annotations=annotations) as sandbox:
        done = sandbox.run(
            ["sh", "-c", "mkfifo /fifo /volume/fifo && echo by the guest > /volume/file && grep ' / ' /proc/mounts"],
            mounts=[(str(tmp_path), "/volume")],
        )
        assert done.stdout.split()[2] == "virtiofs"
    assert (tmp_path / "file").read_text() == "by the guest\n"
    assert (tmp_path / "fifo").is_fifo()
