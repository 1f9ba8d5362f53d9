"""Programs that run while a test does something else, and never longer than the test."""

from __future__ import annotations

import contextlib
import os
import select
import subprocess
from collections.abc import Iterator
from typing import IO, Any


class Child(subprocess.Popen[bytes]):
    """A program with pipes; the streams that are pipes are there without further ado."""

    @property
    def input(self) -> IO[bytes]:
        """Its standard input."""
        assert self.stdin is not None
        return self.stdin

    @property
    def output(self) -> IO[bytes]:
        """Its standard output."""
        assert self.stdout is not None
        return self.stdout

    @property
    def complaints(self) -> IO[bytes]:
        """Its standard error."""
        assert self.stderr is not None
        return self.stderr


@contextlib.contextmanager
def started(argv: list[str], **options: Any) -> Iterator[Child]:
    """Start ``argv``; it is killed at the end of the block if it still runs. Standard output is a pipe."""
    with Child(argv, **{"stdout": subprocess.PIPE, **options}) as child:
        try:
            yield child
        finally:
            # Leaving the block waits for it, which must not take forever after a failure.
            child.kill()


def wait_end(pid: int) -> None:
    """Wait for the end of the process ``pid``, which may be this one's child, without sleeping."""
    fd = os.pidfd_open(pid)
    try:
        assert select.select([fd], [], [], 20)[0], "it has not ended"
    finally:
        os.close(fd)
    with contextlib.suppress(ChildProcessError):
        os.waitpid(pid, 0)
