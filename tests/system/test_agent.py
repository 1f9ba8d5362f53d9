"""The agent in a real VM: crun, cgroups, terminals and limits as they are. One VM serves all tests of this file."""

from __future__ import annotations

import asyncio
import hashlib
import os
import signal
import subprocess
import time
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from hako.agent_client import AgentClient
from hako.errors import CommandError, ExistsError, HakoError, NotFoundError, StateError
from hako.hypervisor.base import AgentChannel, Rng, Share9p, VmSpec
from hako.hypervisor.qemu import QemuVm
from hako.sandbox import replies
from hako.sandbox.vm import command_line
from hako.storage.base import TAG
from hako.storage.ninep import NinePShare
from hako.wire.calls import PROTOCOL_VERSION, WINDOW
from support.guest import Guest, config
from support.hostside import failure, read_all

pytestmark = pytest.mark.system
Run = Callable[[Callable[[Guest], Awaitable[None]]], None]


@pytest.fixture(scope="module")
def booted(
    guest_image: Any, busybox_image: Any, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[asyncio.Runner, Guest]]:
    """A VM whose share holds the root file system of busybox and the guest image's modules."""
    share = tmp_path_factory.mktemp("share")
    copy_tree(busybox_image.rootfs, share / "rootfs")
    copy_tree(guest_image.modules, share / ".modules")
    driver = NinePShare(512_000)
    device = driver.device(str(share))
    assert isinstance(device, Share9p)
    assert device.tag == TAG
    spec = VmSpec(
        "agent",
        guest_image.kernel,
        guest_image.initrd,
        command_line("tcg", ""),
        256 << 20,
        devices=(AgentChannel(), Rng(), device),
    )
    vm = QemuVm(spec)

    async def boot() -> Guest:
        await vm.start()
        client = AgentClient(vm.agent_socket)
        hello = await client.call("Hello", {"version": PROTOCOL_VERSION}, 120)
        assert hello["version"] == PROTOCOL_VERSION
        await client.call("Configure", {"time_ns": time.time_ns(), "hostname": "outside"})
        await client.call("MountShare", driver.mount_request().params())
        return Guest(vm, client, share)

    async def end(guest: Guest | None) -> None:
        if guest is not None:
            guest.client.close()
        await vm.kill()

    with asyncio.Runner() as runner:
        guest = None
        try:
            guest = runner.run(boot())
            yield runner, guest
        finally:
            runner.run(end(guest))


def copy_tree(source: str, target: Path) -> None:
    """Copy a root file system as it is."""
    subprocess.run(["cp", "-a", source, str(target)], check=True)


@pytest.fixture
def run(booted: tuple[asyncio.Runner, Guest]) -> Iterator[Run]:
    """Run a coroutine with the VM; its containers are deleted afterwards."""
    runner, guest = booted

    def run(body: Callable[[Guest], Awaitable[None]]) -> None:
        runner.run(asyncio.wait_for(body(guest), 240))  # type: ignore[arg-type]

    yield run

    async def clean() -> None:
        for name in guest.names:
            try:
                await guest.call("Delete", container=name, force=True)
            except NotFoundError:
                continue
        guest.names.clear()
        assert (await guest.call("Info"))["containers"] == []

    runner.run(clean())


def test_the_life_of_a_container(run: Run) -> None:
    async def body(guest: Guest) -> None:
        process = await guest.create("c", "sh", "-c", "echo out; echo err >&2; exit 3", start=False)
        assert await guest.status("c") == "created"
        assert isinstance(await failure(guest.create("c", "true")), ExistsError)
        assert isinstance(await failure(guest.exec("c", "e", "true")), StateError)
        await guest.call("Start", container="c")
        assert isinstance(await failure(guest.call("Start", container="c")), StateError)
        end = await process.wait()
        assert (end["exit_status"], end["oom"]) == (3, False)
        assert abs(end["exited_at"] - time.time_ns()) < 60e9
        assert await read_all(process.stdout) == b"out\n"
        assert await read_all(process.streams["stderr"]) == b"err\n"
        assert await guest.status("c") == "stopped"
        await guest.call("Delete", container="c")
        assert isinstance(await failure(guest.call("State", container="c")), NotFoundError)
        again = await guest.create("c", "true")
        assert await again.status() == 0

    run(body)


@pytest.mark.parametrize(
    ("args", "exit_code"), [(["nope"], 127), (["/nope/nope"], 127), (["/etc"], 126), (["/etc/passwd"], 126)]
)
def test_commands_that_cannot_be_run(run: Run, args: list[str], exit_code: int) -> None:
    async def body(guest: Guest) -> None:
        error = await failure(guest.create("c", *args))
        assert isinstance(error, CommandError)
        assert error.exit_code == exit_code
        assert str(error).isprintable()
        assert (await guest.call("Info"))["containers"] == []
        await guest.create("c", "sleep", "1000")
        error = await failure(guest.exec("c", "e", *args))
        assert isinstance(error, CommandError)
        assert error.exit_code == exit_code
        assert isinstance(await failure(guest.call("Wait", container="c", exec="e")), NotFoundError)
        assert await guest.output("c", "e", "echo", "still fine") == "still fine\n"

    run(body)


def test_a_failed_creation_leaves_nothing_in_the_guest(run: Run) -> None:
    async def body(guest: Guest) -> None:
        await guest.create("spy", spec=config("sleep", "1000", own_pids=False))
        bad = config("true")
        bad["mounts"].append({"destination": "/x", "type": "nosuchfs", "source": "x"})
        error = await failure(guest.create("c", spec=bad))
        assert "nosuchfs" in str(error) or "No such device" in str(error)
        # Everything that the agent has open or has made is seen from a container that shares its process ids.
        assert await guest.output("spy", "1", "ls", "/proc/1/root/run/hako/containers") == "spy\n"
        assert await guest.output("spy", "2", "ls", "/proc/1/root/run/crun") == "spy\n"
        assert "/hako/c" not in await guest.output("spy", "3", "find", "/proc/1/root/sys/fs/cgroup/hako", "-type", "d")

    run(body)


def test_kill(run: Run) -> None:
    async def body(guest: Guest) -> None:
        script = 'trap "echo caught" TERM; echo up; while :; do sleep 0.1; done'
        process = await guest.create("c", "sh", "-c", script)
        other = await guest.exec("c", "e", "sh", "-c", script)
        assert [await process.line(), await other.line()] == [b"up\n"] * 2
        await process.kill(signal.SIGTERM)
        assert await process.line() == b"caught\n"
        await process.kill(signal.SIGTERM, all=True)
        assert [await process.line(), await other.line()] == [b"caught\n"] * 2
        await other.kill(signal.SIGKILL)
        assert await other.status() == 137
        assert isinstance(await failure(other.kill(signal.SIGKILL)), NotFoundError)
        extra = await guest.exec("c", "f", "sleep", "1000")
        await process.kill(signal.SIGKILL)
        assert (await process.status(), await extra.status()) == (137, 137)

    run(body)


def test_the_first_process_does_not_get_signals_it_has_no_handler_for(run: Run) -> None:
    """As with any PID namespace: only SIGKILL ends it for sure."""

    async def body(guest: Guest) -> None:
        process = await guest.create("c", "sleep", "1000")
        await process.kill(signal.SIGTERM)
        assert await guest.status("c") == "running"
        await process.kill(signal.SIGKILL)
        assert await process.status() == 137

    run(body)


def test_pause_and_resume(run: Run) -> None:
    async def body(guest: Guest) -> None:
        process = await guest.create("c", "sh", "-c", "i=0; while :; do i=$((i+1)); echo $i > /tmp/n; done")
        counter = guest.share / "rootfs" / "tmp" / "n"

        def count() -> str:
            return counter.read_text() if counter.exists() else ""

        while not count():
            await asyncio.sleep(0.05)
        await guest.call("Pause", container="c")
        assert await guest.status("c") == "paused"
        stopped = count()
        await asyncio.sleep(0.3)
        assert count() == stopped
        assert isinstance(await failure(guest.exec("c", "e", "true")), StateError)
        await guest.call("Resume", container="c")
        while count() in ("", stopped):
            await asyncio.sleep(0.05)
        await guest.call("Pause", container="c")
        await process.kill(signal.SIGKILL)
        assert await process.status() == 137
        assert await guest.status("c") == "stopped"

    run(body)


def test_a_paused_container_can_be_deleted_by_force(run: Run) -> None:
    async def body(guest: Guest) -> None:
        process = await guest.create("c", "sleep", "1000")
        await guest.call("Pause", container="c")
        assert isinstance(await failure(guest.call("Delete", container="c")), StateError)
        waiting = asyncio.create_task(process.status())
        await guest.call("Delete", container="c", force=True)
        assert await waiting == 137

    run(body)


def test_update_stats_and_ps(run: Run) -> None:
    async def body(guest: Guest) -> None:
        await guest.create("c", "sh", "-c", "echo $$; exec sleep 1000", spec=None)
        before = replies.stats(await guest.call("Stats", container="c"))
        assert (before["memory"]["limit"], before["pids"]["limit"]) == (64 << 20, None)
        assert 0 < before["memory"]["usage"] < 64 << 20
        await guest.call("Update", container="c", resources={"memory": {"limit": 50 << 20}, "pids": {"limit": 42}})
        after = replies.stats(await guest.call("Stats", container="c"))
        assert (after["memory"]["limit"], after["pids"]["limit"]) == (50 << 20, 42)
        assert after["cpu"]["usage_usec"] >= before["cpu"]["usage_usec"] > 0
        await guest.exec("c", "e", "sleep", "2000")
        await asyncio.sleep(1)  # what has just been started may still be crun
        listed = replies.processes(await guest.call("Ps", container="c"))["processes"]
        assert sorted(entry["command"] for entry in listed) == ["sleep 1000", "sleep 2000"]
        first = next(entry for entry in listed if entry["command"] == "sleep 1000")
        assert (first["container_pid"], first["uid"]) == (1, 0)
        assert first["pid"] == (await guest.call("State", container="c"))["pid"]

    run(body)


def test_a_limit_of_processes_holds(run: Run) -> None:
    async def body(guest: Guest) -> None:
        spec = config("sh", "-c", "for i in 1 2 3 4 5 6 7 8; do sleep 100 & done; echo no")
        spec["linux"]["resources"]["pids"] = {"limit": 4}
        process = await guest.create("c", spec=spec)
        assert await process.status() != 0
        assert b"can't fork" in await read_all(process.streams["stderr"])

    run(body)


def test_out_of_memory(run: Run) -> None:
    async def body(guest: Guest) -> None:
        hungry = ["dd", "if=/dev/zero", "of=/dev/null", "bs=60M", "count=1"]
        spec = config(*hungry, memory=16 << 20)
        spec["linux"]["resources"]["memory"]["swap"] = 16 << 20
        process = await guest.create("c", spec=spec)
        end = await process.wait()
        assert (end["exit_status"], end["oom"]) == (137, True)
        spec = config("sleep", "1000", memory=16 << 20)
        await guest.create("d", spec=spec)
        good = await guest.exec("d", "good", "true")
        assert (await good.wait())["oom"] is False
        bad = await guest.exec("d", "bad", *hungry)
        end = await bad.wait()
        assert (end["exit_status"], end["oom"]) == (137, True)
        assert await guest.status("d") == "running"

    run(body)


def test_a_terminal(run: Run) -> None:
    async def body(guest: Guest) -> None:
        script = 'trap "stty size" WINCH; stty size; while read line; do echo "got $line"; done; echo bye'
        process = await guest.create("c", spec=config("sh", "-c", script, terminal=True), width=101, height=37)
        assert await process.line() == b"37 101\n"
        await process.stdin.write(b"hello\n")
        assert await process.line() == b"hello\n"
        assert await process.line() == b"got hello\n"
        await guest.call("Resize", container="c", width=90, height=20)
        await process.stdin.write(b"\n")
        text = b""
        while b"20 90" not in text:
            text += await process.line()
        await process.stdin.write(b"\x04")
        # The signal may have ended the loop already, and its last word come before the size.
        while b"bye" not in text:
            text += await process.line()
        assert await process.status() == 0

    run(body)


def test_a_terminal_of_an_exec_and_its_hang_up(run: Run) -> None:
    async def body(guest: Guest) -> None:
        await guest.create("c", "sleep", "1000")
        script = "stty size; tty; while :; do sleep 0.1; done"
        process = await guest.exec("c", "e", "sh", "-c", script, terminal=True, width=77, height=11)
        assert await process.line() == b"11 77\n"
        assert (await process.line()).startswith(b"/dev/pts/")
        process.stdout.close()
        assert await process.status() == 128 + signal.SIGHUP

    run(body)


def test_stdin(run: Run) -> None:
    async def body(guest: Guest) -> None:
        process = await guest.create("c", "md5sum")
        for _ in range(20):
            await process.stdin.write(bytes(100_000))
        process.stdin.close()
        assert (await process.line()).split()[0].decode() == hashlib.md5(bytes(2_000_000)).hexdigest()
        assert await process.status() == 0

    run(body)


def test_a_process_that_does_not_read_its_stdin_does_not_hold_up_the_host(run: Run) -> None:
    async def body(guest: Guest) -> None:
        closed = await guest.create("c", "sh", "-c", "exec 0<&-; echo closed; exec sleep 1000")
        assert await closed.line() == b"closed\n"
        await closed.stdin.write(bytes(2 << 20))
        assert closed.stdin.closed
        ends = await guest.exec("c", "e", "sh", "-c", "read line; exit 4")
        writing = asyncio.create_task(ends.stdin.write(b"one\n" + bytes(2 << 20)))
        assert await ends.status() == 4
        await asyncio.wait_for(writing, 20)

    run(body)


def test_a_slow_reader_holds_up_its_own_process_only(run: Run) -> None:
    """300 MB for somebody who does not read, then does, while another stream and calls stay quick."""
    count = 4600
    size = count * 65536

    async def body(guest: Guest) -> None:
        await guest.create("spy", spec=config("sleep", "1000", own_pids=False))
        slow = await guest.create("slow", "dd", "if=/dev/zero", "bs=65536", f"count={count}")
        quick = await guest.create("quick", "cat")
        memory_before = await agent_memory(guest, "1")
        free_before = (await guest.call("Info"))["memory"]["available"]
        await asyncio.sleep(0.5)
        latencies = []
        for number in range(20):
            line = b"%d\n" % number
            start = time.monotonic()
            await quick.stdin.write(line)
            assert await quick.line() == line
            await guest.call("Info")
            latencies.append(time.monotonic() - start)
        assert sorted(latencies)[10] < 0.5, latencies
        held = await slow.stdout.read()
        assert len(held) <= WINDOW
        slow.stdout.consumed(len(held))
        taken = len(held)
        while piece := await slow.stdout.read():
            taken += len(piece)
            slow.stdout.consumed(len(piece))
        assert taken == size
        assert await slow.status() == 0
        assert await agent_memory(guest, "2") - memory_before < 2 << 20
        assert free_before - (await guest.call("Info"))["memory"]["available"] < 8 << 20

    run(body)


async def agent_memory(guest: Guest, exec_id: str) -> int:
    """Bytes of memory that PID 1 of the guest has of its own."""
    for line in (await guest.output("spy", exec_id, "cat", "/proc/1/status")).splitlines():
        if line.startswith("RssAnon:"):
            return int(line.split()[1]) << 10
    pytest.fail("no RssAnon in /proc/1/status")


def test_the_agent_is_small(run: Run) -> None:
    async def body(guest: Guest) -> None:
        await guest.create("spy", spec=config("sleep", "1000", own_pids=False))
        assert await agent_memory(guest, "1") < 12 << 20

    run(body)


def test_a_reader_that_goes_away(run: Run) -> None:
    async def body(guest: Guest) -> None:
        process = await guest.create("c", "sh", "-c", "yes; echo $? >&2")
        assert (await process.stdout.read()).startswith(b"y\n")
        process.stdout.close()
        assert await read_all(process.streams["stderr"]) == b"141\n"

    run(body)


def test_several_containers_at_once(run: Run) -> None:
    async def body(guest: Guest) -> None:
        async def one(number: int) -> None:
            process = await guest.create(f"c{number}", "sh", "-c", f"read x; echo {number} $x; exit {number}")
            await process.stdin.write(b"hello\n")
            assert await process.line() == b"%d hello\n" % number
            assert await process.status() == number

        await asyncio.gather(*(one(number) for number in range(8)))
        assert sorted((await guest.call("Info"))["containers"]) == [f"c{number}" for number in range(8)]

    run(body)


def test_containers_are_apart_from_each_other_and_the_guest(run: Run) -> None:
    async def body(guest: Guest) -> None:
        for name in ("a", "b"):
            await guest.create(name, "sleep", "1000")
        assert await guest.output("a", "1", "hostname") == "inside\n"
        pids = [word for word in (await guest.output("a", "2", "ls", "/proc")).split() if word.isdigit()]
        assert len(pids) == 2, "its own first process, and this ls"
        for kind in ("pid", "ipc", "uts", "mnt", "cgroup"):
            seen = {await guest.output(name, kind, "readlink", f"/proc/1/ns/{kind}") for name in ("a", "b")}
            assert len(seen) == 2, kind
        network = {await guest.output(name, "net", "readlink", "/proc/1/ns/net") for name in ("a", "b")}
        assert len(network) == 1, "the network is the VM's"
        status = await guest.output("a", "3", "cat", "/proc/self/status")
        fields = dict(line.split(":\t", 1) for line in status.splitlines() if ":\t" in line)
        assert fields["CapEff"] == "0000000000000022"
        # The agent's Python ignores SIGPIPE, containers must not. Numbers 32 and 33 are the C library's own.
        assert int(fields["SigIgn"], 16) & ~(0b11 << 31) == 0
        assert int(fields["SigBlk"], 16) == 0
        policy = (await guest.output("a", "6", "cat", "/proc/self/stat")).split()[40]
        assert int(policy) == os.SCHED_OTHER, "the agent's own is another"
        fds = (await guest.output("a", "4", "ls", "/proc/1/fd")).split()
        assert fds == ["0", "1", "2"], "nothing of the agent's is open in a container"
        assert (await guest.output("a", "5", "cat", "/proc/1/environ")).split("\0")[0] == "PATH=/bin:/usr/bin"

    run(body)


def test_the_clock_and_the_random_numbers_are_set(run: Run) -> None:
    async def body(guest: Guest) -> None:
        await guest.create("c", "sleep", "1000")
        then = 1_500_000_000
        await guest.call("Configure", time_ns=then * 10**9, entropy="aGFrb2hha29oYWtvaGFrb2hha29oYWtvaGFrbzEyMzQ=")
        assert 0 <= int(await guest.output("c", "1", "date", "+%s")) - then < 60
        await guest.call("Configure", time_ns=time.time_ns())
        assert abs(int(await guest.output("c", "2", "date", "+%s")) - time.time()) < 60

    run(body)


def test_shares_are_mounted_once_and_errors_are_told(run: Run) -> None:
    async def body(guest: Guest) -> None:
        request = NinePShare(512_000).mount_request().params()
        assert isinstance(await failure(guest.call("MountShare", **request)), ExistsError)
        error: HakoError = await failure(guest.call("MountShare", driver="9p", tag="nothing", name="n"))
        assert "/run/hako/shares/n" in str(error)

    run(body)


def test_what_was_needed_to_boot_is_gone_and_other_modules_load(run: Run) -> None:
    async def body(guest: Guest) -> None:
        for name in ("ext4", "virtiofs", "ext4"):  # one with a chain, one that is loaded already, one again
            await guest.call("LoadModules", name=name)
        assert isinstance(await failure(guest.call("LoadModules", name="nothing")), NotFoundError)
        await guest.create("spy", spec=config("sleep", "1000", own_pids=False))
        assert "\text4\n" in await guest.output("spy", "1", "cat", "/proc/filesystems")
        gone = ["-name", "*.ko", "-o", "-name", "main.pyc", "-o", "-name", "crun"]
        assert await guest.output("spy", "2", "find", "/proc/1/root/usr", *gone) == ""

    run(body)


def test_shutdown_writes_everything_out_and_lets_go_of_the_shares(booted: tuple[asyncio.Runner, Guest]) -> None:
    """The last test of this file: no container can be made afterwards."""
    runner, guest = booted

    async def body() -> None:
        process = await guest.create("c", "sh", "-c", "echo kept > /tmp/kept; echo done; exec sleep 1000")
        assert await process.line() == b"done\n"
        waiting = asyncio.create_task(process.status())
        await guest.call("Shutdown")
        assert await waiting == 137
        assert (guest.share / "rootfs" / "tmp" / "kept").read_text() == "kept\n"
        assert isinstance(await failure(guest.create("d", "true")), StateError)
        request = NinePShare(512_000).mount_request().params()
        assert (await guest.call("MountShare", **request))["path"] == "/run/hako/shares/shared", "it was let go"

    runner.run(asyncio.wait_for(body(), 120))
