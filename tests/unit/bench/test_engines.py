"""The benchmark's own engines, with runc as their runtime: they run containers, and nothing is left of them."""

from __future__ import annotations

import glob
import os
import pathlib
import signal
import subprocess
import sys

import pytest

from bench import engines
from bench.model import BenchError
from hako.ociimage.index import Image
from support.benchmark import left_of, programs, runc

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="engines need root")

CLONE = os.path.dirname(os.path.dirname(os.path.abspath(engines.__file__)))
#: What runc knows of a container.
_RECORD = "state.json"
#: A run of the benchmark that has docker with a container, and then does nothing until it is killed.
_RUN = """\
import sys, time
from bench import engines
engine = engines.Docker(engines.Image(sys.argv[1], {"runc": sys.argv[2]})).__enter__()
engine.start("runc", ["sleep", "100000"])
print(engine.base, flush=True)
time.sleep(100000)
"""


@pytest.mark.parametrize("kind", engines.ENGINES)
def test_an_engine_runs_containers_and_leaves_nothing(
    kind: type[engines.Engine], busybox_image: Image, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HAKO_BENCH_WORD", "some words")
    probe = tmp_path / "probe"
    probe.write_text(f'#!/bin/sh\necho "$HAKO_BENCH_WORD" >>{tmp_path}/words\nexec {runc()} "$@"\n')
    probe.chmod(0o755)
    with kind(engines.Image(busybox_image.rootfs, {"probe": str(probe), "runc": runc()})) as engine:
        box = engine.start("runc", ["sleep", "100000"], ["-v", f"{tmp_path}:/given:ro"])
        assert engine.execute(box, ["test", "-e", "/given/probe"]) > 0
        with pytest.raises(BenchError, match="failed with 1"):
            engine.execute(box, ["test", "-e", "/given/nothing"])
        assert not (tmp_path / "words").exists(), "that was runc"
        assert engine.run("probe", ["true"]) > 0
        assert set((tmp_path / "words").read_text().splitlines()) == {"some words"}, "what hako reads reaches it"
        assert engine.address(box).count(".") == 3
        assert engine.name in engine.version().lower()
        records = glob.glob(f"{engine.base}/**/{_RECORD}", recursive=True)
        assert records, "the runtime's record of the container is in the engine's directory too"
    assert left_of(engine.base) == []


def test_what_a_killed_run_has_left_is_removed_by_the_next(busybox_image: Image) -> None:
    argv = [sys.executable, "-c", _RUN, busybox_image.rootfs, runc()]
    with subprocess.Popen(argv, cwd=CLONE, stdout=subprocess.PIPE, text=True) as running:
        assert running.stdout is not None
        base = running.stdout.readline().strip()
        engines.sweep()
        assert base in left_of(base), "it is in use"
        running.send_signal(signal.SIGKILL)
    engines.sweep()
    assert left_of(base) == []


def test_a_dockerd_that_does_not_start_says_why(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engines, "PATH", programs(tmp_path, dockerd="echo first >&2; echo no luck >&2; exit 1"))
    engine = engines.Docker(engines.Image("/nowhere", {}))
    with pytest.raises(BenchError, match=r"^dockerd has ended: no luck$"):
        engine.__enter__()
    assert left_of(engine.base) == []


def test_an_engine_that_is_not_installed_is_named(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engines, "PATH", str(tmp_path))
    with pytest.raises(BenchError, match=r"There is no docker; scripts/install-bench-deps\.sh installs it\."):
        engines.Docker(engines.Image("/nowhere", {})).__enter__()


def test_a_process_that_does_not_heed_is_ended(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engines, "_LEAVE_SECONDS", 0.2)
    base = str(tmp_path / "base")
    os.mkdir(base)
    script = f"mount --bind {base} {base} && trap '' TERM && echo ready && exec sleep 1000"
    with subprocess.Popen(["unshare", "-m", "sh", "-c", script], stdout=subprocess.PIPE, text=True) as stubborn:
        assert stubborn.stdout is not None
        assert stubborn.stdout.readline() == "ready\n"
        assert engines.members(base) == [stubborn.pid]
        engines._clear(base)
        assert stubborn.wait(10) == -signal.SIGKILL
    assert not os.path.exists(base)
