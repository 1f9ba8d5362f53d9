"""Where a shim's messages go: to the sandbox's own log, and to the fifo that containerd reads and logs itself."""

from __future__ import annotations

import logging
import os
import sys
from typing import TextIO

TYPE_CHECKING = False
if TYPE_CHECKING:
    from hako.shim.call import Call

_FIFO = "log"
_LEVELS = {"debug": logging.DEBUG, "info": logging.INFO, "warning": logging.WARNING, "error": logging.ERROR}


class _Containerd(logging.Handler):
    """Writes to containerd's fifo without ever waiting: what nobody takes is in the sandbox's log all the same."""

    def __init__(self, fd: int) -> None:
        super().__init__()
        self._fd = fd

    def emit(self, record: logging.LogRecord) -> None:
        """Write one line."""
        try:
            os.write(self._fd, (self.format(record) + "\n").encode(errors="backslashreplace"))
        except OSError:
            return


def setup(call: Call, level: str) -> None:
    """Send this process's messages there, from ``level`` on, or from debug on if containerd asks for it."""
    stream: TextIO = sys.stderr
    handlers: list[logging.Handler] = [logging.StreamHandler(stream)]
    try:
        fd = os.open(os.path.join(call.bundle, _FIFO), os.O_WRONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        handlers.append(_Containerd(fd))
    except OSError:
        pass  # CRI-O has none
    root = logging.getLogger()
    root.setLevel(logging.DEBUG if call.debug else _LEVELS[level])
    formatter = logging.Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s")
    for handler in handlers:
        handler.setFormatter(formatter)
        root.addHandler(handler)
    logging.getLogger("qemu").setLevel(logging.WARNING)
    logging.getLogger("asyncio").setLevel(logging.WARNING)
