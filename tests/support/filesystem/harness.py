"""A VM with one share and containers that make the checks, in a process with mounts of its own.

``Filesystem`` is what tests use; it runs this file as a program. The two talk in lines of JSON.
"""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from hako.agent_client import AgentClient
from hako.config.settings import Config
from hako.hypervisor.base import AgentChannel, Backends, Rng, VmSpec
from hako.hypervisor.qemu import QemuVm
from hako.sandbox.vm import command_line
from hako.storage import shares
from hako.storage.base import NAME
from hako.storage.tree import SharedTree, private_mounts
from hako.wire.calls import PROTOCOL_VERSION
from support.filesystem import pyroot
from support.guest import Guest, Process, config

_MEMORY = 256 << 20
_HERE = Path(__file__).parent
_SHARE = f"/run/hako/shares/{NAME}"
# Docker's, as far as files are concerned, and SYS_ADMIN, so that refusals are not the guest's own.
_CAPABILITIES = (
    "CHOWN",
    "DAC_OVERRIDE",
    "FOWNER",
    "FSETID",
    "KILL",
    "MKNOD",
    "SETFCAP",
    "SETGID",
    "SETUID",
    "SYS_ADMIN",
)


class Filesystem:
    """Containers ``one`` and ``two`` in a VM whose files come by ``driver``; ``directory`` must not exist yet.

    In each, /data is part of the root file system, an overlay, and /volume is a directory of the host that both have.
    ``two`` also has it read-only, as /readonly, and one file of it, as /file.
    """

    def __init__(self, image: Any, driver: str, directory: Path, *, cache: str = "auto") -> None:
        directory.mkdir()
        self.directory = directory
        self.volume = directory / "volume"
        self.volume.mkdir()
        (self.volume / "file").write_text("a file of the host\n")
        pyroot.make(directory / "lower", *_HERE.glob("check*.py"))
        argv = [sys.executable, __file__, str(directory), image.kernel, image.initrd, driver, cache]
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
        self._child = subprocess.Popen(
            argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment, start_new_session=True
        )
        self.ready = self._answer()

    def call(self, container: str, name: str, *args: object) -> Any:
        """Have ``container`` make the check ``name``; what it returns. Fails with the guest's own traceback."""
        return self.do("call", container, {"name": name, "args": args})

    def begin(self, container: str, name: str, *args: object) -> None:
        """Have ``container`` make a check while others make theirs; end() waits for it."""
        self.do("begin", container, {"name": name, "args": args})

    def end(self, container: str) -> Any:
        """Wait for what begin() has begun; what it returns."""
        return self.do("end", container)

    def until(self, condition: Callable[[], object]) -> None:
        """Wait for what must become true soon."""
        deadline = time.monotonic() + 20
        while not condition():
            assert time.monotonic() < deadline
            time.sleep(0.05)

    def do(self, what: str, *args: object) -> Any:
        """Have the other process do something: see _Harness."""
        assert self._child.stdin is not None
        print(json.dumps([what, *args]), file=self._child.stdin, flush=True)
        return self._answer()

    def _answer(self) -> Any:
        assert self._child.stdout is not None
        line = self._child.stdout.readline()
        assert line, "the harness has ended; see standard error"
        answer = json.loads(line)
        assert "error" not in answer, answer["error"]
        return answer["result"]

    def close(self) -> None:
        """End the VM and all that belongs to it."""
        assert self._child.stdin is not None
        assert self._child.stdout is not None
        self._child.stdin.close()
        try:
            assert self._child.wait(60) == 0
        finally:
            self._child.kill()
            self._child.wait()
            self._child.stdout.close()


class _Harness:
    def __init__(self, directory: str, driver: str, cache: str) -> None:
        self.directory = Path(directory)
        self.tree = SharedTree(str(self.directory / "shared"))
        self.share = shares.make(Config({"share.driver": driver, "share.cache": cache}).share)
        self.processes: dict[str, Process] = {}
        self.vm: QemuVm
        self.guest: Guest

    async def start(self, kernel: str, initrd: str) -> dict[str, Any]:
        began = time.monotonic()
        fd = await self.share.start(self.tree.path)
        device = self.share.device(self.tree.path)
        memory = os.memfd_create("guest")
        os.ftruncate(memory, _MEMORY)
        shared = self.share.sharing == "shared"
        spec = VmSpec(
            "filesystem", kernel, initrd, command_line("tcg", ""), _MEMORY,
            sharing="shared" if shared else "own",
            devices=(AgentChannel(), Rng(), *([device] if device is not None else [])),
        )  # fmt: skip
        self.vm = QemuVm(spec, backends=Backends(memory=memory if shared else None, share=fd))
        await self.vm.start()
        os.close(memory)
        client = AgentClient(self.vm.agent_socket)
        self.guest = Guest(self.vm, client, self.directory)
        await client.call("Hello", {"version": PROTOCOL_VERSION}, 60)
        await self.guest.call("Configure", time_ns=time.time_ns(), hostname="guest")
        booted = time.monotonic()
        request = self.share.mount_request()
        plugged = self.share.plugged()
        loaded = time.monotonic()
        if plugged is not None:
            await self.vm.plug(plugged)
        await self.guest.call("MountShare", **request.params())
        mounted = time.monotonic()
        for name in ("one", "two"):
            await self.add(name)
        return {"boot": booted - began, "module": loaded - booted, "mount": mounted - loaded}

    async def add(self, name: str) -> None:
        """A container called ``name`` that waits for calls."""
        layer = self.directory / f"layer-{name}"
        layer.mkdir()
        self.tree.add_overlay(name, str(self.directory / "lower"), str(layer))
        volume = self.directory / "volume"
        places = {"/volume": self.tree.add_volume(name, str(volume), readonly=False)}
        if name == "two":
            places["/readonly"] = self.tree.add_volume(name, str(volume), readonly=True)
            places["/file"] = self.tree.add_volume(name, str(volume / "file"), readonly=False)
        spec = config(pyroot.PYTHON, "-ISu", "/checks/check_worker.py", memory=128 << 20)
        spec["root"]["path"] = f"{_SHARE}/{name}/rootfs"
        spec["process"]["capabilities"] = {
            kind: [f"CAP_{name}" for name in _CAPABILITIES] for kind in ("bounding", "effective", "permitted")
        }
        spec["mounts"] += [
            {"destination": where, "type": "bind", "source": f"{_SHARE}/{path}", "options": ["rbind", "rw"]}
            for where, path in places.items()
        ]
        spec["linux"]["resources"]["devices"] += [{"allow": True, "access": "m"}]
        self.processes[name] = await self.guest.create(name, "", spec=spec)

    async def remove(self, name: str) -> None:
        """Remove a container and its files from the share."""
        await self.guest.call("Delete", container=name, force=True)
        del self.processes[name]
        self.tree.remove(name)
        shutil.rmtree(self.directory / f"layer-{name}")

    async def call(self, name: str, request: dict[str, Any]) -> Any:
        """One call to a container."""
        await self.begin(name, request)
        return await self.end(name)

    async def begin(self, name: str, request: dict[str, Any]) -> None:
        """The first half of a call."""
        await self.processes[name].stdin.write(json.dumps(request).encode() + b"\n")

    async def end(self, name: str) -> Any:
        """The second half of a call."""
        process = self.processes[name]
        try:
            async with asyncio.timeout(120):
                answer = json.loads(await process.line())
        except (TimeoutError, AssertionError) as error:
            said = process.streams["stderr"]
            async with asyncio.timeout(5):
                words = [await said.read(), self.share.lost, self.vm.console_tail()]
            raise RuntimeError(f"{error!r} {words}") from error
        if "error" in answer:
            raise RuntimeError(answer["error"])
        return answer["result"]

    async def about(self) -> dict[str, Any]:
        """The processes behind the share."""
        return {"qemu": self.vm.pid, "helper": self.share.pid, "tree": self.tree.path}

    async def kill_helper(self) -> str:
        """Have the helper die; what its owner is told."""
        assert self.share.pid is not None
        told: asyncio.Future[Exception] = asyncio.get_running_loop().create_future()
        self.share.on_exit = told.set_result
        os.kill(self.share.pid, 9)
        return str(await asyncio.wait_for(told, 30))

    async def close(self) -> None:
        if hasattr(self, "guest"):
            self.guest.client.close()
        if hasattr(self, "vm"):
            await self.vm.kill()
        await self.share.close()
        self.tree.close()


async def _serve(directory: str, kernel: str, initrd: str, driver: str, cache: str) -> None:
    harness = _Harness(directory, driver, cache)
    lines = asyncio.StreamReader()
    await asyncio.get_running_loop().connect_read_pipe(lambda: asyncio.StreamReaderProtocol(lines), sys.stdin)
    try:
        _say({"result": await harness.start(kernel, initrd)})
        while line := await lines.readline():
            what, *args = json.loads(line)
            try:
                answer = {"result": await getattr(harness, what)(*args)}
            except Exception as error:
                answer = {"error": str(error)}
            _say(answer)
    finally:
        await harness.close()


def _say(answer: dict[str, Any]) -> None:
    print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    private_mounts()
    asyncio.run(_serve(*sys.argv[1:]))
