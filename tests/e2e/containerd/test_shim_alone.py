"""The shim's program as containerd 2.3 and later use it: bootstrap parameters, then version 3 of the Task service.

No Debian has such a containerd yet, so these tests are one.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from conftest import Roots
from hako.errors import NotFoundError
from hako.guestimage.api import GuestImage
from hako.ociimage.index import Image
from hako.shim import event_messages as events
from hako.shim.bootstrap_messages import BootstrapParams
from hako.shim.messages import Any as AnyMessage
from hako.shim.messages import Mount
from hako.shim.metrics_v1_messages import Metrics as MetricsV1
from hako.shim.metrics_v2_messages import Metrics as MetricsV2
from hako.shim.task_messages import DeleteResponse, TaskStatus
from hako.shim.ttrpc import Client
from support import leaks
from support.barecontainerd import BareContainerd, Events, Fifos, TaskService
from support.machine import remove_cgroups, until

pytestmark = [pytest.mark.e2e, pytest.mark.slow]

_GROUP = f"hako-test-bare-{os.getpid()}"
_PATH = "PATH=/usr/sbin:/usr/bin:/sbin:/bin"
_PROCESS = "types.containerd.io/opencontainers/runtime-spec/1/Process"
_SCRIPT = "echo to err >&2; read line; echo got $line; exec sleep 100000"


@pytest.fixture(scope="module")
def bare(roots: Roots) -> Iterator[BareContainerd]:
    """What uses the shim."""
    with BareContainerd(f"{roots.base}-bare") as made:
        yield made


@pytest.fixture
def containerd(bare: BareContainerd, roots: Roots, guest_image: GuestImage) -> Iterator[BareContainerd]:
    """The same; when the test has ended, nothing is left of the shim."""
    before = _files(roots)
    yield bare
    assert bare.machine.mounts() == []
    assert bare.machine.sockets() == []
    assert leaks.wait_gone(roots.base, 10) == {}
    assert leaks.mounts(roots.base) == []
    assert leaks.files(bare.sockets) == []
    assert _files(roots) - before == set(), "others on this machine may have something, such as a pool"
    assert remove_cgroups(_GROUP) == []


def _files(roots: Roots) -> set[str]:
    return {*leaks.files(roots.state), *leaks.files(os.path.join(roots.data, "sandboxes"))}


@pytest.fixture
def bundle(tmp_path: Path) -> Path:
    """A bundle as containerd makes one, without its root file system, which it says with Create."""
    made = tmp_path / "bundle"
    (made / "rootfs").mkdir(parents=True)
    (made / "config.json").write_text(json.dumps(_config()))
    return made


def _config() -> dict[str, Any]:
    safe = ["nosuid", "noexec", "nodev"]
    return {
        "ociVersion": "1.2.0",
        "process": {"args": ["sh", "-c", _SCRIPT], "cwd": "/", "env": [_PATH], "user": {"uid": 0, "gid": 0}},
        "root": {"path": "rootfs"},
        "mounts": [
            {"destination": "/proc", "type": "proc", "source": "proc", "options": safe},
            {"destination": "/dev", "type": "tmpfs", "source": "tmpfs", "options": ["nosuid", "mode=755"]},
        ],
        "linux": {
            "cgroupsPath": f"/{_GROUP}/one",
            "namespaces": [{"type": kind} for kind in ("pid", "ipc", "uts", "mount", "network")],
        },
    }


def _mounts(kind: str, image: Image, directory: Path) -> list[Mount]:
    if kind == "bind":
        return [Mount(type="bind", source=image.rootfs, options=["rbind", "ro"])]
    for name in ("upper", "work"):
        (directory / name).mkdir()
    layers = [f"lowerdir={image.rootfs}", f"upperdir={directory}/upper", f"workdir={directory}/work"]
    return [Mount(type="overlay", source="overlay", options=layers)]


@pytest.mark.parametrize("rootfs", ["overlay", "bind"])
def test_a_containers_life(
    containerd: BareContainerd, busybox_image: Image, bundle: Path, tmp_path: Path, rootfs: str
) -> None:
    mounts = _mounts(rootfs, busybox_image, tmp_path)
    streams, added = Fifos(tmp_path / "io", "stdin", "stdout", "stderr"), Fifos(tmp_path / "exec-io", "stdout")
    with contextlib.closing(streams), contextlib.closing(added):
        asyncio.run(_live(containerd, bundle, mounts, streams, added))


async def _live(containerd: BareContainerd, bundle: Path, mounts: list[Mount], streams: Fifos, added: Fifos) -> None:
    async with Events(containerd.events_address) as heard:
        result = await asyncio.to_thread(containerd.start, "one", bundle)
        assert (result.version, result.protocol) == (3, "ttrpc")
        assert os.path.dirname(result.address) == f"unix://{containerd.sockets}"
        task = TaskService(await Client.connect(result.address))
        shim = (await task("Connect", id="one")).shim_pid
        assert containerd.machine.processes()[shim].endswith("start")
        await _run(task, bundle, mounts, streams)
        await _add(task, added)
        await _use(task)
        await _end(task)
        await task("Shutdown", id="one")
        await task.close()
        await asyncio.to_thread(until, lambda: not os.path.exists(f"/proc/{shim}"), "the shim has ended", 15)
    _check_events(heard)


async def _run(task: TaskService, bundle: Path, mounts: list[Mount], streams: Fifos) -> None:
    pid = (await task("Create", id="one", bundle=str(bundle), rootfs=mounts, **streams.paths)).pid
    assert pid > 1
    state = await task("State", id="one")
    assert (state.status, state.pid, state.bundle) == (TaskStatus.CREATED, pid, str(bundle))
    assert (state.stdin, state.stdout, state.stderr) == tuple(streams.paths.values())
    assert (await task("Start", id="one")).pid == pid
    assert (await task("State", id="one")).status == TaskStatus.RUNNING
    await streams.until("stderr", b"to err\n")
    streams.write(b"this\n")
    assert await streams.until("stdout", b"\n") == b"got this\n"
    assert pid in [process.pid for process in (await task("Pids", id="one")).processes]


async def _add(task: TaskService, streams: Fifos) -> None:
    process = {"args": ["sh", "-c", "echo more; exit 5"], "cwd": "/", "env": [_PATH], "user": {"uid": 0, "gid": 0}}
    spec = AnyMessage(type_url=_PROCESS, value=json.dumps(process).encode())
    await task("Exec", id="one", exec_id="two", spec=spec, **streams.paths)
    waiting = asyncio.create_task(task("Wait", id="one", exec_id="two"))
    assert (await task("Start", id="one", exec_id="two")).pid > 1
    assert (await waiting).exit_status == 5
    assert await streams.until("stdout", b"\n") == b"more\n"
    state = await task("State", id="one", exec_id="two")
    assert (state.status, state.exit_status, state.exec_id) == (TaskStatus.STOPPED, 5, "two")
    assert (await task("Delete", id="one", exec_id="two")).exit_status == 5
    with pytest.raises(NotFoundError):
        await task("State", id="one", exec_id="two")


async def _use(task: TaskService) -> None:
    stats = (await task("Stats", id="one")).stats
    found = stats.unpack(MetricsV2) or stats.unpack(MetricsV1)
    assert found is not None
    assert found.memory is not None
    await task("Pause", id="one")
    assert (await task("State", id="one")).status == TaskStatus.PAUSED
    await task("Resume", id="one")
    assert (await task("State", id="one")).status == TaskStatus.RUNNING


async def _end(task: TaskService) -> None:
    waiting = asyncio.create_task(task("Wait", id="one"))
    await task("Kill", id="one", signal=9)
    ended = await waiting
    assert ended.exit_status == 137
    state = await task("State", id="one")
    assert (state.status, state.exit_status, state.exited_at) == (TaskStatus.STOPPED, 137, ended.exited_at)
    deleted = await task("Delete", id="one")
    assert (deleted.exit_status, deleted.exited_at, deleted.pid) == (137, ended.exited_at, state.pid)
    with pytest.raises(NotFoundError):
        await task("State", id="one")


def _check_events(heard: Events) -> None:
    of_exec = ["exec-added", "exec-started", "exit", "delete"]
    assert heard.topics() == ["create", "start", *of_exec, "paused", "resumed", "exit", "delete"]
    assert {envelope.namespace for envelope in heard.heard} == {"default"}
    pid = heard.one(events.TaskCreate).pid
    assert heard.one(events.TaskStart).pid == pid
    two, one = heard.one(events.TaskExit, 0), heard.one(events.TaskExit, 1)
    assert (two.container_id, two.id, two.exit_status) == ("one", "two", 5)
    assert (one.container_id, one.id, one.exit_status, one.pid) == ("one", "one", 137, pid)
    assert [heard.one(events.TaskDelete, number).id for number in (0, 1)] == ["two", ""]
    assert heard.one(events.TaskDelete, 1).exited_at == one.exited_at


def test_a_shim_that_is_not_used_is_deleted(containerd: BareContainerd, bundle: Path) -> None:
    """By containerd's last resort, which is not told where sockets are; a second time does no harm."""
    containerd.start("one", bundle)
    assert leaks.files(containerd.sockets) != []
    for _ in range(2):
        done = containerd.run("one", bundle, "delete")
        assert (done.returncode, done.stderr) == (0, b"")
        assert DeleteResponse.decode(done.stdout).exit_status == 137
        assert leaks.files(containerd.sockets) == []


def _of_another(params: BootstrapParams) -> bytes:
    params.instance_id = "other"
    return params.encode()


def _relative(params: BootstrapParams) -> bytes:
    params.socket_dir = "s"
    return params.encode()


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda _params: b"garbage", "The standard input is no message of containerd's"),
        (lambda params: params.encode()[:-5], "The standard input is no message of containerd's"),
        (lambda params: params.encode() + bytes(4 << 20), "The standard input has more than 4194304 bytes"),
        (_of_another, "The parameters on standard input are for the container 'other' of the namespace 'default', not"),
        (_relative, "The directory 's' for the shim's socket is not an absolute path"),
    ],
)
def test_bad_parameters(containerd: BareContainerd, bundle: Path, change: Any, said: str) -> None:
    done = containerd.run("one", bundle, "start", change(containerd.parameters("one")))
    assert (done.returncode, done.stdout) == (1, b"")
    assert re.fullmatch(rf"containerd-shim-hako-v2: {re.escape(said)}.*\.\n", done.stderr.decode())
    assert sorted(os.listdir(bundle)) == ["config.json", "rootfs"]
