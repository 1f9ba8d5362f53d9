"""What a host's cgroup tells that it uses."""

from __future__ import annotations

from pathlib import Path

import pytest

from hako.cgroup import hierarchy, usage
from hako.cgroup.usage import Usage


def test_version_1(tmp_path: Path) -> None:
    for name in ("cpu", "memory"):
        (tmp_path / name).mkdir()
    (tmp_path / "cpu" / "cpuacct.usage").write_text("12345678\n")
    (tmp_path / "memory" / "memory.usage_in_bytes").write_text("4096\n")
    (tmp_path / "memory" / "memory.stat").write_text("inactive_file 1\ntotal_inactive_file 1024\n")
    directories = {"cpuacct": str(tmp_path / "cpu"), "memory": str(tmp_path / "memory"), "": str(tmp_path)}
    assert usage.read(directories) == Usage(12345, 4096, 1024)


def test_version_2(tmp_path: Path) -> None:
    (tmp_path / "cpu.stat").write_text("usage_usec 77\nuser_usec 70\n")
    (tmp_path / "memory.current").write_text("4096\n")
    (tmp_path / "memory.stat").write_text("anon 5\ninactive_file 1024\n")
    assert usage.read({"": str(tmp_path)}) == Usage(77, 4096, 1024)


@pytest.mark.parametrize("controller", ["", "memory", "cpuacct"])
def test_nothing_that_is_accounted(tmp_path: Path, controller: str) -> None:
    assert usage.read({controller: str(tmp_path / "gone")}) == Usage(0, 0, 0)


def test_no_cgroup() -> None:
    assert usage.read({}) == Usage(0, 0, 0)


def test_this_processs_own() -> None:
    host = hierarchy.read()
    found = usage.read({name: one.mount + one.own for name, one in host.hierarchies.items()})
    assert found.cpu_usec > 0
