"""``hako-runtime`` by itself, with bundles: the life of a container, its terminal, hooks, crashes, joined sandboxes."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import sysconfig
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from conftest import CLONE, Roots
from hako.guestimage.api import GuestImage
from hako.ociimage.index import Image
from hako.runtime import containers
from support import leaks
from support.terminals import OnTerminal

pytestmark = pytest.mark.system


class Runtime:
    """This clone's command with a --root of its own, and bundles of busybox."""

    def __init__(self, command: str, root: Path, image: Image) -> None:
        self.command = command
        self.root = str(root / "runtime")
        self._base = root
        self._image = image
        self._count = 0

    def argv(self, *args: str) -> list[str]:
        return [self.command, "--root", self.root, *args]

    def __call__(
        self, *args: str, check: bool = True, input: str | None = None, timeout: float = 120
    ) -> subprocess.CompletedProcess[str]:
        """Run it to its end. ``create`` gets files for its streams, for whatever it leaves behind holds them."""
        with open(self._base / "out", "w+b") as out, open(self._base / "err", "w+b") as err:
            done = subprocess.run(
                self.argv(*args), input=None if input is None else input.encode(),
                stdin=subprocess.DEVNULL if input is None else None,
                stdout=out, stderr=err, timeout=timeout, check=False,
            )  # fmt: skip
            out.seek(0)
            err.seek(0)
            result = subprocess.CompletedProcess(args, done.returncode, out.read().decode(), err.read().decode())
        assert not check or done.returncode == 0, f"{args}: {result.stdout}{result.stderr}"
        return result

    def bundle(self, *args: str, change: Callable[[dict[str, Any]], None] | None = None) -> str:
        """The directory of a new bundle whose process is ``args``."""
        self._count += 1
        directory = self._base / f"bundle{self._count}"
        directory.mkdir()
        self(*("spec", "--bundle", str(directory)))
        path = directory / "config.json"
        spec = json.loads(path.read_text())
        rootfs = directory / "rootfs"
        subprocess.run(["cp", "-a", self._image.rootfs, str(rootfs)], check=True)
        spec["root"] = {"path": "rootfs", "readonly": False}
        spec["process"] |= {"args": list(args), "terminal": False}
        spec["process"].pop("rlimits", None)
        if change is not None:
            change(spec)
        path.write_text(json.dumps(spec))
        return str(directory)

    def state(self, name: str) -> dict[str, Any]:
        found = json.loads(self("state", name).stdout)
        assert isinstance(found, dict)
        return found

    def wait_status(self, name: str, status: str) -> None:
        until(lambda: self.state(name)["status"] == status, f"{name} is {status}")


def until(condition: Callable[[], object], what: str, seconds: float = 30) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"not within {seconds:.0f} s: {what}"
        time.sleep(0.02)


@pytest.fixture
def runtime(roots: Roots, guest_image: GuestImage, busybox_image: Image, tmp_path: Path) -> Iterator[Runtime]:
    """The command; afterwards nothing of its containers is left."""
    command = os.path.join(roots.base, "bin", "hako-runtime-tested")
    if not os.path.exists(command):
        os.makedirs(os.path.dirname(command), exist_ok=True)
        python = os.path.realpath(sys.executable)
        directories = [os.path.join(CLONE, "src"), sysconfig.get_path("purelib")]
        launcher = os.path.join(CLONE, "scripts", "launcher.py")
        subprocess.run([python, launcher, command, python, "hako.runtime.main:command", *directories], check=True)
    made = Runtime(command, tmp_path, busybox_image)
    try:
        yield made
    finally:
        names = made("list", "-q").stdout.split()
        for name in names:
            made("delete", "--force", name)
    until(lambda: not _left(roots, tmp_path), f"nothing is left: {_left(roots, tmp_path)}")


def _left(roots: Roots, tmp_path: Path) -> list[str]:
    found = [f"process {pid}: {line}" for pid, line in leaks.processes(str(tmp_path)).items()]
    found += [f"mount {point}" for point in leaks.mounts(str(tmp_path))]
    places = [os.path.join(directory, "sandboxes") for directory in (roots.state, roots.data)]
    for place in (*places, str(tmp_path / "runtime")):
        with contextlib.suppress(FileNotFoundError):
            found += os.listdir(place)
    return found


def test_the_life_of_a_container(runtime: Runtime, tmp_path: Path) -> None:
    bundle = runtime.bundle("sh", "-c", "trap 'exit 3' TERM; echo ready >/ready; while :; do sleep 1; done")
    runtime("create", "--bundle", bundle, "--pid-file", str(tmp_path / "pid"), "one")
    pid = int((tmp_path / "pid").read_text())
    state = runtime.state("one")
    assert (state["status"], state["pid"], state["bundle"], state["id"]) == ("created", pid, bundle, "one")
    assert not os.path.exists(f"{bundle}/rootfs/ready")
    again = runtime("create", "--bundle", bundle, "one", check=False)
    assert (again.returncode, "container with id one already exists" in again.stderr) == (1, True)
    runtime("start", "one")
    until(lambda: os.path.exists(f"{bundle}/rootfs/ready"), "the process runs")
    assert "one" in runtime("list").stdout
    # The process on the host has the container's network, files and name.
    assert os.readlink(f"/proc/{pid}/ns/net") != os.readlink("/proc/self/ns/net")
    assert os.path.exists(f"/proc/{pid}/root/ready")
    assert Path(f"/proc/{pid}/comm").read_text() == "sh\n"
    assert json.loads(runtime("ps", "--format", "json", "one").stdout) == [pid]
    for verb, words in (("start", "cannot start an already running container"), ("delete", "not stopped: running")):
        refused = runtime(verb, "one", check=False)
        assert (refused.returncode, words in refused.stderr) == (1, True)
    runtime("pause", "one")
    assert runtime.state("one")["status"] == "paused"
    assert "paused" in runtime("exec", "one", "true", check=False).stderr
    runtime("resume", "one")
    runtime("update", "--memory", "100m", "--pids-limit", "40", "one")
    limits = runtime("exec", "one", "cat", "/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/pids.max").stdout.split()
    assert limits == [str(100 << 20), "40"]
    runtime("kill", "one", "SIGTERM")
    runtime.wait_status("one", "stopped")
    until(lambda: not os.path.exists(f"/proc/{pid}"), "the process on the host has ended")
    assert "container not running" in runtime("kill", "one", "TERM", check=False).stderr
    runtime("delete", "one")
    assert "does not exist" in runtime("state", "one", check=False).stderr


def test_run_has_the_streams_and_the_exit_status(runtime: Runtime) -> None:
    bundle = runtime.bundle("sh", "-c", "cat; echo wrong >&2; exit 9")
    done = runtime("run", "--bundle", bundle, "two", input="right", check=False)
    assert (done.returncode, done.stdout, done.stderr) == (9, "right", "wrong\n")
    assert runtime("list", "-q").stdout == ""


def test_what_was_written_into_mapped_memory_is_on_the_host(runtime: Runtime, tmp_path: Path) -> None:
    program = (
        "import mmap, os, signal; file = open('/data/file', 'r+b'); view = mmap.mmap(file.fileno(), 1 << 20);"
        "view[:5] = b'first'; view[-4:] = b'last'; os.kill(os.getpid(), signal.SIGKILL)"
    )

    def with_python(spec: dict[str, Any]) -> None:
        for source in ("/usr", "/lib", "/lib64"):
            mount = {
                "destination": source,
                "type": "bind",
                "source": os.path.realpath(source),
                "options": ["rbind", "ro"],
            }
            spec["mounts"].append(mount)
        data = {"destination": "/data", "type": "bind", "source": str(tmp_path / "data"), "options": ["rbind"]}
        spec["mounts"].append(data)

    (tmp_path / "data").mkdir()
    (tmp_path / "data/file").write_bytes(bytes(1 << 20))
    bundle = runtime.bundle("/usr/bin/python3.11", "-IS", "-c", program, change=with_python)
    # As the first process of its namespace it can be killed from outside only; its child is killed by itself.
    assert runtime("run", "--bundle", bundle, "mapped", check=False).returncode in (0, 137)
    found = (tmp_path / "data/file").read_bytes()
    assert (found[:5], found[-4:]) == (b"first", b"last")


def test_exec_in_its_ways(runtime: Runtime, tmp_path: Path) -> None:
    runtime("run", "-d", "--bundle", runtime.bundle("sleep", "1000"), "three")
    assert runtime("exec", "three", "sh", "-c", "exit 4", check=False).returncode == 4
    flags = ["--cwd", "/tmp", "-e", "A=b", "-u", "5:6"]
    shown = runtime("exec", *flags, "three", "sh", "-c", "pwd; echo $A; id -u; id -g").stdout.split()
    assert shown == ["/tmp", "b", "5", "6"]
    process = {"args": ["sh", "-c", "cat >/got"], "cwd": "/", "user": {"uid": 0, "gid": 0}, "env": ["PATH=/bin"]}
    (tmp_path / "process.json").write_text(json.dumps(process))
    runtime("exec", "--process", str(tmp_path / "process.json"), "three", input="data")
    assert runtime("exec", "three", "cat", "/got").stdout == "data"
    runtime("exec", "-d", "--pid-file", str(tmp_path / "pid"), "three", "sleep", "1000")
    pid = int((tmp_path / "pid").read_text())
    assert Path(f"/proc/{pid}/comm").read_text() == "sleep\n"
    # Whoever kills the process on the host has killed the one in the container.
    os.kill(pid, signal.SIGKILL)
    until(lambda: runtime("exec", "three", "ps").stdout.count("sleep 1000") == 1, "it is gone inside")
    missing = runtime("exec", "three", "no-such-program", check=False)
    assert (missing.returncode, "no-such-program" in missing.stderr) == (255, True)


def test_a_terminal_by_the_console_socket(runtime: Runtime, tmp_path: Path) -> None:
    def with_terminal(spec: dict[str, Any]) -> None:
        spec["process"] |= {"terminal": True, "consoleSize": {"width": 71, "height": 17}}

    bundle = runtime.bundle("sh", change=with_terminal)
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(tmp_path / "console"))
        listener.listen()
        runtime("create", "--bundle", bundle, "--console-socket", str(tmp_path / "console"), "four")
        connection, _ = listener.accept()
        with connection:
            _, (master,), _, _ = socket.recv_fds(connection, 100, 1)
    try:
        runtime("start", "four")
        os.write(master, b"stty size; echo do''ne\n")
        assert b"17 71" in _read_until(master, b"done")
        os.write(master, b"exit 6\n")
        runtime.wait_status("four", "stopped")
    finally:
        os.close(master)


def _read_until(fd: int, words: bytes) -> bytes:
    seen = b""
    while words not in seen:
        seen += os.read(fd, 4096)
    return seen


def test_a_terminal_in_the_foreground(runtime: Runtime) -> None:
    bundle = runtime.bundle("sh", change=lambda spec: spec["process"].update(terminal=True))
    with OnTerminal(runtime.argv("run", "--bundle", bundle, "five"), rows=33, columns=90) as terminal:
        terminal.type("stty size; echo do''ne\r")
        assert "33 90" in terminal.expect("done")
        terminal.resize(20, 60)
        terminal.type("stty size; echo ag''ain\r")
        assert "20 60" in terminal.expect("again")
        terminal.type("exit 5\r")
        assert terminal.wait() == 5


def test_hooks_run_in_their_order_and_place(runtime: Runtime, tmp_path: Path) -> None:
    log = tmp_path / "hooks"
    script = f'state=$(cat); echo "$1 $(readlink /proc/self/ns/net) $state" >>{log}'

    def with_hooks(spec: dict[str, Any]) -> None:
        host = ("prestart", "createRuntime", "createContainer", "poststart", "poststop")
        spec["hooks"] = {
            kind: [{"path": "/bin/sh", "args": ["sh", "-c", script, "sh", kind], "env": ["PATH=/bin:/usr/bin"]}]
            for kind in host
        }
        spec["hooks"]["startContainer"] = [{"path": "/bin/sh", "args": ["sh", "-c", "cat >/inside"]}]

    bundle = runtime.bundle("sleep", "1000", change=with_hooks)
    runtime("create", "--bundle", bundle, "six")
    pid = runtime.state("six")["pid"]
    network = os.readlink(f"/proc/{pid}/ns/net")
    runtime("start", "six")
    inside = Path(f"{bundle}/rootfs/inside")
    until(lambda: inside.exists() and inside.read_text().strip().endswith("}"), "the hook in the container has run")
    runtime("delete", "--force", "six")
    lines = [line.split(" ", 2) for line in log.read_text().splitlines()]
    assert [kind for kind, _, _ in lines] == ["prestart", "createRuntime", "createContainer", "poststart", "poststop"]
    states = [json.loads(text) for _, _, text in lines]
    assert [state["pid"] for state in states] == [pid, pid, pid, pid, 0]
    assert [state["status"] for state in states][3:] == ["running", "stopped"]
    host = os.readlink("/proc/self/ns/net")
    assert [where for _, where, _ in lines] == [host, host, network, host, host]
    assert json.loads(inside.read_text())["id"] == "six"


def test_a_hook_that_fails_leaves_nothing(runtime: Runtime) -> None:
    def failing(spec: dict[str, Any]) -> None:
        spec["hooks"] = {"createRuntime": [{"path": "/bin/sh", "args": ["sh", "-c", "echo no >&2; exit 2"]}]}

    done = runtime("create", "--bundle", runtime.bundle("true", change=failing), "seven", check=False)
    assert done.returncode == 1
    assert "error running hook #0" in done.stderr
    assert "no" in done.stderr
    assert runtime("list", "-q").stdout == ""


def test_a_container_in_the_network_of_another_joins_its_vm(runtime: Runtime) -> None:
    runtime("run", "-d", "--bundle", runtime.bundle("sleep", "1000"), "pod")
    pid = runtime.state("pod")["pid"]

    def joins(spec: dict[str, Any]) -> None:
        for namespace in spec["linux"]["namespaces"]:
            if namespace["type"] in ("network", "ipc"):
                namespace["path"] = f"/proc/{pid}/ns/{'net' if namespace['type'] == 'network' else 'ipc'}"

    boot = ["cat", "/proc/sys/kernel/random/boot_id"]
    member = runtime.bundle(*boot, change=joins)
    assert runtime("run", "--bundle", member, "member").stdout == runtime("exec", "pod", *boot).stdout
    runtime("run", "-d", "--bundle", runtime.bundle("sleep", "1000", change=joins), "other")
    # The VM stays as long as one of them runs.
    runtime("kill", "pod", "KILL")
    runtime.wait_status("pod", "stopped")
    runtime("delete", "pod")
    assert runtime("exec", "other", "echo", "alive").stdout == "alive\n"
    runtime("delete", "--force", "other")


@pytest.mark.parametrize("who", ["stand-in", "qemu", "sandbox"])
def test_whoever_is_killed_the_container_has_ended(runtime: Runtime, roots: Roots, who: str) -> None:
    runtime("run", "-d", "--bundle", runtime.bundle("sleep", "1000"), "eight")
    container = containers.find(runtime.root, "eight")
    with open(os.path.join(roots.state, "sandboxes", container.sandbox, "state.json"), encoding="utf-8") as file:
        sandbox = json.load(file)
    victim = {"stand-in": container.pid, "qemu": sandbox["vm_pid"], "sandbox": sandbox["pid"]}[who]
    os.kill(victim, signal.SIGKILL)
    runtime.wait_status("eight", "stopped")
    until(lambda: not containers.is_its(container), "the process on the host has ended")
    runtime("delete", "eight")


def test_a_create_that_is_killed_leaves_what_delete_removes(runtime: Runtime) -> None:
    bundle = runtime.bundle("sleep", "1000")
    for delay in (0.02, 0.06, 0.15, 0.3, 0.5):
        process = subprocess.Popen(runtime.argv("create", "--bundle", bundle, "nine"), stdin=subprocess.DEVNULL)
        time.sleep(delay)  # somewhere in the middle, wherever that is
        process.kill()
        process.wait()
        runtime("delete", "--force", "nine")
        assert runtime("list", "-q").stdout == ""
    runtime("run", "-d", "--bundle", bundle, "nine")
    runtime("delete", "--force", "nine")


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda spec: spec["linux"].update(namespaces=[{"type": "pid"}, {"type": "mount"}]), "host's network"),
        (lambda spec: spec["process"].update(cwd="relative"), "$.process.cwd"),
        (lambda spec: spec["process"].update(terminal=True), "cannot allocate tty"),
        (lambda spec: spec["root"].update(path="missing"), "is not a directory"),
        (lambda spec: spec["process"].update(args=["/no/such/program"]), "/no/such/program"),
        (lambda spec: spec["linux"].update(cgroupsPath="../up"), ".."),
    ],
    ids=["host network", "relative cwd", "terminal", "no root", "no program", "cgroup"],
)
def test_what_cannot_be_is_refused_in_a_sentence(
    runtime: Runtime, change: Callable[[dict[str, Any]], None], words: str, tmp_path: Path
) -> None:
    log = tmp_path / "log"
    bundle = runtime.bundle("true", change=change)
    done = runtime("--log", str(log), "--log-format", "json", "create", "--bundle", bundle, "ten", check=False)
    assert done.returncode == 1
    entry = json.loads(log.read_text().splitlines()[-1])
    assert (entry["level"], words in entry["msg"]) == ("error", True), entry
    assert "Traceback" not in done.stderr
    assert runtime("list", "-q").stdout == ""


def test_vcpus_and_memory_are_the_vms(runtime: Runtime) -> None:
    def large(spec: dict[str, Any]) -> None:
        spec["linux"]["resources"] = {
            "memory": {"limit": 700 << 20},
            "cpu": {"quota": 200_000, "period": 100_000},
            "pids": {"limit": 77},
        }

    show = "nproc; cat /sys/fs/cgroup/memory.max /sys/fs/cgroup/pids.max; grep MemTotal /proc/meminfo"
    shown = runtime("run", "--bundle", runtime.bundle("sh", "-c", show, change=large), "eleven").stdout.split()
    assert shown[:3] == ["2", str(700 << 20), "77"]
    assert int(shown[4]) > 700 << 10
