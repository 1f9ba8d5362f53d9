"""The benchmark's own containerd, with runc as its runtime: containers and pods, of which nothing is left."""

from __future__ import annotations

import json
import os
import pathlib
import signal
import subprocess
import sys
from collections.abc import Iterator

import pytest

from bench import containerd, engines, pods, procs
from bench.model import BenchError
from bench.targets.base import PREFIX
from bench.targets.hako import Hako
from hako.ociimage.index import Image
from support import source
from support.benchmark import left_of, programs, runc

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="engines need root")

#: A process that is no more.
_GONE = 99999999
#: A run of the benchmark that has containerd with a container, and then does nothing until it is killed.
_RUN = """\
import sys, time
from bench import containerd, engines
engine = containerd.Containerd(engines.Image(sys.argv[1], {"runc": "runc"})).__enter__()
engine.start("runc", ["sleep", "100000"])
print(engine.base, flush=True)
time.sleep(100000)
"""
#: Stands for hako, with two containers of another program's.
_HAKO = """\
#!/bin/sh
case $1 in
    ps) for name in mine/one somebodys/one own; do echo "{{\\"id\\": \\"$name\\", \\"name\\": \\"$name\\"}}"; done ;;
    inspect) cat "{directory}/${{2%/one}}.json" ;;
esac
"""


@pytest.fixture
def node(busybox_image: Image) -> Iterator[pods.Node]:
    """A containerd for pods, of which nothing may be left."""
    with containerd.Containerd(engines.Image(busybox_image.rootfs, {"runc": runc()})) as engine:
        found = pods.Node(engine)
        found.wait_ready()
        yield found
    assert left_of(engine.base) == []


def test_it_runs_containers_and_leaves_nothing(
    busybox_image: Image, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HAKO_BENCH_WORD", "some words")
    probe = tmp_path / "probe"
    probe.write_text(f'#!/bin/sh\necho "$HAKO_BENCH_WORD" >>{tmp_path}/words\nexec containerd-shim-runc-v2 "$@"\n')
    probe.chmod(0o755)
    with containerd.Containerd(engines.Image(busybox_image.rootfs, {"probe": str(probe), "runc": runc()})) as engine:
        given = ["--mount", f"type=bind,src={tmp_path},dst=/given,options=rbind:ro"]
        box = engine.start("runc", ["sleep", "100000"], given)
        assert engine.execute(box, ["test", "-e", "/given/probe"]) > 0
        with pytest.raises(BenchError, match="failed with 1"):
            engine.execute(box, ["test", "-e", "/given/nothing"])
        assert not (tmp_path / "words").exists(), "that was runc"
        assert engine.run("probe", ["true"]) > 0
        assert set((tmp_path / "words").read_text().splitlines()) == {"some words"}, "what hako reads reaches it"
        assert "containerd" in engine.version()
        assert list(engine.shims()) == [box]
    assert left_of(engine.base) == []


def test_pods_start_run_commands_and_go(node: pods.Node) -> None:
    pod = node.start("runc")
    assert pod.begun < pod.sandbox_ready < pod.created < pod.running
    assert pod.took == (pod.running - pod.begun) / 1e6
    assert node.execute(pod, "true") > 0
    with pytest.raises(BenchError, match=r"^ExecSync of false ended with 1: $"):
        node.execute(pod, "false")
    assert node.shim(pod) in node.processes(pod)
    assert sorted(procs.name(pid) for pid in node.processes(pod)) == ["containerd-shim", "sleep", "sleep"]
    assert any("shim" in line for line in node.left(0)), "what is there is found"
    node.remove(pod.id)
    with pytest.raises(BenchError, match="NOT_FOUND"):
        node.execute(pod, "true")
    with pytest.raises(BenchError, match="has no shim"):
        node.shim(pod)
    assert node.left() == []


def test_many_pods_start_at_once_and_failures_are_told(node: pods.Node) -> None:
    started = node.start_many("runc", 3)
    assert len({pod.id for pod in started if isinstance(pod, pods.Pod)}) == 3
    failed = node.start_many("nonsense", 2)
    assert all(isinstance(error, BenchError) and "nonsense" in str(error) for error in failed)
    assert len(failed) == 2
    node.clear()
    assert node.left() == []


def test_running_pods_go_with_it(busybox_image: Image) -> None:
    with containerd.Containerd(engines.Image(busybox_image.rootfs, {"runc": runc()})) as engine:
        node = pods.Node(engine)
        node.wait_ready()
        node.start("runc")
    assert left_of(engine.base) == []


def test_what_a_killed_run_has_left_is_removed_by_the_next(
    busybox_image: Image, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(engines, "_LEAVE_SECONDS", 2.0)  # runc's shim does not heed SIGTERM
    argv = [sys.executable, "-c", _RUN, busybox_image.rootfs]
    with subprocess.Popen(argv, cwd=source.CLONE, stdout=subprocess.PIPE, text=True) as running:
        assert running.stdout is not None
        base = running.stdout.readline().strip()
        engines.sweep()
        assert base in left_of(base), "it is in use"
        running.send_signal(signal.SIGKILL)
    engines.sweep()
    assert left_of(base) == []


def test_one_that_does_not_start_says_why(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engines, "PATH", programs(tmp_path, containerd="echo no luck >&2; exit 1"))
    engine = containerd.Containerd(engines.Image("/nowhere", {}))
    with pytest.raises(BenchError, match=r"^containerd has ended: no luck$"):
        engine.__enter__()
    assert left_of(engine.base) == []


def test_records_of_hakos_are_removed_if_their_run_is_gone(tmp_path: pathlib.Path) -> None:
    run = f"{PREFIX}-{_GONE}-containerd"
    for name, base in (("mine", f"{engines.WORK}/{run}"), ("somebodys", "/run/containerd")):
        labels = {"dev.hako.containerd.namespace": "k8s.io", "dev.hako.containerd.container": name}
        (tmp_path / f"{name}.json").write_text(json.dumps([{"rootfs": f"{base}/one/rootfs", "labels": labels}]))
    script = f'echo "$*" >>{tmp_path}/calls'
    for name, text in (("hako", _HAKO.format(directory=tmp_path)), (containerd.SHIM, f"#!/bin/sh\n{script}\n")):
        (tmp_path / name).write_text(text)
        (tmp_path / name).chmod(0o755)
    containerd.forget(Hako(str(tmp_path / "hako")))
    address = f"{engines.WORK}/{run}/socket"
    assert (tmp_path / "calls").read_text() == f"-address {address} -namespace k8s.io -id mine delete\n"
