"""Having the kernel begin early what moving a process into a cgroup waits for.

The first move in a while waits until all processors have passed a quiet point, some 10 ms; one that follows soon does
not. So a process that knows that something will be moved moves itself, to where it is, as the first thing that it does.
"""

from __future__ import annotations

import _thread

from hako.cgroup import files, hierarchy
from hako.errors import HostError


def hurry() -> None:
    """Begin, in a thread, what the next move in any hierarchy would wait for. Nothing is raised."""
    _thread.start_new_thread(_move_nowhere, ())


def _move_nowhere() -> None:
    try:
        # The kernel has one lock for all hierarchies.
        mount, own = next(iter(hierarchy.read().hierarchies.values()))
        files.write(f"{mount}{own}", "cgroup.procs", "0")
    except (OSError, HostError):
        return  # then the one who moves waits
