"""Kernel modules that a guest's kernel asks for, loaded from the image's directory on the host.

A container that may configure networks gets bridges, tunnels and packet filters as on a host whose kernel has modprobe.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

import hako
import hako.errors
from hako.guestimage import api, requested
from hako.oci import capabilities
from hako.ociimage import api as ociimage
from hako.sandbox.guestmounts import SHARE
from support.specguest import Guest, Spec, mount

if TYPE_CHECKING:
    from hako.guestimage.api import GuestImage

pytestmark = [pytest.mark.system, pytest.mark.usefixtures("guest_image", "busybox_image")]

_DRIVERS = ("virtiofs", "9p")
_ROOTS = [path for path in ("/usr", "/lib", "/lib64", "/bin", "/sbin") if os.path.exists(path)]
#: As the host's administrator: its programs, with places for what they write.
_ON_HOST = 'exec 2>&1; host() { chroot /host "$@"; };'


@pytest.fixture(scope="module")
def rootfs(guest_image: object, busybox_image: object, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A root file system with places to mount the host's programs at."""
    rootfs = tmp_path_factory.mktemp("rootfs")
    shutil.copytree(ociimage.resolve("busybox").rootfs, rootfs, symlinks=True, dirs_exist_ok=True)
    rootfs.chmod(0o755)
    for name in ("proc", "dev", "sys", "host", "lower"):
        (rootfs / name).mkdir(exist_ok=True)
    return rootfs


@pytest.fixture(scope="module", params=_DRIVERS)
def guest(rootfs: Path, request: pytest.FixtureRequest) -> Iterator[Guest]:
    annotations = {"dev.hako.share-driver": request.param}
    with hako.Sandbox(image="busybox", memory="512m", annotations=annotations) as sandbox:
        yield Guest(sandbox, rootfs)


def may(*names: str) -> Callable[[Spec], None]:
    """With these capabilities besides the usual ones, and the host's programs below /host."""

    def change(spec: Spec) -> None:
        spec["process"]["capabilities"] = capabilities.for_process([*capabilities.wanted([], []), *names], 0)
        for path in _ROOTS:
            mount(spec, f"/host{path}", "bind", path, "rbind", "ro")
        mount(spec, "/host/run", "tmpfs", "tmpfs")

    return change


def loaded(guest: Guest) -> set[str]:
    return set(guest.shell("cut -d' ' -f1 /proc/modules").split())


def test_without_the_capability_nothing_is_loaded(guest: Guest) -> None:
    before = loaded(guest)
    told = guest.shell("exec 2>&1; ip link add one type vxlan id 5; mount -t xfs /dev/null /lower; echo $?")
    assert "Operation not permitted" in told
    assert "permission denied" in told
    assert loaded(guest) == before


def test_interfaces(guest: Guest) -> None:
    script = """set -e
        brctl addbr foobar
        ip link add br0 type bridge
        ip link add name left type veth peer name right
        ip link add dum type dummy
        ip link add vx type vxlan id 5
        ip link add vl link br0 type vlan id 7
        ip link | sed -n 's/^[0-9]*: \\([a-z0-9]*\\)[:@].*/\\1/p'"""
    assert {"foobar", "br0", "dum", "vx"} <= set(guest.shell(script, may("CAP_NET_ADMIN")).split())
    assert {"bridge", "stp", "llc", "veth", "dummy", "vxlan", "udp_tunnel", "8021q"} <= loaded(guest)


@pytest.mark.skipif(shutil.which("iptables-nft") is None, reason="needs iptables on the host")
@pytest.mark.parametrize("kind", ["nft", "legacy"])
def test_iptables(guest: Guest, kind: str) -> None:
    script = f"""{_ON_HOST} set -e
        host iptables-{kind} -t nat -A POSTROUTING -j MASQUERADE
        host iptables-{kind} -A INPUT -m conntrack --ctstate ESTABLISHED -m comment --comment hako -j ACCEPT
        host iptables-{kind} -t nat -S POSTROUTING; host iptables-{kind} -S INPUT; host ip6tables-{kind} -S FORWARD"""
    told = guest.shell(script, may("CAP_NET_ADMIN")).splitlines()
    assert "-A POSTROUTING -j MASQUERADE" in told
    assert "-A INPUT -m conntrack --ctstate ESTABLISHED -m comment --comment hako -j ACCEPT" in told
    assert "-P FORWARD ACCEPT" in told
    assert {"nf_nat", "nf_conntrack", "nft_compat" if kind == "nft" else "iptable_nat"} <= loaded(guest)


def test_nft(guest: Guest) -> None:
    script = f"""{_ON_HOST} set -e
        host nft add table inet t
        host nft add chain inet t c '{{ type nat hook postrouting priority 100; }}'
        host nft add rule inet t c masquerade
        host nft list table inet t"""
    assert "masquerade" in guest.shell(script, may("CAP_NET_ADMIN"))


@pytest.mark.skipif(shutil.which("tc") is None, reason="needs iproute2 on the host")
def test_traffic_control(guest: Guest) -> None:
    script = f"""{_ON_HOST} set -e
        ip link add shaped type dummy
        host tc qdisc add dev shaped root handle 1: htb
        host tc filter add dev shaped parent 1: protocol ip u32 match ip src 192.0.2.1/32 action drop
        host tc filter show dev shaped"""
    assert "action drop" in guest.shell(script, may("CAP_NET_ADMIN"))
    assert {"sch_htb", "cls_u32", "act_gact"} <= loaded(guest)


def test_a_privileged_container_mounts_file_systems(guest: Guest) -> None:
    script = """set -e
        mount -t tmpfs tmpfs /tmp; mkdir /tmp/upper /tmp/work /tmp/all /tmp/formats
        mount -t overlay overlay -o lowerdir=/lower,upperdir=/tmp/upper,workdir=/tmp/work /tmp/all
        touch /tmp/all/file; ls /tmp/upper
        mount -t binfmt_misc none /tmp/formats; cat /tmp/formats/status"""
    assert guest.shell(script, may("CAP_SYS_ADMIN")).split() == ["file", "enabled"]


def test_the_old_way_to_have_a_module_loaded(guest: Guest) -> None:
    """The kernel takes the name of an interface that is not there for a module's, with CAP_SYS_MODULE."""
    guest.shell("ip link show br_netfilter; true", may("CAP_NET_ADMIN", "CAP_SYS_MODULE"))
    assert "br_netfilter" in loaded(guest)


@pytest.mark.parametrize("name", ["x/../sctp", "../../sctp", "x/sctp", "sctp.ko", "sctp -a", "$(sctp)", "-a", "*"])
def test_hostile_names_load_nothing(guest: Guest, name: str) -> None:
    before = loaded(guest)
    told = guest.shell(f"mount -t '{name}' none /lower 2>&1; echo $?", may("CAP_SYS_ADMIN"))
    assert "No such device" in told
    assert loaded(guest) == before


def test_modules_need_not_be_there(guest_image: GuestImage, rootfs: Path, tmp_path: Path) -> None:
    """An image as they were before, and a VM that boots."""
    old = tmp_path / "image"
    shutil.copytree(guest_image.directory, old, symlinks=True)
    shutil.rmtree(old / "modules")
    manifest = json.loads((old / "manifest.json").read_text())
    manifest["files"] = {name: about for name, about in manifest["files"].items() if not name.startswith("modules/")}
    (old / "manifest.json").write_text(json.dumps(manifest))
    assert api.find(str(old)).modules is None
    annotations = {"dev.hako.template": "false"}
    with hako.Sandbox(image="busybox", guest_image=str(old), annotations=annotations) as sandbox:
        without = Guest(sandbox, rootfs)
        told = without.shell("ip link add br0 type bridge 2>&1; true", may("CAP_NET_ADMIN"))
        assert "Operation not supported" in told or "Unknown device type" in told
    with hako.Sandbox(image="busybox", annotations=annotations) as sandbox:
        assert "br0" in Guest(sandbox, rootfs).shell("ip link add br0 type bridge; ip link", may("CAP_NET_ADMIN"))


def test_the_guest_finds_them_where_they_are_shown(guest_image: GuestImage) -> None:
    assert guest_image.modules is not None
    assert f"{SHARE}/.modules" == requested.GUEST_DIRECTORY
    assert os.access(os.path.join(guest_image.modules, requested.MODPROBE), os.X_OK)


def test_a_changed_module_is_found(guest_image: GuestImage, tmp_path: Path) -> None:
    copy = tmp_path / "image"
    shutil.copytree(guest_image.directory, copy)
    api.verify(api.find(str(copy)))
    with open(copy / "modules" / "bridge.ko", "ab") as file:
        file.write(b"more")
    with pytest.raises(hako.errors.ImageError, match=r"modules/bridge.ko is not the file"):
        api.verify(api.find(str(copy)))
