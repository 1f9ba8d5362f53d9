"""The agent, ready and idle, can be frozen with its VM and cloned: what templates will stand on."""

from __future__ import annotations

import asyncio
import contextlib
import json
import pathlib
import socket
import subprocess
import time
from collections.abc import AsyncIterator

import pytest

from hako.agent_client import AgentClient
from hako.hypervisor.base import AgentChannel, Rng, Share9p, VmSpec
from hako.hypervisor.qemu import find_qemu
from hako.hypervisor.qemu_args import build_argv
from hako.sandbox.vm import command_line
from hako.storage.base import TAG
from hako.storage.ninep import NinePShare

pytestmark = pytest.mark.system

_MEMORY = 256 << 20


class _Qmp:
    """The control socket of a QEMU, as plain as can be: this test must not depend on the driver."""

    def __init__(self, sock: socket.socket) -> None:
        self._file = sock.makefile("rw")
        self._file.readline()
        self.run("qmp_capabilities")

    def run(self, command: str, **arguments: object) -> object:
        self._file.write(json.dumps({"execute": command, "arguments": arguments}) + "\n")
        self._file.flush()
        while True:
            answer = json.loads(self._file.readline())
            if "error" in answer:
                raise AssertionError(answer)
            if "return" in answer:
                return answer["return"]

    def wait_status(self, command: str, *wanted: str) -> None:
        deadline = time.monotonic() + 60
        while True:
            answer = self.run(command)
            assert isinstance(answer, dict)
            if answer.get("status") in wanted:
                return
            assert time.monotonic() < deadline, answer
            time.sleep(0.05)


@contextlib.asynccontextmanager
async def _vm(
    image: object, share: pathlib.Path, memory: pathlib.Path, *, private: bool, more: list[str]
) -> AsyncIterator[tuple[_Qmp, AgentClient]]:
    spec = VmSpec(
        id="snapshot",
        kernel=image.kernel,  # type: ignore[attr-defined]
        initrd=image.initrd,  # type: ignore[attr-defined]
        cmdline=command_line("tcg", ""),
        memory=_MEMORY,
        devices=(AgentChannel(), Rng(), Share9p(TAG, str(share))),
    )
    pairs = {name: socket.socketpair() for name in ("qmp", "console", "agent")}
    fds = {name: pair[1].fileno() for name, pair in pairs.items()}
    with contextlib.ExitStack() as stack:
        for name, path in (("kernel", spec.kernel), ("initrd", spec.initrd)):
            assert path is not None
            fds[name] = stack.enter_context(open(path, "rb")).fileno()
        argv = build_argv(spec, fds, find_qemu())
        # The state goes through a helper process, which QEMU's filter would forbid.
        at = argv.index("-sandbox")
        del argv[at : at + 2]
        sharing = "off" if private else "on"
        argv += ["-object", f"memory-backend-file,id=ram,mem-path={memory},size={_MEMORY},share={sharing}"]
        argv[argv.index("-machine") + 1] += ",memory-backend=ram"
        process = subprocess.Popen([*argv, *more], pass_fds=tuple(fds.values()))
    for _, theirs in pairs.values():
        theirs.close()
    agent = AgentClient(pairs["agent"][0])
    try:
        yield await asyncio.to_thread(_Qmp, pairs["qmp"][0]), agent
    finally:
        agent.close()
        process.kill()
        process.wait()
        for ours, _ in pairs.values():
            ours.close()


async def _freeze_and_clone(image: object, directory: pathlib.Path) -> tuple[str, list[bytes]]:
    memory, state = directory / "memory", directory / "state"
    shares = [directory / name for name in ("template", "one", "two")]
    for number, share in enumerate(shares):
        share.mkdir()
        (share / "file").write_text(f"share {number}")
    only_state = [{"capability": "x-ignore-shared", "state": True}]
    async with _vm(image, shares[0], memory, private=False, more=[]) as (qmp, agent):
        hello = await agent.call("Hello", {"version": 1}, 60)
        qmp.run("stop")
        qmp.run("migrate-set-capabilities", capabilities=only_state)
        qmp.run("migrate", uri=f"exec:cat > {state}")
        qmp.wait_status("query-migrate", "completed")
    seen = []
    for share in shares[1:]:
        async with _vm(image, share, memory, private=True, more=["-incoming", "defer"]) as (qmp, agent):
            qmp.run("migrate-set-capabilities", capabilities=only_state)
            qmp.run("migrate-incoming", uri=f"exec:cat {state}")
            qmp.wait_status("query-status", "paused", "running")
            qmp.run("cont")
            again = await agent.call("Hello", {"version": 1}, 30)
            assert again["kernel"] == hello["kernel"]
            assert again["uptime_ns"] >= hello["uptime_ns"]
            await agent.call("Configure", {"time_ns": time.time_ns(), "hostname": share.name})
            await agent.call("MountShare", NinePShare(512 << 10).mount_request().params())
            info = await agent.call("Info", {})
            assert info["containers"] == []
            seen.append((share / "file").read_bytes())
    return hello["kernel"], seen


def test_a_ready_guest_can_be_frozen_and_cloned(guest_image: object, tmp_path: pathlib.Path) -> None:
    kernel, seen = asyncio.run(_freeze_and_clone(guest_image, tmp_path))
    assert kernel
    assert seen == [b"share 1", b"share 2"]
