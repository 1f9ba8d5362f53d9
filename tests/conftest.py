"""Fixtures for all tests: directories of the run's own, this clone's commands, the guest image, a container image.

No test touches the machine's real /run/hako, /var/lib/hako or /etc/hako: every process of the tests has HAKO_*
variables that point into a directory of this run, and at the end it is an error if anything is left of it.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from typing import TYPE_CHECKING, NamedTuple, Protocol

import pytest

from support import leaks, settings

if TYPE_CHECKING:
    from hako.guestimage.api import GuestImage
    from hako.ociimage.index import Image

CLONE = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
_ORDER = ("repo", "unit", "contract", "system", "e2e", "perf")


class Roots(NamedTuple):
    """The directories of this test process."""

    base: str  #: everything below is in it
    state: str  #: $HAKO_STATE_ROOT
    data: str  #: $HAKO_DATA_ROOT
    config: str  #: $HAKO_CONFIG, an empty file


class RunHako(Protocol):
    """Runs the clone's ``hako`` with some arguments to its end."""

    def __call__(
        self, *args: str, input: str | None = None, timeout: float = 120, check: bool = True
    ) -> subprocess.CompletedProcess[str]: ...


def pytest_configure(config: pytest.Config) -> None:
    """Make the directory of the run. Workers of pytest-xdist get it from the process that starts them."""
    # A shell that starts the tests in the background has them ignore these, and so would all they start.
    for number in (signal.SIGINT, signal.SIGQUIT, signal.SIGHUP):
        if signal.getsignal(number) is signal.SIG_IGN:
            signal.signal(number, signal.SIG_DFL)
    if not hasattr(config, "workerinput"):
        os.environ["HAKO_TEST_ROOT"] = tempfile.mkdtemp(prefix="hako-test-", dir="/var/tmp")
        os.chmod(os.environ["HAKO_TEST_ROOT"], 0o755)  # QEMU's own user must get through


def pytest_unconfigure(config: pytest.Config) -> None:
    """Remove the directory of the run."""
    if not hasattr(config, "workerinput") and "HAKO_TEST_ROOT" in os.environ:
        leaks.clean(os.environ.pop("HAKO_TEST_ROOT"))


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Quick tests first: lint and unit, then those with virtual machines, which need root."""

    def order(item: pytest.Item) -> int:
        kind = item.path.relative_to(config.rootpath / "tests").parts[0]
        return _ORDER.index(kind) if kind in _ORDER else len(_ORDER)

    items.sort(key=order)
    if "soak" not in config.option.markexpr:
        items[:] = [item for item in items if not item.get_closest_marker("soak")]
    if os.geteuid() != 0:
        for item in items:
            if item.get_closest_marker("system") or item.get_closest_marker("e2e"):
                item.add_marker(pytest.mark.skip(reason="needs root"))


@pytest.fixture(scope="session", autouse=True)
def _no_mounts(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Fails the run when a test has left a mount in its temporary directory, which pytest could not remove then."""
    yield
    left = leaks.mounts(str(tmp_path_factory.getbasetemp()))
    for point in left:
        leaks.unmount(point)
    assert not left, "The tests left mounts behind:\n" + "\n".join(left)


@pytest.fixture(scope="session", autouse=True)
def roots() -> Iterator[Roots]:
    """The directories of this test process, in force for it and all it starts. Fails the run when something is left."""
    base = os.path.join(os.environ["HAKO_TEST_ROOT"], os.environ.get("PYTEST_XDIST_WORKER", "main"))
    made = Roots(base, os.path.join(base, "run"), os.path.join(base, "data"), os.path.join(base, "etc", "config.toml"))
    for directory in (made.state, made.data, os.path.dirname(made.config)):
        os.makedirs(directory)
    with open(made.config, "wb"):
        pass
    settings.without_network(os.path.dirname(made.config))
    # What takes long to make is kept from run to run and shared by the workers; everything else is each one's own.
    for name in ("guest-images", "cache"):
        shared = os.path.join(os.environ.get("HAKO_TEST_DATA") or os.path.join(CLONE, ".cache", "data"), name)
        os.makedirs(shared, exist_ok=True)
        os.symlink(shared, os.path.join(made.data, name))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HAKO_STATE_ROOT", made.state)
        patch.setenv("HAKO_DATA_ROOT", made.data)
        patch.setenv("HAKO_CONFIG", made.config)
        yield made
        # Templates are kept in memory for the next start, which there is none of any more.
        leaks.stop_keepers()
    left = _left_behind(made)
    leaks.clean(base)
    assert not left, "The tests left behind:\n" + "\n".join(left)


def _left_behind(made: Roots) -> list[str]:
    left = leaks.wait_gone(made.base, 5, keepers=True)
    found = [f"process {pid}: {command}" for pid, command in left.items()]
    found += [f"mount {point}" for point in leaks.mounts(made.base)]
    found += [f"file {path}" for path in leaks.files(made.state)]
    return found + [f"file {path}" for path in leaks.files(os.path.join(made.data, "sandboxes"))]


@pytest.fixture(scope="session")
def hako_cmd(roots: Roots) -> list[str]:
    """The start of a command line that runs this clone's ``hako`` in the way that the installed one runs."""
    command = os.path.join(roots.base, "bin", "hako")
    if not os.path.exists(command):
        os.makedirs(os.path.dirname(command), exist_ok=True)
        python = os.path.realpath(sys.executable)  # past the virtual environment's link
        directories = [os.path.join(CLONE, "src"), _site_packages()]
        launcher = os.path.join(CLONE, "scripts", "launcher.py")
        subprocess.run([python, launcher, command, python, "hako.cli.main:main", *directories], check=True)
    return [command]


def _site_packages() -> str:
    import sysconfig

    return sysconfig.get_path("purelib")


@pytest.fixture(scope="session")
def run_hako(hako_cmd: list[str]) -> RunHako:
    """Run this clone's ``hako`` and get its output as text; a failure shows what it said."""

    def run(
        *args: str, input: str | None = None, timeout: float = 120, check: bool = True
    ) -> subprocess.CompletedProcess[str]:
        done = subprocess.run(
            [*hako_cmd, *args], input=input, capture_output=True, text=True, timeout=timeout, check=False
        )
        if check and done.returncode != 0:
            pytest.fail(f"hako {' '.join(args)} ended with {done.returncode}:\n{done.stdout}{done.stderr}")
        return done

    return run


@pytest.fixture(scope="session")
def guest_image(roots: Roots) -> GuestImage:
    """The guest image that belongs to this clone's agent, built when there is none (a minute, then kept)."""
    from hako.guestimage import api

    return api.build(lambda line: print(line, file=sys.stderr))


@pytest.fixture(scope="session")
def busybox_image(roots: Roots) -> Image:
    """The container image ``busybox``, made from Debian's package."""
    from hako.ociimage.sample import make_sample

    return make_sample()
