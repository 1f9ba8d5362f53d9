"""Fixtures for scenarios under real engines: each scenario runs with runc, which shows what users expect, and hako."""

from __future__ import annotations

import os
import subprocess
import sys
import sysconfig
from collections.abc import Iterator

import pytest

from conftest import CLONE, Roots
from hako.ociimage.index import Image
from support import leaks
from support.engines import Box, Docker, Engine, Podman
from support.machine import write_launcher


@pytest.fixture(scope="session")
def runtimes(roots: Roots) -> dict[str, str]:
    """The commands of the runtimes by name: Debian's runc, and this clone's ``hako-runtime``."""
    command = os.path.join(roots.base, "bin", "hako-runtime")
    for_engines = os.path.join(roots.base, "bin", "engines", "hako-runtime")
    os.makedirs(os.path.dirname(for_engines))
    python = os.path.realpath(sys.executable)  # past the virtual environment's link
    directories = [os.path.join(CLONE, "src"), sysconfig.get_path("purelib")]
    launcher = os.path.join(CLONE, "scripts", "launcher.py")
    subprocess.run([python, launcher, command, python, "hako.runtime.main:command", *directories], check=True)
    variables = {"HAKO_STATE_ROOT": roots.state, "HAKO_DATA_ROOT": roots.data, "HAKO_CONFIG": roots.config}
    write_launcher(for_engines, command, variables)
    return {"runc": "/usr/sbin/runc", "hako": for_engines}


# Engines have their files beside the roots of this run, not below: other tests make sure that nothing runs there.


@pytest.fixture(scope="session")
def docker(roots: Roots, runtimes: dict[str, str], busybox_image: Image) -> Iterator[Engine]:
    """A dockerd of this test process."""
    with Docker(f"{roots.base}-docker", runtimes) as engine:
        engine.import_image(busybox_image.rootfs)
        yield engine
        leaks.stop_keepers()  # they keep templates for the next start, in the engine's namespaces


@pytest.fixture(scope="session")
def podman(roots: Roots, runtimes: dict[str, str], busybox_image: Image) -> Iterator[Engine]:
    """A podman of this test process."""
    with Podman(f"{roots.base}-podman", runtimes) as engine:
        engine.import_image(busybox_image.rootfs)
        yield engine
        leaks.stop_keepers()  # they keep templates for the next start, in the engine's namespaces


@pytest.fixture(params=["docker-runc", "docker-hako", "podman-runc", "podman-hako"])
def box(request: pytest.FixtureRequest, roots: Roots) -> Iterator[Box]:
    """An engine with a runtime; the test starts and ends without a container."""
    name, runtime = request.param.split("-")
    if runtime == "hako":
        request.getfixturevalue("guest_image")
    engine: Engine = request.getfixturevalue(name)
    before = _files(roots)
    yield Box(engine, runtime)
    engine.clear()
    assert leaks.wait_gone(roots.base, 10) == {}
    assert leaks.mounts(roots.base) == []
    assert _files(roots) - before == set()


def _files(roots: Roots) -> set[str]:
    return {*leaks.files(roots.state), *leaks.files(os.path.join(roots.data, "sandboxes"))}
