"""containerd of the benchmark's own, with the CRI plugin: containers by ctr, pods as a kubelet has them made."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import subprocess
import time
from collections.abc import Sequence
from typing import Any

from bench import commands, engines, layout
from bench.model import BenchError
from bench.targets.base import PREFIX, is_leftover
from bench.targets.hako import Hako

#: The namespace that containerd keeps pods in.
PODS = "k8s.io"
_IMAGE = f"docker.io/library/{engines.IMAGE}"
_TAG = "latest"
#: The image's name for containerd.
IMAGE = f"{_IMAGE}:{_TAG}"
#: hako's shim, which is installed beside hako.
SHIM = "containerd-shim-hako-v2"
_RUNC = "io.containerd.runc.v2"
#: Labels that the shim gives its sandboxes.
_LABEL = "dev.hako.containerd."
_SOCKET = "socket"
_PLUGINS = "/usr/lib/cni"
#: What the first container of a pod runs; the image is that of the others.
_PAUSE = ("sleep", "2147483647")
_NETWORK = {
    "cniVersion": "0.4.0",
    "name": "pods",
    "plugins": [
        {
            "type": "bridge", "bridge": "cni-pods", "isGateway": True, "ipMasq": True,
            "ipam": {
                "type": "host-local", "ranges": [[{"subnet": "10.88.0.0/16"}]], "routes": [{"dst": "0.0.0.0/0"}],
            },
        },
        {"type": "portmap", "capabilities": {"portMappings": True}},
    ],
}  # fmt: skip


class Containerd(engines.Engine):
    """containerd, whose runtimes are shims: its own for ``runc``, and programs that it is given the paths of."""

    name = "containerd"
    programs = ("containerd", "ctr", "containerd-shim-runc-v2", "runc", "iptables")

    run_words = "ctr run --rm"
    exec_words = "ctr task exec"

    def __init__(self, image: engines.Image) -> None:
        super().__init__(image)
        self.socket = f"{self.base}/{_SOCKET}"
        self._daemon: commands.Command | None = None
        self._execs = 0

    @property
    def types(self) -> dict[str, str]:
        """What containerd calls the runtimes, by their names."""
        return {name: _RUNC if name == "runc" else path for name, path in self.runtimes.items()}

    # containerd hands its own environment on to the shims.
    def _launcher(self, name: str, command: str) -> str:  # noqa: ARG002
        return command

    def argv(self, *words: str, runtime: str = "runc") -> list[str]:
        chosen = ["--runtime", self.types[runtime]] if words[0] == "run" else []
        # ctr puts containers into a cgroup of their namespace's name.
        return self.ctr(self.cgroup, words[0], *chosen, *words[1:])

    def ctr(self, namespace: str, *words: str) -> list[str]:
        """The command line that passes ``words`` to ctr, for one of containerd's namespaces."""
        return self.inside("ctr", "--address", self.socket, "--namespace", namespace, *words)

    def run(self, runtime: str, command: Sequence[str]) -> float:
        return self.call("run", "--rm", IMAGE, self._name(), *command, runtime=runtime).total

    def start(self, runtime: str, command: Sequence[str], options: Sequence[str] = ()) -> str:
        name = self._name()
        argv = self.argv("run", "--detach", *options, IMAGE, name, *command, runtime=runtime)
        commands.run(argv, env=self.env, output=False)
        return name

    def execute(self, box: str, command: Sequence[str]) -> float:
        self._execs += 1
        return self.call("task", "exec", "--exec-id", f"exec{self._execs}", box, *command).total

    def shims(self) -> dict[str, int]:
        """The shims that run: the process of each, by the container or the pod that it was started for."""
        found = {}
        for pid in engines.members(self.base):
            words = _words(pid)
            # Those that only start or remove something are at work for a moment.
            if self.socket in words and "-id" in words and words[-1] != "delete":
                found[words[words.index("-id") + 1]] = pid
        return found

    # --- coming and going ---

    def open(self) -> None:
        os.mkdir(f"{self.base}/cni")
        with open(f"{self.base}/cni/10-pods.conflist", "w", encoding="ascii") as file:
            json.dump(_NETWORK, file)
        with open(f"{self.base}/config.toml", "w", encoding="ascii") as file:
            file.writelines(f"{key} = {_toml(value)}\n" for key, value in self._settings().items())
        # It ends also when this process is killed; what it has started does not.
        argv = ["setpriv", "--pdeathsig", "TERM", "containerd", "--config", f"{self.base}/config.toml"]
        self._daemon = commands.Command(self.inside(*argv), env=self.env, stdout=subprocess.DEVNULL)
        deadline = time.monotonic() + engines.START_SECONDS
        while not self._answers():
            if self._daemon.ended(engines.LOOK_SECONDS):
                raise BenchError(f"containerd has ended: {self._daemon.error()}")
            if time.monotonic() > deadline:
                raise BenchError(f"containerd does not answer: {self._daemon.error()}")

    def _answers(self) -> bool:
        # Without a socket ctr would try for seconds.
        return os.path.exists(self.socket) and commands.run(self.argv("version"), env=self.env, check=False).status == 0

    def _settings(self) -> dict[str, Any]:
        pods = {
            "sandbox_image": IMAGE,
            "restrict_oom_score_adj": True,
            "stream_server_address": "127.0.0.1",
            "containerd": {
                "default_runtime_name": "runc",
                "runtimes": {name: {"runtime_type": kind} for name, kind in self.types.items()},
            },
            "cni": {"bin_dir": _PLUGINS, "conf_dir": f"{self.base}/cni"},
        }
        return {
            "version": 2,
            "root": f"{self.base}/root",
            "state": f"{self.base}/state",
            "oom_score": 0,
            "grpc": {"address": self.socket},
            "ttrpc": {"address": f"{self.socket}.ttrpc"},
            "plugins": {
                "io.containerd.grpc.v1.cri": pods,
                "io.containerd.internal.v1.opt": {"path": f"{self.base}/opt"},
                # It would listen outside of the directories that are given.
                "io.containerd.nri.v1.nri": {"disable": True},
            },
        }

    def _import(self) -> None:
        file = os.path.join(self.base, "image.tar")
        layout.write(file, self._image.root, _TAG, [f"PATH={engines.PATH}"], _PAUSE)
        for namespace in (self.cgroup, PODS):
            commands.run(self.ctr(namespace, "images", "import", "--base-name", _IMAGE, file), env=self.env)
        os.unlink(file)
        shutil.rmtree(f"{file}.d")

    def _remove_boxes(self) -> None:
        if self._daemon is None or self._daemon.ended(0):
            return
        for namespace in (PODS, self.cgroup):
            for kind, force in (("task", ["--force"]), ("container", [])):
                with contextlib.suppress(BenchError):  # what is left is ended
                    listed = commands.run(self.ctr(namespace, kind, "ls", "--quiet"), env=self.env)
                    if boxes := listed.output.decode().split():
                        commands.run(self.ctr(namespace, kind, "delete", *force, *boxes), env=self.env)

    def shut(self) -> None:
        if self._daemon is not None:
            self._daemon.terminate()
            self._daemon.ended(engines.END_SECONDS)
            self._daemon.end()

    def _name(self) -> str:
        self._boxes += 1
        return f"box{self._boxes}"


def forget(hako: Hako) -> None:
    """Remove hako's records of containers whose containerd was killed, in this run or in one whose process is gone."""
    shim = hako.beside(SHIM)
    for record in hako.listed() if shim else []:
        # A container that another program has made is known by its sandbox and its name there.
        if "/" not in str(record.get("id", "")):
            continue
        with contextlib.suppress(BenchError):
            found = hako.inspect(record["id"])
            bundle = str(found["rootfs"]).removeprefix(f"{engines.WORK}/").split("/")[0]
            if is_leftover(bundle) or bundle.startswith(f"{PREFIX}-{os.getpid()}-"):
                labels = found["labels"]
                known = ["-address", f"{engines.WORK}/{bundle}/{_SOCKET}"]
                known += ["-namespace", labels[f"{_LABEL}namespace"], "-id", labels[f"{_LABEL}container"]]
                commands.run([shim, *known, "delete"], cwd=engines.WORK)


def _words(pid: int) -> list[str]:
    """The command line of a process; empty when it is gone."""
    try:
        with open(f"/proc/{pid}/cmdline", encoding="utf-8", errors="replace") as file:
            # A shim that a zygote has forked has written it anew, with blanks.
            return file.read().replace("\0", " ").split()
    except OSError:
        return []


def _toml(value: Any) -> str:
    """``value`` as an inline value of TOML. JSON's strings, numbers and lists are TOML's."""
    if isinstance(value, dict):
        return "{" + ", ".join(f"{json.dumps(key)} = {_toml(item)}" for key, item in value.items()) + "}"
    return json.dumps(value)
