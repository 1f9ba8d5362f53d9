"""``delete``: remove what a container has left whose shim is gone, or does not answer.

containerd runs it when it has lost the connection, and it may do so twice, or when there is nothing to remove. It also
does so at each container's end, and waits for it: that nothing is left is said without loading what would remove it.
"""

from __future__ import annotations

import os
import sys
import time

from hako import paths
from hako.oci import pods
from hako.shim import places
from hako.shim.messages import Timestamp
from hako.shim.task_messages import DeleteResponse

TYPE_CHECKING = False
if TYPE_CHECKING:
    from hako.shim.call import Call

#: What a process that was killed ends with; nobody knows better any more.
_LOST = 137
#: What is written in other ways into a list of mounts.
_ESCAPED = " \t\n\\"


def main(call: Call) -> int:
    """Clean up, and print how the container has ended. Raises HakoError."""
    pod = pods.sandbox_of(places.annotations_of(call.bundle))
    sandbox = places.sandbox_id(call, pod or call.id)
    if pod or _is_known(sandbox):
        from hako.shim import leftovers

        if pod:
            leftovers.leave_pod(call, sandbox)
        else:
            leftovers.end(sandbox)
    if not pod:
        places.forget(places.read_address(call.bundle) or places.address(call, call.id))
    rootfs = os.path.join(call.bundle, "rootfs")
    if _may_be_mounted(rootfs):
        from hako.shim import leftovers

        leftovers.unmount(rootfs)
    response = DeleteResponse(exit_status=_LOST, exited_at=Timestamp.of_ns(time.time_ns()))
    sys.stdout.buffer.write(response.encode())
    sys.stdout.flush()
    return 0


def _is_known(sandbox: str) -> bool:
    """Whether anything of a sandbox may be left, running or not; see hako.sandbox.records."""
    return any(os.path.lexists(os.path.join(place, sandbox)) for place in (paths.sandboxes_dir(), paths.records_dir()))


def _may_be_mounted(path: str) -> bool:
    """False when nothing is mounted at ``path``."""
    with open("/proc/self/mountinfo", "rb") as file:
        return any(char in path for char in _ESCAPED) or os.fsencode(path) in file.read()
