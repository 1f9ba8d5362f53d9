"""Real engines for tests: dockerd and podman with directories, namespaces and cgroups of their own.

Each has a machine of its own, see support.machine.
"""

from __future__ import annotations

import abc
import contextlib
import glob
import json
import os
import subprocess
from typing import Any, NamedTuple, Self, TypeVar

from support.machine import PATH, Done, Machine, remove_cgroups, until

#: The name that each engine knows the tests' image by.
IMAGE = "busybox"

_T = TypeVar("_T")


class Difference(NamedTuple):
    """What containers show differently under runc and under hako, by design."""

    what: str
    runc: str
    hako: str
    why: str


#: All that ``differs`` was told, for the documentation.
DIFFERENCES: list[Difference] = []


def differs(what: str, *, runc: str, hako: str, why: str) -> Difference:
    """Declare a difference that is by design. Scenarios name it where they expect it, see Box.either()."""
    made = Difference(what, runc, hako, why)
    DIFFERENCES.append(made)
    return made


class Engine(abc.ABC):
    """An engine with the tests' image; a context manager that fails when something is left of it."""

    name: str
    own_cgroups = "(?!)"  #: expression for the names of cgroups that the engine itself leaves with any runtime

    def __init__(self, base: str, runtimes: dict[str, str]) -> None:
        """``runtimes`` are the commands by name."""
        self.base = base
        self.runtimes = runtimes
        #: All containers' cgroups are below the one of this name.
        self.cgroup = f"hako-test-{self.name}-{os.getpid()}"
        self.machine = Machine(base)

    @abc.abstractmethod
    def argv(self, *args: str, runtime: str = "runc") -> list[str]:
        """The command line that passes ``args`` to the engine; containers that it makes are run by ``runtime``."""

    @abc.abstractmethod
    def open(self) -> None:
        """Make the engine usable."""

    @abc.abstractmethod
    def shut(self) -> None:
        """End what ``open`` has started; it may not have come to its end."""

    def __enter__(self) -> Self:
        try:
            self.open()
        except BaseException:
            self.shut()
            self.machine.close()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        try:
            self.shut()
            left = [*self.machine.leftovers(), *remove_cgroups(self.cgroup, self.own_cgroups)]
        finally:
            self.machine.close()
        assert not left, f"{self.name} left behind:\n" + "\n".join(left)

    def run(self, *args: str, runtime: str = "runc", input: str = "", timeout: float = 120, check: bool = True) -> Done:
        """Run the engine's command to its end. With ``check``, its failure fails the test and shows what it said."""
        return self.machine.run(self.argv(*args, runtime=runtime), input=input.encode(), timeout=timeout, check=check)

    def import_image(self, rootfs: str) -> None:
        """Make the image ``IMAGE`` from a root directory."""
        changes = [f"--change=ENV PATH={PATH}", '--change=CMD ["sh"]']
        with subprocess.Popen(["tar", "-C", rootfs, "-c", "."], stdout=subprocess.PIPE) as tar:
            argv = self.argv("import", *changes, "-", IMAGE)
            done = subprocess.run(
                argv, env=self.machine.environment, stdin=tar.stdout, capture_output=True, text=True, check=False
            )
        assert done.returncode == 0, done.stderr

    def clear(self) -> None:
        """Remove all containers, pods, volumes and networks that tests have made."""
        if self.name == "podman" and (pods := self.run("pod", "ps", "-q").stdout.split()):
            self.run("pod", "rm", "-f", "-t", "0", *pods)
        if containers := self.run("ps", "-aq").stdout.split():
            self.run("rm", "-f", "-v", *([] if self.name == "docker" else ["-t", "0"]), *containers)
        if volumes := self.run("volume", "ls", "-q").stdout.split():
            self.run("volume", "rm", *volumes)
        names = self.run("network", "ls", "--format", "{{.Name}}").stdout.split()
        if made := [name for name in names if name not in ("bridge", "host", "none", "podman")]:
            self.run("network", "rm", *made)


class Docker(Engine):
    """dockerd, which starts a containerd of its own."""

    name = "docker"

    def argv(self, *args: str, runtime: str = "runc") -> list[str]:
        client = ["/usr/bin/docker", "--host", f"unix://{self.base}/docker.sock"]
        # Without a name containers get hako, which is the default here.
        chosen = ["--runtime", runtime] if runtime and args[0] in ("run", "create") else []
        return [*client, args[0], *chosen, *args[1:]]

    def open(self) -> None:
        # The machine's own settings would be merged with the options.
        with open(f"{self.base}/daemon.json", "w", encoding="ascii") as file:
            json.dump({"runtimes": {"hako": {"path": self.runtimes["hako"]}}, "default-runtime": "hako"}, file)
        argv = [
            "dockerd", "--config-file", f"{self.base}/daemon.json", "--host", f"unix://{self.base}/docker.sock",
            "--data-root", f"{self.base}/data", "--exec-root", f"{self.base}/run", "--pidfile", f"{self.base}/pid",
            "--cgroup-parent", f"/{self.cgroup}", "--oom-score-adjust", "0", "--init-path", "/usr/bin/catatonit",
            "--shutdown-timeout", "1",
        ]  # fmt: skip
        with open(f"{self.base}/log", "wb") as log:
            self._daemon = subprocess.Popen(
                self.machine.inside(*argv), env=self.machine.environment, stdout=log, stderr=log
            )
        until(self._answers, "dockerd answers", 60)

    def _answers(self) -> bool:
        if self._daemon.poll() is not None:
            raise RuntimeError(f"dockerd has ended:\n{self.log()}")
        return self.run("version", check=False).status == 0

    def log(self) -> str:
        """The end of what dockerd has written."""
        with open(f"{self.base}/log", encoding="utf-8", errors="replace") as file:
            return file.read()[-4000:]

    def shut(self) -> None:
        self._daemon.terminate()
        self._daemon.wait(60)
        # It leaves the namespace of containers on the host network for its next start.
        self.machine.output("sh", "-c", f"umount {self.base}/run/netns/default; true")


class Podman(Engine):
    """podman, which has no daemon."""

    name = "podman"
    own_cgroups = "conmon|[0-9a-f]{64}"  # those of monitors and of pods

    def argv(self, *args: str, runtime: str = "runc") -> list[str]:
        command = [
            "env", f"CONTAINERS_CONF={self.base}/containers.conf",
            "podman", "--root", f"{self.base}/root", "--runroot", f"{self.base}/run", "--tmpdir", f"{self.base}/tmp",
            "--network-config-dir", f"{self.base}/networks", "--cgroup-manager", "cgroupfs", "--events-backend", "file",
            "--storage-driver", "overlay", "--runtime", runtime,
        ]  # fmt: skip
        new = 2 if args[:2] == ("pod", "create") else 1 if args[0] in ("run", "create") and "--pod" not in args else 0
        parent = ["--cgroup-parent", f"/{self.cgroup}"] if new else []
        return self.machine.inside(*command, *args[:new], *parent, *args[new:])

    def open(self) -> None:
        os.makedirs(f"{self.base}/networks")
        runtimes = "".join(f"{name} = [{json.dumps(path)}]\n" for name, path in self.runtimes.items())
        with open(f"{self.base}/containers.conf", "w", encoding="utf-8") as file:
            # Podman's usual limits are higher than what a host that lacks CAP_SYS_RESOURCE can give.
            file.write('[containers]\ndefault_ulimits = ["nofile=1000:1000", "nproc=1000:1000"]\n')
            # Locks in memory would be shared with the machine's own podman.
            # By this podman knows that a runtime writes its errors as JSON where it is told to.
            json_too = f"runtime_supports_json = {json.dumps(list(self.runtimes))}"
            file.write(f'[engine]\nlock_type = "file"\n{json_too}\n[engine.runtimes]\n{runtimes}')
        self.run("info")

    def shut(self) -> None:
        self.machine.output("sh", "-c", f"umount {self.base}/root/overlay; true")
        self._remove_pods()

    def _remove_pods(self) -> None:
        """Remove the cgroups of `podman play kube`, which cannot be told another parent and leaves them."""
        with (
            contextlib.suppress(FileNotFoundError),
            open(f"{self.base}/tmp/events/events.log", encoding="utf-8") as file,
        ):
            known = file.read()
            pods = glob.glob("/sys/fs/cgroup/*/libpod_parent/*")
            ours = [path for path in pods if os.path.basename(path) in known]
            for path in [*ours, *glob.glob("/sys/fs/cgroup/*/libpod_parent")]:
                with contextlib.suppress(OSError):  # somebody else is using it
                    os.rmdir(path)


class Box:
    """An engine with the runtime that a test's containers get."""

    def __init__(self, engine: Engine, runtime: str) -> None:
        self.engine = engine
        self.runtime = runtime
        self.docker = engine.name == "docker"

    def argv(self, *args: str) -> list[str]:
        """The command line that passes ``args`` to the engine."""
        return self.engine.argv(*args, runtime=self.runtime)

    def __call__(self, *args: str, **options: Any) -> Done:
        """Pass ``args`` to the engine, see Engine.run()."""
        return self.engine.run(*args, runtime=self.runtime, **options)

    def output(self, *args: str, **options: Any) -> str:
        """What the engine prints when it is passed ``args``, less the line feed at its end."""
        return self(*args, **options).stdout.rstrip("\n")

    def start(self, name: str, *args: str) -> None:
        """Run a container in the background; ``args`` are options, image and command."""
        self("run", "-d", "--name", name, *args)

    def shell(self, *args: str) -> str:
        """What a script prints in a new container; ``args`` are options and the script, which comes last."""
        return self.output("run", "--rm", *args[:-1], IMAGE, "sh", "-c", args[-1])

    def state(self, name: str) -> dict[str, Any]:
        """The part ``State`` of what the engine tells about a container."""
        (found,) = json.loads(self.output("inspect", "--type", "container", name))
        return dict(found["State"])

    def until_state(self, name: str, status: str) -> dict[str, Any]:
        """Wait until a container is ``running``, ``exited``, …; its state then."""

        def reached() -> dict[str, Any]:
            state = self.state(name)
            return state if state["Status"] == status else {}

        return until(reached, f"{name} is {status}")

    def until_logged(self, name: str, text: str) -> str:
        """Wait until ``text`` is in a container's log; the log then."""

        def reached() -> str:
            done = self("logs", name)
            return log if text in (log := done.stdout + done.stderr) else ""

        return until(reached, f"{text!r} in the log of {name}")

    def either(self, difference: Difference, *, runc: _T, hako: _T) -> _T:
        """What to expect under this runtime, where the two differ by design."""
        assert difference in DIFFERENCES
        return hako if self.runtime == "hako" else runc
