"""A containerd of the tests' own, driven through ctr: this Debian's, or the newer one of scripts/fetch-containerd.sh.

It lives on a machine of its own, see support.machine, with nothing of the real one's configuration. Its runtimes are
``runc`` and ``hako``, which is this clone's shim; with the CRI plugin, these are also the names of the handlers, and
there is ``hako-sandbox`` where containerd has the Sandbox API.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import sysconfig
import tomllib
from typing import Any, Self

from hako.ociimage.index import Image
from support import images, leaks, machine, source
from support.machine import Done, Machine, remove_cgroups, until

#: The directories in which the versions are installed.
VERSIONS = {"old": "/", "new": os.path.join(source.CLONE, ".cache", "containerd-sid")}
#: The tests' image; the same with an ordinary user; what the first container of a CRI pod is made of.
IMAGE, USER_IMAGE = "docker.io/library/busybox:latest", "docker.io/library/busybox:user"
PAUSE = "docker.io/library/pause:latest"
#: The containerd runtimes by name.
RUNTIMES = {"runc": "io.containerd.runc.v2", "hako": "io.containerd.hako.v2"}

_SHIM = "containerd-shim-hako-v2"
_CNI_PLUGINS = "/usr/lib/cni"
_NETWORK = {
    "cniVersion": "0.4.0",
    "name": "pods",
    "plugins": [
        {
            "type": "bridge",
            "bridge": "cni-pods",
            "isGateway": True,
            "ipMasq": True,
            "hairpinMode": True,
            "ipam": {
                "type": "host-local",
                "ranges": [[{"subnet": "10.88.0.0/16"}]],
                "routes": [{"dst": "0.0.0.0/0"}],
            },
        },
        {"type": "portmap", "capabilities": {"portMappings": True}},
        {"type": "loopback"},
    ],
}


class Containerd:
    """A running containerd that has the tests' image; a context manager that fails when something is left of it."""

    def __init__(self, base: str, image: Image, version: str = "old", *, cri: bool = False) -> None:
        """``base`` is a directory to make, with a short name; ``version`` one of VERSIONS, ``image`` the busybox."""
        self.base = base
        self.cri = cri
        self.tree = VERSIONS[version]
        #: containerd's namespace of the containers, and the cgroup that they are in.
        self.namespace = f"hako-test-{os.path.basename(base)}-{os.getpid()}"
        #: Path of the gRPC socket.
        self.address = f"{base}/containerd.sock"
        self.image = image
        self._daemon: subprocess.Popen[bytes] | None = None
        if not os.path.exists(self._program("containerd")):
            raise FileNotFoundError(f"There is no {self._program('containerd')}: run `make dev`.")
        self.machine = Machine(base)

    def _program(self, name: str) -> str:
        return os.path.join(self.tree, "usr", "bin", name)

    @property
    def has_sandbox_api(self) -> bool:
        """Whether this containerd can leave pods to a shim."""
        return self._major() >= 2

    def _major(self) -> int:
        said = subprocess.run([self._program("containerd"), "--version"], capture_output=True, text=True, check=True)
        found = re.search(r" v?(\d+)\.\d+\.", said.stdout)
        assert found, said.stdout
        return int(found[1])

    def __enter__(self) -> Self:
        try:
            os.mkdir(f"{self.base}/bin")
            write_shim(f"{self.base}/bin")
            self._configure()
            self.start()
            self._import_images()
        except BaseException:
            self.stop()
            self.machine.close()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        try:
            self.stop()
            leaks.stop_keepers()  # they keep templates for the next start, in this machine's namespaces
            left = [*self.machine.leftovers(), *remove_cgroups(self.namespace)]
        finally:
            self.machine.close()
        assert not left, "containerd left behind:\n" + "\n".join(left)

    def start(self) -> None:
        """Start containerd, and wait until it answers."""
        environment = {**self.machine.environment}
        environment["PATH"] = f"{self.base}/bin:{os.path.join(self.tree, 'usr', 'bin')}:{environment['PATH']}"
        argv = [self._program("containerd"), "--config", f"{self.base}/config.toml"]
        with open(f"{self.base}/log", "ab") as log:
            self._daemon = subprocess.Popen(self.machine.inside(*argv), env=environment, stdout=log, stderr=log)
        until(self._answers, "containerd answers")

    def _answers(self) -> bool:
        assert self._daemon is not None
        if self._daemon.poll() is not None:
            raise RuntimeError(f"containerd has ended:\n{self.log()}")
        return os.path.exists(self.address) and self.ctr("version", check=False).status == 0

    def stop(self) -> None:
        """End containerd as an administrator does. Containers run on."""
        if self._daemon is not None:
            self._daemon.terminate()
            self._daemon.wait(60)
            self._daemon = None

    def kill(self) -> None:
        """End containerd without a warning. Containers run on."""
        assert self._daemon is not None
        self._daemon.kill()
        self._daemon.wait(60)
        self._daemon = None

    def restart(self) -> None:
        """Start containerd again, after it has been ended where it runs."""
        self.stop()
        self.start()

    @property
    def pid(self) -> int:
        """containerd's process."""
        assert self._daemon is not None
        return self._daemon.pid

    def log(self) -> str:
        """The end of what containerd has written, and shims through it."""
        with open(f"{self.base}/log", encoding="utf-8", errors="replace") as file:
            lines = [line for line in file if "loading plugin" not in line and "load plugin" not in line]
        return "".join(lines[-40:])

    def argv(self, *args: str, namespace: str = "") -> list[str]:
        """The command line that passes ``args`` to ctr."""
        chosen = ["--address", self.address, "--namespace", namespace or self.namespace]
        return self.machine.inside(self._program("ctr"), *chosen, *args)

    def ctr(self, *args: str, namespace: str = "", input: str = "", timeout: float = 120, check: bool = True) -> Done:
        """Run ctr to its end. With ``check``, its failure fails the test and shows what it said."""
        argv = self.argv(*args, namespace=namespace)
        return self.machine.run(argv, input=input.encode(), timeout=timeout, check=check)

    def _import_images(self) -> None:
        tar = subprocess.run(["tar", "-C", self.image.rootfs, "-c", "."], capture_output=True, check=True).stdout
        variables = [f"PATH={machine.PATH}"]
        sample = {"latest": images.config(Env=variables), "user": images.config(Env=variables, User="hako")}
        self._import("busybox", {tag: ([tar], configuration) for tag, configuration in sample.items()})
        self._import("pause", {"latest": ([tar], images.config(Env=variables, Cmd=["sleep", "2147483647"]))})

    def _import(self, name: str, tags: dict[str, tuple[list[bytes], dict[str, Any]]]) -> None:
        layout = f"{self.base}/layout"
        images.write_layout(layout, tags)
        subprocess.run(["tar", "-C", layout, "-cf", f"{layout}.tar", "."], check=True)
        for namespace in (self.namespace, *(["k8s.io"] if self.cri else [])):
            options = ["--base-name", f"docker.io/library/{name}"]
            self.ctr("images", "import", *options, f"{layout}.tar", namespace=namespace)
        subprocess.run(["rm", "-r", layout, f"{layout}.tar"], check=True)

    def _configure(self) -> None:
        os.makedirs(f"{self.base}/cni")
        with open(f"{self.base}/cni/10-pods.conflist", "w", encoding="ascii") as file:
            json.dump(_NETWORK, file)
        version = 3 if self._major() >= 2 else 2
        plugins = self._cri_3() if version == 3 else self._cri_2()
        plugins |= {
            "io.containerd.internal.v1.opt": {"path": f"{self.base}/opt"},
            # It would listen outside of the directories that are given.
            "io.containerd.nri.v1.nri": {"disable": True},
        }
        settings = {
            "version": version,
            "root": f"{self.base}/root",
            "state": f"{self.base}/state",
            "oom_score": 0,
            "disabled_plugins": [] if self.cri else ["io.containerd.grpc.v1.cri", "io.containerd.cri.v1.runtime"],
            "grpc": {"address": self.address},
            "ttrpc": {"address": f"{self.address}.ttrpc"},
            "plugins": plugins,
        }
        with open(f"{self.base}/config.toml", "w", encoding="ascii") as file:
            file.writelines(f"{key} = {_toml(value)}\n" for key, value in settings.items())

    def _runtimes(self) -> dict[str, Any]:
        prefixes = ["dev.hako.*", "io.katacontainers.*"]
        passed = {"pod_annotations": prefixes, "container_annotations": prefixes}
        return {name: {"runtime_type": runtime, **passed} for name, runtime in RUNTIMES.items()}

    def _cri_2(self) -> dict[str, Any]:
        """The CRI plugin in a configuration of version 2."""
        return {
            "io.containerd.grpc.v1.cri": {
                "sandbox_image": PAUSE,
                "restrict_oom_score_adj": True,
                "stream_server_address": "127.0.0.1",
                "containerd": {"default_runtime_name": "runc", "runtimes": self._runtimes()},
                "cni": {"bin_dir": _CNI_PLUGINS, "conf_dir": f"{self.base}/cni"},
            }
        }

    def _cri_3(self) -> dict[str, Any]:
        """The same in one of version 3, where the plugin has been divided."""
        runtimes = self._runtimes()
        runtimes["hako-sandbox"] = {**runtimes["hako"], "sandboxer": "shim"}
        return {
            "io.containerd.cri.v1.images": {"pinned_images": {"sandbox": PAUSE}},
            "io.containerd.cri.v1.runtime": {
                "restrict_oom_score_adj": True,
                "containerd": {"default_runtime_name": "runc", "runtimes": runtimes},
                "cni": {"bin_dirs": [_CNI_PLUGINS], "conf_dir": f"{self.base}/cni"},
            },
            "io.containerd.grpc.v1.cri": {"stream_server_address": "127.0.0.1"},
        }


def write_shim(directory: str) -> None:
    """Write this clone's shim into ``directory``, with the run's HAKO_* variables: containerd is not to have them."""
    with open(os.path.join(source.CLONE, "pyproject.toml"), "rb") as file:
        entry = tomllib.load(file)["project"]["scripts"][_SHIM]
    command = os.path.join(directory, "hako-shim")
    python = os.path.realpath(sys.executable)  # past the virtual environment's link
    directories = [source.SOURCE, sysconfig.get_path("purelib")]
    launcher = os.path.join(source.CLONE, "scripts", "launcher.py")
    subprocess.run([python, launcher, command, python, entry, *directories], check=True)
    variables = {name: os.environ[name] for name in ("HAKO_STATE_ROOT", "HAKO_DATA_ROOT", "HAKO_CONFIG")}
    machine.write_launcher(os.path.join(directory, _SHIM), command, variables)


def _toml(value: Any) -> str:
    """``value`` as an inline value of TOML. JSON's strings, numbers and lists are TOML's."""
    if isinstance(value, dict):
        return "{" + ", ".join(f"{json.dumps(key)} = {_toml(item)}" for key, item in value.items()) + "}"
    return json.dumps(value)
