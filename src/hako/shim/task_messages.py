"""Requests and responses of containerd's Task service; v2 and v3 differ in the package's name alone.

Facts: containerd api/runtime/task/v3/shim.proto, api/types/task/task.proto, api/types/runc/options/oci.proto.
"""

from __future__ import annotations

from hako.shim.messages import Any, Mount, Timestamp
from hako.wire import protobuf as pb

SERVICE_V2 = "containerd.task.v2.Task"
SERVICE_V3 = "containerd.task.v3.Task"


class TaskStatus:
    """What a process does; containerd.v1.types.Status."""

    UNKNOWN = 0
    CREATED = 1
    RUNNING = 2
    STOPPED = 3
    PAUSED = 4
    PAUSING = 5


class CheckpointOptions(pb.Message):
    """How to write a checkpoint."""

    FULL_NAME = "containerd.runc.v1.CheckpointOptions"

    exit: bool = pb.boolean(1)
    open_tcp: bool = pb.boolean(2)
    external_unix_sockets: bool = pb.boolean(3)
    terminal: bool = pb.boolean(4)
    file_locks: bool = pb.boolean(5)
    empty_namespaces: list[str] = pb.texts(6)
    cgroups_mode: str = pb.text(7)
    image_path: str = pb.text(8)
    work_path: str = pb.text(9)
    parent_path: str = pb.text(10)


class ProcessDetails(pb.Message):
    """Which exec a process is; empty for all others."""

    FULL_NAME = "containerd.runc.v1.ProcessDetails"

    exec_id: str = pb.text(1)


class ProcessInfo(pb.Message):
    """One process of a container; ``info`` holds ProcessDetails."""

    FULL_NAME = "containerd.v1.types.ProcessInfo"

    pid: int = pb.u32(1)
    info: Any | None = pb.message(2, Any)


class CreateTaskRequest(pb.Message):
    """Make a container from its bundle; ``rootfs`` is what to mount at the bundle's rootfs, often nothing."""

    FULL_NAME = "containerd.task.v3.CreateTaskRequest"

    id: str = pb.text(1)
    bundle: str = pb.text(2)
    rootfs: list[Mount] = pb.messages(3, Mount)
    terminal: bool = pb.boolean(4)
    stdin: str = pb.text(5)
    stdout: str = pb.text(6)
    stderr: str = pb.text(7)
    checkpoint: str = pb.text(8)
    parent_checkpoint: str = pb.text(9)
    options: Any | None = pb.message(10, Any)


class CreateTaskResponse(pb.Message):
    """The container's process id on the host, as far as it has one."""

    FULL_NAME = "containerd.task.v3.CreateTaskResponse"

    pid: int = pb.u32(1)


class DeleteRequest(pb.Message):
    """Forget a process that has ended: an exec, or the container with all that it has."""

    FULL_NAME = "containerd.task.v3.DeleteRequest"

    id: str = pb.text(1)
    exec_id: str = pb.text(2)


class DeleteResponse(pb.Message):
    """How the process ended."""

    FULL_NAME = "containerd.task.v3.DeleteResponse"

    pid: int = pb.u32(1)
    exit_status: int = pb.u32(2)
    exited_at: Timestamp | None = pb.message(3, Timestamp)


class ExecProcessRequest(pb.Message):
    """Add a process to a container; ``spec`` holds the JSON of an OCI process."""

    FULL_NAME = "containerd.task.v3.ExecProcessRequest"

    id: str = pb.text(1)
    exec_id: str = pb.text(2)
    terminal: bool = pb.boolean(3)
    stdin: str = pb.text(4)
    stdout: str = pb.text(5)
    stderr: str = pb.text(6)
    spec: Any | None = pb.message(7, Any)


class ResizePtyRequest(pb.Message):
    """Set the size of a terminal, in characters."""

    FULL_NAME = "containerd.task.v3.ResizePtyRequest"

    id: str = pb.text(1)
    exec_id: str = pb.text(2)
    width: int = pb.u32(3)
    height: int = pb.u32(4)


class StateRequest(pb.Message):
    """Ask for the state of a container, or of an exec."""

    FULL_NAME = "containerd.task.v3.StateRequest"

    id: str = pb.text(1)
    exec_id: str = pb.text(2)


class StateResponse(pb.Message):
    """A process's state; ``status`` is one of TaskStatus."""

    FULL_NAME = "containerd.task.v3.StateResponse"

    id: str = pb.text(1)
    bundle: str = pb.text(2)
    pid: int = pb.u32(3)
    status: int = pb.enumeration(4)
    stdin: str = pb.text(5)
    stdout: str = pb.text(6)
    stderr: str = pb.text(7)
    terminal: bool = pb.boolean(8)
    exit_status: int = pb.u32(9)
    exited_at: Timestamp | None = pb.message(10, Timestamp)
    exec_id: str = pb.text(11)


class KillRequest(pb.Message):
    """Send a signal to a process, or to all of a container."""

    FULL_NAME = "containerd.task.v3.KillRequest"

    id: str = pb.text(1)
    exec_id: str = pb.text(2)
    signal: int = pb.u32(3)
    all: bool = pb.boolean(4)


class CloseIORequest(pb.Message):
    """Nobody writes to a process's input any more."""

    FULL_NAME = "containerd.task.v3.CloseIORequest"

    id: str = pb.text(1)
    exec_id: str = pb.text(2)
    stdin: bool = pb.boolean(3)


class PidsRequest(pb.Message):
    """Ask for a container's processes."""

    FULL_NAME = "containerd.task.v3.PidsRequest"

    id: str = pb.text(1)


class PidsResponse(pb.Message):
    """A container's processes."""

    FULL_NAME = "containerd.task.v3.PidsResponse"

    processes: list[ProcessInfo] = pb.messages(1, ProcessInfo)


class CheckpointTaskRequest(pb.Message):
    """Write a container's state to a directory."""

    FULL_NAME = "containerd.task.v3.CheckpointTaskRequest"

    id: str = pb.text(1)
    path: str = pb.text(2)
    options: Any | None = pb.message(3, Any)


class UpdateTaskRequest(pb.Message):
    """New limits: ``resources`` holds the JSON of OCI LinuxResources."""

    FULL_NAME = "containerd.task.v3.UpdateTaskRequest"

    id: str = pb.text(1)
    resources: Any | None = pb.message(2, Any)
    annotations: dict[str, str] = pb.text_map(3)


class StartRequest(pb.Message):
    """Start a container's first process, or an exec."""

    FULL_NAME = "containerd.task.v3.StartRequest"

    id: str = pb.text(1)
    exec_id: str = pb.text(2)


class StartResponse(pb.Message):
    """The process id."""

    FULL_NAME = "containerd.task.v3.StartResponse"

    pid: int = pb.u32(1)


class WaitRequest(pb.Message):
    """Wait for the end of a process."""

    FULL_NAME = "containerd.task.v3.WaitRequest"

    id: str = pb.text(1)
    exec_id: str = pb.text(2)


class WaitResponse(pb.Message):
    """How the process ended."""

    FULL_NAME = "containerd.task.v3.WaitResponse"

    exit_status: int = pb.u32(1)
    exited_at: Timestamp | None = pb.message(2, Timestamp)


class StatsRequest(pb.Message):
    """Ask for what a container uses."""

    FULL_NAME = "containerd.task.v3.StatsRequest"

    id: str = pb.text(1)


class StatsResponse(pb.Message):
    """What a container uses: Metrics of cgroups v1 or v2."""

    FULL_NAME = "containerd.task.v3.StatsResponse"

    stats: Any | None = pb.message(1, Any)


class ConnectRequest(pb.Message):
    """Ask who serves a container."""

    FULL_NAME = "containerd.task.v3.ConnectRequest"

    id: str = pb.text(1)


class ConnectResponse(pb.Message):
    """The process ids of the shim and of the container."""

    FULL_NAME = "containerd.task.v3.ConnectResponse"

    shim_pid: int = pb.u32(1)
    task_pid: int = pb.u32(2)
    version: str = pb.text(3)


class ShutdownRequest(pb.Message):
    """End the shim when it serves no container any more."""

    FULL_NAME = "containerd.task.v3.ShutdownRequest"

    id: str = pb.text(1)
    now: bool = pb.boolean(2)


class PauseRequest(pb.Message):
    """Stop all of a container's processes where they are."""

    FULL_NAME = "containerd.task.v3.PauseRequest"

    id: str = pb.text(1)


class ResumeRequest(pb.Message):
    """Let a paused container go on."""

    FULL_NAME = "containerd.task.v3.ResumeRequest"

    id: str = pb.text(1)
