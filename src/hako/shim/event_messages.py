"""Events that a shim reports, and the service that takes them.

Facts: containerd api/events/task.proto, api/types/event.proto, api/services/ttrpc/events/v1/events.proto;
the topics are of core/runtime/events.go.
"""

from __future__ import annotations

from hako.shim.messages import Any, Mount, Timestamp
from hako.wire import protobuf as pb

SERVICE = "containerd.services.events.ttrpc.v1.Events"


class Envelope(pb.Message):
    """An event on its way."""

    FULL_NAME = "containerd.types.Envelope"

    timestamp: Timestamp | None = pb.message(1, Timestamp)
    namespace: str = pb.text(2)
    topic: str = pb.text(3)
    event: Any | None = pb.message(4, Any)


class ForwardRequest(pb.Message):
    """Publish an event."""

    FULL_NAME = "containerd.services.events.ttrpc.v1.ForwardRequest"

    envelope: Envelope | None = pb.message(1, Envelope)


class TaskIO(pb.Message):
    """Where a process's streams are."""

    FULL_NAME = "containerd.events.TaskIO"

    stdin: str = pb.text(1)
    stdout: str = pb.text(2)
    stderr: str = pb.text(3)
    terminal: bool = pb.boolean(4)


class Event(pb.Message):
    """Base of all events."""

    #: Where it is published.
    TOPIC = ""


class TaskCreate(Event):
    """A container has been made."""

    FULL_NAME = "containerd.events.TaskCreate"
    TOPIC = "/tasks/create"

    container_id: str = pb.text(1)
    bundle: str = pb.text(2)
    rootfs: list[Mount] = pb.messages(3, Mount)
    io: TaskIO | None = pb.message(4, TaskIO)
    checkpoint: str = pb.text(5)
    pid: int = pb.u32(6)


class TaskStart(Event):
    """A container's first process runs."""

    FULL_NAME = "containerd.events.TaskStart"
    TOPIC = "/tasks/start"

    container_id: str = pb.text(1)
    pid: int = pb.u32(2)


class TaskDelete(Event):
    """A process that had ended is forgotten."""

    FULL_NAME = "containerd.events.TaskDelete"
    TOPIC = "/tasks/delete"

    container_id: str = pb.text(1)
    pid: int = pb.u32(2)
    exit_status: int = pb.u32(3)
    exited_at: Timestamp | None = pb.message(4, Timestamp)
    id: str = pb.text(5)


class TaskExit(Event):
    """A process has ended; ``id`` is the container's for its first one, else the exec's."""

    FULL_NAME = "containerd.events.TaskExit"
    TOPIC = "/tasks/exit"

    container_id: str = pb.text(1)
    id: str = pb.text(2)
    pid: int = pb.u32(3)
    exit_status: int = pb.u32(4)
    exited_at: Timestamp | None = pb.message(5, Timestamp)


class TaskOOM(Event):
    """The kernel killed a process of the container for want of memory."""

    FULL_NAME = "containerd.events.TaskOOM"
    TOPIC = "/tasks/oom"

    container_id: str = pb.text(1)


class TaskExecAdded(Event):
    """A process has been added, and does not run yet."""

    FULL_NAME = "containerd.events.TaskExecAdded"
    TOPIC = "/tasks/exec-added"

    container_id: str = pb.text(1)
    exec_id: str = pb.text(2)


class TaskExecStarted(Event):
    """An added process runs."""

    FULL_NAME = "containerd.events.TaskExecStarted"
    TOPIC = "/tasks/exec-started"

    container_id: str = pb.text(1)
    exec_id: str = pb.text(2)
    pid: int = pb.u32(3)


class TaskPaused(Event):
    """A container has been paused."""

    FULL_NAME = "containerd.events.TaskPaused"
    TOPIC = "/tasks/paused"

    container_id: str = pb.text(1)


class TaskResumed(Event):
    """A paused container goes on."""

    FULL_NAME = "containerd.events.TaskResumed"
    TOPIC = "/tasks/resumed"

    container_id: str = pb.text(1)


class TaskCheckpointed(Event):
    """A checkpoint has been written."""

    FULL_NAME = "containerd.events.TaskCheckpointed"
    TOPIC = "/tasks/checkpointed"

    container_id: str = pb.text(1)
    checkpoint: str = pb.text(2)
