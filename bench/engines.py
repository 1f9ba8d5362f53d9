"""Engines to measure containers under: a dockerd and a podman of the benchmark's own, each started and removed by it.

An engine has directories and cgroups of its own, and a mount and a network namespace: its bridges, addresses and
firewall rules are nobody else's, and the machine's own engines, if it has any, are neither used nor changed.
"""

from __future__ import annotations

import contextlib
import glob
import json
import os
import shlex
import shutil
import signal
import subprocess
import time
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import NamedTuple, Self

from bench import commands, interrupts, procs
from bench.model import BenchError
from bench.targets.base import PREFIX, is_leftover

#: What the engines call the image.
IMAGE = "hako-bench"
#: Where an engine's directory is.
WORK = "/var/tmp"
#: Debian's own programs: another docker in /usr/local may not be of the version of dockerd.
PATH = "/usr/sbin:/usr/bin:/sbin:/bin"
#: What engines keep outside the directories that they are given.
_FRESH = ("/run/netns", "/run/containerd", "/var/lib/cni")
# The bind mount marks the namespace and its copies: who sees it belongs to the engine.
_HOLD = """\
mount --bind "$0" "$0" && mount --make-rshared / && ip link set lo up || exit
for directory; do mount -t tmpfs none "$directory" || exit; done
echo ready
read -r line
"""
#: How long a daemon may take to answer, and to end; how often to look.
START_SECONDS = 60.0
END_SECONDS = 30.0
LOOK_SECONDS = 0.05
_LEAVE_SECONDS = 10.0


class Image(NamedTuple):
    """What an engine is to run: the directory of an image's files, and the commands of its runtimes by name."""

    root: str
    runtimes: Mapping[str, str]


class Engine(ABC):
    """An engine with the image. A context manager: what was made in the block is removed with it."""

    name: str
    programs: tuple[str, ...]

    def __init__(self, image: Image) -> None:
        self._image = image
        self.base = os.path.join(WORK, f"{PREFIX}-{os.getpid()}-{self.name}")
        self.cgroup = os.path.basename(self.base)
        self.env = {"PATH": PATH}
        self.runtimes: dict[str, str] = {}
        self._holder: commands.Command | None = None
        self._made: list[str] = []
        self._boxes = 0

    @property
    def run_words(self) -> str:
        """How people have a command run in a new container."""
        return f"{self.name} run --rm"

    @property
    def exec_words(self) -> str:
        """How people have a command run in a running one."""
        return f"{self.name} exec"

    @abstractmethod
    def argv(self, *words: str, runtime: str = "runc") -> list[str]:
        """The command line that passes ``words`` to the engine; a container that this makes is run by ``runtime``."""

    def open(self) -> None:  # noqa: B027 (podman has no daemon)
        """Start what has to run. May raise BenchError."""

    def shut(self) -> None:  # noqa: B027 (podman has no daemon)
        """End what ``open`` has started, which may not have come to its end. May raise BenchError."""

    def __enter__(self) -> Self:
        for program in self.programs:
            if shutil.which(program, path=PATH) is None:
                raise BenchError(f"There is no {program}; scripts/install-bench-deps.sh installs it.")
        try:
            os.mkdir(self.base, mode=0o711)
            self.runtimes = {name: self._launcher(name, path) for name, path in self._image.runtimes.items()}
            self._hold()
            self.open()
            self._import()
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    # --- containers ---

    def run(self, runtime: str, command: Sequence[str]) -> float:
        """Seconds from the command to the exit of a new container in the foreground, which leaves nothing."""
        return self.call("run", "--rm", IMAGE, *command, runtime=runtime).total

    def start(self, runtime: str, command: Sequence[str], options: Sequence[str] = ()) -> str:
        """Start a container in the background; returns its name."""
        self._boxes += 1
        name = f"box{self._boxes}"
        # podman asks a container to end and waits before it removes it: a signal that nobody can ignore.
        detached = ["-d", "--stop-signal", "KILL", "--name", name]
        argv = self.argv("run", *detached, *options, IMAGE, *command, runtime=runtime)
        commands.run(argv, env=self.env, output=False)
        return name

    def execute(self, box: str, command: Sequence[str]) -> float:
        """Seconds that one more process in a running container takes, to its exit."""
        return self.call("exec", box, *command).total

    def address(self, box: str) -> str:
        """The address of a container on the engine's bridge."""
        return self.call("inspect", "-f", "{{.NetworkSettings.IPAddress}}", box).output.decode().strip()

    def version(self) -> str:
        """The engine's name and version."""
        line = commands.run([self.programs[0], "--version"], env=self.env).output.decode(errors="replace")
        return line.strip()

    def call(self, *words: str, runtime: str = "runc") -> commands.Done:
        """Pass ``words`` to the engine and wait for the end. Raises BenchError when that fails."""
        return commands.run(self.argv(*words, runtime=runtime), env=self.env)

    @property
    def holder(self) -> int:
        """The process that holds the engine's namespaces."""
        assert self._holder is not None
        return self._holder.process.pid

    def inside(self, *argv: str) -> list[str]:
        """``argv``, to be run in the engine's namespaces."""
        return ["nsenter", f"--target={self.holder}", "--mount", "--net", "--", *argv]

    # --- coming and going ---

    def _launcher(self, name: str, command: str) -> str:
        """A program that runs ``command`` with the variables that hako reads, which monitors do not pass on."""
        variables = [f"{key}={value}" for key, value in os.environ.items() if key.startswith("HAKO_")]
        if not variables:
            return command
        path = os.path.join(self.base, f"runtime-{name}")
        with open(path, "w", encoding="utf-8") as file:
            file.write(f'#!/bin/sh\nexec env {shlex.join([*variables, command])} "$@"\n')
            os.fchmod(file.fileno(), 0o755)
        return path

    def _hold(self) -> None:
        """Make the namespaces. They last as long as the process that has made them, and that as long as this one."""
        for directory in _FRESH:
            if not os.path.isdir(directory):
                os.makedirs(directory)
                self._made.append(directory)
        argv = ["unshare", "--mount", "--net", "--propagation", "private", "--", "sh", "-c", _HOLD, self.base, *_FRESH]
        self._holder = commands.Command(argv, env=self.env, stdin=subprocess.PIPE)
        if self._holder.read(time.monotonic() + START_SECONDS) != b"ready\n":
            raise BenchError(f"There are no namespaces for {self.name}: {self._holder.error()}")

    def _import(self) -> None:
        """Make the image."""
        file = os.path.join(self.base, "image.tar")
        commands.run(["tar", "-C", self._image.root, "-cf", file, "."])
        self.call("import", f"--change=ENV PATH={PATH}", file, IMAGE)
        os.unlink(file)

    def close(self) -> None:
        """Remove all containers, the engine, and whatever else was made; a signal meanwhile must not stop that."""
        with interrupts.ignored():
            if self._holder is not None:
                with contextlib.suppress(BenchError):
                    self._remove_boxes()
                with contextlib.suppress(BenchError):
                    self.shut()
                self._holder.end()
                self._holder = None
            _clear(self.base)
            while self._made:
                with contextlib.suppress(OSError):  # somebody has come to use it
                    os.rmdir(self._made.pop())

    def _remove_boxes(self) -> None:
        boxes = self.call("ps", "-aq").output.decode().split()
        if boxes:
            self.call("rm", "-f", "-v", *boxes)


class Docker(Engine):
    """dockerd, which starts a containerd of its own."""

    name = "docker"
    programs = ("docker", "dockerd", "containerd", "iptables")

    def __init__(self, image: Image) -> None:
        super().__init__(image)
        self.env["DOCKER_CONFIG"] = self.base  # no settings of the user's for the client
        self._daemon: commands.Command | None = None

    def argv(self, *words: str, runtime: str = "runc") -> list[str]:
        chosen = ["--runtime", runtime] if words[0] == "run" else []
        return ["docker", "--host", f"unix://{self.base}/socket", words[0], *chosen, *words[1:]]

    def open(self) -> None:
        # In place of the machine's own settings, which would be merged with the options. The name runc is dockerd's.
        with open(f"{self.base}/daemon.json", "w", encoding="utf-8") as file:
            json.dump({"runtimes": {n: {"path": path} for n, path in self.runtimes.items() if n != "runc"}}, file)
        argv = [
            # It ends, and all containers with it, also when this process is killed.
            "setpriv", "--pdeathsig", "TERM", "dockerd", "--config-file", f"{self.base}/daemon.json",
            "--host", f"unix://{self.base}/socket", "--pidfile", f"{self.base}/pid", "--data-root", f"{self.base}/data",
            "--exec-root", f"{self.base}/run", "--cgroup-parent", f"/{self.cgroup}",
            "--exec-opt", "native.cgroupdriver=cgroupfs", "--oom-score-adjust", "0", "--shutdown-timeout", "1",
        ]  # fmt: skip
        self._daemon = commands.Command(self.inside(*argv), env=self.env, stdout=subprocess.DEVNULL)
        deadline = time.monotonic() + START_SECONDS
        while commands.run(self.argv("version"), env=self.env, check=False).status != 0:
            if self._daemon.ended(LOOK_SECONDS):
                raise BenchError(f"dockerd has ended: {self._daemon.error()}")
            if time.monotonic() > deadline:
                raise BenchError(f"dockerd does not answer: {self._daemon.error()}")

    def shut(self) -> None:
        if self._daemon is not None:
            self._daemon.terminate()
            self._daemon.ended(END_SECONDS)
            self._daemon.end()


class Podman(Engine):
    """podman, which has no daemon: it runs in the namespaces itself."""

    name = "podman"
    programs = ("podman", "conmon", "iptables")

    def argv(self, *words: str, runtime: str = "runc") -> list[str]:
        command = [
            "env", f"CONTAINERS_CONF={self.base}/containers.conf", "podman",
            "--root", f"{self.base}/root", "--runroot", f"{self.base}/run", "--tmpdir", f"{self.base}/tmp",
            "--network-config-dir", f"{self.base}/networks", "--cgroup-manager", "cgroupfs",
            "--events-backend", "file", "--storage-driver", "overlay",
            # Runtimes would keep their records among those of the machine's own containers.
            "--runtime-flag", f"root={self.base}/runtime", "--runtime", runtime,
        ]  # fmt: skip
        parent = ["--cgroup-parent", f"/{self.cgroup}"] if words[0] == "run" else []
        return self.inside(*command, words[0], *parent, *words[1:])

    def open(self) -> None:
        os.mkdir(f"{self.base}/networks")
        runtimes = "".join(f"{name} = [{json.dumps(path)}]\n" for name, path in self.runtimes.items())
        with open(f"{self.base}/containers.conf", "w", encoding="utf-8") as file:
            # Podman's usual limits are higher than what a machine without CAP_SYS_RESOURCE can give.
            file.write('[containers]\ndefault_ulimits = ["nofile=1000:1000", "nproc=1000:1000"]\n')
            # Locks in memory would be shared with the machine's own podman.
            file.write(f'[engine]\nlock_type = "file"\n[engine.runtimes]\n{runtimes}')


ENGINES = (Docker, Podman)
#: The names that an engine's directory can end with, with containerd's, whose module needs this one.
_NAMES = ("docker", "podman", "containerd")


def sweep() -> None:
    """Remove what runs of the benchmark have left whose process is gone."""
    for name in os.listdir(WORK):
        if is_leftover(name) and name.rpartition("-")[2] in _NAMES:
            _clear(os.path.join(WORK, name))


def _clear(base: str) -> None:
    """End an engine's processes, then remove its cgroups and its directory."""
    for number in (signal.SIGTERM, signal.SIGKILL):
        for pid in members(base):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, number)
        deadline = time.monotonic() + _LEAVE_SECONDS
        while members(base) and time.monotonic() < deadline:
            time.sleep(LOOK_SECONDS)
    # A process that is ending has left its mounts a moment before it leaves its cgroup.
    deadline = time.monotonic() + _LEAVE_SECONDS
    while _remove_cgroups(os.path.basename(base)) and time.monotonic() < deadline:
        time.sleep(LOOK_SECONDS)
    shutil.rmtree(base, ignore_errors=True)


def _remove_cgroups(name: str) -> list[str]:
    """Remove the cgroups of this name with all below them; returns those that are still there."""
    roots = glob.glob(f"/sys/fs/cgroup/**/{name}/", recursive=True)
    for root in roots:
        for folder, _, _ in os.walk(root, topdown=False):
            with contextlib.suppress(OSError):  # something is in it
                os.rmdir(folder)
    return [root for root in roots if os.path.isdir(root)]


def members(base: str) -> list[int]:
    """The processes of an engine: daemons, monitors, containers, all that see its mounts."""
    found = []
    for pid in procs.pids():
        with contextlib.suppress(OSError), open(f"/proc/{pid}/mountinfo", encoding="utf-8", errors="replace") as file:
            if base in file.read() and procs.is_running(pid):
                found.append(pid)
    return found
