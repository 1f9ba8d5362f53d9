"""Which modules the guest's kernel may ask for, and the tables by which modprobe finds them."""

from __future__ import annotations

import hashlib
import pathlib

import pytest

from hako.guestimage import requested
from hako.guestimage.modules import ModuleDirectory
from hako.guestimage.requested import Requested, select
from support import elf

MADE = Requested(
    {"bridge": ("llc", "stp"), "llc": (), "stp": ("llc",)},
    (("rtnl-link-bridge", "bridge"), ("net-pf-26", "llc")),
)


@pytest.fixture
def tree(tmp_path: pathlib.Path) -> ModuleDirectory:
    files = {
        "net/sched/sch_htb.ko": elf.module(alias=["net-sch-htb"]),
        "net/sched/deep/cls-x.ko": elf.module(depends="helper,fuse"),
        "net/schedule/other.ko": elf.module(),
        "net/bridge/bridge.ko": elf.module(depends="stp", alias=["rtnl-link-bridge", "with a space"]),
        "net/802/stp.ko": elf.module(depends="llc"),
        "net/llc/llc.ko": elf.module(alias="net-pf-26"),
        "net/netfilter/broken.ko": elf.module(depends="nowhere"),
        "lib/helper.ko": elf.module(softdep="pre: soft post: stp"),
        "lib/soft.ko": elf.module(),
        "drivers/net/veth.ko": elf.module(depends="built_in", alias="rtnl-link-veth"),
        "fs/fuse.ko": elf.module(alias="fs-fuse"),
        "extra.ko": elf.module(),
    }
    for name, data in files.items():
        path = tmp_path / "kernel" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
    (tmp_path / "modules.builtin").write_text("kernel/lib/built-in.ko\n")
    return ModuleDirectory(str(tmp_path))


def test_the_selection(tree: ModuleDirectory) -> None:
    found = select(tree, loaded=["fuse"], extra=["extra"])
    assert found.needs == {
        "bridge": ("llc", "stp"),
        "cls_x": ("soft", "helper", "llc", "stp"),
        "extra": (),
        "helper": ("soft",),
        "llc": (),
        "sch_htb": (),
        "soft": (),
        "stp": ("llc",),
        "veth": (),
    }
    assert found.aliases == (
        ("rtnl-link-bridge", "bridge"),
        ("net-pf-26", "llc"),
        ("net-sch-htb", "sch_htb"),
        ("rtnl-link-veth", "veth"),
    )
    assert found.names() == sorted(found.needs)


def test_a_kernel_with_everything_built_in(tmp_path: pathlib.Path) -> None:
    found = select(ModuleDirectory(str(tmp_path)), loaded=[])
    assert found == Requested({}, ())
    assert requested.files(found, {}, b"busybox") == {}


def test_the_tables() -> None:
    files = requested.files(MADE, {name: name.encode() for name in MADE.needs}, b"busybox")
    assert files.pop("SHA256SUMS").decode() == "".join(
        f"{hashlib.sha256(files[name]).hexdigest()}  {name}\n" for name in sorted(files)
    )
    assert files == {
        "modules.dep": b"bridge.ko: stp.ko llc.ko\nllc.ko:\nstp.ko: llc.ko\n",
        "modules.alias": b"alias rtnl-link-bridge bridge\nalias net-pf-26 llc\n",
        "modprobe": b"busybox",
        "bridge.ko": b"bridge",
        "llc.ko": b"llc",
        "stp.ko": b"stp",
    }
