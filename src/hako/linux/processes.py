"""Telling a process from another one that gets the same number later."""

from __future__ import annotations


def started(pid: int) -> int:
    """When process ``pid`` started, in ticks since the host's boot; 0 when it is gone or a zombie (proc(5))."""
    try:
        with open(f"/proc/{pid}/stat", "rb") as file:
            fields = file.read().rpartition(b")")[2].split()
    except OSError:
        return 0
    return 0 if fields[0] in (b"Z", b"X") else int(fields[19])
