"""The list of modules that the agent reads; crun without the library that it does not use."""

from __future__ import annotations

from typing import TYPE_CHECKING, cast

import pytest

from hako.guestimage import requested, rootfs
from hako.guestimage.elf import ElfFile
from hako.guestimage.kerneltree import KernelTree
from hako.guestimage.modules import ModulePlan
from hako.guestimage.requested import Requested

if TYPE_CHECKING:
    from hako.guestimage.userland import Userland

#: A program that is on every Debian, with a library that it does not always use.
with open("/bin/tar", "rb") as _file:
    PROGRAM = _file.read()
LIBRARY = "libacl.so.1"


class Unpacked:
    """A userland of one program, with nothing that could run it."""

    def __init__(self, data: bytes) -> None:
        self.root = "/"
        self.data = data
        self.replaced = 0

    def read(self, _path: str) -> bytes:
        return self.data

    def replace(self, _path: str, data: bytes) -> None:
        self.data = data
        self.replaced += 1

    def libraries(self, _programs: list[str]) -> dict[str, str]:
        return {}


def slim(
    monkeypatch: pytest.MonkeyPatch, program: bytes, soname: str, command: list[str]
) -> tuple[Unpacked, list[str]]:
    said: list[str] = []
    userland = Unpacked(program)
    monkeypatch.setattr(rootfs, "_UNUSED_BY_CRUN", soname)
    monkeypatch.setattr(rootfs, "guest_command", lambda _root, _program: command)
    rootfs._slim_crun(cast("Userland", userland), said.append)
    return userland, said


def test_a_crun_that_starts_without_goes_without(monkeypatch: pytest.MonkeyPatch) -> None:
    userland, said = slim(monkeypatch, PROGRAM, LIBRARY, ["/bin/true"])
    assert LIBRARY not in ElfFile(userland.data, "x").needed()
    assert said == []


def test_a_crun_that_does_not_start_without_stays_as_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    userland, said = slim(monkeypatch, PROGRAM, LIBRARY, ["/bin/false"])
    assert userland.data == PROGRAM
    assert userland.replaced == 2
    assert said == ["crun keeps libacl.so.1, which cannot be taken from this version of it"]


def test_a_crun_that_cannot_be_edited_stays_as_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    userland, said = slim(monkeypatch, PROGRAM, "libc.so.6", ["/bin/true"])
    assert (userland.data, userland.replaced) == (PROGRAM, 0)
    assert len(said) == 1


def test_a_crun_that_never_asked_for_it_stays_as_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    userland, said = slim(monkeypatch, PROGRAM, "libsystemd.so.0", ["/bin/false"])
    assert (userland.data, userland.replaced, said) == (PROGRAM, 0, [])


def test_every_module_that_can_be_asked_for_is_listed() -> None:
    plan = ModulePlan(("a", "b"), {"d": ("c", "d")}, ("inside",), ("absent",))
    assert rootfs.modules_list(KernelTree("6.1", b"", plan, Requested({}, ()), {})) == {
        "boot": ["/usr/lib/modules/hako/a.ko", "/usr/lib/modules/hako/b.ko"],
        "demand": {
            "d": [f"{requested.GUEST_DIRECTORY}/c.ko", f"{requested.GUEST_DIRECTORY}/d.ko"],
            "inside": [],
            "a": [],
            "b": [],
        },
    }
