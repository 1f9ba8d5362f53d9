"""What becomes of the share while a template is made, with a pretended VM and a pretended agent."""

from __future__ import annotations

import asyncio
import os
from pathlib import Path
from typing import Any

import pytest

from hako.errors import HostError, HypervisorError
from hako.hypervisor.base import Backends, FreezeError, ShareVirtiofs
from hako.template import build, files
from hako.template.build import Recipe
from hako.testing.hypervisor import FakeVm
from support import templates

_DEVICE = ShareVirtiofs("share")


class Share:
    """A share that serves nothing, and what was done with it."""

    def __init__(self, *, helper: bool = True, fails: bool = False) -> None:
        self.helper = helper
        self.fails = fails
        self.calls: list[str] = []

    def plugged(self) -> ShareVirtiofs | None:
        return _DEVICE if self.helper else None

    async def start(self, path: str) -> int | None:
        self.calls.append(f"start {os.path.basename(path)}")
        if self.fails:
            raise HostError("There is no virtiofsd.")
        return 99

    async def close(self) -> None:
        self.calls.append("close")


class Host:
    """The VMs that were made, and which of their calls go wrong."""

    def __init__(self) -> None:
        self.vms: list[FakeVm] = []
        self.given: list[Backends] = []
        self.seen: list[list[Any]] = []  #: what was plugged into each VM when its guest settled
        self.plugs = self.finds = self.frees = True

    def vm(self, spec: Any, *, backends: Backends, **_more: Any) -> FakeVm:
        host = self

        class Vm(FakeVm):
            async def plug(self, device: Any, fds: Any = ()) -> None:
                if not host.plugs:
                    raise HypervisorError("QEMU refused device_add.")
                await super().plug(device, fds)

            async def freeze(self) -> None:
                if self.plugged and not host.frees:
                    raise FreezeError("QEMU does not take it away.")
                await super().freeze()

        self.given.append(backends)
        self.vms.append(Vm(spec._replace(memory=64 << 20), backends=backends))
        return self.vms[-1]

    async def settle(self, method: str) -> dict[str, Any]:
        if method != "Settle":
            return {}
        plugged = list(self.vms[-1].plugged)
        self.seen.append(plugged)
        return {"share": bool(plugged) and self.finds}


@pytest.fixture
def host(monkeypatch: pytest.MonkeyPatch) -> Host:
    """A host on which templates are made in no time."""
    made = Host()

    class Agent:
        def __init__(self, _socket: Any) -> None:
            pass

        async def call(self, method: str, _params: Any, _timeout: float = 0) -> dict[str, Any]:
            return await made.settle(method)

        def close(self) -> None:
            pass

        def fail(self, _error: Exception) -> None:
            pass

    monkeypatch.setattr(build, "QemuVm", made.vm)
    monkeypatch.setattr(build, "AgentClient", Agent)
    monkeypatch.setattr(build, "_REPORTING", 0)
    return made


def _make(tmp_path: Path, share: Share | None) -> files.Template:
    recipe: Recipe = templates.recipe()._replace(share=None if share is None else lambda: share)
    before = set(os.listdir("/proc/self/fd"))
    try:
        return asyncio.run(build.build(recipe, str(tmp_path), (7,)))
    finally:
        assert set(os.listdir("/proc/self/fd")) == before


def test_the_guest_sees_a_share_that_is_not_in_the_template(host: Host, tmp_path: Path) -> None:
    share = Share()
    assert _make(tmp_path, share).key in files.names(str(tmp_path))
    assert share.calls == ["start empty", "close"]
    assert host.seen == [[_DEVICE]]
    assert [(vm.plugged, vm.pid) for vm in host.vms] == [([], None)]
    assert [(given.share, given.nic, given.clone) for given in host.given] == [(99, (7,), False)]


@pytest.mark.parametrize("share", [None, Share(helper=False)], ids=["none", "among the devices"])
def test_without_one_that_is_plugged_in_there_is_nothing_to_serve(
    host: Host, tmp_path: Path, share: Share | None
) -> None:
    _make(tmp_path, share)
    assert host.seen == [[]]
    assert share is None or share.calls == []


@pytest.mark.parametrize("what", ["frees", "finds"])
def test_a_share_that_cannot_be_left_out_costs_a_second_try(host: Host, tmp_path: Path, what: str) -> None:
    setattr(host, what, False)
    share = Share()
    _make(tmp_path, share)
    assert host.seen == [[_DEVICE], []]
    assert [given.share for given in host.given] == [99, None]
    assert all(vm.pid is None for vm in host.vms)
    assert share.calls == ["start empty", "close"]
    assert len(files.names(str(tmp_path))) == 1


def test_a_share_that_is_refused_is_done_without(host: Host, tmp_path: Path) -> None:
    host.plugs = False
    share = Share()
    _make(tmp_path, share)
    assert host.seen == [[]]
    assert share.calls[-1] == "close"


def test_a_share_that_does_not_start_makes_no_template(host: Host, tmp_path: Path) -> None:
    share = Share(fails=True)
    with pytest.raises(HostError, match="no virtiofsd"):
        _make(tmp_path, share)
    assert share.calls[-1] == "close"
    assert host.vms == []
    assert files.names(str(tmp_path)) == []
