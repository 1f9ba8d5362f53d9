"""QEMU's control connection (QMP). The qemu.qmp package does the work and is not seen outside this file.

Importing it costs some milliseconds, so the driver imports this file while QEMU is already starting.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import socket
from collections.abc import Mapping

from qemu.qmp import EventListener, ExecuteError, Message, QMPClient, QMPError

from hako.errors import HypervisorError, TimedOutError

#: Seconds until an answer is overdue.
COMMAND_TIMEOUT = 10.0

# One message of QEMU's at most, in bytes.
_MESSAGE_CAP = 1 << 20

# The package logs a QEMU that went away as an error of its own, with a traceback; our callers report it, with why.
_logger = logging.getLogger("qemu.qmp")
if _logger.level == logging.NOTSET:
    _logger.setLevel(logging.CRITICAL + 1)


class Qmp:
    """One QMP connection, and what its events told. ``close`` gives it back."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._client = QMPClient(name, _MESSAGE_CAP)
        # Only the filter is used, as a callback: a listener's queue and history would grow with the guest's events.
        self._client.register_listener(EventListener(event_filter=self._take_event))
        self._shutdown: str | None = None
        self._stopped = asyncio.Event()
        self._removals: dict[str, asyncio.Event] = {}
        # A file goes ahead of the command that says what it is for.
        self._passing = asyncio.Lock()

    async def connect(self, sock: socket.socket) -> None:
        """Take over ``sock``, whose other end is QEMU's monitor, and shake hands. Raises HypervisorError."""
        try:
            await self._client.connect(sock)
        except (QMPError, OSError) as error:
            raise HypervisorError(
                f"QEMU of VM {self._name} did not answer as it should on its control socket: {_first_line(error)}."
            ) from error

    async def execute(
        self, command: str, arguments: Mapping[str, object] | None = None, timeout: float = COMMAND_TIMEOUT
    ) -> object:
        """Run one command and return its result. Raises HypervisorError, TimedOutError after ``timeout`` seconds."""
        try:
            async with asyncio.timeout(timeout):
                return await self._client.execute(command, arguments)
        except TimeoutError as error:
            raise TimedOutError(f"QEMU of VM {self._name} did not answer {command} within {timeout:g} s.") from error
        except ExecuteError as error:
            raise HypervisorError(f"QEMU of VM {self._name} refused {command}: {_first_line(error)}.") from error
        except (QMPError, EOFError, OSError) as error:
            raise HypervisorError(f"QEMU of VM {self._name} is gone; {command} was not done.") from error

    async def pass_file(self, fd: int, name: str) -> None:
        """Give QEMU the open file ``fd``, to be known to it as ``name``. Raises HypervisorError."""
        await self._send(fd, "getfd", {"fdname": name})

    async def add_file(self, fd: int) -> int:
        """Give QEMU the open file ``fd`` as one it can open: /dev/fdset/N. Returns N. Raises HypervisorError."""
        answer = await self._send(fd, "add-fd", {})
        number = answer.get("fdset-id") if isinstance(answer, dict) else None
        if not isinstance(number, int):
            raise HypervisorError(f"QEMU of VM {self._name} did not say where it has a file that it was given.")
        return number

    async def _send(self, fd: int, command: str, arguments: Mapping[str, object]) -> object:
        async with self._passing:
            try:
                self._client.send_fd_scm(fd)
            except (QMPError, OSError) as error:
                raise HypervisorError(f"QEMU of VM {self._name} is gone; it was given no file.") from error
            return await self.execute(command, arguments)

    async def remove_device(self, name: str, timeout: float = COMMAND_TIMEOUT) -> None:
        """Take the device ``name`` away and wait until it is gone. Raises HypervisorError, TimedOutError."""
        gone = self._removals[name] = asyncio.Event()
        try:
            await self.execute("device_del", {"id": name})
            async with asyncio.timeout(timeout):
                await gone.wait()
        except TimeoutError as error:
            raise TimedOutError(f"QEMU of VM {self._name} did not take {name} away within {timeout:g} s.") from error
        finally:
            del self._removals[name]

    async def wait_stopped(self) -> None:
        """Wait until QEMU reports once more that the guest's CPUs stopped: a pause we asked for, or an error."""
        await self._stopped.wait()
        self._stopped.clear()

    async def shutdown_reason(self, timeout: float) -> str | None:
        """After QEMU's end: the reason in its last SHUTDOWN event, for which it is waited up to ``timeout`` seconds."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(timeout):
                while self._client.runstate.name == "RUNNING":
                    await self._client.runstate_changed()
        return self._shutdown

    async def close(self) -> None:
        """Close the connection. Can be repeated."""
        # A connection that broke reports here why; nobody needs that any more.
        with contextlib.suppress(Exception):
            await self._client.disconnect()

    def _take_event(self, event: Message) -> bool:
        data = event.get("data")
        fields = data if isinstance(data, dict) else {}
        match event["event"]:
            case "SHUTDOWN":
                reason = fields.get("reason")
                self._shutdown = reason if isinstance(reason, str) else None
            case "STOP":
                self._stopped.set()
            case "DEVICE_DELETED":
                gone = self._removals.get(str(fields.get("device")))
                if gone is not None:
                    gone.set()
        return False


def _first_line(error: Exception) -> str:
    return str(error).partition("\n")[0].rstrip(".: ")
