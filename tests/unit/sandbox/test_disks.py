"""Disks of a sandbox with a pretended VM: who has which, and that all of them are given back."""

from __future__ import annotations

import asyncio
import contextlib
import os
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any, cast

import pytest

from hako.errors import AgentError, HakoError, HypervisorError, ProtocolError
from hako.hypervisor.base import Disk, VmSpec
from hako.sandbox.disks import Disks
from hako.sandbox.guestdevices import Node
from hako.sandbox.vm import Vm
from hako.storage.block import Plan, Wanted
from hako.storage.sources import open_disk
from hako.testing.hypervisor import FakeVm


class Agent:
    """Has every disk that it is told of, or answers what it is told to."""

    def __init__(self) -> None:
        self.calls: list[tuple[str, dict[str, Any]]] = []
        self.answers: dict[str, Any] = {}
        self.place: object = None  #: where it says that it has each disk; None: at a place of its own

    async def call(self, method: str, params: dict[str, Any], _timeout: float | None = None) -> dict[str, Any]:
        self.calls.append((method, params))
        answer = self.answers.get(method)
        if isinstance(answer, Exception):
            raise answer
        if answer is not None:
            return dict(answer)
        disks: dict[str, object] = {}
        for number, serial in enumerate(params["disks"]):
            disks[serial] = self.place or {"path": f"/dev/sd{number}", "major": 8, "minor": 16 * number}
        return {"disks": disks}


class Bench:
    """A started VM, its agent and the disks of its sandbox."""

    def __init__(self, directory: Path) -> None:
        self.hypervisor = FakeVm(VmSpec("vm", "/kernel", None, "", 64 << 20))
        self.agent = Agent()
        self.vm = Vm(self.hypervisor, cast("Any", self.agent), {})
        self.disks = Disks()
        self._directory = directory

    async def attach(self, container_id: str, *names: str, readonly: bool = True) -> dict[tuple[int, int], Node]:
        plan = Plan(container_id)
        for number, name in enumerate(names):
            path = self._directory / name
            path.write_bytes(bytes(4096))
            plan.add_disk(Wanted(str(path), readonly, (7, number)))
        with contextlib.ExitStack() as held:
            opened = [open_disk(one.path, readonly=one.readonly) for one in plan.disks]
            for one in opened:
                held.callback(os.close, one.fd)
            return await self.disks.attach(self.vm, plan, opened)

    def plugged(self) -> list[str]:
        return [device.serial for device in self.hypervisor.plugged if isinstance(device, Disk)]


def run(tmp_path: Path, body: Callable[[Bench], Awaitable[None]]) -> None:
    async def main() -> None:
        bench = Bench(tmp_path)
        await bench.hypervisor.start()
        try:
            await body(bench)
        finally:
            await bench.hypervisor.kill()

    before = os.listdir("/proc/self/fd")
    asyncio.run(main())
    assert os.listdir("/proc/self/fd") == before


def test_what_a_container_has_is_given_back(tmp_path: Path) -> None:
    async def body(bench: Bench) -> None:
        nodes = await bench.attach("c1", "a", "b")
        assert nodes == {(7, 0): Node("/dev/sd0", 8, 0), (7, 1): Node("/dev/sd1", 8, 16)}
        assert len(bench.plugged()) == len(bench.disks) == 2
        serials = bench.plugged()
        await bench.disks.detach(bench.vm, "c1")
        assert bench.agent.calls[-1] == ("DetachDisks", {"container": "c1", "disks": serials})
        assert bench.plugged() == []
        assert len(bench.disks) == 0

    run(tmp_path, body)


def test_what_is_only_read_is_shared(tmp_path: Path) -> None:
    async def body(bench: Bench) -> None:
        await asyncio.gather(bench.attach("c1", "a", "b"), bench.attach("c2", "b", "c"))
        assert len(bench.plugged()) == 3
        await bench.disks.detach(bench.vm, "c1")
        assert len(bench.plugged()) == 2
        assert len(bench.agent.calls[-1][1]["disks"]) == 1
        await bench.disks.detach(bench.vm, "c2")
        assert bench.plugged() == []

    run(tmp_path, body)


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        (AgentError("no such file system"), "no such file system"),
        ({}, "disks"),
        ({"disks": {}}, "did not say where"),
    ],
)
def test_nothing_is_left_of_a_failure(tmp_path: Path, answer: object, expected: str) -> None:
    async def body(bench: Bench) -> None:
        await bench.attach("c1", "a")
        bench.agent.answers["AttachDisks"] = answer
        with pytest.raises(HakoError, match=expected):
            await bench.attach("c2", "a", "b")
        assert len(bench.plugged()) == len(bench.disks) == 1

    run(tmp_path, body)


@pytest.mark.parametrize("place", [
    {"path": "/etc/passwd", "major": 8, "minor": 0},
    {"path": "/dev/" + "a" * 64, "major": 8, "minor": 0},
    {"path": "/dev/sda", "major": "8", "minor": 0},
    {"path": "/dev/sda", "major": True, "minor": 0},
    {"path": "/dev/sda", "major": 8, "minor": -1},
    {"path": "/dev/sda", "major": 8, "minor": 1 << 20},
    "/dev/sda",
])  # fmt: skip
def test_an_agent_is_not_believed_everything(tmp_path: Path, place: object) -> None:
    async def body(bench: Bench) -> None:
        bench.agent.place = place
        with pytest.raises(ProtocolError, match="did not say where it has a disk"):
            await bench.attach("c1", "a")
        assert bench.plugged() == []

    run(tmp_path, body)


def test_a_disk_that_the_vm_refuses_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async def body(bench: Bench) -> None:
        async def refuse(*_: object) -> None:
            raise HypervisorError("it is locked.")

        await bench.attach("c1", "a")
        monkeypatch.setattr(bench.hypervisor, "plug", refuse)
        with pytest.raises(HypervisorError, match=r"/b cannot be a disk of the VM: it is locked\."):
            await bench.attach("c2", "b")
        assert len(bench.disks) == 1

    run(tmp_path, body)


def test_a_guest_that_does_not_let_go_loses_its_disks(tmp_path: Path) -> None:
    async def body(bench: Bench) -> None:
        await bench.attach("c1", "a", readonly=False)
        bench.agent.answers["DetachDisks"] = AgentError("busy")
        await bench.disks.detach(bench.vm, "c1")
        assert bench.plugged() == []

    run(tmp_path, body)


def test_a_vm_that_is_about_to_end_takes_them_along(tmp_path: Path) -> None:
    async def body(bench: Bench) -> None:
        await bench.attach("c1", "a")
        bench.disks.ending = True
        await bench.disks.detach(bench.vm, "c1")
        assert bench.agent.calls[-1][0] == "AttachDisks"

    run(tmp_path, body)
