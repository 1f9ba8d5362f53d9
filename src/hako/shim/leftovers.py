"""What a shim, or a container of a pod that goes on, has left: see delete.py."""

from __future__ import annotations

import contextlib
import os
import signal
import time

from hako.errors import HakoError, NotFoundError
from hako.linux import syscalls
from hako.runtime import containers, hostcgroup
from hako.sandbox import client, records

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from hako.shim.call import Call

#: Seconds that a shim has to remove one container of a pod that goes on.
_DELETE_SECONDS = 5.0
#: Seconds until a process that was killed is gone, and its guardian done.
_GONE_SECONDS = 5.0


def leave_pod(call: Call, sandbox: str) -> None:
    """Remove a container from its pod's VM, if that is there."""
    with contextlib.suppress(NotFoundError, OSError), client.connect(sandbox) as sock:
        sock.settimeout(_DELETE_SECONDS)
        client.exchange(sock, "Delete", {"container": containers.guest_id(call.id), "force": True})


def end(sandbox: str) -> None:
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


def unmount(path: str) -> None:
    """Take away all that is mounted at ``path``."""
    with contextlib.suppress(OSError):
        while True:
            syscalls.umount(path, syscalls.MNT_DETACH)
