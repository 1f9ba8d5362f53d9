"""What a guest has used and freed, the host gets back; the template is none the worse for it."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

import hako
from hako.template import keeper
from support import clones

pytestmark = [pytest.mark.system, pytest.mark.slow, pytest.mark.usefixtures("guest_image", "busybox_image")]

_USED = 400 << 20
_FILL = (
    "yes | head -c 16m > /fill/pattern; for n in $(seq 1 24); do cat /fill/pattern; done > /fill/rest; "
    "du -sm /fill | cut -f1"
)


@pytest.fixture(params=clones.DRIVERS)
def sandbox(request: pytest.FixtureRequest) -> Iterator[hako.Sandbox]:
    with hako.Sandbox(image="busybox", annotations={"dev.hako.share-driver": request.param}) as started:
        started.wait_ready()
        yield started


def test_freed_memory_goes_back_to_the_host(sandbox: hako.Sandbox) -> None:
    info = sandbox.wait_ready()
    key = info["template"]
    before, holder = clones.checksum(key), keeper.pid_of(key)
    container = sandbox.create(["sleep", "1000"], tmpfs=["/fill:size=90%"])
    vm = [sandbox.state["vm_pid"]]
    idle = clones.footprint(vm)
    assert int(container.run(["sh", "-c", _FILL]).stdout) == _USED >> 20
    used = clones.footprint(vm)
    assert used - idle > _USED * 9 // 10
    container.run(["sh", "-c", "rm /fill/*"])
    # Not all of it: the guest reports whole blocks of 2 MiB, and a private view of the template keeps what it took.
    most = _USED * 11 // 20
    assert clones.until(lambda: used - clones.footprint(vm) > most, 30), (idle, used, clones.footprint(vm))
    # It can be used once more.
    assert int(container.run(["sh", "-c", _FILL]).stdout) == _USED >> 20
    assert clones.footprint(vm) - idle > _USED * 9 // 10
    container.delete(force=True)
    assert clones.checksum(key) == before
    assert keeper.pid_of(key) == holder


def test_memory_that_is_taken_away_goes_back_to_the_host(sandbox: hako.Sandbox) -> None:
    container = sandbox.create(["sleep", "1000"], tmpfs=["/fill:size=900m"])
    container.update(memory="1g")
    vm = [sandbox.state["vm_pid"]]
    assert int(container.run(["sh", "-c", f"{_FILL}; cat /fill/rest > /fill/more"]).stdout) == _USED >> 20
    used = clones.footprint(vm)
    assert used > 700 << 20
    container.run(["sh", "-c", "rm /fill/*"])
    container.update(memory="64m")
    assert clones.until(lambda: clones.footprint(vm) < used - (300 << 20), 30)
    assert container.run(["echo", "fine"]).stdout == "fine\n"
