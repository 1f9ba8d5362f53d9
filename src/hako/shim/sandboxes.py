"""containerd's Sandbox service: the shim's pod as such, where containerd leaves pods to it (``sandboxer = "shim"``).

No container stands for the pod then. The VM is started when containerd says what the pod is to be.

Facts: containerd api/runtime/sandbox/v1/sandbox.proto, plugins/sandbox/controller.go, internal/cri/server.
"""

from __future__ import annotations

import asyncio
import os
import time
from typing import TYPE_CHECKING

from hako import arch
from hako.cgroup import usage
from hako.config.load import apply_annotations
from hako.errors import ConfigError, NotFoundError, StateError
from hako.oci import namespaces
from hako.runtime import hostcgroup
from hako.sandbox import sizes
from hako.sandbox.container import LOST
from hako.shim import metrics
from hako.shim import sandbox_messages as messages
from hako.shim.cri_messages import LinuxContainerResources, LinuxPodSandboxConfig, NamespaceMode, PodSandboxConfig
from hako.shim.holder import Holder
from hako.shim.messages import Any as AnyMessage
from hako.shim.messages import Empty, Timestamp
from hako.shim.podfiles import PodFiles
from hako.shim.ttrpc import Method, Services, to_the_end
from hako.version import __version__

if TYPE_CHECKING:
    from hako.sandbox.spec import SandboxSpec
    from hako.shim.shim import Shim

_READY, _NOT_READY = "SANDBOX_READY", "SANDBOX_NOTREADY"
_SHARED = ("ipc", "uts", "pid")
_DEFAULT_PERIOD = 100_000


class Sandboxes:
    """The one sandbox of a shim."""

    def __init__(self, shim: Shim) -> None:
        self._shim = shim
        self._config: PodSandboxConfig | None = None
        self._holder: Holder | None = None
        self._created_ns = 0
        self._ended_ns = 0
        self._asked_to_end = False

    def services(self) -> Services:
        """What a ttrpc server needs to know."""
        return {
            messages.SERVICE: {
                "CreateSandbox": Method(messages.CreateSandboxRequest, to_the_end(self.create)),
                "StartSandbox": Method(messages.StartSandboxRequest, to_the_end(self.start)),
                "Platform": Method(messages.PlatformRequest, self.platform),
                "StopSandbox": Method(messages.StopSandboxRequest, to_the_end(self.stop)),
                "WaitSandbox": Method(messages.WaitSandboxRequest, self.wait),
                "SandboxStatus": Method(messages.SandboxStatusRequest, self.status),
                "PingSandbox": Method(messages.PingRequest, self.ping),
                "ShutdownSandbox": Method(messages.ShutdownSandboxRequest, self.shutdown),
                "SandboxMetrics": Method(messages.SandboxMetricsRequest, self.metrics),
            }
        }

    def close(self) -> None:
        """Give back what stands for the pod."""
        if self._holder is not None:
            self._holder.close()

    def _check(self, sandbox_id: str) -> None:
        if sandbox_id != self._shim.call.id:
            raise NotFoundError(f"This is the sandbox {self._shim.call.id}, not {sandbox_id}.")

    # --- life ---

    async def create(self, request: messages.CreateSandboxRequest) -> Empty:
        """Begin to start the VM, as large and in the cgroup that the pod is to have."""
        self._check(request.sandbox_id)
        if self._shim.begun:
            raise StateError(f"The sandbox {request.sandbox_id} has been created before.")
        config = _pod(request.options)
        _refuse_hosts(config)
        annotations = {**config.annotations, **request.annotations}
        spec = _spec(self._shim.engine.spec, config, annotations)
        engine_config = apply_annotations(self._shim.engine.config, annotations)
        self._shim.begin_network(request.netns_path, wait=True)
        self._shim.tasks.pod_files = await asyncio.to_thread(PodFiles, spec.id, config)
        cgroup = await asyncio.to_thread(_make_cgroup, request.sandbox_id, config, spec)
        self._config = config
        self._shim.begin(spec._replace(cgroup=cgroup), engine_config)
        self._shim.connect_network()
        return Empty()

    async def start(self, request: messages.StartSandboxRequest) -> messages.StartSandboxResponse:
        """Wait until the VM runs, has its network, and the namespaces that the pod's containers share."""
        self._check(request.sandbox_id)
        if self._config is None:
            raise StateError(f"The sandbox {request.sandbox_id} has not been created.")
        if self._holder is not None:
            raise StateError(f"The sandbox {request.sandbox_id} has been started before.")
        await self._shim.network()
        linux = self._config.linux or LinuxPodSandboxConfig()
        asked = {"hostname": self._config.hostname, "sysctls": dict(linux.sysctls)}
        answer = await self._shim.ask("Pod", asked)
        async with self._shim.in_cgroup():
            holder = Holder(request.sandbox_id, self._shim.namespace, self._shim.lifeline, self._on_holder_killed)
        self._holder, self._created_ns = holder, time.time_ns()
        for kind in _SHARED:
            name = namespaces.FILES[kind]
            self._shim.tasks.pod_namespaces[f"/proc/{holder.pid}/ns/{name}"] = f"/proc/{answer['pid']}/ns/{name}"
        created = Timestamp.of_ns(self._created_ns)
        return messages.StartSandboxResponse(pid=holder.pid, created_at=created)

    def _on_holder_killed(self) -> None:
        """Somebody has ended the process that stands for the pod, which means the pod."""
        self._shim.engine.stop_soon()

    async def stop(self, request: messages.StopSandboxRequest) -> Empty:
        """End the VM; a second time does nothing."""
        self._check(request.sandbox_id)
        self._asked_to_end = True
        await self._shim.end_sandbox()
        return Empty()

    async def shutdown(self, request: messages.ShutdownSandboxRequest) -> Empty:
        """End the shim."""
        self._check(request.sandbox_id)
        self._asked_to_end = True
        await self._shim.leave()
        return Empty()

    # --- state ---

    async def wait(self, request: messages.WaitSandboxRequest) -> messages.WaitSandboxResponse:
        """Wait for the VM's end."""
        self._check(request.sandbox_id)
        await self._shim.gone.wait()
        self._ended_ns = self._ended_ns or time.time_ns()
        status = 0 if self._asked_to_end else LOST
        return messages.WaitSandboxResponse(exit_status=status, exited_at=Timestamp.of_ns(self._ended_ns))

    async def status(self, request: messages.SandboxStatusRequest) -> messages.SandboxStatusResponse:
        """What is known of it."""
        self._check(request.sandbox_id)
        gone = self._shim.gone.is_set()
        if gone:
            self._ended_ns = self._ended_ns or time.time_ns()
        info = {name: str(value) for name, value in self._shim.engine.state["info"].items()}
        return messages.SandboxStatusResponse(
            sandbox_id=request.sandbox_id,
            pid=self._holder.pid if self._holder is not None and not gone else 0,
            state=_READY if self._holder is not None and not gone else _NOT_READY,
            info={**info, "hako": __version__} if request.verbose else {},
            created_at=Timestamp.of_ns(self._created_ns) if self._created_ns else None,
            exited_at=Timestamp.of_ns(self._ended_ns) if self._ended_ns else None,
        )

    async def ping(self, request: messages.PingRequest) -> Empty:
        """Answer, if the VM's agent does."""
        self._check(request.sandbox_id)
        if self._shim.gone.is_set():
            raise self._shim.why_gone()
        vm = await self._shim.within(self._shim.engine.vm(), None)
        await self._shim.within(vm.agent.call("Info", {}), seconds=5)
        return Empty()

    async def platform(self, request: messages.PlatformRequest) -> messages.PlatformResponse:
        """What its containers' programs must be built for."""
        self._check(request.sandbox_id)
        return messages.PlatformResponse(platform=messages.Platform(os="linux", architecture=arch.current().oci))

    async def metrics(self, request: messages.SandboxMetricsRequest) -> messages.SandboxMetricsResponse:
        """What all its containers use together."""
        self._check(request.sandbox_id)
        found = [await task.stats() for task in list(self._shim.tasks.all.values()) if not task.init.ended.is_set()]
        group = self._shim.engine.cgroup
        metric = messages.Metric(
            timestamp=Timestamp.of_ns(time.time_ns()),
            id=request.sandbox_id,
            data=AnyMessage.pack(metrics.of_sandbox(found, usage.read(group["directories"]) if group else None)),
        )
        return messages.SandboxMetricsResponse(metrics=metric)


def _pod(options: AnyMessage | None) -> PodSandboxConfig:
    """The pod's description. Raises ConfigError when there is none."""
    if options is None or not options.value:
        return PodSandboxConfig()
    found = options.unpack(PodSandboxConfig)
    if found is None:
        raise ConfigError(f"The sandbox's options are of the type {options.type_url}; hako knows PodSandboxConfig.")
    return found


def _refuse_hosts(config: PodSandboxConfig) -> None:
    """Raise ConfigError for a pod that is to use a namespace of the host."""
    security = config.linux.security_context if config.linux is not None else None
    options = security.namespace_options if security is not None else None
    if options is None:
        return
    kinds = {"network": options.network, "pid": options.pid, "ipc": options.ipc}
    wanted = [{"type": kind} for kind, mode in kinds.items() if mode != NamespaceMode.NODE]
    namespaces.refuse_hosts({"linux": {"namespaces": [*wanted, {"type": "uts"}]}}, "")


def _resources(config: PodSandboxConfig) -> LinuxContainerResources:
    found = config.linux.resources if config.linux is not None else None
    return found or LinuxContainerResources()


def _spec(spec: SandboxSpec, config: PodSandboxConfig, annotations: dict[str, str]) -> SandboxSpec:
    limits = _resources(config)
    cpus = max(limits.cpu_quota, 0) / (limits.cpu_period or _DEFAULT_PERIOD)
    spec = sizes.for_pod(spec, max(limits.memory_limit_in_bytes, 0), cpus)
    return spec._replace(annotations={**spec.annotations, **annotations})


def _make_cgroup(sandbox_id: str, config: PodSandboxConfig, spec: SandboxSpec) -> dict[str, object]:
    """The record of a new cgroup below the pod's; its limits are the pod's own, which are there already."""
    parent = config.linux.cgroup_parent if config.linux is not None else ""
    systemd = parent.endswith(".slice")
    path = f"{os.path.basename(parent)}:hako:{sandbox_id}" if systemd else os.path.join(parent or "/hako", sandbox_id)
    wanted = {"linux": {"cgroupsPath": path, "resources": {}}}
    return hostcgroup.create(
        sandbox_id, wanted, memory=spec.memory, systemd=systemd, announce=lambda _record: None
    ).to_json()
