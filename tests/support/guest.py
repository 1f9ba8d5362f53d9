"""A VM with nothing between the test and its agent."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from hako.agent_client import AgentClient, InputStream, OutputStream
from hako.hypervisor.qemu import QemuVm
from support.hostside import read_all

_CALL_SECONDS = 60.0
_ROOT = "/run/hako/shares/shared/rootfs"


class Process:
    """A process in the VM with its streams."""

    def __init__(self, guest: Guest, target: dict[str, str], streams: dict[str, Any]) -> None:
        self.guest = guest
        self.target = target
        self.streams = streams
        self._rest = b""

    @property
    def stdin(self) -> InputStream:
        stream = self.streams["stdin"]
        assert isinstance(stream, InputStream)
        return stream

    @property
    def stdout(self) -> OutputStream:
        stream = self.streams["stdout"]
        assert isinstance(stream, OutputStream)
        return stream

    async def wait(self) -> dict[str, Any]:
        return await self.guest.client.call("Wait", dict(self.target), _CALL_SECONDS)

    async def status(self) -> int:
        return int((await self.wait())["exit_status"])

    async def line(self) -> bytes:
        """The next line of output."""
        while b"\n" not in self._rest:
            piece = await self.stdout.read()
            self.stdout.consumed(len(piece))
            assert piece, f"output ended after {self._rest!r}"
            self._rest += piece.replace(b"\r", b"")
        line, _, self._rest = self._rest.partition(b"\n")
        return line + b"\n"

    async def kill(self, number: int, **more: Any) -> None:
        await self.guest.client.call("Kill", {**self.target, "signal": number, **more})


class Guest:
    """The VM with its agent."""

    def __init__(self, vm: QemuVm, client: AgentClient, share: Path) -> None:
        self.vm = vm
        self.client = client
        self.share = share
        self.names: list[str] = []

    async def call(self, method: str, **params: Any) -> dict[str, Any]:
        return await self.client.call(method, params, _CALL_SECONDS)

    def _streams(self, terminal: bool) -> dict[str, Any]:
        streams: dict[str, Any] = {"stdin": self.client.open_input(), "stdout": self.client.open_output()}
        return streams if terminal else {**streams, "stderr": self.client.open_output()}

    async def create(
        self, name: str, *args: str, start: bool = True, spec: dict[str, Any] | None = None, **more: Any
    ) -> Process:
        spec = spec or config(*args)
        streams = self._streams(spec["process"]["terminal"])
        stdio = {key: stream.number for key, stream in streams.items()}
        self.names.append(name)
        await self.call("Create", container=name, spec=spec, stdio=stdio, start=start, **more)
        return Process(self, {"container": name}, streams)

    async def exec(self, name: str, exec_id: str, *args: str, terminal: bool = False, **more: Any) -> Process:
        streams = self._streams(terminal)
        stdio = {key: stream.number for key, stream in streams.items()}
        process = config(*args, terminal=terminal, own_pids=name != "spy")["process"]
        await self.call("Exec", container=name, exec=exec_id, process=process, stdio=stdio, **more)
        return Process(self, {"container": name, "exec": exec_id}, streams)

    async def output(self, name: str, exec_id: str, *args: str) -> str:
        """What a command prints in a running container."""
        process = await self.exec(name, exec_id, *args)
        text = await read_all(process.stdout)
        assert await process.status() == 0, await read_all(process.streams["stderr"])
        return text.decode()

    async def status(self, name: str) -> str:
        return str((await self.call("State", container=name))["status"])


def config(*args: str, terminal: bool = False, memory: int = 64 << 20, own_pids: bool = True) -> dict[str, Any]:
    """A config.json."""
    kinds = ("pid", "ipc", "uts", "mount", "cgroup") if own_pids else ("uts", "mount", "cgroup")
    # A container that shares the guest's process ids is the spy of these tests: it may look into the agent.
    capabilities = ["CAP_KILL", "CAP_DAC_OVERRIDE"] + ([] if own_pids else ["CAP_SYS_PTRACE"])
    return {
        "ociVersion": "1.0.2",
        "root": {"path": _ROOT, "readonly": False},
        "hostname": "inside",
        "process": {
            "args": list(args),
            "cwd": "/",
            "env": ["PATH=/bin:/usr/bin"],
            "user": {"uid": 0, "gid": 0},
            "terminal": terminal,
            "capabilities": dict.fromkeys(("bounding", "effective", "permitted"), capabilities),
        },
        "mounts": [
            {"destination": "/proc", "type": "proc", "source": "proc"},
            {"destination": "/dev", "type": "tmpfs", "source": "tmpfs", "options": ["nosuid", "mode=755"]},
            {
                "destination": "/dev/pts",
                "type": "devpts",
                "source": "devpts",
                "options": ["newinstance", "ptmxmode=0666", "mode=0620"],
            },
            {"destination": "/sys/fs/cgroup", "type": "cgroup", "source": "cgroup", "options": ["ro"]},
        ],
        "linux": {
            "namespaces": [{"type": kind} for kind in kinds],
            "resources": {"memory": {"limit": memory}, "devices": [{"allow": False, "access": "rwm"}]},
        },
    }
