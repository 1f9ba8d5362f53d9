"""Making a container, for ``create`` and ``run``.

In the order of events: the sandbox process and its VM are started; meanwhile a process that stands for the container is
made in the container's network namespace, and the hooks by which engines connect that run. Then the VM is given the
network, and the container is made in it.
"""

from __future__ import annotations

import contextlib
import os
import signal
import time

from hako import ids, store
from hako.config.load import load
from hako.errors import ConfigError, HakoError, HostError
from hako.linux import syscalls
from hako.oci import check as oci_check
from hako.oci import namespaces
from hako.runtime import containers, hostcgroup, joining
from hako.runtime.containers import Container
from hako.runtime.verbs import Call
from hako.sandbox import client, daemon, records, requests
from hako.sandbox.early import Prepared
from hako.sandbox.spec import GIVEN_NETWORK
from hako.sandbox.trace import of_process
from hako.wire import jsontext

TYPE_CHECKING = False
if TYPE_CHECKING:
    import socket
    from collections.abc import Iterator, Mapping
    from typing import Any

    from hako.cgroup.api import Cgroup
    from hako.config.settings import Config
    from hako.runtime.console import Terminal
    from hako.runtime.standin import StandIn

_MAX_CONFIG = 16 << 20
#: Seconds that a sandbox process which does not answer any more needs to be gone.
_GONE_SECONDS = 5.0
_INTERRUPTS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT)


def read_config(bundle: str) -> tuple[str, dict[str, Any]]:
    """The absolute path of the bundle and its checked config.json, with an absolute root. Raises ConfigError."""
    bundle = os.path.abspath(bundle or ".")
    path = os.path.join(bundle, "config.json")
    try:
        with open(path, "rb") as file:
            spec = jsontext.loads(file.read(_MAX_CONFIG))
    except FileNotFoundError:
        raise ConfigError(f"JSON specification file {path} not found") from None
    except OSError as error:
        raise ConfigError(f"Cannot read {path}: {error.strerror}.") from error
    except (ValueError, RecursionError) as error:
        raise ConfigError(f"{path} is not JSON: {error}.") from error
    try:
        spec = oci_check.check(spec)
    except ConfigError as error:
        raise ConfigError(f"{path}: {error}") from error
    spec["root"]["path"] = os.path.realpath(os.path.join(bundle, spec["root"]["path"]))
    return bundle, spec


class Making:
    """A container that is being made. What was begun is undone unless finish() was reached."""

    def __init__(self, call: Call, container_id: str, prepared: Prepared, *, detach: bool) -> None:
        """``prepared`` becomes the sandbox process if the container needs one."""
        self.trace = of_process("command")
        self._call = call
        self._id = container_id
        self._detach = detach
        self._prepared = prepared
        self._undo = contextlib.ExitStack()
        self._owner: socket.socket | None = None
        self.terminal: Terminal | None = None
        self.standin: StandIn | None = None
        self.container: Container

    def __enter__(self) -> Making:
        # An interrupt in the middle of it would leave something that nobody knows of.
        self._mask = signal.pthread_sigmask(signal.SIG_BLOCK, _INTERRUPTS)
        return self

    def __exit__(self, *_: object) -> None:
        try:
            self._undo.close()
        finally:
            self._prepared.close()
            signal.pthread_sigmask(signal.SIG_SETMASK, self._mask)

    def make(self) -> None:
        """Make the container in its sandbox. Raises HakoError."""
        try:
            self._make()
        except client.GoneError as error:
            raise HostError(self._why_gone(str(error))) from error

    def _why_gone(self, otherwise: str) -> str:
        """What is known of a sandbox that has ended before the container was made."""
        containers.wait_gone(self.container, _GONE_SECONDS)
        with contextlib.suppress(HakoError):
            return str(records.read(self.container.sandbox)["error"] or otherwise)
        return otherwise

    def _make(self) -> None:
        options, root = self._call.options, os.path.abspath(self._call.root)
        refuse_fds(self._call)
        bundle, spec = read_config(options["bundle"])
        process = spec["process"]
        if process.get("terminal") or options.get("console-socket"):
            from hako.runtime import console

            console.check(process, options.get("console-socket", ""), detach=self._detach)
        namespaces.refuse_hosts(spec)
        joins = joining.sandbox_owner(root, spec)
        network = joining.network_path(spec)
        containers.claim(root, self._id)
        self._undo.callback(containers.forget, root, self._id)
        self.container = _describe(root, self._id, bundle, spec, joins)
        self.container.save()
        config = load()
        systemd = bool(self._call.globals.get("systemd-cgroup"))
        cgroup = hostcgroup.create(
            self._id,
            spec,
            memory=config.sandbox.memory,
            systemd=systemd,
            # Before it is there: a command that is killed meanwhile leaves nothing that delete would not find.
            announce=lambda record: self._change(cgroup=record),
        )
        if systemd:
            # It makes the scope with the first process, and removes it after the last one.
            cgroup.add(os.getpid())
            self._change(cgroup=cgroup.to_json())
        else:
            self._undo.callback(self._remove_cgroup)
        self.trace.mark("config.json", "command")
        if joins is None:
            self._start_sandbox(config, cgroup)
        self._make_standin(process, network, cgroup)
        hooks = spec.get("hooks") or {}
        self._run_hooks(hooks, "prestart", "createRuntime", "createContainer")
        if joins is None:
            client.exchange(self._connection(), "Network", {"path": f"/proc/{self._standin().pid}/ns/net"})
        self._create(spec, joins)

    def _start_sandbox(self, config: Config, cgroup: Cgroup) -> None:
        spec = requests.sandbox_spec(
            config,
            sandbox_id=self.container.sandbox,
            retain=True,
            network=GIVEN_NETWORK,
            annotations=self.container.annotations,
            labels={"dev.hako.runtime.root": self.container.root, "dev.hako.runtime.container": self.container.id},
        )
        spec = spec._replace(cgroup=cgroup.to_json())
        self._owner = daemon.fork(spec, config, self.trace, self._prepared)
        self._undo.callback(self._end_sandbox)

    def _end_sandbox(self) -> None:
        owner = self._connection()
        with owner, contextlib.suppress(HakoError):
            client.exchange(owner, "Stop", {})
            client.wait_end(owner)
        containers.wait_gone(self.container, _GONE_SECONDS)
        records.forget(self.container.sandbox)

    def _remove_cgroup(self) -> None:
        with contextlib.suppress(HakoError):  # what went wrong before is what the user has to know
            hostcgroup.delete(self.container.cgroup)

    def _connection(self) -> socket.socket:
        assert self._owner is not None
        return self._owner

    def _standin(self) -> StandIn:
        assert self.standin is not None
        return self.standin

    def _change(self, **changes: Any) -> None:
        self.container = self.container.change(**changes)
        self.container.save()

    def _make_standin(self, process: Mapping[str, Any], network: str, cgroup: Cgroup) -> None:
        # Loaded now that the sandbox process is at work.
        from hako.runtime import console, standin

        if process.get("terminal") is True:
            self.terminal = console.Terminal(console.wanted_size(dict(process)))
            self._undo.callback(self.terminal.close)
            if self._call.options.get("console-socket"):
                self.terminal.send(self._call.options["console-socket"])

        def enter() -> None:
            cgroup.add(os.getpid())
            if network:
                fd = os.open(network, os.O_RDONLY | os.O_CLOEXEC)
                syscalls.setns(fd, syscalls.CLONE_NEWNET)
                os.close(fd)
            else:
                syscalls.unshare(syscalls.CLONE_NEWNET)

        slave = None if self.terminal is None else self.terminal.slave
        self.standin = standin.fork(enter=enter, own_namespaces=True, terminal=slave)
        self._undo.callback(self.standin.kill)
        pid = self.standin.pid
        netns = joining.identity(f"/proc/{pid}/ns/net")
        self._change(pid=pid, started=containers.start_time(pid), netns=netns)
        self.trace.mark("stand-in", "command")

    def _run_hooks(self, hooks: dict[str, Any], *names: str) -> None:
        wanted = [(name, hooks[name]) for name in names if hooks.get(name)]
        if wanted:
            from hako.runtime import lifecycle

            for name, entries in wanted:
                lifecycle.run(self.container, name, entries, "creating")
            self.trace.mark("hooks", "command")

    def _create(self, spec: dict[str, Any], joins: Container | None) -> None:
        stdio = {"stdin": 0, "stdout": 1, "stderr": 2}
        if self.terminal is not None:
            stdio = {"stdin": self.terminal.slave, "stdout": self.terminal.slave}
        from hako.runtime import command, console

        faults = command.faults_in_engines_words(spec["process"]["args"][0])
        size = console.wanted_size(spec["process"])
        params = requests.create(
            self.container.guest_id, spec, lower=None, stdio=list(stdio), start=False, main=True, size=size
        )
        params |= {"strict": True, "cgroup": self.container.cgroup}
        fds = list(stdio.values())
        if joins is None:
            with faults:
                answer = client.exchange(self._connection(), "Create", params, fds)
        else:
            params["joined"] = joining.joined(self.container.root, spec, joins)
            with faults, _own_mounts() as mounts, client.connect(joins.sandbox) as sock:
                params["stdio"] = [*stdio, "mounts"]
                answer = client.exchange(sock, "Create", params, [*fds, mounts])
            self._undo.callback(self._take_back)
        pid = answer.get("pid")
        view = {"rootfs": spec["root"]["path"], "mounts": _shown(spec)}
        title = " ".join(spec["process"]["args"])
        self._standin().go(self.container.sandbox, self.container.guest_id, "", title, view)
        self._change(guest_pid=pid if type(pid) is int else 0)
        self.trace.mark("create", "command")

    def _take_back(self) -> None:
        with contextlib.suppress(HakoError):
            containers.call(self.container, "Delete", {"force": True})

    def finish(self) -> None:
        """The container is there to stay. Raises HostError when the pid file cannot be written."""
        if self._call.options.get("pid-file"):
            write_pid(self._call.options["pid-file"], self.container.pid)
        if self._owner is not None:
            client.exchange(self._owner, "Disown", {})
            self._owner.close()
        self._undo.pop_all()

    @contextlib.contextmanager
    def foreground(self) -> Iterator[None]:
        """For the block this command stays with the container's terminal."""
        try:
            yield
        finally:
            if self.terminal is not None:
                self.terminal.close()


def _describe(root: str, container_id: str, bundle: str, spec: dict[str, Any], joins: Container | None) -> Container:
    import pwd

    try:
        owner = pwd.getpwuid(os.getuid()).pw_name
    except KeyError:
        owner = ""
    hooks = spec.get("hooks") or {}
    return Container(
        root=root,
        id=container_id,
        bundle=bundle,
        rootfs=spec["root"]["path"],
        sandbox=joins.sandbox if joins is not None else ids.new_id(),
        guest_id=containers.guest_id(container_id),
        created_ns=time.time_ns(),
        owner=owner,
        oci_version=str(spec.get("ociVersion") or ""),
        annotations=dict(spec.get("annotations") or {}),
        hooks={name: hooks[name] for name in ("poststart", "poststop") if hooks.get(name)},
    )


def _shown(spec: dict[str, Any]) -> list[tuple[str, str, bool]]:
    """The bind mounts that the process that stands for the container is to see."""
    from hako.sandbox.guestmounts import is_bind, is_readonly

    return [
        (str(mount["source"]), str(mount["destination"]), is_readonly(mount))
        for mount in spec.get("mounts") or []
        if is_bind(mount)
    ]


@contextlib.contextmanager
def _own_mounts() -> Iterator[int]:
    fd = os.open("/proc/self/ns/mnt", os.O_RDONLY | os.O_CLOEXEC)
    try:
        yield fd
    finally:
        os.close(fd)


def refuse_fds(call: Call) -> None:
    """Refuse --preserve-fds. Raises ConfigError."""
    if call.options.get("preserve-fds"):
        raise ConfigError(
            "--preserve-fds: open files of the host cannot be handed into a virtual machine; leave it out."
        )


def write_pid(path: str, pid: int) -> None:
    """Write ``pid`` to the file ``path`` in one step. Raises HostError."""
    store.write_atomic(path, str(pid).encode(), 0o644)
