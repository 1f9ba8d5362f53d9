"""hako, as it is installed, by its command line."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import tempfile
from collections.abc import Iterable, Sequence
from typing import Any

from bench import commands, procs
from bench.model import BenchError
from bench.targets.base import Target, Volume, is_leftover

IMAGE = "busybox"
_STOP_SECONDS = 60.0


def state_root() -> str:
    """Where hako keeps what lives."""
    return os.environ.get("HAKO_STATE_ROOT") or "/run/hako"


def data_root() -> str:
    """Where hako keeps what stays."""
    return os.environ.get("HAKO_DATA_ROOT") or "/var/lib/hako"


class Hako(Target):
    """``command`` is the hako to measure. ``config`` is the file that it reads, for a variant called ``name``."""

    def __init__(self, command: str, *, name: str = "hako", config: str = "") -> None:
        super().__init__()
        self.name = name
        self.command = command
        self.env = {"HAKO_CONFIG": config} if config else None
        self.image_root = ""  #: the directory of the image, which other runtimes use too; known after prepare()
        self._about: dict[str, str] = {}

    def missing(self) -> str:
        if shutil.which(self.command) is None:
            return f"There is no {self.command}; `make run` installs hako."
        if os.geteuid() != 0:
            return "hako needs root; run this as root."
        try:
            images = commands.run([self.command, "images"]).output.decode()
        except BenchError as error:
            return str(error)
        return "" if IMAGE in images else f"hako has no image {IMAGE}; `make run` makes it."

    def versions(self) -> dict[str, str]:
        version = _first_line([self.command, "version"]).removeprefix("hako ")
        return {"hako": version, **self._about, "QEMU": _qemu()}

    def version_argv(self) -> list[str]:
        return [self.command, "version"]

    def prepare(self) -> None:
        """A first start, whose one-time work (probe of KVM, template, caches) is nobody's figure; and what VMs are."""
        self.run(["true"])
        name = self.start()
        found = self.inspect(name)
        self.end(name)
        self.image_root = str(found["rootfs"])
        info = found["sandbox"]["info"]
        self._about = {
            "accelerator": str(info.get("accelerator", "")),
            "guest kernel": str(info.get("kernel", "")),
            "VMs": "cloned" if info.get("template") else "booted",
        }

    def sweep(self) -> None:
        for name in self._listed():
            if is_leftover(name):
                self.remove(name)
        for name in os.listdir(tempfile.gettempdir()):
            if is_leftover(name):  # the configuration of a variant
                shutil.rmtree(os.path.join(tempfile.gettempdir(), name), ignore_errors=True)

    def close(self) -> None:
        super().close()
        with contextlib.suppress(BenchError):
            for name in self._listed():
                if name in self.names:
                    self.remove(name)

    def _listed(self) -> list[str]:
        return [str(record["name"]) for record in self.listed()]

    def listed(self) -> list[dict[str, Any]]:
        """What hako lists: all containers, also those of other programs."""
        lines = commands.run([self.command, "ps", "-a", "--format", "json"]).output.splitlines()
        return [json.loads(line) for line in lines]

    def beside(self, program: str) -> str:
        """The path of a program that is installed beside hako; empty when it is not."""
        directory = os.path.dirname(os.path.abspath(shutil.which(self.command) or self.command))
        return shutil.which(os.path.join(directory, program)) or ""

    def run_argv(self, name: str, command: Sequence[str]) -> list[str]:
        return [self.command, "run", "--rm", "--network", "none", "--name", name, IMAGE, *command]

    def start_argv(self, name: str, command: Sequence[str], volumes: Iterable[Volume] = ()) -> list[str]:
        options = [word for source, target in volumes for word in ("-v", f"{source}:{target}:ro")]
        return [self.command, "run", "-d", "--network", "none", "--name", name, *options, IMAGE, *command]

    def exec_argv(self, name: str, command: Sequence[str], *, stdin: bool = False) -> list[str]:
        return [self.command, "exec", *(["-i"] if stdin else []), name, *command]

    def state_argv(self, name: str) -> list[str]:
        return [self.command, "inspect", name]

    def stop(self, name: str) -> float:
        return commands.run([self.command, "stop", "-t", "30", name], env=self.env, timeout=_STOP_SECONDS).total

    def delete_argv(self, name: str) -> list[str]:
        return [self.command, "rm", name]

    def remove(self, name: str) -> None:
        commands.run([self.command, "rm", "-f", name], timeout=_STOP_SECONDS, check=False)

    def inspect(self, name: str) -> dict[str, Any]:
        """What hako says of a container."""
        found = json.loads(commands.run(self.state_argv(name)).output)[0]
        assert isinstance(found, dict)
        return found

    def sandbox_state(self, name: str) -> dict[str, Any]:
        """What the container's live sandbox has written down."""
        path = os.path.join(state_root(), "sandboxes", self.inspect(name)["sandbox"]["id"], "state.json")
        try:
            with open(path, encoding="utf-8") as file:
                found = json.load(file)
        except (OSError, ValueError) as error:
            raise BenchError(f"Cannot read {path}: {error}.") from error
        assert isinstance(found, dict)
        return found

    def trace(self, name: str) -> list[tuple[str, str, int, int]]:
        """The phases of the container's start: name, lane, begin and end in ns of the monotonic clock, by begin."""
        state = self.sandbox_state(name)
        spans = list(state.get("trace", []))
        for record in state["containers"].values():
            spans += record.get("trace", [])
        # A phase may last still, or be of a kind that is not known here.
        whole = [span for span in spans if len(span) == 4 and type(span[2]) is int and type(span[3]) is int]
        return sorted(((str(span[0]), str(span[1]), span[2], span[3]) for span in whole), key=lambda span: span[2])

    def pids(self, name: str) -> set[int]:
        """The sandbox process, the VM, and all they have started: guardian, helpers."""
        sandbox = self.inspect(name)["sandbox"]
        roots = {int(sandbox["pid"]), int(sandbox["vm_pid"])} - {0}
        if not roots:
            raise BenchError(f"The container {name} has no processes: {self.inspect(name)['error']}")
        # The keeper of a template is started by whoever needs it first, and outlives it.
        return procs.descendants(roots) - procs.descendants(self.keepers().values())

    def rootfs(self, name: str) -> str:
        found = self.inspect(name)
        sandbox = found["sandbox"]
        shared = os.path.join(state_root(), "sandboxes", sandbox["id"], "shared")
        return f"/proc/{sandbox['pid']}/root{shared}/{found['id']}/rootfs"

    def template(self, name: str) -> str:
        """The template that the container's VM is a clone of; empty for one that has booted."""
        return str(self.inspect(name)["sandbox"]["info"].get("template", ""))

    def keepers(self) -> dict[str, int]:
        """The processes that keep templates in memory for all containers, by the template."""
        found = {}
        directory = os.path.join(state_root(), "templates")
        for name in os.listdir(directory) if os.path.isdir(directory) else []:
            with (
                contextlib.suppress(OSError, ValueError),
                open(os.path.join(directory, name), encoding="utf-8") as file,
            ):
                record = json.load(file)
                pid = record.get("pid") if isinstance(record, dict) else None
                if type(pid) is int and pid > 0:
                    found[name.removesuffix(".json")] = pid
        return found


def _qemu() -> str:
    program = shutil.which("qemu-system-x86_64")
    return _first_line([program, "--version"]).removeprefix("QEMU emulator version ") if program else ""


def _first_line(argv: Sequence[str]) -> str:
    return (commands.run(argv).output.decode(errors="replace").splitlines() or [""])[0]
