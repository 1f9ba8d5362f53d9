"""That the check for leaks finds them: every other test relies on it."""

from __future__ import annotations

import contextlib
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from support import leaks


@contextlib.contextmanager
def running(*arguments: str, **environment: str) -> Iterator[subprocess.Popen[bytes]]:
    """A process with these arguments and variables that ends with the block; it has started for certain."""
    argv = ["sh", "-c", "echo; read -r line", "sh", *arguments]
    with subprocess.Popen(
        argv, env={**os.environ, **environment}, stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as process:
        assert process.stdout is not None
        # Until a program runs, the kernel may show no command line of it.
        assert process.stdout.readline() == b"\n"
        yield process


def test_processes_are_found_by_command_line_and_by_environment(tmp_path: Path) -> None:
    with running(f"{tmp_path}/x") as one, running(ROOT=f"{tmp_path}/x") as other:
        assert set(leaks.processes(str(tmp_path))) == {one.pid, other.pid}
        assert not leaks.processes(f"{tmp_path}/x/y")
    assert not leaks.processes(str(tmp_path))


def test_what_keeps_a_template_is_told_apart(tmp_path: Path) -> None:
    argv = ["/bin/sh", "-c", "echo; read -r line", f"{tmp_path}/run/templates/abc.json"]
    with subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as keeper:
        assert keeper.stdout is not None
        assert keeper.stdout.readline() == b"\n"
        assert not leaks.processes(str(tmp_path))
        assert set(leaks.processes(str(tmp_path), keepers=True)) == {keeper.pid}


def test_a_process_of_another_directory_with_the_same_start_is_not_ours(tmp_path: Path) -> None:
    with running(f"{tmp_path}2/x"):
        assert not leaks.processes(str(tmp_path))


def test_files_are_found_and_locks_and_directories_are_not(tmp_path: Path) -> None:
    (tmp_path / "a" / "b").mkdir(parents=True)
    (tmp_path / ".index.lock").touch()
    (tmp_path / "a" / "lock").touch()
    assert leaks.files(str(tmp_path)) == []
    for name in ("templates/abc.json", "starting/0"):
        (tmp_path / name).parent.mkdir()
        (tmp_path / name).touch()
    assert leaks.files(str(tmp_path)) == []
    (tmp_path / "a" / "state.json").touch()
    assert leaks.files(str(tmp_path)) == [str(tmp_path / "a" / "state.json")]


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root")
def test_cleaning_ends_processes_and_never_deletes_through_a_mount(tmp_path: Path) -> None:
    root, outside, point = tmp_path / "root", tmp_path / "outside", tmp_path / "root" / "mounted"
    outside.mkdir()
    point.mkdir(parents=True)
    (outside / "precious").touch()
    subprocess.run(["mount", "--bind", outside, point], check=True)
    assert leaks.mounts(str(root)) == [str(point)]
    with running(f"{root}/x") as process:
        leaks.clean(str(root))
        assert process.wait(10) == -9
    assert not leaks.mounts(str(root))
    assert not root.exists()
    assert (outside / "precious").exists()
