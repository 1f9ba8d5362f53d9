"""``delete``: remove what a container has left whose shim is gone, or does not answer.

containerd runs it when it has lost the connection, and it may do so twice, or when there is nothing to remove.
"""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import time

from hako.errors import HakoError, NotFoundError
from hako.oci import pods
from hako.runtime import containers, hostcgroup
from hako.sandbox import client, records
from hako.shim import places
from hako.shim.messages import Timestamp
from hako.shim.task_messages import DeleteResponse

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from hako.shim.call import Call

#: What a process that was killed ends with; nobody knows better any more.
_LOST = 137
#: Seconds that a shim has to remove one container of a pod that goes on.
_DELETE_SECONDS = 5.0
#: Seconds until a process that was killed is gone, and its guardian done.
_GONE_SECONDS = 5.0


def main(call: Call) -> int:
    """Clean up, and print how the container has ended. Raises HakoError."""
    pod = pods.sandbox_of(places.annotations_of(call.bundle))
    if pod:
        _leave_pod(call, places.sandbox_id(call, pod))
    else:
        _end(places.sandbox_id(call, call.id))
        places.forget(places.read_address(call.bundle) or places.address(call, call.id))
    _unmount(os.path.join(call.bundle, "rootfs"))
    response = DeleteResponse(exit_status=_LOST, exited_at=Timestamp.of_ns(time.time_ns()))
    sys.stdout.buffer.write(response.encode())
    sys.stdout.flush()
    return 0


def _leave_pod(call: Call, sandbox: str) -> None:
    """Remove a container from its pod's VM, if that is there."""
    with contextlib.suppress(NotFoundError, OSError), client.connect(sandbox) as sock:
        sock.settimeout(_DELETE_SECONDS)
        client.exchange(sock, "Delete", {"container": containers.guest_id(call.id), "force": True})


def _end(sandbox: str) -> None:
    """End a shim that is still there, remove what is left of its sandbox, and forget it."""
    cgroup = _cgroup(sandbox)
    deadline = time.monotonic() + _GONE_SECONDS
    while records.is_alive(sandbox) and time.monotonic() < deadline:
        state = records.live_state(sandbox)
        if state is not None and type(state.get("pid")) is int and state["pid"] > 1:
            with contextlib.suppress(ProcessLookupError):
                os.kill(state["pid"], signal.SIGKILL)
        time.sleep(0.02)
    records.reap(sandbox)
    while os.path.isdir(records.run_dir(sandbox)) and time.monotonic() < deadline:
        time.sleep(0.02)
    if cgroup:
        with contextlib.suppress(HakoError):
            hostcgroup.delete(cgroup)
    records.forget(sandbox)


def _cgroup(sandbox: str) -> dict[str, Any]:
    """The record of the cgroup that the sandbox has; empty when nothing is known of it."""
    try:
        state = records.live_state(sandbox) or records.read(sandbox)
    except NotFoundError:
        return {}
    spec = state.get("spec")
    found = spec.get("cgroup") if isinstance(spec, dict) else None
    return found if isinstance(found, dict) else {}


def _unmount(path: str) -> None:
    from hako.linux import syscalls

    with contextlib.suppress(OSError):
        while True:
            syscalls.umount(path, syscalls.MNT_DETACH)
