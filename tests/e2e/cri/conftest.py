"""Fixtures for pods under containerd: each scenario runs with runc, which shows what users expect, and with hako."""

from __future__ import annotations

import os
from collections.abc import Generator, Iterator

import pytest

from conftest import Roots
from hako.ociimage.index import Image
from support import leaks
from support.containerd import Containerd
from support.pods import Ctr, Node, Pod


@pytest.fixture(scope="session")
def node(roots: Roots, busybox_image: Image) -> Iterator[Node]:
    """A containerd of this test process, and what a kubelet has beside it."""
    # Beside the roots of this run, not below: other tests make sure that nothing runs there.
    with Containerd(f"{roots.base}-cri", busybox_image, cri=True) as containerd, Node(containerd) as made:
        yield made


@pytest.fixture(autouse=True)
def log_in_failures(node: Node) -> Node:
    """Has the end of containerd's log in the report of a test that fails."""
    return node


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item, call: pytest.CallInfo[None]
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Add that log."""
    report = yield
    found = getattr(item, "funcargs", {}).get("log_in_failures")
    if report.failed and isinstance(found, Node):
        report.sections.append(("containerd", found.containerd.log()))
    return report


@pytest.fixture(scope="module", params=["runc", "hako"])
def handler(request: pytest.FixtureRequest, roots: Roots, node: Node) -> Iterator[str]:
    """The runtime handler of a file's pods. At its end nothing is left of them."""
    if request.param == "hako":
        request.getfixturevalue("guest_image")
    before = _files(roots)
    yield request.param
    assert node.clear() == []
    assert node.cri.pods() == []
    assert node.cri.containers() == []
    assert leaks.wait_gone(roots.base, 10) == {}
    assert leaks.mounts(roots.base) == []
    assert _files(roots) - before == set()


@pytest.fixture(scope="module")
def pod(node: Node, handler: str) -> Iterator[Pod]:
    """A pod for all scenarios of a file that need nothing special."""
    with node.pod(handler, "shared") as made:
        yield made


@pytest.fixture(scope="module")
def container(pod: Pod) -> Ctr:
    """A container of that pod that stays."""
    return pod.start("main")


def _files(roots: Roots) -> set[str]:
    return {*leaks.files(roots.state), *leaks.files(os.path.join(roots.data, "sandboxes"))}
