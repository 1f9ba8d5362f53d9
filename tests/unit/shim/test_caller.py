"""Whose child ``start`` is, as told from real programs, made-up ones and damaged ones."""

from __future__ import annotations

import os
import struct
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from hako.shim import caller
from support.containerd import VERSIONS

_V2 = b"github.com/containerd/containerd/v2/cmd/containerd"


def info(package: bytes, *, flags: int = 2, more: bytes = b"\nmod\tx\n") -> bytes:
    """What Go's linker writes into a program."""
    made_of = b"0" * 16 + b"path\t" + package + more + b"1" * 16
    lengths = [bytes([len(text) & 0x7F | 0x80, len(text) >> 7]) for text in (b"go1.24.4", made_of)]
    header = b"\xff Go buildinf:" + bytes([8, flags])
    return header.ljust(32, b"\0") + lengths[0] + b"go1.24.4" + lengths[1] + made_of


def program(data: bytes, name: bytes = b".go.buildinfo") -> bytes:
    """A program with the section ``name``."""
    names = b"\0.shstrtab\0" + name + b"\0"
    at = 64
    rows = [
        bytes(64),
        struct.pack("<IIQQQQIIQQ", 1, 3, 0, 0, at, len(names), 0, 0, 1, 0),
        struct.pack("<IIQQQQIIQQ", 11, 1, 0, 0, at + len(names), len(data), 0, 0, 16, 0),
    ]
    header = b"\x7fELF\x02\x01\x01".ljust(16, b"\0")
    header += struct.pack("<HHIQQQIHHHHHH", 2, 62, 1, 0, 0, at + len(names) + len(data), 0, 64, 0, 0, 64, 3, 1)
    return header + names + data + b"".join(rows)


def package(directory: Path, content: bytes) -> bytes:
    path = directory / "program"
    path.write_bytes(content)
    return caller.main_package(str(path))


@pytest.mark.parametrize(
    ("version", "expected"), [("old", b"github.com/containerd/containerd/cmd/containerd"), ("new", _V2)]
)
def test_containerds(version: str, expected: bytes) -> None:
    assert caller.main_package(os.path.join(VERSIONS[version], "usr/bin/containerd")) == expected


def test_made_up_programs(tmp_path: Path) -> None:
    assert package(tmp_path, program(info(_V2))) == _V2
    assert package(tmp_path, program(info(b"x", more=b""))) == b"x" + b"1" * 16  # nothing ends the line
    assert package(tmp_path, program(info(_V2), b".go.buildinfos")) == b""
    assert package(tmp_path, program(info(_V2, flags=0))) == b""
    assert package(tmp_path, program(b"short")) == b""


@pytest.mark.parametrize("path", ["/bin/sh", sys.executable, "/etc/passwd", "/dev/null", "/", "/nonexistent"])
def test_what_is_not_gos(path: str) -> None:
    assert caller.main_package(path) == b""


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(st.integers(0, len(program(info(_V2))) - 1), st.binary(max_size=9))
def test_a_damaged_program_is_no_containerd(tmp_path: Path, at: int, junk: bytes) -> None:
    whole = program(info(_V2))
    assert package(tmp_path, whole[:at]) == b""
    changed = whole[:at] + junk + whole[at + len(junk) :]
    assert isinstance(package(tmp_path, changed), bytes)


def test_who_runs_start() -> None:
    """A process that runs, whatever has become of its file, and the parent."""
    assert not caller.knows_task_v3()
    assert not caller.knows_task_v3(os.getpid())
    assert not caller.knows_task_v3(2**22)


def test_containerd_is_known_when_its_file_has_been_replaced(tmp_path: Path) -> None:
    for version in ("old", "new"):
        path = tmp_path / version
        path.write_bytes(Path(VERSIONS[version], "usr/bin/containerd").read_bytes())
        path.chmod(0o755)
        # A program that waits for its input: it has started, and goes on until that ends.
        with subprocess.Popen(
            [path, "publish", "--address", "/nonexistent", "--topic", "x"],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        ) as process:
            path.unlink()
            try:
                assert caller.knows_task_v3(process.pid) is (version == "new")
            finally:
                process.kill()
