"""Writing a stopped VM's device state to a file, and going on from one: QEMU's migration, without its memory.

The memory is a file that both sides map, so all that is written is what the devices know: half a megabyte.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from hako.errors import HypervisorError, TimedOutError

if TYPE_CHECKING:
    from hako.hypervisor.qmp import Qmp

#: Seconds that writing or reading the state may take; it takes 0.01.
_TIMEOUT = 30.0

_POLL = 0.001
_FILE = "state"

#: QEMU leaves out memory that is mapped from a file (x- because its name is not final).
_CAPABILITIES = {"capabilities": [{"capability": "x-ignore-shared", "state": True}]}


async def save(qmp: Qmp, fd: int) -> None:
    """Write the state of a stopped VM to the file ``fd``. Raises HypervisorError."""
    await qmp.pass_file(fd, _FILE)
    await qmp.execute("migrate-set-capabilities", _CAPABILITIES)
    await qmp.execute("migrate", {"uri": f"fd:{_FILE}"})
    await _wait(qmp, "query-migrate", ("setup", "active", "device", "none"), ("completed",))


async def load(qmp: Qmp, fd: int | None) -> None:
    """Read the state from ``fd``, by the number that QEMU inherited; the VM stays stopped. Raises HypervisorError."""
    await qmp.execute("migrate-set-capabilities", _CAPABILITIES)
    await qmp.execute("migrate-incoming", {"uri": f"fd:{fd}"})
    # The template was stopped when it was written, and so is what has been read.
    await _wait(qmp, "query-status", ("inmigrate",), ("paused",))


async def _wait(qmp: Qmp, command: str, busy: tuple[str, ...], done: tuple[str, ...]) -> None:
    loop = asyncio.get_running_loop()
    deadline = loop.time() + _TIMEOUT
    while True:
        answer = await qmp.execute(command)
        status = answer.get("status") if isinstance(answer, dict) else None
        if status in done:
            return
        if status not in busy:
            error = answer.get("error-desc", "") if isinstance(answer, dict) else ""
            raise HypervisorError(f"QEMU could not move a VM's state: it says {status}. {error}".rstrip())
        if loop.time() > deadline:
            raise TimedOutError(f"QEMU did not move a VM's state within {_TIMEOUT:g} s.")
        await asyncio.sleep(_POLL)
