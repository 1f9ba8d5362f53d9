"""What is remembered between builds, and when it is trusted."""

from __future__ import annotations

import os
import pathlib

import pytest

from hako.errors import ImageError
from hako.guestimage import api, resolved
from hako.guestimage.packages import Apt, Package

USED = [Package("crun", "1", "aa", ("libc6",)), Package("libc6", "2", "bb", ())]
ASKED = [Package("python3-minimal", "3", "cc", ("python3.11-minimal",))]


class FakeApt(Apt):
    """Knows some packages and counts how often it is asked."""

    def __init__(self, known: list[Package]) -> None:
        super().__init__(lambda line: None)
        self.lookups = 0
        self._packages = {package.name: package for package in known}

    def find(self, names: object) -> list[Package]:
        self.lookups += 1
        assert isinstance(names, list)
        return [self._packages[name] for name in names if name in self._packages]


@pytest.fixture(autouse=True)
def stamp(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The stamp of apt's lists, which a test changes by assignment."""
    monkeypatch.setenv("HAKO_DATA_ROOT", str(tmp_path / "data"))
    now = ["one"]
    monkeypatch.setattr(resolved, "apt_stamp", lambda: now[0])
    return now


def test_nothing_is_remembered_at_first() -> None:
    assert resolved.load(["os"], FakeApt([]), own_kernel=False) is None


def test_untouched_lists_need_no_look_up() -> None:
    resolved.save(["os"], USED, ASKED, own_kernel=False)
    apt = FakeApt([])
    assert resolved.load(["os"], apt, own_kernel=False) == USED
    assert apt.lookups == 0
    assert resolved.load(["os", "json"], apt, own_kernel=False) is None
    assert resolved.load(["os"], apt, own_kernel=True) is None


def test_touched_lists_with_the_same_packages(stamp: list[str]) -> None:
    resolved.save(["os"], USED, ASKED, own_kernel=False)
    stamp[0] = "two"
    apt = FakeApt([*USED, *ASKED])
    assert resolved.load(["os"], apt, own_kernel=False) == USED
    assert resolved.load(["os"], apt, own_kernel=False) == USED
    assert apt.lookups == 1


@pytest.mark.parametrize(
    "now",
    [
        [*USED, ASKED[0]._replace(depends=("python3.12-minimal",))],
        [USED[0]._replace(version="1.1", sha256="dd"), USED[1], *ASKED],
        [*USED],
        [],
    ],
    ids=["another Python", "a newer crun", "a package gone", "no lists"],
)
def test_touched_lists_with_other_packages(now: list[Package], stamp: list[str]) -> None:
    resolved.save(["os"], USED, ASKED, own_kernel=False)
    stamp[0] = "two"
    assert resolved.load(["os"], FakeApt(now), own_kernel=False) is None


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"imports":["os"]}', '{"imports":["os"],"used":[5],"asked":[]}'])
def test_a_damaged_memory_is_no_memory(text: str) -> None:
    resolved.save(["os"], USED, ASKED, own_kernel=False)
    path = os.path.join(os.environ["HAKO_DATA_ROOT"], "cache", "guest-packages.json")
    pathlib.Path(path).write_text(text)
    assert resolved.load(["os"], FakeApt([]), own_kernel=False) is None


def test_own_kernel(tmp_path: pathlib.Path) -> None:
    kernel, modules = tmp_path / "vmlinuz", tmp_path / "modules"
    modules.mkdir()
    module = modules / "9p.ko"
    kernel.write_text("kernel")
    module.write_text("module")
    arguments = (str(kernel), str(modules), ())
    assert resolved.load_own_kernel(*arguments) is None
    for change in (
        lambda: kernel.write_text("other"),
        lambda: module.write_text("other module"),
        lambda: (modules / "modules.dep").write_text("depmod was here"),
        module.unlink,
    ):
        resolved.save_own_kernel(*arguments, [str(module)], "digest")
        assert resolved.load_own_kernel(*arguments) == "digest"
        assert resolved.load_own_kernel(str(kernel), str(modules), ("tun",)) is None
        change()
        assert resolved.load_own_kernel(*arguments) is None


@pytest.mark.parametrize(("kernel", "modules"), [("/boot/vmlinuz", None), (None, "/lib/modules/1")])
def test_kernel_and_modules_come_together(kernel: str | None, modules: str | None) -> None:
    with pytest.raises(ImageError, match="without"):
        api.build(lambda line: None, kernel=kernel, modules_dir=modules)
