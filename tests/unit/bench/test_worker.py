"""The program that works on files inside a container, run here on a directory of the test."""

from __future__ import annotations

import os
import pathlib
import sys

import pytest

from bench import commands
from bench.model import BenchError
from bench.pieces import files


def test_all_the_work_is_done(tmp_path: pathlib.Path) -> None:
    (tmp_path / "unseen").write_bytes(b"x" * (1 << 20))
    with open(files._WORKER, encoding="utf-8") as file:
        program = file.read()
    with commands.session([sys.executable, "-ISc", program, str(tmp_path)]) as session:
        for line in ("hello", "write own 2", "read unseen", "read own", "randread own 50"):
            session.ask(line, "ok")
        assert (tmp_path / "own").stat().st_size == 2 << 20
        before = (tmp_path / "own").read_bytes()
        session.ask("randwrite own 50", "ok")
        after = (tmp_path / "own").read_bytes()
        assert len(after) == len(before)
        changed = {at // 4096 for at in range(0, len(before), 4096) if before[at : at + 4096] != after[at : at + 4096]}
        assert len(changed) == 50, "each write is to a block of its own"
        session.ask("create many 30", "ok")
        assert len(os.listdir(tmp_path / "many")) == 30
        session.ask("stat many 30", "ok")
        session.ask("scan many 30", "ok")
        session.ask("unlink many 30", "ok")
        session.ask("clean", "ok")
        assert os.listdir(tmp_path) == []
        with pytest.raises(BenchError, match="FileNotFoundError"):
            session.ask("read nothing", "ok")


def test_the_loader_of_this_python_is_a_program() -> None:
    found = files.loader(os.path.realpath("/usr/bin/python3"))
    assert found.startswith("/usr/")
    assert os.access(found, os.X_OK)


def test_a_program_without_a_loader_is_refused(tmp_path: pathlib.Path) -> None:
    (tmp_path / "script").write_text("#!/bin/sh\n")
    with pytest.raises(BenchError, match="no dynamic loader"):
        files.loader(str(tmp_path / "script"))


def test_another_share_keeps_the_rest_of_the_configuration(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from hako import config

    (tmp_path / "etc" / "config.d").mkdir(parents=True)
    (tmp_path / "etc" / "config.toml").write_text('[sandbox]\nmemory = "256m"\n[share]\nmsize = "64k"\n')
    (tmp_path / "etc" / "config.d" / "50.toml").write_text("[sandbox]\nvcpus = 2\n")
    (tmp_path / "new").mkdir()
    monkeypatch.setenv("HAKO_CONFIG", str(tmp_path / "etc" / "config.toml"))
    found = config.load(files._config(str(tmp_path / "new"), "9p"))
    assert (found.sandbox.memory, found.sandbox.vcpus, found.share.msize) == (256 << 20, 2, 64 << 10)
    assert found.origins["share.driver"].endswith("zz-bench.toml")
