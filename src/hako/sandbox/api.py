"""The library, blocking: VMs and the containers in them, from any Python program.

    import hako
    with hako.Sandbox(image="busybox") as sb:
        print(sb.run(["uname", "-r"]).stdout)

Every call goes to the sandbox's own process, so a sandbox can be used from several threads and processes at
once. hako.aio has the same for asyncio programs. Errors are hako.errors.HakoError and its kinds.
"""

from __future__ import annotations

import contextlib
import os
import socket
from collections.abc import Iterator, Mapping, Sequence
from types import TracebackType
from typing import Any

from hako import ids
from hako.config.load import load
from hako.config.settings import Config
from hako.errors import NotFoundError, TimedOutError
from hako.sandbox import capture, client, records, requests
from hako.sandbox.build import Build, build
from hako.sandbox.requests import Mount, Result
from hako.sandbox.spec import NO_NETWORK

__all__ = ["Container", "Mount", "Process", "Result", "Sandbox"]


class Process:
    """One process of a container. Made by Container.exec() or Container.main."""

    def __init__(self, sandbox_id: str, container_id: str, exec_id: str) -> None:
        self._sandbox_id = sandbox_id
        self._container_id = container_id
        self.exec_id = exec_id

    def _call(self, method: str, **params: Any) -> dict[str, Any]:
        return client.call(self._sandbox_id, method, requests.target(self._container_id, self.exec_id, **params))

    def wait(self, timeout: float | None = None) -> Result:
        """Wait for the end, at most ``timeout`` seconds. Raises TimedOutError.

        The end of an exec process can be asked for once; that of a container's first process at any time.
        """
        with client.connect(self._sandbox_id) as sock:
            sock.settimeout(timeout)
            try:
                end = client.exchange(sock, "Wait", requests.target(self._container_id, self.exec_id))
            except NotFoundError as error:
                if isinstance(error.__cause__, TimeoutError):
                    raise TimedOutError(f"The process did not end within {timeout:g} s.") from None
                raise
        return requests.result(end)

    def kill(self, signal: int = 15, *, everyone: bool = False) -> None:
        """Send a signal to the process, or with ``everyone`` to all processes of the container."""
        self._call("Kill", signal=int(signal), all=everyone)

    def resize(self, columns: int, rows: int) -> None:
        """Set the size of the process's terminal."""
        self._call("Resize", width=columns, height=rows)


class Container:
    """One container of a sandbox. Made by Sandbox.create() or found by Sandbox.container()."""

    def __init__(self, sandbox_id: str, container_id: str) -> None:
        self._sandbox_id = sandbox_id
        self.id = container_id
        #: The container's first process.
        self.main = Process(sandbox_id, container_id, "")

    def __repr__(self) -> str:
        return f"<hako.Container {self.id} of {self._sandbox_id}>"

    def _call(self, method: str, **params: Any) -> dict[str, Any]:
        return client.call(self._sandbox_id, method, requests.target(self.id, **params))

    @property
    def record(self) -> dict[str, Any]:
        """What is known of the container: status, command, image, times (ns since 1970), exit status."""
        record = records.read(self._sandbox_id)["containers"].get(self.id)
        if not isinstance(record, dict):
            raise NotFoundError(f"Container {self.id} does not exist in sandbox {self._sandbox_id}.")
        return record

    @property
    def status(self) -> str:
        """created, running, paused or stopped."""
        return str(self.record["status"])

    def start(self) -> None:
        """Let the first process of a created container run."""
        self._call("Start")

    def exec(
        self,
        args: Sequence[str],
        *,
        env: Mapping[str, str] | None = None,
        cwd: str = "",
        user: str = "",
        tty: bool = False,
        stdin: int | None = None,
        stdout: int | None = None,
        stderr: int | None = None,
    ) -> Process:
        """Start one more process. ``stdin``, ``stdout``, ``stderr`` are descriptors; None is nothing."""
        exec_id = ids.new_id()
        variables = [f"{key}={value}" for key, value in (env or {}).items()]
        process = requests.exec_process(
            self.record, args, env=variables, cwd=cwd, user=user, terminal=tty,
            rootfs=records.live_rootfs(self._sandbox_id, self.id),
        )  # fmt: skip
        fds = capture.named(stdin, stdout, stderr)
        params = requests.exec(self.id, exec_id, process, list(fds))
        client.call(self._sandbox_id, "Exec", params, list(fds.values()))
        return Process(self._sandbox_id, self.id, exec_id)

    def run(
        self,
        args: Sequence[str],
        *,
        input: bytes | str | None = None,
        timeout: float | None = None,
        env: Mapping[str, str] | None = None,
        cwd: str = "",
        user: str = "",
    ) -> Result:
        """Run a command in the container to its end and return its output."""
        with capture.Pipes(input) as pipes:
            process = self.exec(args, env=env, cwd=cwd, user=user, **pipes.child())
            return pipes.finish(process, timeout)

    def attach(self, stdin: int | None = None, stdout: int | None = None, stderr: int | None = None) -> Result:
        """Join descriptors to the first process until it ends; return its end."""
        fds = capture.named(stdin, stdout, stderr)
        params = requests.target(self.id, stdio=list(fds))
        return requests.result(client.call(self._sandbox_id, "Attach", params, list(fds.values())))

    def wait(self, timeout: float | None = None) -> Result:
        """Wait for the end of the first process."""
        return self.main.wait(timeout)

    def kill(self, signal: int = 15, *, everyone: bool = False) -> None:
        """Send a signal to the first process, or with ``everyone`` to all."""
        self.main.kill(signal, everyone=everyone)

    def pause(self) -> None:
        """Freeze all processes."""
        self._call("Pause")

    def resume(self) -> None:
        """Thaw them."""
        self._call("Resume")

    def update(self, *, memory: int | str | None = None, cpus: float | None = None, pids: int | None = None) -> None:
        """Change limits: memory in bytes or as ``64m``, CPUs, number of processes."""
        self._call("Update", resources=requests.resources(memory, cpus, pids))

    def stats(self) -> dict[str, Any]:
        """Usage: cpu (µs), memory and io (bytes), pids."""
        return self._call("Stats")

    def processes(self) -> list[dict[str, Any]]:
        """The processes: pid, ppid, uid, state, cpu ticks, rss (bytes), command."""
        found = self._call("Ps").get("processes")
        return found if isinstance(found, list) else []

    def delete(self, *, force: bool = False) -> None:
        """Remove the container with its layer and log; a running one only with ``force``."""
        self._call("Delete", force=force)


class Sandbox:
    """A VM that holds containers. Starting it returns at once; the first call that needs the VM waits for it.

    ``image`` is what run() and create() use when they name none. ``memory`` (bytes or ``512m``) is what the
    containers can use together, ``cpus`` how many processors there are. The sandbox ends with the block, with
    stop(), or with the program, unless ``owned`` is False; then it stays until somebody stops it.
    ``retain`` keeps containers' layers and logs after that, until delete(). ``annotations`` change settings for this
    sandbox, as ``{"dev.hako.template": "false"}``.

    ``network`` is ``none`` (the loopback alone, the quickest), ``bridge`` or the name of another of hako's networks.
    With one the containers have an address in common, ``ports`` publishes theirs on the host (``8080:80``), ``dns``,
    ``dns_search`` and ``hosts`` (``NAME:ADDRESS``) say how they find names; what came of it is ``state["network"]``.
    """

    def __init__(
        self,
        image: str = "",
        *,
        name: str = "",
        memory: int | str | None = None,
        cpus: float | None = None,
        guest_image: str = "",
        labels: Mapping[str, str] | None = None,
        annotations: Mapping[str, str] | None = None,
        network: str = NO_NETWORK,
        ports: Sequence[str] = (),
        dns: Sequence[str] = (),
        dns_search: Sequence[str] = (),
        hosts: Sequence[str] = (),
        owned: bool = True,
        retain: bool = False,
        config: Config | None = None,
    ) -> None:
        from hako.sandbox import daemon

        self.config = config or load()
        self.image = image
        spec = requests.sandbox_spec(
            self.config, name=name, memory=memory, cpus=cpus, guest_image=guest_image,
            labels=labels, annotations=annotations, owned=owned, retain=retain,
            network=network, ports=ports, dns=dns, dns_search=dns_search, hosts=hosts,
        )  # fmt: skip
        self.id = spec.id
        self._owner: socket.socket | None = daemon.spawn(spec, self.config)
        if not owned:
            self._release()

    @classmethod
    def load(cls, ref: str) -> Sandbox:
        """A sandbox that runs already, by id, id prefix or name, whoever started it. Raises NotFoundError."""
        state = records.find(ref)
        sandbox = cls.__new__(cls)
        sandbox.config = load()
        sandbox.image = ""
        sandbox.id = state["spec"]["id"]
        sandbox._owner = None
        return sandbox

    @staticmethod
    def list() -> list[dict[str, Any]]:
        """The states of all sandboxes, running and retained, oldest first."""
        return records.list_states()

    def __repr__(self) -> str:
        return f"<hako.Sandbox {self.id}>"

    def __enter__(self) -> Sandbox:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.stop()

    @property
    def state(self) -> dict[str, Any]:
        """Everything known of the sandbox; its ``status`` is starting, running or stopped."""
        return records.read(self.id)

    def wait_ready(self) -> dict[str, Any]:
        """Wait until the VM's agent has answered; return what the VM is (kernel, accelerator, image)."""
        info = client.call(self.id, "Ready", {}).get("info")
        return info if isinstance(info, dict) else {}

    def create(
        self,
        args: Sequence[str] = (),
        *,
        image: str = "",
        name: str = "",
        env: Mapping[str, str] | None = None,
        cwd: str = "",
        user: str = "",
        hostname: str = "",
        memory: int | str | None = None,
        cpus: float | None = None,
        mounts: Sequence[Mount | tuple[str, str]] = (),
        tmpfs: Sequence[str] = (),
        read_only: bool = False,
        tty: bool = False,
        start: bool = True,
        stdin: int | None = None,
        stdout: int | None = None,
        stderr: int | None = None,
    ) -> Container:
        """Make a container and, with ``start``, run it. ``args`` replace the image's command.

        ``memory`` and ``cpus`` limit this container within the sandbox. ``tmpfs`` are paths, each with
        options after a colon if need be. ``stdin``, ``stdout``, ``stderr`` are descriptors; None is nothing.
        """
        built = build(
            Build(
                image or self.image, args, env or {}, cwd, user, hostname, memory, cpus, mounts, tmpfs, read_only, tty
            ),
            self.config,
        )
        container_id = name or ids.new_id()
        fds = capture.named(stdin, stdout, stderr)
        params = requests.create(
            container_id,
            built.spec,
            lower=built.lower,
            stdio=list(fds),
            start=start,
            image=built.image,
            digest=built.digest,
        )
        client.call(self.id, "Create", params, list(fds.values()))
        return Container(self.id, container_id)

    def run(
        self,
        args: Sequence[str] = (),
        *,
        input: bytes | str | None = None,
        timeout: float | None = None,
        **options: Any,
    ) -> Result:
        """Run a command in a fresh container to its end, delete the container, return the command's output.

        ``options`` are those of create(). Raises TimedOutError after ``timeout`` seconds; the container is
        gone then, too.
        """
        with capture.Pipes(input) as pipes:
            container = self.create(args, **options, **pipes.child())
            try:
                return pipes.finish(container.main, timeout)
            finally:
                with contextlib.suppress(NotFoundError):
                    container.delete(force=True)

    def container(self, container_id: str) -> Container:
        """The container ``container_id`` of this sandbox. Raises NotFoundError."""
        container = Container(self.id, container_id)
        _ = container.record
        return container

    def containers(self) -> Iterator[Container]:
        """All containers of this sandbox."""
        for container_id in self.state["containers"]:
            yield Container(self.id, container_id)

    def share(self, source: str, destination: str, *, read_only: bool = False) -> None:
        """Give every container made from now on the host's directory ``source`` at ``destination``."""
        params = {"source": os.path.abspath(source), "destination": destination, "readonly": read_only}
        client.call(self.id, "Share", params)

    def connect(self, port: int) -> socket.socket:
        """A connection to the TCP server at ``port`` of the VM's loopback, or at all its addresses.

        What is returned is a stream socket; ``shutdown`` ends one direction. Raises NotFoundError when nothing listens.
        """
        ours, theirs = socket.socketpair()
        try:
            with theirs:
                client.call(self.id, "Dial", requests.dial(port), [theirs.fileno()])
        except BaseException:
            ours.close()
            raise
        return ours

    def stop(self) -> None:
        """End the VM and everything in it; returns when it is gone. A stopped sandbox is fine."""
        try:
            with client.connect(self.id) as sock:
                client.exchange(sock, "Stop", {})
                client.wait_end(sock)
        except NotFoundError:
            pass
        finally:
            self._release()

    def _release(self) -> None:
        if self._owner is not None:
            self._owner.close()
            self._owner = None

    def delete(self) -> None:
        """Stop the sandbox and remove what it retained."""
        self.stop()
        with contextlib.suppress(NotFoundError):
            records.remove(self.state)
