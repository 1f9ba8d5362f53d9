"""Pods for tests, made through the Container Runtime Interface as a kubelet makes them: directories and cgroups too."""

from __future__ import annotations

import contextlib
import glob
import os
import shutil
import socket
import threading
from collections.abc import Iterator
from typing import Any, NamedTuple, Self, TypeVar

from hako.network import namespace as namespaces
from support import cri_messages as m
from support.containerd import IMAGE, Containerd
from support.cri import CallError, Cri
from support.engines import DIFFERENCES, Difference
from support.machine import until

_T = TypeVar("_T")

#: What a container that is to stay does; it ends when it is asked to.
STAY = ("sh", "-c", "trap 'exit 0' TERM; while :; do sleep 1000 & wait $!; done")

#: What is sent to a server of Pod.serve(), and by what script from a container.
GET = b"GET /name HTTP/1.0\r\n\r\n"
ASK = "printf 'GET /name HTTP/1.0\\r\\n\\r\\n' | nc -w 5 "

# The last line of what says all at once.
_END = "--end--"
_LOGS, _VOLUMES = "logs", "volumes"


class Node:
    """A containerd and what a kubelet has beside it. A context manager."""

    def __init__(self, containerd: Containerd) -> None:
        self.containerd = containerd
        self.machine = containerd.machine
        self.directory = f"{containerd.base}/kubelet"
        os.mkdir(self.directory)
        self._network = os.open(f"/proc/{containerd.pid}/ns/net", os.O_RDONLY)
        self.cri = Cri(containerd.address, self.connect)
        self._pods: list[Pod] = []

    def __enter__(self) -> Self:
        until(self._ready, "the CRI plugin is ready")
        return self

    def __exit__(self, *_: object) -> None:
        os.close(self._network)

    def _ready(self) -> bool:
        try:
            return all(self.cri.conditions().values())
        except CallError:
            return False

    def start_again(self) -> None:
        """Start containerd again, after it has ended."""
        self.containerd.start()
        until(self._ready, "the CRI plugin is ready again")

    def connect(self, address: tuple[str, int]) -> socket.socket:
        """A connection from the node's own network to ``address``."""
        return namespaces.inside(self._network, lambda: socket.create_connection(address, timeout=30))

    def ask(self, address: str, port: int, request: bytes = b"") -> bytes:
        """All that a server answers to ``request``, asked from the node's own network."""
        with self.connect((address, port)) as link:
            link.sendall(request)
            answer = b""
            while data := link.recv(1 << 16):
                answer += data
        return answer

    def path(self, path: str) -> str:
        """The path by which the tests reach ``path`` of the node: it can have mounts that the machine does not have."""
        return f"/proc/{self.containerd.pid}/root{path}"

    def run(self, handler: str, name: str, **options: Any) -> Pod:
        """Start a pod of ``handler``, see Pod."""
        pod = Pod(self, handler, name, **options)
        self._pods.append(pod)
        pod.run()
        return pod

    @contextlib.contextmanager
    def pod(self, handler: str, name: str, **options: Any) -> Iterator[Pod]:
        """A pod for the time of the block."""
        pod = self.run(handler, name, **options)
        try:
            yield pod
        finally:
            pod.remove()

    def clear(self) -> list[str]:
        """Remove the pods that are there, and tell their names."""
        names = [pod.name for pod in self._pods]
        for pod in self._pods[:]:
            pod.remove()
        return names

    @contextlib.contextmanager
    def serving(self, answer: bytes) -> Iterator[int]:
        """A server in the node's own network that says ``answer`` to everybody; its port."""
        server = namespaces.inside(self._network, lambda: socket.create_server(("0.0.0.0", 0)))

        def serve() -> None:
            with contextlib.suppress(OSError):  # the end
                while True:
                    link, _ = server.accept()
                    with link:
                        link.sendall(answer)

        thread = threading.Thread(target=serve)
        thread.start()
        try:
            yield server.getsockname()[1]
        finally:
            server.shutdown(socket.SHUT_RDWR)
            thread.join()
            server.close()

    def forget(self, pod: Pod) -> None:
        self._pods.remove(pod)


class Pod:
    """A pod. ``options`` are fields of PodSandboxConfig and of the messages in it: ``sysctls=…``, ``privileged=…``.

    Its containers have the same ``namespace_options``; by default, as a kubelet's, processes of their own.
    """

    def __init__(self, node: Node, handler: str, name: str, **options: Any) -> None:
        self.node = node
        self.cri = node.cri
        self.handler = handler
        self.name = name
        self.id = ""
        self.uid = f"{name}-{os.urandom(4).hex()}"
        self.directory = f"{node.directory}/pods/{self.uid}"
        self.cgroup = f"/{node.containerd.namespace}/pod{self.uid}"
        self.namespaces = options.pop("namespace_options", m.NamespaceOption(pid=m.CONTAINER))
        security = _taken(options, m.LinuxSandboxSecurityContext)
        context = m.LinuxSandboxSecurityContext(namespace_options=self.namespaces, **security)
        linux = _taken(options, m.LinuxPodSandboxConfig)
        self.config = m.PodSandboxConfig(
            metadata=m.PodSandboxMetadata(name=name, uid=self.uid, namespace="tests"),
            log_directory=f"{self.directory}/{_LOGS}",
            linux=m.LinuxPodSandboxConfig(cgroup_parent=self.cgroup, security_context=context, **linux),
            **{"hostname": name, **options},
        )

    def run(self) -> None:
        """Start it."""
        for name in (_LOGS, _VOLUMES):
            os.makedirs(f"{self.directory}/{name}")
        for folder in self._cgroups_to_make():
            os.makedirs(folder)
            _inherit_cpus(folder)
        try:
            self.id = self.cri.run_pod(self.config, self.handler)
        except BaseException:
            self.remove()
            raise

    def _cgroups_to_make(self) -> list[str]:
        """The directories of the pod's cgroup, one in each hierarchy that has a controller."""
        if os.path.exists("/sys/fs/cgroup/cgroup.controllers"):
            return [f"/sys/fs/cgroup{self.cgroup}"]
        found = glob.glob("/sys/fs/cgroup/*/tasks")
        return [f"{os.path.dirname(path)}{self.cgroup}" for path in found if "/systemd/" not in path]

    def cgroups(self) -> list[str]:
        """The directories of the pod's cgroup that there are."""
        return glob.glob(f"/sys/fs/cgroup{self.cgroup}") + glob.glob(f"/sys/fs/cgroup/*{self.cgroup}")

    def remove(self) -> None:
        """Stop and remove it with its containers, and all that a kubelet has made for it. Nothing else may be left."""
        if self.id:
            self.cri.stop_pod(self.id)
            self.cri.remove_pod(self.id)
            self.id = ""
        self.node.forget(self)
        self._unmount()
        shutil.rmtree(self.directory)
        left = [folder for folder in self.cgroups() if not _emptied(folder)]
        assert not left, f"cgroups of pod {self.name} are in use: {left}"

    def _unmount(self) -> None:
        point = f"{self.directory}/{_VOLUMES}"
        for line in self.node.machine.output("cat", "/proc/self/mountinfo").splitlines()[::-1]:
            if line.split()[4].startswith(f"{point}/"):
                self.node.machine.output("umount", line.split()[4])

    def status(self) -> m.PodSandboxStatus:
        return self.cri.pod_status(self.id)

    @property
    def address(self) -> str:
        """Its IP address."""
        network = self.status().network
        assert network is not None
        return network.ip

    def shim(self) -> int:
        """The process that containerd talks to."""
        processes = self.node.machine.processes()
        (found,) = [pid for pid, command in processes.items() if f"-id {self.id}" in command and "shim" in command]
        return found

    def vm(self) -> int:
        """The process that is the VM, a child of the shim."""
        shim = self.shim()
        processes = self.node.machine.processes()
        (found,) = [pid for pid, command in processes.items() if "/qemu-system-" in command and _parent(pid) == shim]
        return found

    def volume(self, kind: str, name: str) -> str:
        """Make the directory of a volume where a kubelet has it, such as kind ``empty-dir``."""
        path = f"{self.directory}/{_VOLUMES}/kubernetes.io~{kind}/{name}"
        os.makedirs(path, mode=0o777)
        os.chmod(path, 0o777)
        return path

    def memory_volume(self, kind: str, name: str, size: str = "") -> str:
        """The same as a tmpfs, as a kubelet has volumes that are not to reach a disk."""
        path = self.volume(kind, name)
        options = [f"size={size}"] if size else []
        self.node.machine.output("mount", "-t", "tmpfs", "-o", ",".join(["mode=777", *options]), "tmpfs", path)
        return path

    def create(self, name: str, *command: str, **options: Any) -> Ctr:
        """Create a container, and do not start it. ``options`` are fields of ContainerConfig or of the messages in it.

        So ``run_as_user=…`` is taken to be in its security context and ``cpu_quota=…`` in its resources.
        """
        options.setdefault("namespace_options", self.namespaces)
        security = _taken(options, m.LinuxContainerSecurityContext)
        resources = _taken(options, m.LinuxContainerResources)
        attempt = options.pop("attempt", 0)
        os.makedirs(f"{self.config.log_directory}/{name}", exist_ok=True)
        config = m.ContainerConfig(
            metadata=m.ContainerMetadata(name=name, attempt=attempt),
            image=m.ImageSpec(image=options.pop("image", IMAGE)),
            command=list(command or STAY),
            log_path=options.pop("log_path", f"{name}/{attempt}.log"),
            linux=m.LinuxContainerConfig(
                security_context=m.LinuxContainerSecurityContext(**security),
                resources=m.LinuxContainerResources(**resources),
            ),
            **options,
        )
        return Ctr(self, self.cri.create(self.id, config, self.config), config)

    def start(self, name: str, *command: str, **options: Any) -> Ctr:
        """Create and start a container, see create()."""
        made = self.create(name, *command, **options)
        try:
            self.cri.start(made.id)
        except BaseException:
            made.remove()
            raise
        return made

    def serve(self, name: str, listen: str, answer: str) -> Ctr:
        """A container that answers HTTP requests for /name, see GET, at ``listen``, ``address:port``."""
        made = self.start(name, "sh", "-c", f"echo {answer} >/tmp/name; exec httpd -f -p {listen} -h /tmp")
        port = f":{int(listen.rpartition(':')[2]):04X} "
        until(lambda: port in made.sh("cat /proc/net/tcp /proc/net/tcp6"), f"{name} listens")
        return made

    def shell(self, name: str, script: str, **options: Any) -> str:
        """What a script prints in a container that is made for it."""
        made = self.start(name, "sh", "-c", f"({script}); status=$?; echo {_END}; exit $status", **options)
        try:
            status = made.until_exited()
            said = made.until_logged(f"{_END}\n").removesuffix(f"{_END}\n")
            assert status.exit_code == 0, f"{status}: {said}{made.text('stderr')}"
            return said
        finally:
            made.remove()


class Line(NamedTuple):
    """A line of a container's log."""

    time: str
    stream: str
    tag: str
    text: str


class Ctr:
    """A container of a pod."""

    def __init__(self, pod: Pod, id: str, config: m.ContainerConfig) -> None:
        self.pod = pod
        self.cri = pod.cri
        self.id = id
        self.config = config
        self.log_path = config.log_path and os.path.join(pod.config.log_directory, config.log_path)

    def exec(self, *command: str, timeout: int = 0) -> m.ExecSyncResponse:
        """Run a command in it to its end."""
        return self.cri.exec_sync(self.id, *command, timeout=timeout)

    def sh(self, script: str) -> str:
        """What a script prints, less the line feed at its end; it must succeed."""
        done = self.exec("sh", "-c", script)
        assert done.exit_code == 0, f"{script}: {done}"
        return done.stdout.decode().rstrip("\n")

    def status(self) -> m.ContainerStatus:
        return self.cri.status(self.id)

    def until_exited(self, seconds: float = 60) -> m.ContainerStatus:
        """Wait until it has ended; its status then."""

        def ended() -> m.ContainerStatus | None:
            status = self.status()
            return status if status.state == m.EXITED else None

        found = until(ended, f"the end of container {self.config.metadata}", seconds)
        assert found is not None
        return found

    def stop(self, seconds: int = 0) -> m.ContainerStatus:
        """Stop it; its status then."""
        self.cri.stop(self.id, seconds)
        return self.status()

    def remove(self) -> None:
        """Remove it, with its log."""
        self.cri.remove(self.id)
        if self.log_path and os.path.exists(self.log_path):
            os.unlink(self.log_path)

    def lines(self) -> list[Line]:
        """Its log."""
        with open(self.log_path, encoding="utf-8", newline="\n") as file:
            return [Line(*line.rstrip("\n").split(" ", 3)) for line in file]

    def text(self, stream: str = "stdout") -> str:
        """What it has written to ``stdout`` or ``stderr``, out of its log."""
        lines = [line for line in self.lines() if line.stream == stream]
        return "".join(line.text + ("\n" if line.tag == "F" else "") for line in lines)

    def until_logged(self, text: str) -> str:
        """Wait until ``text`` is in its standard output; all of that. A log is behind what has been written."""
        what = f"{text!r} in the log of {self.config.metadata}"
        return until(lambda: said if text in (said := self.text()) else "", what)

    def check_said(self, wanted: str, stream: str = "stdout") -> None:
        """Make sure that it has written ``wanted``, and nothing else."""
        with contextlib.suppress(AssertionError):
            until(lambda: len(self.text(stream)) >= len(wanted), "", 10)
        assert self.text(stream) == wanted


def either(handler: str, difference: Difference, *, runc: _T, hako: _T) -> _T:
    """What to expect under ``handler``, where the two differ by design."""
    assert difference in DIFFERENCES
    return runc if handler == "runc" else hako


def fails(call: Any, *args: Any, **options: Any) -> str:
    """The error message that a call ends with."""
    try:
        found = call(*args, **options)
    except CallError as error:
        return error.message
    raise AssertionError(f"it has not failed: {found}")


def _parent(pid: int) -> int:
    with open(f"/proc/{pid}/stat", encoding="utf-8") as file:
        return int(file.read().rpartition(")")[2].split()[1])


def _taken(options: dict[str, Any], kind: type[m.Message]) -> dict[str, Any]:
    """Take the fields of ``kind`` out of ``options``; numbers of users and groups are messages there."""
    found = {field.name: options.pop(field.name) for field in kind.FIELDS if field.name in options}
    for name in ("run_as_user", "run_as_group"):
        if name in found:
            found[name] = m.Int64Value(value=found[name])
    return found


def _inherit_cpus(folder: str) -> None:
    """Fill in what a new cgroup of version 1 has to be told before anything can be in it."""
    for name in ("cpuset.cpus", "cpuset.mems"):
        for path in (os.path.join(os.path.dirname(folder), name), os.path.join(folder, name)):
            if os.path.exists(path):
                _copy_from_parent(path)


def _copy_from_parent(path: str) -> None:
    with open(path, encoding="ascii") as file:
        if file.read().strip():
            return
    folder, name = os.path.split(path)
    with open(os.path.join(os.path.dirname(folder), name), encoding="ascii") as file:
        value = file.read()
    with open(path, "w", encoding="ascii") as file:
        file.write(value)


def _emptied(folder: str) -> bool:
    """Remove a cgroup; False when somebody is in it."""
    try:
        os.rmdir(folder)
    except FileNotFoundError:
        return True
    except OSError:
        return False
    return True
