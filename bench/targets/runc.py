"""runc, with bundles made from hako's image, and hako-runtime, which has the same commands."""

from __future__ import annotations

import contextlib
import json
import os
import select
import shutil
import time
from collections.abc import Iterable, Sequence
from typing import Any

from bench import commands, procs
from bench.model import BenchError
from bench.targets.base import IDLE, PREFIX, Target, Volume, is_leftover
from bench.targets.hako import Hako

_WORK = "/var/tmp"
_RUN = "/run"
_STOP_SECONDS = 60.0
#: The commands of a container's whole life.
LIFE = ("create", "start", "delete --force")


class Runc(Target):
    """runc with a state directory of its own. ``image_root`` is the directory of the image's files.

    A container in the foreground has the image as its root, read-only; one in the background an overlay on it, as
    hako's have.
    """

    name = "runc"
    #: The end of the names of its directories, from which a later run knows whose they are.
    suffix = ""

    def __init__(self, image_root: str) -> None:
        super().__init__()
        self.command = shutil.which("runc") or ""
        self._image_root = image_root
        directory = f"{PREFIX}-{os.getpid()}{self.suffix}"
        self._work = os.path.join(_WORK, directory)
        self._run = os.path.join(_RUN, directory)
        self._bundles: dict[tuple[str, ...], str] = {}
        self._spec: dict[str, Any] = {}

    def missing(self) -> str:
        return "" if self.command else "runc is not installed; `apt-get install runc` does that."

    def versions(self) -> dict[str, str]:
        line = commands.run([self.command, "--version"]).output.decode().splitlines()[0]
        return {self.name: line.rpartition("version ")[2]}

    def version_argv(self) -> list[str]:
        return [self.command, "--version"]

    def prepare(self) -> None:
        for directory in (self._work, self._run):
            os.makedirs(directory, mode=0o700)
        commands.run([self.command, "spec"], cwd=self._work)
        with open(os.path.join(self._work, "config.json"), encoding="utf-8") as file:
            self._spec = json.load(file)
        self.run(["true"])

    def sweep(self) -> None:
        """Containers, mounts and directories of runs whose process is gone."""
        for directory in (_RUN, _WORK):
            for name in os.listdir(directory):
                if is_leftover(name) and name.removeprefix(f"{PREFIX}-").lstrip("0123456789") == self.suffix:
                    self._clear(os.path.join(_RUN, name), os.path.join(_WORK, name))

    def close(self) -> None:
        super().close()
        self._clear(self._run, self._work)

    def _clear(self, run: str, work: str) -> None:
        if os.path.isdir(run) and self.command:
            for name in os.listdir(run):
                commands.run([self.command, "--root", run, "delete", "-f", name], check=False)
        with open("/proc/self/mountinfo", encoding="utf-8") as file:
            points = [line.split()[4] for line in file]
        for point in reversed([point for point in points if point.startswith(work + "/")]):
            commands.run(["umount", "--lazy", point], check=False)
        for directory in (run, work):
            shutil.rmtree(directory, ignore_errors=True)

    def _bundle(self, command: Sequence[str], rootfs: str, volumes: Iterable[Volume], *, readonly: bool) -> str:
        """The directory of a bundle, which is made once."""
        volumes = tuple(volumes)
        key = (*command, rootfs, str(volumes))
        if key in self._bundles:
            return self._bundles[key]
        path = os.path.join(self._work, f"bundle{len(self._bundles)}")
        os.mkdir(path)
        process = {key: value for key, value in self._spec["process"].items() if key != "rlimits"}
        mounts = [
            {"destination": target, "type": "bind", "source": source, "options": ["rbind", "ro"]}
            for source, target in volumes
        ]
        spec = {
            **self._spec,
            "root": {"path": rootfs, "readonly": readonly},
            "process": {**process, "args": list(command), "terminal": False},
            "mounts": [*self._spec["mounts"], *mounts],
        }
        with open(os.path.join(path, "config.json"), "w", encoding="utf-8") as file:
            json.dump(spec, file)
        self._bundles[key] = path
        return path

    def _overlay(self, name: str) -> str:
        base = os.path.join(self._work, name)
        for part in ("upper", "work", "rootfs"):
            os.makedirs(os.path.join(base, part))
        layers = f"lowerdir={self._image_root},upperdir={base}/upper,workdir={base}/work"
        commands.run(["mount", "-t", "overlay", "overlay", "-o", layers, self.rootfs(name)])
        return self.rootfs(name)

    def _argv(self, *words: str) -> list[str]:
        return [self.command, "--root", self._run, *words]

    def run_argv(self, name: str, command: Sequence[str]) -> list[str]:
        return self._argv("run", "--bundle", self._bundle(command, self._image_root, (), readonly=True), name)

    def start_argv(self, name: str, command: Sequence[str], volumes: Iterable[Volume] = ()) -> list[str]:
        bundle = self._bundle(command, self._overlay(name), volumes, readonly=False)
        return self._argv("run", "-d", "--bundle", bundle, name)

    def exec_argv(self, name: str, command: Sequence[str], *, stdin: bool = False) -> list[str]:  # noqa: ARG002 (it is always passed on)
        return self._argv("exec", name, *command)

    def state_argv(self, name: str) -> list[str]:
        return self._argv("state", name)

    def stop(self, name: str) -> float:
        """``runc kill``, and waiting for the process: runc has no command that does both."""
        pidfd = os.pidfd_open(self._pid(name))
        try:
            started = time.monotonic()
            commands.run(self._argv("kill", name, "TERM"))
            poll = select.poll()
            poll.register(pidfd, select.POLLIN)
            if not poll.poll(_STOP_SECONDS * 1000):
                raise BenchError(f"The container {name} did not heed SIGTERM.")
            return time.monotonic() - started
        finally:
            os.close(pidfd)

    def life(self, name: str) -> list[list[str]]:
        """The commands LIFE for an idle container."""
        bundle = self._bundle(IDLE, self._image_root, (), readonly=True)
        options = {"create": ["--bundle", bundle]}
        return [self._argv(*part.split(), *options.get(part, []), name) for part in LIFE]

    def delete_argv(self, name: str) -> list[str]:
        return self._argv("delete", name)

    def remove(self, name: str) -> None:
        commands.run(self._argv("delete", "-f", name), check=False)
        point = self.rootfs(name)
        if os.path.ismount(point):
            commands.run(["umount", "--lazy", point], check=False)
        if not os.path.ismount(point):
            with contextlib.suppress(FileNotFoundError):
                shutil.rmtree(os.path.join(self._work, name))

    def _pid(self, name: str) -> int:
        return int(json.loads(commands.run(self.state_argv(name)).output)["pid"])

    def pids(self, name: str) -> set[int]:
        return procs.descendants([self._pid(name)])

    def rootfs(self, name: str) -> str:
        return os.path.join(self._work, name, "rootfs")


class HakoRuntime(Runc):
    """The hako-runtime that is installed beside a hako."""

    name = "hako"
    suffix = "-runtime"

    def __init__(self, hako: Hako) -> None:
        super().__init__(hako.image_root)
        self.command = hako.beside("hako-runtime")

    def missing(self) -> str:
        return "" if self.command else "There is no hako-runtime beside hako; `make install` installs both."


def runcs(targets: Iterable[Target]) -> list[Runc]:
    """runc, if it is among those that take part."""
    return [target for target in targets if isinstance(target, Runc)]
