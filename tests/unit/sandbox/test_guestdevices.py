"""Devices and disks of a config.json: what the guest has of its own, what it gets of the host's, what is refused."""

from __future__ import annotations

import os
from typing import Any

import pytest

from hako.errors import ConfigError
from hako.sandbox import guestdevices
from hako.storage.block import Plan, Wanted
from support.translating import ALL_DEVICES, device, linux, spec, to_guest


def test_devices_that_every_kernel_has() -> None:
    given = [device("/dev/x", "c", 1, 3), device("/dev/fuse", "u", 10, 229), {"path": "/dev/p", "type": "p"}]
    (guest, prepare), _ = to_guest(linux(devices=given))
    assert guest["linux"]["devices"] == [{**given[0], "fileMode": 0o666}, {**given[1], "fileMode": 0o666}, given[2]]
    assert prepare == {}


def test_devices_whose_driver_must_be_loaded() -> None:
    given = [device("/dev/net/tun", "c", 10, 200), device("/dev/loop3", "b", 7, 3)]
    (_, prepare), _ = to_guest(linux(devices=given))
    assert prepare == {"modules": {"tun": True, "loop": True}}
    (_, prepare), _ = to_guest(linux(devices=given, resources={"devices": ALL_DEVICES}))
    assert prepare == {"modules": {"tun": False, "loop": False}}


def test_a_number_without_a_device_behind_it_is_passed_on() -> None:
    """As runtime validation does: such a node leads nowhere on the host either."""
    given = [device("/dev/test1", "c", 10, 666), device("/dev/test2", "b", 8, 666)]
    (guest, _), _ = to_guest(linux(devices=given))
    assert [node["path"] for node in guest["linux"]["devices"]] == ["/dev/test1", "/dev/test2"]


def the_hosts_own() -> tuple[int, int]:
    """A character device of this host that a guest does not have."""
    numbers = [tuple(map(int, name.split(":"))) for name in os.listdir("/sys/dev/char")]
    return next((major, minor) for major, minor in numbers if major not in (1, 4, 5) and (major, minor) != (10, 229))


def test_hardware_of_the_host_is_refused_unless_the_container_gets_everything() -> None:
    given = [device("/dev/mine", "c", *the_hosts_own()), device("/dev/null", "c", 1, 3)]
    with pytest.raises(ConfigError, match=r"\$\.linux\.devices\[0\]: /dev/mine is a device of the host"):
        to_guest(linux(devices=given))
    partly = [{"allow": True, "type": "c", "access": "rwm"}, {"allow": True, "access": "r"}]
    with pytest.raises(ConfigError, match="/dev/mine"):
        to_guest(linux(devices=given, resources={"devices": partly}))
    (guest, _), _ = to_guest(linux(devices=given, resources={"devices": ALL_DEVICES}))
    assert [node["path"] for node in guest["linux"]["devices"]] == ["/dev/null"]


def test_devices_outside_of_dev_are_bound() -> None:
    (guest, _), _ = to_guest(linux(devices=[device("/srv/zero", "c", 1, 5)]))
    assert "devices" not in guest["linux"]
    assert guest["mounts"][-1] == {
        "destination": "/srv/zero", "type": "bind", "source": "/dev/zero", "options": ["bind"],
    }  # fmt: skip
    with pytest.raises(ConfigError, match="/srv/x is not below /dev"):
        to_guest(linux(devices=[device("/srv/x", "c", 10, 666)]))


# --- disks ---


@pytest.fixture
def backed(monkeypatch: pytest.MonkeyPatch) -> None:
    """A host on which 7:0, 8:16 and 254:0 are block devices with content."""
    names = {(7, 0): "loop0", (8, 16): "sdb", (254, 0): "vda"}
    monkeypatch.setattr(guestdevices, "device_name", lambda *number: names.get(number, ""))


def block(path: str, major: int, minor: int, access: str = "rwm") -> tuple[dict[str, Any], dict[str, Any]]:
    """A block device of a config.json and the rule that allows it."""
    node = {"path": path, "type": "b", "major": major, "minor": minor}
    return node, {"allow": True, "type": "b", "major": major, "minor": minor, "access": access}


@pytest.mark.usefixtures("backed")
def test_block_devices_of_the_host_are_disks_with_numbers_of_the_guest() -> None:
    (disk, disk_rule), (loop, loop_rule) = block("/dev/xvda", 8, 16), block("/srv/volume", 7, 0, "rm")
    free, free_rule = block("/dev/loop7", 7, 7)
    others = [{"allow": True, "type": "b", "major": 8, "minor": 0, "access": "rwm"}, {"allow": True, "type": "c"}]
    rules = [{"allow": False, "access": "rwm"}, disk_rule, loop_rule, free_rule, *others]
    plan = Plan("c1")
    given = linux(devices=[disk, loop, free], resources={"devices": rules})
    (guest, prepare), _ = to_guest(given, plan=plan)
    assert plan.disks == [Wanted("", False, (8, 16)), Wanted("", True, (7, 0))]
    assert prepare == {"modules": {"loop": True}}
    nodes = {(8, 16): guestdevices.Node("/dev/sda", 8, 0), (7, 0): guestdevices.Node("/dev/sdb", 8, 16)}
    guestdevices.renumber(guest, nodes)
    assert guest["linux"]["devices"] == [{**disk, "minor": 0}, free]
    assert guest["linux"]["resources"]["devices"] == [
        rules[0],
        {**disk_rule, "minor": 0},
        {**loop_rule, "major": 8, "minor": 16},
        free_rule,
        others[1],
    ]
    assert guest["mounts"][-1]["source"] == "/dev/sdb"
    assert guest["mounts"][-1]["destination"] == "/srv/volume"
    assert given["linux"]["devices"] == [disk, loop, free]


@pytest.mark.usefixtures("backed")
def test_block_devices_are_refused_where_they_are_not_allowed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(guestdevices, "_is_the_hosts", lambda *_: True)
    for plan in (None, Plan("c1", devices=False)):
        with pytest.raises(ConfigError, match="/dev/sdb is a device of the host"):
            to_guest(linux(devices=[block("/dev/sdb", 8, 16)[0]]), plan=plan)


@pytest.mark.usefixtures("backed")
def test_a_privileged_container_gets_the_block_devices_that_were_asked_for() -> None:
    plan = Plan("c1")
    given = [block("/dev/vda", 254, 0)[0], block("/dev/loop0", 7, 0)[0], block("/dev/xvda", 8, 16)[0]]
    (guest, _), _ = to_guest(linux(devices=given, resources={"devices": ALL_DEVICES}), plan=plan)
    assert plan.disks == [Wanted("", False, (8, 16))]
    assert [node["path"] for node in guest["linux"]["devices"]] == ["/dev/loop0", "/dev/xvda"]


def test_a_mount_of_a_file_system_on_a_disk() -> None:
    plan = Plan("c1")
    mount = {"destination": "/m", "type": "ext4", "source": "/srv/image", "options": ["loop", "ro", "noatime"]}
    (guest, _), _ = to_guest(spec(mounts=[mount]), plan=plan)
    assert guest["mounts"][1:] == [
        {"destination": "/m", "type": "bind", "source": "/run/hako/disks/c1/0", "options": ["rbind"]}
    ]
    assert plan.disks == [Wanted("/srv/image", True)]
    with pytest.raises(ConfigError, match="cannot have ext4 at /m"):
        to_guest(spec(mounts=[mount]))


def test_a_root_on_disks_is_where_the_guest_has_it() -> None:
    (guest, _), _ = to_guest(spec(), root="/run/hako/disks/c1/3")
    assert guest["root"] == {"path": "/run/hako/disks/c1/3", "readonly": True}
