"""The host's cgroups: on this host's own hierarchies, beside runc, and inside a VM for version 2 and for systemd."""

from __future__ import annotations

import contextlib
import json
import os
import select
import shutil
import subprocess
import sys
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import hako
from hako.cgroup import files, hierarchy
from hako.cgroup.api import Cgroup, Overhead, path_for
from hako.errors import ConfigError, HostError, NotFoundError, StateError
from hako.oci import capabilities
from hako.sandbox import api
from hako.sandbox.build import build
from hako.sandbox.requests import Mount
from support.children import Child, started
from support.source import CLONE

pytestmark = pytest.mark.system

MIB = 1 << 20
NOTHING = Overhead(0, 0, 0.0)
_LIMITS = (
    *("memory.limit_in_bytes", "memory.memsw.limit_in_bytes", "memory.soft_limit_in_bytes", "memory.swappiness"),
    *("cpu.shares", "cpu.cfs_quota_us", "cpu.cfs_period_us", "cpuset.cpus", "cpuset.mems", "pids.max"),
    *("blkio.bfq.weight", "blkio.weight", "memory.max", "memory.swap.max", "memory.low", "memory.high", "cpu.max"),
    *("cpu.weight", "io.weight", "io.bfq.weight", "memory.oom_control", "freezer.state"),
)
_HELD = "import sys; held = bytearray(b'x') * (64 << 20); print(len(held), flush=True); sys.stdin.read()"
_THREADS = """
import sys, threading
for _ in range(3):
    threading.Thread(target=threading.Event().wait, daemon=True).start()
print("ready", flush=True)
sys.stdin.read()
"""


@pytest.fixture
def name() -> Iterator[str]:
    """A cgroup's name that nobody else has; what is made below it goes at the end."""
    made = f"hako-test-{uuid.uuid4().hex[:8]}"
    yield made
    host = hierarchy.read()
    for path in (f"/{made}", made):
        for directory in set(host.directories(path_for(path, "", systemd=False)).values()):
            for folder in files.below(directory):
                os.rmdir(folder)


@contextlib.contextmanager
def sleeper() -> Iterator[Child]:
    with started(["sleep", "1000"]) as child:
        yield child


@contextlib.contextmanager
def holder(group: Cgroup) -> Iterator[Child]:
    """A process that has 64 MiB on the cgroup's account."""
    argv = ["sh", "-c", 'read x; exec "$0" -c "$1"', sys.executable, _HELD]
    with started(argv, stdin=subprocess.PIPE) as child:
        group.add(child.pid)
        child.input.write(b"\n")
        child.input.flush()
        assert child.output.readline() == b"67108864\n"
        yield child


def cgroups(pid: int) -> str:
    return Path(f"/proc/{pid}/cgroup").read_text()


def limits(group: Cgroup) -> dict[str, str]:
    """What is written in the files for limits."""
    return {
        file: text for folder in group.directories.values() for file in _LIMITS if (text := files.read(folder, file))
    }


@contextlib.contextmanager
def runc(bundle: Path, rootfs: str, path: str, resources: dict[str, Any]) -> Iterator[int]:
    """A container of runc's; its first process."""
    name = bundle.name
    spec = {
        "ociVersion": "1.0.2",
        "process": {"args": ["sleep", "1000"], "cwd": "/", "env": ["PATH=/bin"], "user": {"uid": 0, "gid": 0}},
        "root": {"path": rootfs, "readonly": True},
        # runc would make device nodes in the image itself.
        "mounts": [
            {"destination": "/proc", "type": "proc", "source": "proc"},
            {"destination": "/dev", "type": "tmpfs", "source": "tmpfs"},
        ],
        "linux": {"namespaces": [{"type": "pid"}, {"type": "mount"}], "resources": resources, "cgroupsPath": path},
    }
    bundle.mkdir()
    (bundle / "config.json").write_text(json.dumps(spec))
    command = ["runc", "--root", str(bundle / "state")]
    with open(bundle / "log", "wb") as log:
        nothing = {"stdin": subprocess.DEVNULL, "stdout": log, "stderr": log}
        done = subprocess.run([*command, "run", "-d", "-b", str(bundle), name], check=False, timeout=60, **nothing)  # type: ignore[call-overload]
    assert done.returncode == 0, (bundle / "log").read_text()
    try:
        yield json.loads(subprocess.check_output([*command, "state", name]))["pid"]
    finally:
        subprocess.run([*command, "delete", "--force", name], check=True, capture_output=True, timeout=60)


@pytest.mark.skipif(shutil.which("runc") is None, reason="needs runc")
@pytest.mark.parametrize("form", ["/{}/x", "{}/a/x", ""])
def test_it_is_where_runc_would_put_it(name: str, form: str, tmp_path: Path, busybox_image: Any) -> None:
    path = form.format(name)
    with runc(tmp_path / name, busybox_image.rootfs, path, {}) as pid:
        expected = cgroups(pid)
    group = Cgroup.create(path_for(path, name, systemd=False), {}, Overhead())
    with sleeper() as child:
        group.add(child.pid)
        assert cgroups(child.pid) == expected
        group.kill()
        child.wait()
        group.delete()


@pytest.mark.skipif(shutil.which("runc") is None, reason="needs runc")
@pytest.mark.parametrize(
    "resources",
    [
        {},
        {"memory": {"limit": 64 * MIB}},
        {"memory": {"limit": 64 * MIB, "swap": 128 * MIB, "reservation": 32 * MIB, "swappiness": 10}},
        {"memory": {"limit": -1, "swap": -1}, "pids": {"limit": -1}},
        {"cpu": {"shares": 512, "quota": 50_000, "period": 50_000, "cpus": "0", "mems": "0"}, "pids": {"limit": 50}},
        {"cpu": {"shares": 2, "quota": -1}},
    ],
)
def test_limits_without_overhead_are_runcs(
    name: str, resources: dict[str, Any], tmp_path: Path, busybox_image: Any
) -> None:
    path = path_for(f"/{name}/x", "", systemd=False)
    with runc(tmp_path / name, busybox_image.rootfs, path.path, resources):
        expected = limits(Cgroup(hierarchy.read().directories(path), NOTHING, None, None))
    assert len(expected) >= 6
    group = Cgroup.create(path, resources, NOTHING)
    assert limits(group) == expected
    group.delete()


def test_limits_get_their_overhead(name: str) -> None:
    resources = {"memory": {"limit": 64 * MIB}, "pids": {"limit": 50}, "cpu": {"quota": 50_000}}
    group = Cgroup.create(path_for(f"/{name}/x", "", systemd=False), resources, Overhead(32 * MIB, 10, 0.5))
    found = limits(group)
    assert found.get("memory.limit_in_bytes", found.get("memory.max")) == str(96 * MIB)
    assert found["pids.max"] == "60"
    assert found.get("cpu.cfs_quota_us", found.get("cpu.max", "").split(" ")[0]) == "100000"
    group.update({"memory": {"limit": 128 * MIB, "swap": 256 * MIB}})
    group.update({"memory": {"limit": 48 * MIB, "swap": 48 * MIB}})
    found = limits(group)
    assert found.get("memory.limit_in_bytes", found.get("memory.max")) == str(80 * MIB)
    group.update({"memory": {"limit": -1, "swap": -1}, "pids": {"limit": -1}, "cpu": {"quota": -1}})
    unlimited = limits(Cgroup.create(path_for(f"/{name}/y", "", systemd=False), {}, Overhead()))
    assert limits(group) == unlimited


def test_processes_of_a_cgroup(name: str) -> None:
    group = Cgroup.create(path_for(f"/{name}/x", "", systemd=False), {}, Overhead())
    first = next(iter(group.directories.values()))
    with sleeper() as child, started([sys.executable, "-c", _THREADS], stdin=subprocess.PIPE) as threads:
        assert threads.output.readline() == b"ready\n"
        group.add(child.pid)
        group.add(threads.pid)
        for task in os.listdir(f"/proc/{threads.pid}/task"):
            assert Path(f"/proc/{threads.pid}/task/{task}/cgroup").read_text() == cgroups(child.pid)
        os.mkdir(f"{first}/inner")
        assert group.pids() == sorted([child.pid, threads.pid])
        with pytest.raises(StateError, match=f"the processes .*{child.pid}.* are in it"):
            group.delete()
        again = Cgroup.open(json.loads(json.dumps(group.to_json())))
        again.kill()
        assert (child.wait(), threads.wait()) == (-9, -9)
        with pytest.raises(NotFoundError, match=f"Process {child.pid} does not exist"):
            again.add(child.pid)
        again.delete()
        again.delete()
    assert group.pids() == []
    assert not any(os.path.exists(directory) for directory in group.directories.values())
    group.kill()
    with pytest.raises(NotFoundError, match="does not exist any more"):
        group.update({})


def test_kill_ends_what_is_frozen_and_spares_the_caller(name: str) -> None:
    group = Cgroup.create(path_for(f"/{name}/x", "", systemd=False), {}, Overhead())
    code = (
        "import json, sys; from hako.cgroup.api import Cgroup; import os;"
        "group = Cgroup.open(json.loads(sys.argv[1])); group.add(os.getpid()); group.kill(); print(group.pids())"
    )
    with sleeper() as child:
        group.add(child.pid)
        if "freezer" in group.directories:
            files.write(group.directories["freezer"], "freezer.state", "FROZEN")
        else:
            files.write(group.directories[""], "cgroup.freeze", "1")
        group.kill()
        assert child.wait() == -9
    if "freezer" not in group.directories:
        files.write(group.directories[""], "cgroup.freeze", "0")
    environment = {"PYTHONPATH": os.path.join(CLONE, "src"), "PATH": os.environ["PATH"]}
    argv = [sys.executable, "-c", code, json.dumps(group.to_json())]
    with sleeper() as child:
        group.add(child.pid)
        done = subprocess.run(argv, env=environment, capture_output=True, text=True, timeout=60, check=False)
        assert child.wait() == -9
    assert done.stderr == ""
    assert done.stdout.strip("[]\n").isdigit()
    group.delete()


def test_a_limit_below_what_is_used_kills_nobody(name: str) -> None:
    group = Cgroup.create(path_for(f"/{name}/x", "", systemd=False), {"memory": {"limit": 256 * MIB}}, NOTHING)
    file = "memory.max" if group.is_unified else "memory.limit_in_bytes"
    directory = group.directories["" if group.is_unified else "memory"]
    with holder(group) as child:
        group.update({"memory": {"limit": 16 * MIB, "swap": 16 * MIB}})
        assert 64 * MIB < int(files.read(directory, file)) < 160 * MIB
        assert child.poll() is None
        child.input.close()
        assert child.wait() == 0
    group.update({"memory": {"limit": 16 * MIB, "swap": 16 * MIB}})
    assert int(files.read(directory, file)) == 16 * MIB
    group.delete()


def test_a_pods_quota_is_not_exceeded(name: str) -> None:
    host = hierarchy.read()
    if host.is_unified:
        pytest.skip("version 2 lets a quota be greater than the one above it")
    pod = Cgroup.create(path_for(f"/{name}", "", systemd=False), {"cpu": {"quota": 20_000}}, NOTHING)
    resources = {"cpu": {"quota": 20_000, "period": 50_000}}
    group = Cgroup.create(path_for(f"/{name}/x", "", systemd=False), resources, Overhead())
    assert limits(group)["cpu.cfs_quota_us"] == "10000"
    group.delete()
    pod.delete()


def test_what_cannot_be_set_leaves_nothing(name: str) -> None:
    path = path_for(f"/{name}/x", "", systemd=False)
    for resources in ({"cpu": {"cpus": "4000"}}, {"cpu": {"cpus": "nonsense"}}, {"memory": {"limit": "much"}}):
        with pytest.raises((HostError, ConfigError), match=r"linux\.resources\.(cpu\.cpus|memory\.limit)"):
            Cgroup.create(path, resources, Overhead())
        for directory in hierarchy.read().directories(path).values():
            assert not os.path.exists(os.path.dirname(directory))


@contextlib.contextmanager
def oom_listener(directory: str) -> Iterator[select.poll]:
    """What a monitor has of version 1: an eventfd that can be read once memory has run out."""
    control = os.open(f"{directory}/memory.oom_control", os.O_RDONLY)
    event = os.eventfd(0)
    try:
        files.write(directory, "cgroup.event_control", f"{event} {control}")
        poll = select.poll()
        poll.register(event, select.POLLIN)
        yield poll
    finally:
        os.close(event)
        os.close(control)


@pytest.mark.parametrize("resources", [{}, {"memory": {"limit": 256 * MIB, "swap": 256 * MIB, "swappiness": 30}}])
@pytest.mark.parametrize("cache", [0, 192 * MIB], ids=["", "with page cache"])
def test_an_engine_sees_that_memory_ran_out(name: str, resources: dict[str, Any], cache: int, tmp_path: Path) -> None:
    group = Cgroup.create(path_for(f"/{name}/x", "", systemd=False), resources, NOTHING)
    if group.is_unified:
        pytest.skip("version 2 is tested in a VM")
    directory = group.directories["memory"]
    (tmp_path / "large").touch()
    os.truncate(tmp_path / "large", cache)
    with oom_listener(directory) as poll, holder(group) as other:
        with started(["sh", "-c", f"read x; exec cat {tmp_path}/large"], stdin=subprocess.PIPE) as reader:
            group.add(reader.pid)
            reader.input.write(b"\n")
            reader.input.close()
            assert len(reader.output.read()) == cache
            assert reader.wait() == 0
        assert files.table(directory, "memory.stat")["cache"] >= cache // 2
        before = limits(group)
        assert not poll.poll(0)
        assert group.report_oom() is True
        assert poll.poll(10_000)
        after = limits(group)
        # The count of what was killed is the event itself.
        assert "oom_kill 1" in after.pop("memory.oom_control")
        del before["memory.oom_control"]
        assert after == before
        assert group.pids() == [other.pid]
        assert other.poll() is None
    group.kill()
    group.delete()
    assert group.report_oom() is False


def privileged(real: Any, seen: list[str]) -> Any:
    """A container that may do all that root can, to its cgroups too; without that the VM would not be needed."""

    def wrapped(*args: Any) -> Any:
        built = real(*args)
        for key in ("seccomp", "maskedPaths", "readonlyPaths"):
            built.spec["linux"].pop(key, None)
        held = built.spec["process"]["capabilities"]
        built.spec["process"]["capabilities"] = dict.fromkeys(held, sorted(capabilities.ALL))
        for mount in built.spec["mounts"]:
            if mount["destination"] in seen:
                mount["options"] = [option for option in mount["options"] if option != "ro"]
        return built

    return wrapped


@pytest.fixture
def sandbox(monkeypatch: pytest.MonkeyPatch, guest_image: Any, busybox_image: Any) -> Iterator[hako.Sandbox]:
    """A VM whose containers are privileged."""
    monkeypatch.setattr(api, "build", privileged(build, ["/sys/fs/cgroup"]))
    with hako.Sandbox(image="busybox", memory="512m") as started:
        yield started


_PROGRAMS = [
    ("/usr", "/usr"),
    ("/usr/lib", "/lib"),
    ("/usr/lib64", "/lib64"),
    ("/usr/bin", "/bin"),
    ("/usr/sbin", "/sbin"),
]


def mounts(*more: tuple[str, str]) -> list[Mount]:
    """The host's programs and this clone's source, read-only."""
    code = [(os.path.join(CLONE, "src"), "/src"), (os.path.join(CLONE, "tests", "support"), "/tests")]
    return [Mount(source, target, readonly=True) for source, target in (*_PROGRAMS, *code, *more)]


def inside(part: str) -> list[str]:
    return [os.path.realpath("/usr/bin/python3"), "-ISB", "/tests/cgroup_guest.py", part]


@pytest.mark.slow
def test_version_2(sandbox: hako.Sandbox) -> None:
    done = sandbox.run(inside("plain"), mounts=mounts(), tmpfs=["/tmp"], timeout=240)
    assert done.exit_status == 0, done.stderr


@pytest.mark.slow
@pytest.mark.skipif(not os.path.exists("/usr/lib/systemd/systemd"), reason="needs systemd's program")
def test_scopes_of_systemd(sandbox: hako.Sandbox, tmp_path: Path) -> None:
    units = tmp_path / "systemd" / "system"
    units.mkdir(parents=True)
    (units / "nothing.target").write_text("[Unit]\nDefaultDependencies=no\n")
    container = sandbox.create(
        ["/usr/lib/systemd/systemd", "--unit=nothing.target"],
        env={"container": "hako"},
        mounts=mounts((str(tmp_path), "/etc")),
        tmpfs=["/run", "/tmp"],
    )
    done = container.run(inside("systemd"), timeout=240)
    assert done.exit_status == 0, done.stderr
