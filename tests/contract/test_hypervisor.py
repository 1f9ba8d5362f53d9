"""What every hypervisor driver promises, kept by the pretended VM that tests use and by QEMU alike."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
from collections.abc import Awaitable, Callable, Iterator
from typing import Any

import pytest

from hako.errors import ConfigError, HypervisorError, NotFoundError, StateError
from hako.hypervisor import probe_guest
from hako.hypervisor.base import AgentChannel, Backends, Balloon, Disk, Hypervisor, MemoryDevice, Rng, VmSpec
from hako.hypervisor.qemu import QemuVm
from hako.template import memory
from hako.testing.hypervisor import FakeVm

_LIMIT = 120


class Driver:
    """Makes VMs of one kind, with guests of which the tests know what they do."""

    def __init__(self, kind: str, kernel: str, initrd: str) -> None:
        self.kind = kind
        #: A guest that stays: without an initrd and a file system the kernel panics, and waits for ever.
        self.staying = VmSpec("contract", kernel, None, "console=ttyS0 quiet", 256 << 20)
        #: A guest that says probe_guest.MARKER on its console and powers off.
        self.leaving = self.staying._replace(initrd=initrd, cmdline="console=ttyS0 quiet rdinit=/init panic=-1")

    def make(self, spec: VmSpec, console_log: str | None = None, backends: Backends | None = None) -> Hypervisor:
        """A VM that was not started."""
        kind = QemuVm if self.kind == "qemu" else FakeVm
        return kind(spec, console_log=console_log, backends=backends)

    def let_leave(self, vm: Hypervisor) -> None:
        """What the guest of ``leaving`` does by itself, done for one that is pretended."""
        if isinstance(vm, FakeVm):
            vm.say(probe_guest.MARKER.encode() + b"\r\n")
            vm.end()


@pytest.fixture(params=["fake", pytest.param("qemu", marks=pytest.mark.system)])
def driver(request: pytest.FixtureRequest, tmp_path: os.PathLike[str]) -> Iterator[Driver]:
    """Each driver in turn."""
    if request.param == "fake":
        yield Driver("fake", "/nonexistent", "/nonexistent")
        return
    image = request.getfixturevalue("guest_image")
    initrd = os.path.join(tmp_path, "initrd")
    with open(initrd, "wb") as file:
        file.write(probe_guest.initrd())
    os.chmod(initrd, 0o644)
    yield Driver("qemu", image.kernel, initrd)


def run(vm: Hypervisor, body: Callable[[Any], Awaitable[None]]) -> None:
    """Run ``body`` in a loop of its own; at the end nothing may be left."""

    async def main() -> None:
        before = set(os.listdir("/proc/self/fd"))
        async with asyncio.timeout(_LIMIT):
            try:
                await body(vm)
            finally:
                await vm.kill()
                await vm.kill()
        assert vm.pid is None
        assert set(os.listdir("/proc/self/fd")) == before

    asyncio.run(main())


def test_a_life(driver: Driver) -> None:
    async def body(vm: Hypervisor) -> None:
        assert vm.pid is None
        await vm.start()
        assert vm.pid is not None
        os.kill(vm.pid, 0)
        assert await vm.status() == "running"
        await vm.pause()
        assert await vm.status() == "paused"
        await vm.pause()
        await vm.resume()
        assert await vm.status() == "running"
        end = await vm.stop()
        assert (end.code, end.signal, end.reason, end.requested) == (0, None, "it was stopped", True)
        assert await vm.wait() == end
        assert await vm.status() == "exited"
        assert vm.pid is None

    run(driver.make(driver.staying), body)


def test_the_guest_powers_off(driver: Driver, tmp_path: os.PathLike[str]) -> None:
    path = os.path.join(tmp_path, "console.log")

    async def body(vm: Hypervisor) -> None:
        await vm.start()
        driver.let_leave(vm)
        end = await vm.wait()
        assert (end.code, end.signal, end.reason, end.requested) == (0, None, "the guest powered off", False)
        assert probe_guest.MARKER in end.console_tail
        assert probe_guest.MARKER in vm.console_tail()
        assert len(vm.console_tail(1)) == 1
        assert await vm.stop() == end
        assert await vm.kill() == end
        with open(path, "rb") as file:
            assert probe_guest.MARKER.encode() in file.read()

    run(driver.make(driver.leaving, console_log=path), body)


def test_kill(driver: Driver) -> None:
    async def body(vm: Hypervisor) -> None:
        await vm.start()
        waiting = [asyncio.create_task(vm.wait()) for _ in range(3)]
        end = await vm.kill()
        assert end is not None
        assert (end.code, end.signal, end.requested) == (None, signal.SIGKILL, True)
        assert await asyncio.gather(*waiting) == [end] * 3

    run(driver.make(driver.staying), body)


def test_a_dead_vm_obeys_no_more_and_says_why(driver: Driver) -> None:
    async def body(vm: Hypervisor) -> None:
        await vm.start()
        await vm.stop()
        gone = (lambda: vm.resize_memory(0), lambda: vm.add_vcpus(1), lambda: vm.unplug(Disk("none")))
        for call in (vm.pause, vm.resume, vm.balloon, *gone):
            with pytest.raises(HypervisorError, match="The VM of contract ended: it was stopped"):
                await call()

    run(driver.make(driver.staying._replace(devices=(Balloon(), MemoryDevice(1 << 30)))), body)


def test_before_the_start(driver: Driver) -> None:
    async def body(vm: Hypervisor) -> None:
        for call in (vm.wait, vm.pause, vm.resume, vm.status, vm.stop, vm.freeze, vm.balloon):
            with pytest.raises(StateError):
                await call()
        with pytest.raises(StateError):
            _ = vm.agent_socket
        assert vm.console_tail() == []
        assert await vm.kill() is None

    run(driver.make(driver.staying), body)


def test_a_vm_starts_once(driver: Driver) -> None:
    async def body(vm: Hypervisor) -> None:
        await vm.start()
        with pytest.raises(StateError, match="started already"):
            await vm.start()
        assert await vm.status() == "running"

    run(driver.make(driver.staying), body)


def test_the_agent_channel_ends_with_the_vm(driver: Driver) -> None:
    async def body(vm: Hypervisor) -> None:
        await vm.start()
        channel = vm.agent_socket
        with pytest.raises(BlockingIOError):
            channel.recv(1)
        await vm.stop()
        assert channel.recv(1) == b""

    run(driver.make(driver.staying._replace(devices=(AgentChannel(),))), body)


def test_no_agent_channel_unless_asked_for(driver: Driver) -> None:
    async def body(vm: Hypervisor) -> None:
        await vm.start()
        with pytest.raises(StateError, match="no agent channel"):
            _ = vm.agent_socket

    run(driver.make(driver.staying._replace(devices=(Rng(),))), body)


@pytest.mark.parametrize("change", [{"vcpus": 0}, {"memory": 1}, {"id": "a/b"}, {"accelerator": "warp"}])
def test_impossible_descriptions_are_refused(driver: Driver, change: dict[str, Any]) -> None:
    with pytest.raises(ConfigError):
        driver.make(driver.staying._replace(**change))


def test_capabilities(driver: Driver) -> None:
    vm = driver.make(driver.staying)
    assert vm.capabilities.pause
    assert "tcg" in vm.capabilities.accelerators
    assert vm.capabilities.clone
    assert vm.capabilities.grow


def test_more_processors(driver: Driver) -> None:
    async def body(vm: Hypervisor) -> None:
        await vm.start()
        assert await vm.add_vcpus(1) == 1
        assert await vm.add_vcpus(3) == 3
        assert await vm.add_vcpus(2) == 3
        assert await vm.add_vcpus(4) == 4
        with pytest.raises(ConfigError, match="cannot have 5 vCPUs: it can have 4 at most"):
            await vm.add_vcpus(5)
        assert await vm.status() == "running"

    run(driver.make(driver.staying._replace(max_vcpus=4)), body)


def test_no_more_processors_than_described(driver: Driver) -> None:
    async def body(vm: Hypervisor) -> None:
        await vm.start()
        with pytest.raises(ConfigError, match="it can have 1 at most"):
            await vm.add_vcpus(2)

    run(driver.make(driver.staying), body)


def test_more_memory(driver: Driver) -> None:
    async def body(vm: Hypervisor) -> None:
        await vm.start()
        # A guest without a driver takes none; what it has is told, not what was wished.
        assert await vm.resize_memory(128 << 20, 0.2) in (0, 128 << 20)
        assert await vm.resize_memory(1, 0.2) in (0, 2 << 20)
        with pytest.raises(HypervisorError):
            await vm.resize_memory(2 << 30, 0.2)
        assert await vm.resize_memory(0) == 0
        assert await vm.status() == "running"

    run(driver.make(driver.staying._replace(devices=(MemoryDevice(1 << 30),))), body)


def test_no_more_memory_without_the_device(driver: Driver) -> None:
    async def body(vm: Hypervisor) -> None:
        await vm.start()
        with pytest.raises(StateError, match="no device by which its memory could grow"):
            await vm.resize_memory(128 << 20)

    run(driver.make(driver.staying), body)


def test_the_balloon(driver: Driver) -> None:
    async def body(vm: Hypervisor) -> None:
        await vm.start()
        assert await vm.balloon() == vm.spec.memory
        assert 64 << 20 <= await vm.balloon(64 << 20) <= vm.spec.memory
        await vm.balloon(vm.spec.memory)

    run(driver.make(driver.staying._replace(devices=(Balloon(),))), body)


def test_no_balloon(driver: Driver) -> None:
    async def body(vm: Hypervisor) -> None:
        await vm.start()
        with pytest.raises(HypervisorError):
            await vm.balloon()

    run(driver.make(driver.staying), body)


@contextlib.contextmanager
def opened(path: str, *, readonly: bool) -> Iterator[int]:
    """The file ``path`` of 64 KiB, which is made if there is none."""
    fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    os.truncate(fd, 64 << 10)
    if readonly:
        os.close(fd)
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        yield fd
    finally:
        os.close(fd)


def open_files(vm: Hypervisor, path: str) -> int:
    """How often the hypervisor has ``path`` open; 0 for one that is pretended."""
    if isinstance(vm, FakeVm) or vm.pid is None:
        return 0
    directory = f"/proc/{vm.pid}/fd"
    return sum(os.readlink(f"{directory}/{name}") == path for name in os.listdir(directory))


def test_disks_come_and_go(driver: Driver, tmp_path: os.PathLike[str]) -> None:
    path = os.path.join(tmp_path, "disk")

    async def body(vm: Hypervisor) -> None:
        await vm.start()
        for number in range(3):
            disk = Disk(f"d{number}", readonly=number == 1)
            with opened(path, readonly=disk.readonly) as fd:
                await vm.plug(disk, [fd])
            assert isinstance(vm, FakeVm) or open_files(vm, path)
            with opened(path, readonly=False) as fd, pytest.raises(StateError, match="has a disk"):
                await vm.plug(disk, [fd])
            await vm.unplug(disk)
            assert open_files(vm, path) == 0
            with pytest.raises(NotFoundError):
                await vm.unplug(disk)
        assert await vm.status() == "running"

    run(driver.make(driver.staying), body)


def test_a_disk_is_what_it_is_said_to_be(driver: Driver, tmp_path: os.PathLike[str]) -> None:
    path = os.path.join(tmp_path, "disk")

    async def body(vm: Hypervisor) -> None:
        await vm.start()
        with opened(path, readonly=True) as fd:
            for wrong in (Disk("wrong"), Disk("wrong", readonly=True, block=True)):
                with pytest.raises(HypervisorError):
                    await vm.plug(wrong, [fd])
            for impossible in (Disk(""), Disk("a b"), Disk("x" * 21), Disk("x", sector=513)):
                with pytest.raises(ConfigError):
                    await vm.plug(impossible, [fd])
            assert open_files(vm, path) == 0
            await vm.plug(Disk("right", readonly=True), [fd])

    run(driver.make(driver.staying), body)


def test_many_disks_and_then_no_more(driver: Driver, tmp_path: os.PathLike[str]) -> None:
    path = os.path.join(tmp_path, "disk")

    async def body(vm: Hypervisor) -> None:
        await vm.start()
        with opened(path, readonly=True) as fd:
            for number in range(vm.capabilities.disks):
                await vm.plug(Disk(f"d{number}", readonly=True), [fd])
            with pytest.raises(StateError, match="no room for another"):
                await vm.plug(Disk("another", readonly=True), [fd])
            await vm.unplug(Disk("d7", readonly=True))
            await vm.plug(Disk("another", readonly=True), [fd])

    run(driver.make(driver.staying), body)


def test_frozen_and_cloned(driver: Driver) -> None:
    spec = driver.staying._replace(sharing="shared", memory=128 << 20, devices=(AgentChannel(), Rng()))
    with contextlib.ExitStack() as stack:
        fds = []
        for name, size in (("memory", spec.memory), ("state", 0)):
            fds.append(memory.new(name, size))
            stack.callback(os.close, fds[-1])
        frozen = driver.make(spec, backends=Backends(*fds))

        async def freeze(vm: Hypervisor) -> None:
            await vm.start()
            await vm.freeze()
            assert await vm.status() in ("paused", "postmigrate")

        async def go_on(vm: Hypervisor) -> None:
            await vm.start()
            assert await vm.status() == "running"

        run(frozen, freeze)
        memory.seal(fds[0])
        memory.seal(fds[1])
        for number in range(2):
            # An open file of its own, read from the beginning.
            state = os.open(f"/proc/self/fd/{fds[1]}", os.O_RDONLY)
            stack.callback(os.close, state)
            clone = spec._replace(id=f"clone{number}", sharing="private")
            run(driver.make(clone, backends=Backends(fds[0], state, clone=True)), go_on)


def test_a_clone_waits_for_its_memory(driver: Driver) -> None:
    spec = driver.staying._replace(sharing="shared", memory=128 << 20)
    with contextlib.ExitStack() as stack:
        fds = [memory.new("memory", spec.memory), memory.new("state", 0)]
        for fd in fds:
            stack.callback(os.close, fd)

        async def freeze(vm: Hypervisor) -> None:
            await vm.start()
            await vm.freeze()

        async def fail(vm: Hypervisor) -> None:
            ready = asyncio.get_running_loop().create_future()
            ready.set_exception(OSError("the copy failed"))
            with pytest.raises(OSError, match="the copy failed"):
                await vm.start(ready)
            assert vm.pid is None

        run(driver.make(spec, backends=Backends(*fds)), freeze)
        os.lseek(fds[1], 0, os.SEEK_SET)
        run(driver.make(spec, backends=Backends(*fds, clone=True)), fail)


def test_a_state_that_is_none_is_refused(driver: Driver) -> None:
    spec = driver.staying._replace(sharing="shared", memory=128 << 20)
    with contextlib.ExitStack() as stack:
        fds = [memory.new("memory", spec.memory), memory.new("state", 0)]
        for fd in fds:
            stack.callback(os.close, fd)
        os.pwrite(fds[1], b"this is not the state of a virtual machine", 0)

        async def body(vm: Hypervisor) -> None:
            with pytest.raises(HypervisorError, match="cannot be cloned: ") as caught:
                await vm.start()
            assert "\n" not in str(caught.value)
            assert vm.pid is None

        run(driver.make(spec, backends=Backends(*fds, clone=True)), body)


def test_freezing_needs_a_place_for_the_state(driver: Driver) -> None:
    async def body(vm: Hypervisor) -> None:
        await vm.start()
        with pytest.raises(StateError, match="no file for its state"):
            await vm.freeze()

    run(driver.make(driver.staying), body)
