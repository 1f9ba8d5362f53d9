"""Moving a process into its cgroup while it does other things.

The kernel makes whoever moves a process wait until all processors have passed a quiet point: some tens of milliseconds,
which a sandbox process has for its imports.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import threading
from collections.abc import AsyncIterator, Iterator
from typing import Any

from hako.cgroup import home
from hako.errors import HakoError

_POLL_SECONDS = 0.02


class Joining:
    """The move of the calling process into the cgroup with the record ``record``; an empty one moves nothing.

    ``record`` changes when systemd has made the cgroup, which it does for the first process.
    """

    def __init__(self, record: dict[str, Any], *, done: bool = False) -> None:
        """``done``: whoever started the process has moved it."""
        self.record = record
        self._error: HakoError | None = None
        self._thread: threading.Thread | None = None
        self._staying = threading.Lock()
        if record and not done:
            self._thread = threading.Thread(target=self._join, name="hako-cgroup")
            self._thread.start()

    def _join(self) -> None:
        from hako.cgroup.api import Cgroup

        try:
            home.remember()
            group = Cgroup.open(self.record)
            group.add(os.getpid())
            self.record = group.to_json()
        except HakoError as error:
            self._error = error

    def wait(self) -> None:
        """Wait until the process is there; what it starts from now on is born there. Raises HostError."""
        if self._thread is not None:
            self._thread.join()
        if self._error is not None:
            raise self._error

    def leave(self) -> None:
        """Go back to where the process came from, for good."""
        if not self.record:
            return
        if self._thread is not None:
            self._thread.join()
        with self._staying:
            home.enter(home.directories())

    @contextlib.contextmanager
    def outside(self) -> Iterator[None]:
        """For the block, be where the process came from: what is made in it is not the container's to pay for."""
        if not self.record:
            yield
            return
        self.wait()
        with self._staying:
            home.enter(home.directories())
            try:
                yield
            finally:
                self._join()
        self.wait()

    @contextlib.asynccontextmanager
    async def inside(self) -> AsyncIterator[None]:
        """For the block, be in the container's cgroup, and what is started in it is born there. Raises HostError."""
        await asyncio.to_thread(self.wait)
        # A thread that waits for the lock would get it even when this has been given up.
        while not self._staying.acquire(blocking=False):
            await asyncio.sleep(_POLL_SECONDS)
        try:
            yield
        finally:
            self._staying.release()
