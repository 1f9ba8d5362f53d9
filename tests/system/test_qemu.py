"""QEMU itself: its rights, its end with its parent's, what its refusals read like, and the KVM probe."""

from __future__ import annotations

import asyncio
import os
import pwd
import select
import signal
import subprocess
import sys
import time
from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from hako.errors import HostError, HypervisorError
from hako.hypervisor import accelerator
from hako.hypervisor.base import AgentChannel, Rng, Share9p, VmSpec
from hako.hypervisor.qemu import QemuVm

pytestmark = pytest.mark.system

_LIMIT = 120
_USER = "nobody"
#: Bits of the capabilities in /proc/PID/status: chown, dac_override, fowner, fsetid.
_SHARE_CAPABILITIES = 1 << 0 | 1 << 1 | 1 << 3 | 1 << 4


@pytest.fixture
def spec(guest_image: Any) -> VmSpec:
    """A guest that stays: its kernel panics for want of a root file system, and waits."""
    return VmSpec("sys", guest_image.kernel, None, "console=ttyS0", 256 << 20, devices=())


def run(body: Callable[[], Awaitable[None]]) -> None:
    async def main() -> None:
        async with asyncio.timeout(_LIMIT):
            await body()

    asyncio.run(main())


def status_of(pid: int) -> dict[str, list[str]]:
    with open(f"/proc/{pid}/status", encoding="utf-8") as file:
        return {key: value.split() for key, _, value in (line.partition(":") for line in file)}


@pytest.mark.parametrize("shared", [False, True])
def test_qemu_has_few_rights(spec: VmSpec, tmp_path: os.PathLike[str], shared: bool) -> None:
    share = (Share9p("hako", os.fspath(tmp_path)),) if shared else ()

    async def body() -> None:
        vm = QemuVm(spec._replace(devices=(AgentChannel(), Rng(), *share)), user=_USER)
        try:
            await vm.start()
            assert vm.pid is not None
            status = status_of(vm.pid)
            account = pwd.getpwnam(_USER)
            assert status["Uid"] == [str(account.pw_uid)] * 4
            assert status["Gid"] == [str(account.pw_gid)] * 4
            assert status["Groups"] == []
            assert status["NoNewPrivs"] == ["1"]
            assert status["Seccomp"] == ["2"]
            for kind in ("CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb"):
                assert int(status[kind][0], 16) == (_SHARE_CAPABILITIES if shared else 0), kind
            with open(f"/proc/{vm.pid}/environ", "rb") as file:
                names = {entry.partition(b"=")[0] for entry in file.read().split(b"\0") if entry}
            assert names == {b"PATH", b"LC_ALL"}
        finally:
            await vm.kill()

    run(body)


def test_a_killed_qemu_is_reported_with_the_last_lines(spec: VmSpec) -> None:
    async def body() -> None:
        vm = QemuVm(spec, user=_USER)
        try:
            await vm.start()
            while not any("Kernel panic" in line for line in vm.console_tail(50)):
                await asyncio.sleep(0.05)
            assert vm.pid is not None
            killed = time.monotonic()
            os.kill(vm.pid, signal.SIGKILL)
            end = await asyncio.wait_for(vm.wait(), 10)
            assert time.monotonic() - killed < 10
            assert (end.code, end.signal, end.requested) == (None, signal.SIGKILL, False)
            assert "ended by signal SIGKILL" in end.sentence("sys")
            assert "Last console lines" in end.sentence("sys")
            assert any("panic" in line for line in end.console_tail)
        finally:
            await vm.kill()

    run(body)


def test_a_guest_that_reboots_is_finished(spec: VmSpec) -> None:
    async def body() -> None:
        vm = QemuVm(spec._replace(cmdline="console=ttyS0 panic=-1"), user=_USER)
        try:
            await vm.start()
            end = await vm.wait()
            assert end.code == 0
            assert end.reason == "the guest rebooted, which a kernel panic does too"
            assert any("Kernel panic" in line for line in end.console_tail)
        finally:
            await vm.kill()

    run(body)


_CHILD = """
import asyncio, sys
from hako.hypervisor.base import VmSpec
from hako.hypervisor.qemu import QemuVm

async def main():
    vm = QemuVm(VmSpec("orphan", sys.argv[1], None, "console=ttyS0", 256 << 20), user=sys.argv[2])
    await vm.start()
    print(vm.pid, flush=True)
    await vm.wait()

asyncio.run(main())
"""


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
@pytest.mark.parametrize("user", [_USER, "root"])
def test_qemu_ends_with_the_process_that_started_it(spec: VmSpec, number: int, user: str) -> None:
    with subprocess.Popen(
        [sys.executable, "-c", _CHILD, spec.kernel, user],
        stdout=subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)},
    ) as child:
        assert child.stdout is not None
        pidfd = os.pidfd_open(int(child.stdout.readline()))
        try:
            child.send_signal(number)
            child.wait(timeout=30)
            readable, _, _ = select.select([pidfd], [], [], 10)
            assert readable, "QEMU lives on"
        finally:
            os.close(pidfd)


@pytest.mark.parametrize(
    ("change", "error", "says"),
    [
        ({"cpu": "no-such-cpu"}, HypervisorError, "unable to find CPU model 'no-such-cpu'"),
        ({"machine": "no-such-machine"}, HypervisorError, "unsupported machine type"),
        ({"devices": (Share9p("a", "/nonexistent/dir"),)}, HypervisorError, "/nonexistent/dir"),
        ({"memory": 1 << 50}, HypervisorError, "memory"),
        ({"kernel": "/nonexistent/vmlinux"}, HostError, "/nonexistent/vmlinux"),
        ({"kernel": "/etc/shadow"}, HostError, "chmod o+r"),
    ],
)
def test_refusals_are_one_sentence(spec: VmSpec, change: dict[str, Any], error: type[Exception], says: str) -> None:
    async def body() -> None:
        vm = QemuVm(spec._replace(**change), user=_USER)
        with pytest.raises(error) as caught:
            await vm.start()
        assert says in str(caught.value)
        assert "\n" not in str(caught.value)
        await vm.kill()

    run(body)


def test_many_starts_leave_nothing(spec: VmSpec) -> None:
    async def body() -> None:
        before = set(os.listdir("/proc/self/fd"))
        for _ in range(10):
            vm = QemuVm(spec._replace(devices=(AgentChannel(),)), user=_USER)
            await vm.start()
            await vm.kill()
        assert set(os.listdir("/proc/self/fd")) == before
        assert len(asyncio.all_tasks()) == 1

    run(body)


def test_the_probe_tells_a_guest_that_boots_from_one_that_does_not(spec: VmSpec) -> None:
    booting = spec._replace(cmdline="console=ttyS0 quiet rdinit=/init panic=-1")
    assert accelerator.probe(booting, user=_USER, timeout=_LIMIT) == ""
    failing = booting._replace(cmdline="console=ttyS0 quiet rdinit=/missing panic=-1")
    assert "panic" in accelerator.probe(failing, user=_USER, timeout=_LIMIT)
    assert "within 0.1 s" in accelerator.probe(booting, user=_USER, timeout=0.1)


def test_the_choice_is_bounded_and_remembered(
    spec: VmSpec, monkeypatch: pytest.MonkeyPatch, tmp_path: os.PathLike[str]
) -> None:
    monkeypatch.setenv("HAKO_DATA_ROOT", os.fspath(tmp_path))
    began = time.monotonic()
    first = accelerator.choose("auto", kernel=spec.kernel, user=_USER)
    assert time.monotonic() - began < accelerator.PROBE_TIMEOUT + 10
    assert first.name in ("kvm", "tcg")
    assert first.reason

    def fail(*args: object, **options: object) -> str:
        raise AssertionError("probed again")

    monkeypatch.setattr(accelerator, "probe", fail)
    assert accelerator.choose("auto", kernel=spec.kernel, user=_USER) == first
