"""Forking a sandbox process before it is known for which sandbox.

Half of what a command and a sandbox process do before a VM can be started is to load their modules. This way both do
it at the same time. Imports next to nothing itself.
"""

from __future__ import annotations

import _socket
import os

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import NoReturn

_PID_BYTES = 4


class Prepared:
    """A process that loads what a sandbox process needs, and then waits to be told what it is for.

    It ends when ``connection`` is closed before. For single-threaded programs only.
    """

    def __init__(self, serve: Callable[[int], None] | None = None) -> None:
        """Forks it. ``serve`` is what it does, given its end of ``connection``. Raises OSError."""
        ours, theirs = _socket.socketpair(_socket.AF_UNIX, _socket.SOCK_STREAM | _socket.SOCK_CLOEXEC)
        middle = os.fork()
        if middle == 0:
            # No way back into the caller's code from here on.
            try:
                ours.close()
                if os.fork() == 0:
                    _wait(theirs.detach(), serve)
            finally:
                os._exit(0)
        theirs.close()
        os.waitpid(middle, 0)
        #: The owner's end of the connection, open; whoever takes it owns it.
        self.connection = ours.detach()
        self._pid = 0

    def pid(self) -> int:
        """The process's id; 0 when it is gone already."""
        if not self._pid:
            self._pid = int.from_bytes(os.read(self.connection, _PID_BYTES), "little")
        return self._pid

    def close(self) -> None:
        """Let the process go: it is not needed. A second call does nothing."""
        if self.connection >= 0:
            os.close(self.connection)
        self.connection = -1

    def take(self) -> int:
        """The connection's descriptor, which is the caller's from now on."""
        self.pid()  # what it says first is not for the caller
        fd, self.connection = self.connection, -1
        return fd


def _wait(connection: int, serve: Callable[[int], None] | None) -> NoReturn:
    try:
        null = os.open("/dev/null", os.O_RDWR)
        # The caller's streams have readers who wait for their end.
        for number in (0, 1, 2):
            os.dup2(null, number)
        os.closerange(3, connection)
        os.closerange(connection + 1, os.sysconf("SC_OPEN_MAX"))
        os.write(connection, os.getpid().to_bytes(_PID_BYTES, "little"))
        if serve is not None:
            serve(connection)
        else:
            from hako.sandbox import daemon

            daemon.serve_prepared(connection)
    finally:
        os._exit(0)
