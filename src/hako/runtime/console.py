"""The terminal of a container's process on the host: a pair whose master end goes to the engine's console socket.

The guest has a terminal of its own, which echoes and edits lines; this one passes bytes on as they are.
"""

from __future__ import annotations

import fcntl
import os
import socket
import struct
import termios
import tty

from hako.errors import ConfigError, HostError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any


class Terminal:
    """A pair of terminal ends; ``slave`` is for the process. Close it when everybody has what he needs."""

    def __init__(self, size: tuple[int, int] | None) -> None:
        """``size`` is columns and rows. Raises HostError."""
        try:
            self.master, self.slave = os.openpty()
        except OSError as error:
            raise HostError(f"Cannot make a terminal: {error.strerror}.") from error
        tty.setraw(self.slave, termios.TCSANOW)
        if size is not None:
            fcntl.ioctl(self.slave, termios.TIOCSWINSZ, struct.pack("HHHH", size[1], size[0], 0, 0))

    def send(self, path: str) -> None:
        """Give the master end to whoever listens at the socket ``path``. Raises ConfigError."""
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC) as sock:
            try:
                sock.connect(path)
                socket.send_fds(sock, [os.ttyname(self.slave).encode()], [self.master])
            except OSError as error:
                raise ConfigError(f"Cannot use the console socket {path}: {error.strerror}.") from error

    def close(self) -> None:
        """Close both ends."""
        os.close(self.master)
        os.close(self.slave)


def wanted_size(process: dict[str, Any]) -> tuple[int, int] | None:
    """Columns and rows of ``process.consoleSize``, if it says any."""
    size = process.get("consoleSize")
    if not isinstance(size, dict) or not size.get("width") or not size.get("height"):
        return None
    return int(size["width"]), int(size["height"])


def check(process: dict[str, Any], console_socket: str, *, detach: bool) -> None:
    """Refuse a terminal that nobody would have, or a socket that nothing would come through. Raises ConfigError."""
    terminal = process.get("terminal") is True
    if terminal and detach and not console_socket:
        raise ConfigError("cannot allocate tty if the command detaches without setting a console socket")
    if console_socket and not (terminal and detach):
        raise ConfigError("cannot use a console socket if the command does not detach or allocates no tty")
