"""The cgroup from which this process went into a container's: where that goes which is to outlive the container."""

from __future__ import annotations

import contextlib
import os

_directories: list[str] = []


def remember() -> None:
    """Call it before the process moves. Raises HostError when no cgroups are mounted."""
    from hako.cgroup import hierarchy

    found = hierarchy.read().hierarchies.values()
    _directories[:] = dict.fromkeys(f"{mount}{own}".rstrip("/") for mount, own in found)


def recall(directories: list[str]) -> None:
    """The same, of a process that somebody else has moved, who remembered ``directories`` for it."""
    _directories[:] = directories


def directories() -> list[str]:
    """The directories of the cgroup that was remembered, in each hierarchy; none when the process has not moved."""
    return list(_directories)


def enter(directories: list[str]) -> None:
    """Move the calling process there, as far as they still exist."""
    for directory in directories:
        with contextlib.suppress(OSError), open(os.path.join(directory, "cgroup.procs"), "wb") as file:
            file.write(b"0")
