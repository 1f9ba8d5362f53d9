"""The calls that make pods and containers, run commands in them, and take them away. All raise grpc.CallError, OSError.

Sources: kubernetes/cri-api, api.proto.
"""

from __future__ import annotations

from typing import Any, TypeVar

from bench.cri import grpc
from bench.cri import messages as m
from hako.wire.protobuf import Message

_RUNTIME = "runtime.v1.RuntimeService"

_M = TypeVar("_M", bound=Message)


class Client:
    """The runtime service at the socket ``address``."""

    def __init__(self, address: str) -> None:
        self.address = address

    def call(self, method: str, request: Message, answer: type[_M], timeout: float = 60) -> _M:
        """Call a method; ``timeout`` in seconds."""
        return answer.decode(grpc.call(self.address, _RUNTIME, method, request.encode(), timeout))

    def version(self) -> m.VersionResponse:
        """Its name and version."""
        return self.call("Version", m.Empty(), m.VersionResponse)

    def conditions(self) -> dict[str, bool]:
        """What the runtime is ready for."""
        status = self.call("Status", m.Empty(), m.StatusResponse).status
        return {condition.type: condition.status for condition in status.conditions} if status else {}

    def run_pod(self, config: m.PodSandboxConfig, handler: str, timeout: float = 120) -> str:
        """Start a pod; its id."""
        request = m.RunPodSandboxRequest(config=config, runtime_handler=handler)
        return self.call("RunPodSandbox", request, m.RunPodSandboxResponse, timeout).pod_sandbox_id

    def stop_pod(self, pod: str, timeout: float = 60) -> None:
        """End all that runs in a pod, and its network."""
        self.call("StopPodSandbox", m.PodSandboxRequest(pod_sandbox_id=pod), m.Empty, timeout)

    def remove_pod(self, pod: str, timeout: float = 60) -> None:
        """Remove a pod with its containers."""
        self.call("RemovePodSandbox", m.PodSandboxRequest(pod_sandbox_id=pod), m.Empty, timeout)

    def pods(self, **filter: Any) -> list[m.PodSandbox]:
        """The pods that pass a filter, see PodSandboxFilter."""
        request = m.ListPodSandboxRequest(filter=m.PodSandboxFilter(**filter))
        return self.call("ListPodSandbox", request, m.ListPodSandboxResponse).items

    def create(self, pod: str, config: m.ContainerConfig, pod_config: m.PodSandboxConfig, timeout: float = 60) -> str:
        """Create a container; its id."""
        request = m.CreateContainerRequest(pod_sandbox_id=pod, config=config, sandbox_config=pod_config)
        return self.call("CreateContainer", request, m.CreateContainerResponse, timeout).container_id

    def start(self, container: str, timeout: float = 60) -> None:
        """Start a container that has been created."""
        self.call("StartContainer", m.ContainerRequest(container_id=container), m.Empty, timeout)

    def stop(self, container: str, seconds: int = 0) -> None:
        """Stop a container, that is given ``seconds`` to end by itself."""
        request = m.StopContainerRequest(container_id=container, timeout=seconds)
        self.call("StopContainer", request, m.Empty, timeout=60 + seconds)

    def remove(self, container: str) -> None:
        """Remove a container."""
        self.call("RemoveContainer", m.ContainerRequest(container_id=container), m.Empty)

    def status(self, container: str) -> m.ContainerStatus:
        """What a container is in."""
        answer = self.call("ContainerStatus", m.ContainerRequest(container_id=container), m.ContainerStatusResponse)
        return answer.status or m.ContainerStatus()

    def exec_sync(self, container: str, *command: str, timeout: int = 0) -> m.ExecSyncResponse:
        """Run a command to its end; the server gives it ``timeout`` seconds, all of them by default."""
        request = m.ExecSyncRequest(container_id=container, cmd=list(command), timeout=timeout)
        return self.call("ExecSync", request, m.ExecSyncResponse, timeout=90)
