"""Fixtures for scenarios under real containerds: each runs with runc, which shows what users expect, and with hako."""

from __future__ import annotations

import os
from collections.abc import Generator, Iterator

import pytest

from conftest import Roots
from hako.ociimage.index import Image
from support import leaks
from support.containerd import Containerd
from support.ctr import Ctr
from support.machine import until

# containerd has its files beside the roots of this run, not below: other tests make sure that nothing runs there.


@pytest.fixture(scope="session")
def old(roots: Roots, busybox_image: Image) -> Iterator[Containerd]:
    """This Debian's containerd."""
    with Containerd(f"{roots.base}-old", busybox_image, "old") as containerd:
        yield containerd


@pytest.fixture(scope="session")
def new(roots: Roots, busybox_image: Image) -> Iterator[Containerd]:
    """A newer containerd."""
    with Containerd(f"{roots.base}-new", busybox_image, "new") as containerd:
        yield containerd


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item, call: pytest.CallInfo[None]
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Add the end of containerd's log to the report of a test that fails."""
    report = yield
    used = getattr(item, "funcargs", {}).get("ctr")
    if report.failed and isinstance(used, Ctr):
        report.sections.append(("containerd", used.containerd.log()))
    return report


@pytest.fixture(params=["old-runc", "old-hako", "new-runc", "new-hako"])
def ctr(request: pytest.FixtureRequest, roots: Roots) -> Iterator[Ctr]:
    """A containerd with a runtime; the test starts and ends without a container."""
    version, runtime = request.param.split("-")
    if runtime == "hako":
        request.getfixturevalue("guest_image")
    containerd: Containerd = request.getfixturevalue(version)
    before = _files(roots)
    ctr = Ctr(containerd, runtime)
    yield ctr
    ctr.clear()
    until(lambda: not ctr.shims(), "the shims have ended", 15)
    assert leaks.wait_gone(roots.base, 10) == {}
    assert leaks.mounts(roots.base) == []
    assert containerd.machine.mounts() == []
    sockets = containerd.machine.sockets()
    if runtime == "runc" and sockets:  # its shim can lose its own when it is killed
        containerd.machine.output("rm", *sockets)
        sockets = []
    assert sockets == []
    assert _files(roots) - before == set()


def _files(roots: Roots) -> set[str]:
    return {*leaks.files(roots.state), *leaks.files(os.path.join(roots.data, "sandboxes"))}
