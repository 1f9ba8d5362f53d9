"""A VM that starts before anybody asks for it."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any, cast

import pytest

from hako.config.load import load
from hako.errors import HypervisorError
from hako.sandbox import machine as machines
from hako.sandbox import requests
from hako.sandbox.machine import Machine
from hako.sandbox.trace import Trace
from hako.storage.tree import SharedTree


class _Machine(Machine):
    """One whose start is ``wait``."""

    def __init__(self, path: Path, wait: asyncio.Event, error: str = "") -> None:
        config = load()
        spec = requests.sandbox_spec(config, sandbox_id="m")
        super().__init__(spec, config, cast("SharedTree", None), str(path), Trace())  # nothing is shared
        self._wait = wait
        self._error = error
        self.given_up = False

    async def start(self) -> Any:
        try:
            await self._wait.wait()
        except asyncio.CancelledError:
            self.given_up = True
            raise
        if self._error:
            raise HypervisorError(self._error)
        return cast("Any", "the VM")


def test_nobody_waits_long_for_one_that_takes_long(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machines, "_SOON", 0.01)

    async def body() -> None:
        machine = _Machine(tmp_path, asyncio.Event())
        await asyncio.wait_for(machine.under_way(), 10)
        waiting = asyncio.create_task(machine.ready())
        await asyncio.sleep(0)
        waiting.cancel()
        await asyncio.wait([waiting])
        assert machine.given_up, "nobody wants it any more"

    asyncio.run(body())


def test_a_failure_is_told_to_whoever_asks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machines, "_SOON", 60)

    async def body() -> None:
        wait = asyncio.Event()
        wait.set()
        machine = _Machine(tmp_path, wait, "no VM")
        await asyncio.wait_for(machine.under_way(), 10)  # at once, not after _SOON
        with pytest.raises(HypervisorError, match="no VM"):
            await machine.ready()

    asyncio.run(body())
