"""Requests and responses of containerd's Sandbox service, as a shim serves it.

Facts: containerd api/runtime/sandbox/v1/sandbox.proto, api/types/platform.proto, api/types/metrics.proto.
"""

from __future__ import annotations

from hako.shim.messages import Any, Mount, Timestamp
from hako.wire import protobuf as pb

SERVICE = "containerd.runtime.sandbox.v1.Sandbox"


class Platform(pb.Message):
    """What programs must be built for."""

    FULL_NAME = "containerd.types.Platform"

    os: str = pb.text(1)
    architecture: str = pb.text(2)
    variant: str = pb.text(3)
    os_version: str = pb.text(4)
    os_features: list[str] = pb.texts(5)


class Metric(pb.Message):
    """Figures of one thing at one time."""

    FULL_NAME = "containerd.types.Metric"

    timestamp: Timestamp | None = pb.message(1, Timestamp)
    id: str = pb.text(2)
    data: Any | None = pb.message(3, Any)


class CreateSandboxRequest(pb.Message):
    """Prepare a sandbox; ``options`` holds a CRI PodSandboxConfig."""

    FULL_NAME = "containerd.runtime.sandbox.v1.CreateSandboxRequest"

    sandbox_id: str = pb.text(1)
    bundle_path: str = pb.text(2)
    rootfs: list[Mount] = pb.messages(3, Mount)
    options: Any | None = pb.message(4, Any)
    netns_path: str = pb.text(5)
    annotations: dict[str, str] = pb.text_map(6)


class StartSandboxRequest(pb.Message):
    """Run a prepared sandbox."""

    FULL_NAME = "containerd.runtime.sandbox.v1.StartSandboxRequest"

    sandbox_id: str = pb.text(1)


class StartSandboxResponse(pb.Message):
    """The sandbox has started."""

    FULL_NAME = "containerd.runtime.sandbox.v1.StartSandboxResponse"

    pid: int = pb.u32(1)
    created_at: Timestamp | None = pb.message(2, Timestamp)
    spec: Any | None = pb.message(3, Any)


class PlatformRequest(pb.Message):
    """Ask what the sandbox runs."""

    FULL_NAME = "containerd.runtime.sandbox.v1.PlatformRequest"

    sandbox_id: str = pb.text(1)


class PlatformResponse(pb.Message):
    """What the sandbox runs."""

    FULL_NAME = "containerd.runtime.sandbox.v1.PlatformResponse"

    platform: Platform | None = pb.message(1, Platform)


class StopSandboxRequest(pb.Message):
    """End the sandbox and all in it, by force after ``timeout_secs``."""

    FULL_NAME = "containerd.runtime.sandbox.v1.StopSandboxRequest"

    sandbox_id: str = pb.text(1)
    timeout_secs: int = pb.u32(2)


class UpdateSandboxRequest(pb.Message):
    """Change a sandbox; no call of this service has it yet."""

    FULL_NAME = "containerd.runtime.sandbox.v1.UpdateSandboxRequest"

    sandbox_id: str = pb.text(1)
    resources: Any | None = pb.message(2, Any)
    annotations: dict[str, str] = pb.text_map(3)


class WaitSandboxRequest(pb.Message):
    """Wait for the sandbox's end."""

    FULL_NAME = "containerd.runtime.sandbox.v1.WaitSandboxRequest"

    sandbox_id: str = pb.text(1)


class WaitSandboxResponse(pb.Message):
    """How the sandbox ended."""

    FULL_NAME = "containerd.runtime.sandbox.v1.WaitSandboxResponse"

    exit_status: int = pb.u32(1)
    exited_at: Timestamp | None = pb.message(2, Timestamp)


class SandboxStatusRequest(pb.Message):
    """Ask for the sandbox's state; ``verbose``: with details."""

    FULL_NAME = "containerd.runtime.sandbox.v1.SandboxStatusRequest"

    sandbox_id: str = pb.text(1)
    verbose: bool = pb.boolean(2)


class SandboxStatusResponse(pb.Message):
    """The sandbox's state; ``state`` is SANDBOX_READY or SANDBOX_NOTREADY, as CRI names it."""

    FULL_NAME = "containerd.runtime.sandbox.v1.SandboxStatusResponse"

    sandbox_id: str = pb.text(1)
    pid: int = pb.u32(2)
    state: str = pb.text(3)
    info: dict[str, str] = pb.text_map(4)
    created_at: Timestamp | None = pb.message(5, Timestamp)
    exited_at: Timestamp | None = pb.message(6, Timestamp)
    extra: Any | None = pb.message(7, Any)


class PingRequest(pb.Message):
    """Ask whether the sandbox answers."""

    FULL_NAME = "containerd.runtime.sandbox.v1.PingRequest"

    sandbox_id: str = pb.text(1)


class ShutdownSandboxRequest(pb.Message):
    """End the sandbox and its shim."""

    FULL_NAME = "containerd.runtime.sandbox.v1.ShutdownSandboxRequest"

    sandbox_id: str = pb.text(1)


class SandboxMetricsRequest(pb.Message):
    """Ask what the sandbox uses."""

    FULL_NAME = "containerd.runtime.sandbox.v1.SandboxMetricsRequest"

    sandbox_id: str = pb.text(1)


class SandboxMetricsResponse(pb.Message):
    """What the sandbox uses."""

    FULL_NAME = "containerd.runtime.sandbox.v1.SandboxMetricsResponse"

    metrics: Metric | None = pb.message(1, Metric)
