"""A container's /etc/resolv.conf, hosts and hostname: complete when the network is there, in the same files."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from hako.errors import HostError
from hako.sandbox.etcfiles import EtcFiles, Names, hosts
from hako.sandbox.spec import SandboxSpec

NAMES = Names("nameserver 192.0.2.1\n", ["10.87.0.2", "fd00::2"])
SPEC = SandboxSpec("0123456789abcdef", "", 1, 1, network="bridge", hosts=["db:10.0.0.5", "six:fd00::9"])


def content(directory: Path) -> dict[str, str]:
    return {path.name: path.read_text() for path in directory.iterdir()}


def test_files_that_are_bound_already_are_filled_in_place(tmp_path: Path) -> None:
    files = EtcFiles(SPEC)
    mounts = files.mounts(str(tmp_path / "early"), {"hostname": "early"})
    assert [mount["destination"] for mount in mounts] == ["/etc/hostname", "/etc/hosts", "/etc/resolv.conf"]
    assert all(Path(mount["source"]).read_text() == "" for mount in mounts)
    with open(mounts[1]["source"], encoding="ascii") as bound:
        files.fill(NAMES)
        filled = bound.read()
    files.mounts(str(tmp_path / "late"), {"hostname": "late"})
    assert content(tmp_path / "early") == {
        "hostname": "early\n", "hosts": filled, "resolv.conf": "nameserver 192.0.2.1\n"
    }  # fmt: skip
    assert filled.splitlines()[0] == "127.0.0.1\tlocalhost"
    assert filled.endswith("\n10.87.0.2\tearly\nfd00::2\tearly\n10.0.0.5\tdb\nfd00::9\tsix\n")
    assert content(tmp_path / "late")["hosts"] == filled.replace("early", "late")
    assert {path.stat().st_mode & 0o777 for path in (tmp_path / "late").iterdir()} == {0o644}


@pytest.mark.parametrize(
    ("mounted", "left"),
    [
        (["/etc/hosts"], ["/etc/hostname", "/etc/resolv.conf"]),
        (["/etc//resolv.conf/", "etc/hosts", "/srv/../etc/hostname"], []),
        (["/etc"], []),
        (["/etc/ssl", "/"], ["/etc/hostname", "/etc/hosts", "/etc/resolv.conf"]),
    ],
)
def test_what_is_mounted_already_is_left_alone(tmp_path: Path, mounted: list[str], left: list[str]) -> None:
    spec: dict[str, Any] = {"mounts": [{"destination": place} for place in mounted]}
    found = EtcFiles(SPEC).mounts(str(tmp_path / "etc"), spec)
    assert [mount["destination"] for mount in found] == left


def test_a_container_without_host_name_has_its_sandboxs(tmp_path: Path) -> None:
    files = EtcFiles(SPEC)
    files.fill(NAMES)
    files.mounts(str(tmp_path / "etc"), {})
    assert (tmp_path / "etc" / "hostname").read_text() == "0123456789ab\n"


def test_a_container_that_could_not_be_made_is_forgotten(tmp_path: Path) -> None:
    files = EtcFiles(SPEC)
    files.mounts(str(tmp_path / "etc"), {})
    for path in (tmp_path / "etc").iterdir():
        path.unlink()
    (tmp_path / "etc").rmdir()
    files.fill(NAMES)
    assert not (tmp_path / "etc").exists()


def test_a_name_with_a_domain_is_known_without_it_too() -> None:
    assert hosts("box.example.org", ["10.87.0.2"], []).endswith("\n10.87.0.2\tbox.example.org box\n")


def test_what_cannot_be_written_is_said(tmp_path: Path) -> None:
    (tmp_path / "hosts").mkdir()
    with pytest.raises(HostError, match=r"Cannot write .*/hosts: Is a directory"):
        EtcFiles(SPEC).mounts(str(tmp_path), {})
