"""How many VMs of this host start at the same time.

Starting a VM is work for a processor. Fifty at once on two processors would each take fifty times as long, until they
are given up one by one; a few at a time are ready as early as they can be, and the last no later.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
from collections.abc import AsyncIterator

from hako import paths, store
from hako.errors import HostError

_PER_PROCESSOR = 2
_POLL = 0.01


@contextlib.asynccontextmanager
async def slot(timeout: float) -> AsyncIterator[None]:
    """Wait for one of the host's slots, and have it for the block; after ``timeout`` seconds, go on without.

    A slot is a lock on a file, so that whoever is killed gives it back.
    """
    fd: int | None = None
    with contextlib.suppress(OSError, HostError):
        directory = store.ensure_dir(os.path.join(paths.state_root(), "starting"), 0o700)
        loop = asyncio.get_running_loop()
        deadline = loop.time() + timeout
        files = [os.path.join(directory, f"{number}.lock") for number in range(_PER_PROCESSOR * (os.cpu_count() or 1))]
        while fd is None and loop.time() < deadline:
            fd = next((taken for file in files if (taken := store.lock(file, wait=False)) is not None), None)
            if fd is None:
                await asyncio.sleep(_POLL)
    try:
        yield
    finally:
        if fd is not None:
            os.close(fd)
