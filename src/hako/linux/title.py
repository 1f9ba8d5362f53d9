"""What ps and top show of this process."""

from __future__ import annotations

import contextlib
import os

from hako.linux import syscalls


def set_title(title: str) -> None:
    """Show ``title`` as this process's command line, as far as there is room, and its first word as its name."""
    syscalls.set_process_name(os.path.basename(title.partition(" ")[0]) or "container")
    with contextlib.suppress(OSError, ValueError, IndexError):
        with open("/proc/self/stat", "rb") as file:
            fields = file.read().rpartition(b")")[2].split()
        start, end = int(fields[45]), int(fields[46])  # arg_start and arg_end, proc(5)
        # Where the last byte is not zero, the kernel shows what comes before the first that is.
        size = end - start
        syscalls.write_memory(start, title.encode()[: size - 2].ljust(size - 1, b"\0") + b" ")
