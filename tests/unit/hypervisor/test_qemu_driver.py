"""The driver against a pretended QEMU: what it makes of each way in which a QEMU can misbehave or die."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import sys
from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from hako.errors import HostError, HypervisorError, StateError, TimedOutError
from hako.hypervisor import qemu, qmp
from hako.hypervisor.base import VmSpec
from hako.hypervisor.qemu import QemuVm, find_qemu

_FAKE = os.path.join(os.path.dirname(__file__), "fake_qemu.py")
_LIMIT = 30

Make = Callable[..., QemuVm]


@pytest.fixture
def make(tmp_path: os.PathLike[str]) -> Make:
    """A VM whose QEMU is the pretended one, with its behaviour as the kernel's command line."""
    binary = os.path.join(tmp_path, "qemu")
    with open(binary, "w", encoding="utf-8") as file:
        file.write(f'#!/bin/sh\nexec {sys.executable} -IS {_FAKE} "$@"\n')
    os.chmod(binary, 0o755)
    kernel = os.path.join(tmp_path, "vmlinux")
    with open(kernel, "wb"):
        pass

    def build(behaviour: str = "", **changes: Any) -> QemuVm:
        options = {key: changes.pop(key) for key in ("binary", "console_log") if key in changes}
        spec = VmSpec("pod1", kernel, None, behaviour, 64 << 20)._replace(**changes)
        return QemuVm(spec, user="root", **{"binary": binary, **options})

    return build


def run(vm: QemuVm, body: Callable[[QemuVm], Awaitable[None]]) -> None:
    """Run ``body`` in a loop, kill the VM at the end, and see that no descriptor and no process is left."""

    async def main() -> None:
        before = set(os.listdir("/proc/self/fd"))
        async with asyncio.timeout(_LIMIT):
            try:
                await body(vm)
            finally:
                await vm.kill()
            assert vm.pid is None
            assert set(os.listdir("/proc/self/fd")) == before

    asyncio.run(main())


async def start_fails(vm: QemuVm, error: type[Exception], *says: str) -> None:
    with pytest.raises(error) as caught:
        await vm.start()
    for text in says:
        assert text in str(caught.value)
    assert "\n" not in str(caught.value)
    assert vm.pid is None


async def start_and_let_end(vm: QemuVm) -> None:
    await vm.start()
    with contextlib.suppress(HypervisorError):  # it may be gone before its answer is read
        await vm.resume()


@pytest.mark.parametrize(
    ("behaviour", "says"),
    [
        ("refuse", "QEMU did not start VM pod1: unable to find CPU model 'bad'."),
        ("garbage", "QEMU of VM pod1 did not answer as it should on its control socket: "),
    ],
)
def test_start_reports_why_at_once(make: Make, behaviour: str, says: str) -> None:
    run(make(behaviour), lambda vm: start_fails(vm, HypervisorError, says))


def test_a_qemu_that_does_not_answer_is_given_up(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(qemu, "START_TIMEOUT", 0.3)
    run(make("mute"), lambda vm: start_fails(vm, HypervisorError, "did not answer", "0.3 s"))


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"binary": "no-such-qemu"}, "no program no-such-qemu. Install the package qemu-system-x86."),
        ({"binary": "/etc/passwd"}, "no program /etc/passwd"),
        ({"kernel": "/nonexistent/vmlinux"}, "guest kernel /nonexistent/vmlinux: No such file"),
        ({"initrd": "/nonexistent/initrd"}, "guest initrd /nonexistent/initrd: No such file"),
    ],
)
def test_what_the_host_lacks_is_named(make: Make, changes: dict[str, Any], says: str) -> None:
    async def body(vm: QemuVm) -> None:
        await start_fails(vm, HostError, says)
        with pytest.raises(StateError):
            await vm.wait()

    run(make(**changes), body)


@pytest.mark.parametrize(
    ("behaviour", "code", "number", "reason"),
    [
        ("poweroff console", 0, None, "the guest powered off"),
        ("hostile-event console", 0, None, "QEMU ended by itself (it did not say why)"),
        ("die console", None, signal.SIGKILL, "QEMU was ended by signal SIGKILL"),
        ("fail console", 1, None, "QEMU failed with status 1: out of luck\\x1b[2J"),
        (
            "internal-error console",
            None,
            signal.SIGKILL,
            "the guest's CPU cannot go on (QEMU's state is internal-error): KVM internal error. Suberror: 1",
        ),
    ],
)
def test_each_end_is_reported(make: Make, behaviour: str, code: int | None, number: int | None, reason: str) -> None:
    async def body(vm: QemuVm) -> None:
        await start_and_let_end(vm)
        first, second = await asyncio.gather(vm.wait(), vm.wait())
        assert first is second
        assert (first.code, first.signal, first.reason) == (code, number, reason)
        assert first.console_tail == ["guest says hello", "and goodbye"]
        assert not first.requested
        assert await vm.status() == "exited"
        with pytest.raises(HypervisorError, match="and goodbye"):
            await vm.pause()

    run(make(behaviour), body)


def test_the_console_goes_to_its_file(make: Make, tmp_path: os.PathLike[str]) -> None:
    path = os.path.join(tmp_path, "console.log")

    async def body(vm: QemuVm) -> None:
        await start_and_let_end(vm)
        await vm.wait()
        with open(path, "rb") as file:
            assert file.read() == b"guest says hello\r\nand goodbye\r\n"

    run(make("poweroff console", console_log=path), body)


def test_an_answer_that_does_not_come_is_given_up(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(qmp.Qmp.execute, "__defaults__", (None, 0.2))

    async def body(vm: QemuVm) -> None:
        await vm.start()
        with pytest.raises(TimedOutError, match=r"query-status within 0\.2 s"):
            await vm.status()

    run(make("silent"), body)


def test_a_refused_command_has_qemus_words(make: Make) -> None:
    async def body(vm: QemuVm) -> None:
        await vm.start()
        with pytest.raises(HypervisorError, match="refused query-status: no such thing"):
            await vm.status()

    run(make("error"), body)


def test_stop_uses_force_on_a_qemu_that_confirms_and_stays(make: Make) -> None:
    async def body(vm: QemuVm) -> None:
        await vm.start()
        end = await vm.stop(timeout=0.2)
        assert (end.signal, end.reason, end.requested) == (signal.SIGKILL, "it was killed", True)

    run(make(), body)


@pytest.mark.parametrize("steps", [0, 1, 2, 3, 5, 8])
def test_a_cancelled_start_leaves_nothing(make: Make, steps: int) -> None:
    async def body(vm: QemuVm) -> None:
        task = asyncio.create_task(vm.start())
        for _ in range(steps):
            await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert vm.pid is None

    run(make("mute"), body)


def test_a_cancelled_wait_does_not_disturb_others(make: Make) -> None:
    async def body(vm: QemuVm) -> None:
        await vm.start()
        impatient, patient = asyncio.create_task(vm.wait()), asyncio.create_task(vm.wait())
        await asyncio.sleep(0)
        impatient.cancel()
        await asyncio.wait({impatient})
        await vm.kill()
        assert (await patient).reason == "it was killed"

    run(make(), body)


def test_qemu_is_found_by_name_and_by_path(tmp_path: os.PathLike[str]) -> None:
    assert find_qemu("/bin/sh") == "/bin/sh"
    assert find_qemu("sh").endswith("/sh")
    with pytest.raises(HostError):
        find_qemu(os.path.join(tmp_path, "missing"))
