"""Pods of one container, made through the Container Runtime Interface as a kubelet makes them.

Needs python3-h2, and hako's codec on the path.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import threading
import time
from collections.abc import Iterator
from typing import NamedTuple

from bench import containerd, engines, procs
from bench.cri import grpc
from bench.cri import messages as m
from bench.cri.client import Client
from bench.model import BenchError
from bench.targets.base import IDLE

#: However many pods are started at once, the last of them has started by then.
_START_SECONDS = 600.0
_STOP_SECONDS = 300.0
_LOOK_SECONDS = 0.005


class Pod(NamedTuple):
    """A pod that runs. Times are of the monotonic clock, in ns: before the first call, and after each of the calls."""

    handler: str
    id: str
    container: str
    begun: int
    sandbox_ready: int
    created: int
    running: int

    @property
    def took(self) -> float:
        """Milliseconds from the first call until the container ran."""
        return (self.running - self.begun) / 1e6


class Node:
    """A containerd that pods can be made with."""

    def __init__(self, engine: containerd.Containerd) -> None:
        self.engine = engine
        self._client = Client(engine.socket)
        self._numbers = itertools.count(1)

    def wait_ready(self) -> None:
        """Wait until there is a network for pods. Raises BenchError."""
        deadline = time.monotonic() + engines.START_SECONDS
        with _sentences():
            while not all(self._client.conditions().values()):
                if time.monotonic() > deadline:
                    raise BenchError("containerd's CRI plugin does not become ready.")
                time.sleep(engines.LOOK_SECONDS)

    def start(self, handler: str) -> Pod:
        """Start a pod with an idle container in it, and wait until that runs. Raises BenchError."""
        name = f"pod{next(self._numbers)}"
        config = self._pod_config(name)
        with _sentences():
            begun = time.monotonic_ns()
            pod = self._client.run_pod(config, handler, _START_SECONDS)
            ready = time.monotonic_ns()
            container = self._client.create(pod, _container_config(), config, _START_SECONDS)
            created = time.monotonic_ns()
            self._client.start(container, _START_SECONDS)
            while (status := self._client.status(container)).state != m.RUNNING:
                if status.state == m.EXITED:
                    raise BenchError(f"The container of {name} has ended: {status.reason} {status.message}")
                time.sleep(_LOOK_SECONDS)
            return Pod(handler, pod, container, begun, ready, created, time.monotonic_ns())

    def start_many(self, handler: str, count: int) -> list[Pod | BenchError]:
        """Start ``count`` pods at once; what failed is among the results, not raised."""
        results: list[Pod | BenchError] = []

        def start() -> None:
            try:
                results.append(self.start(handler))
            except BenchError as error:
                results.append(error)

        # Daemons: when this process is interrupted, containerd ends and their calls with it.
        threads = [threading.Thread(target=start, daemon=True) for _ in range(count)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        return results

    def execute(self, pod: Pod, *command: str) -> float:
        """Seconds that a command in a pod's container takes. Raises BenchError when it fails."""
        with _sentences():
            begun = time.monotonic()
            done = self._client.exec_sync(pod.container, *command)
            took = time.monotonic() - begun
        if done.exit_code:
            raise BenchError(f"ExecSync of {command[0]} ended with {done.exit_code}: {done.stderr.decode()}")
        return took

    def remove(self, pod: str) -> float:
        """Seconds until a pod, which may be running, is gone. Raises BenchError."""
        with _sentences():
            begun = time.monotonic()
            self._client.stop_pod(pod, _STOP_SECONDS)
            self._client.remove_pod(pod, _STOP_SECONDS)
            return time.monotonic() - begun

    def clear(self) -> None:
        """Remove all pods, also those whose start has failed. Raises BenchError."""
        with _sentences():
            for pod in self._client.pods():
                self.remove(pod.id)

    def left(self, seconds: float = 10.0) -> list[str]:
        """What is there although all pods have been removed, once it has had ``seconds`` to go."""
        deadline = time.monotonic() + seconds
        while (found := self._left()) and time.monotonic() < deadline:
            time.sleep(engines.LOOK_SECONDS)
        return found

    def _left(self) -> list[str]:
        root = f"/proc/{self.engine.holder}/root"
        with open(f"/proc/{self.engine.holder}/mountinfo", encoding="utf-8") as file:
            mounts = [line.split()[4] for line in file]
        return [
            *(f"shim {pid} of {name}" for name, pid in self.engine.shims().items()),
            *(f"network namespace {name}" for name in os.listdir(f"{root}/run/netns")),
            *(f"mount {point}" for point in mounts if point.startswith(f"{self.engine.base}/")),
        ]

    def processes(self, pod: Pod) -> set[int]:
        """The processes that descend from a pod's shim, with that."""
        return procs.descendants([self.shim(pod)])

    def shim(self, pod: Pod) -> int:
        """The process that is a pod's shim. Raises BenchError."""
        try:
            return self.engine.shims()[pod.id]
        except KeyError:
            raise BenchError(f"The pod {pod.id} of {pod.handler} has no shim.") from None

    def _pod_config(self, name: str) -> m.PodSandboxConfig:
        security = m.LinuxSandboxSecurityContext(namespace_options=m.NamespaceOption(pid=m.CONTAINER))
        return m.PodSandboxConfig(
            metadata=m.PodSandboxMetadata(name=name, uid=name, namespace="bench"),
            hostname=name,
            log_directory=f"{self.engine.base}/logs/{name}",
            linux=m.LinuxPodSandboxConfig(cgroup_parent=f"/{self.engine.cgroup}/{name}", security_context=security),
        )


def _container_config() -> m.ContainerConfig:
    security = m.LinuxContainerSecurityContext(namespace_options=m.NamespaceOption(pid=m.CONTAINER))
    return m.ContainerConfig(
        metadata=m.ContainerMetadata(name="main"),
        image=m.ImageSpec(image=containerd.IMAGE),
        command=list(IDLE),
        log_path="main.log",
        linux=m.LinuxContainerConfig(security_context=security),
    )


@contextlib.contextmanager
def _sentences() -> Iterator[None]:
    """Raises calls that failed as BenchError."""
    try:
        yield
    except (grpc.CallError, OSError) as error:
        raise BenchError(f"containerd: {error}") from error
