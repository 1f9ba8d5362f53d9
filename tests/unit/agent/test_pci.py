"""The share's device that a template's kernel has found, in a /sys of the test's own."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from hako.agent import pci
from hako.wire.calls import CallError

_SHARE = bytes.fromhex("f41a5a10")
_CARD = bytes.fromhex("f41a4110")
#: As the kernel has left it: command 7, base addresses 1 and 4, of 64 bits.
_FOUND = _SHARE + b"\x07\x00\x10\x00" + bytes(12) + bytes.fromhex("0000c0fe 00000000 00000000 0c000000 07000000")
_FRESH = _SHARE + b"\x00\x00\x10\x00" + bytes(12) + bytes.fromhex("00000000 00000000 00000000 0c000000 00000000")
_NAME = "0000:00:06.0"


class Bus:
    """A pretended PCI bus with virtio devices."""

    def __init__(self, root: Path) -> None:
        self.root = root
        for directory in ("pci/devices", "virtio/devices", "virtio/drivers/virtiofs", "virtio/drivers/virtio_net"):
            (root / directory).mkdir(parents=True)
        (root / "virtio/drivers_autoprobe").write_text("1")
        (root / "virtio/drivers/virtiofs/bind").touch()
        self.probing = ""  #: whether drivers were bound by themselves when devices were looked for

    def add(self, name: str, virtio: str, config: bytes, driver: str = "") -> None:
        """A device that the kernel has found."""
        (self.root / "pci/devices" / name / virtio).mkdir(parents=True)
        self.config(name).write_bytes(config.ljust(256, b"\0"))
        (self.root / "virtio/devices" / virtio).mkdir()
        if driver:
            (self.root / "virtio/devices" / virtio / "driver").symlink_to(self.root / "virtio/drivers" / driver)

    def config(self, name: str) -> Path:
        """The configuration space of a device."""
        return self.root / "pci/devices" / name / "config"

    def bound(self) -> str:
        """The devices to which the share's driver was bound."""
        return (self.root / "virtio/drivers/virtiofs/bind").read_text()


@pytest.fixture
def bus(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Bus]:
    """A bus with a card that is in use; nothing stays open."""
    made = Bus(tmp_path)
    made.add("0000:00:03.0", "virtio0", _CARD, "virtio_net")
    monkeypatch.setattr(pci, "_BUS", str(tmp_path / "pci"))
    monkeypatch.setattr(pci, "_VIRTIO", str(tmp_path / "virtio"))
    monkeypatch.setattr(pci, "_known", [])
    before = set(os.listdir("/proc/self/fd"))
    yield made
    assert set(os.listdir("/proc/self/fd")) == before
    assert (tmp_path / "virtio/drivers_autoprobe").read_text() == "1"


def _finding(bus: Bus, monkeypatch: pytest.MonkeyPatch, found: Callable[[], None]) -> None:
    """Have the kernel do ``found`` when it is to look for devices."""

    def find() -> None:
        bus.probing = (bus.root / "virtio/drivers_autoprobe").read_text()
        found()

    monkeypatch.setattr(pci, "find_plugged", find)


def test_a_device_in_the_same_slot_gets_its_addresses_and_its_driver(bus: Bus, monkeypatch: pytest.MonkeyPatch) -> None:
    _finding(bus, monkeypatch, lambda: bus.add(_NAME, "virtio4", _FOUND))
    assert pci.learn_share()
    assert bus.probing == "0"
    assert bus.bound() == ""
    with open(bus.config(_NAME), "r+b") as file:  # the same file, as in /sys
        file.write(_FRESH)
    assert pci.use_known()
    assert bus.config(_NAME).read_bytes().startswith(_FOUND)
    assert bus.bound() == "virtio4"
    # It is there now; another one would have to be looked for.
    assert not pci.use_known()


def test_without_a_share_nothing_is_known(bus: Bus, monkeypatch: pytest.MonkeyPatch) -> None:
    _finding(bus, monkeypatch, lambda: None)
    assert not pci.learn_share()
    assert not pci.use_known()


def test_a_share_in_use_is_left_alone(bus: Bus, monkeypatch: pytest.MonkeyPatch) -> None:
    _finding(bus, monkeypatch, lambda: None)
    bus.add(_NAME, "virtio4", _FOUND, "virtiofs")
    assert not pci.learn_share()


@pytest.mark.parametrize("there", [b"\xff" * 64, _CARD], ids=["nothing", "another device"])
def test_what_is_not_the_share_is_not_touched(bus: Bus, monkeypatch: pytest.MonkeyPatch, there: bytes) -> None:
    _finding(bus, monkeypatch, lambda: bus.add(_NAME, "virtio4", _FOUND))
    assert pci.learn_share()
    with open(bus.config(_NAME), "r+b") as file:
        file.write(there)
    before = bus.config(_NAME).read_bytes()
    with pytest.raises(CallError, match="is not where it is expected"):
        pci.use_known()
    assert bus.config(_NAME).read_bytes() == before
    assert bus.bound() == ""


def test_drivers_are_bound_by_themselves_again_when_looking_fails(bus: Bus, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail() -> None:
        raise OSError("no bus")

    _finding(bus, monkeypatch, fail)
    with pytest.raises(OSError, match="no bus"):
        pci.learn_share()
    assert bus.probing == "0"


def test_devices_are_looked_for_only_when_the_kernel_does_not(bus: Bus, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pci, "_hotplug_ignored", False)
    rescan, event = bus.root / "pci/rescan", bus.root / "gpe01"
    monkeypatch.setattr(pci, "_EVENT", str(bus.root / "missing" / "gpe01"))
    pci.ignore_hotplug()
    pci.find_plugged()
    assert not rescan.exists()
    monkeypatch.setattr(pci, "_EVENT", str(event))
    pci.ignore_hotplug()
    pci.find_plugged()
    assert (event.read_text(), rescan.read_text()) == ("mask\n", "1")
