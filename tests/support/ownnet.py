"""Networks of hako's own on a host of the test's own, on which nothing of them may be left."""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

from conftest import Roots
from hako.network import cni, cniconfig
from support import leaks
from support.netns import links, on_a_host_of_its_own, run, until

#: The bridge's address, and what all addresses of its network begin with.
GATEWAY, NETWORK = "10.87.0.1", "10.87."


def rules() -> list[str]:
    """The packet filter's rules that belong to a container."""
    found = [*run("iptables", "-S").splitlines(), *run("iptables", "-t", "nat", "-S").splitlines()]
    return [line for line in found if NETWORK in line or "CNI-DN-" in line]


def left(roots: Roots) -> list[str]:
    """What is on the host of networks and sandboxes."""
    found = [f"process {pid}: {command}" for pid, command in leaks.processes(roots.base).items()]
    found += [f"note of {name}" for name in cni.connected()]
    found += [f"link {name}" for name in links() if name not in ("lo", "h0", "h1", cniconfig.BRIDGE)]
    found += [f"rule {line}" for line in rules()]
    addresses = os.path.join(cniconfig.state_dir(), "networks", cniconfig.BUILT_IN)
    names = os.listdir(addresses) if os.path.isdir(addresses) else []
    found += [f"address {name}" for name in names if name[0].isdigit()]
    found += [f"file {path}" for path in leaks.files(roots.state)]
    return found + [f"file {path}" for path in leaks.files(os.path.join(roots.data, "sandboxes"))]


@contextlib.contextmanager
def nothing_left(roots: Roots) -> Iterator[None]:
    """At the end of the block nothing is left, or it goes within seconds: guardians clean up on their own."""
    try:
        yield
        with contextlib.suppress(AssertionError):
            until(lambda: not left(roots))
        assert left(roots) == []
    finally:
        for path in (cniconfig.state_dir(), cniconfig.directory()):
            shutil.rmtree(path, ignore_errors=True)


def on_own_host(roots: Roots, config: Path, body: Callable[[], None]) -> None:
    """Call ``body`` on a host of its own, with the empty configuration file ``config``, where `bridge` is the default.

    The host has the address 10.99.0.1, too.
    """

    def whole() -> None:
        config.touch()
        os.environ["HAKO_CONFIG"] = str(config)
        run("ip", "link", "add", "h0", "type", "veth", "peer", "name", "h1")
        run("ip", "addr", "add", "10.99.0.1/24", "dev", "h0")
        for name in ("h0", "h1"):
            run("ip", "link", "set", name, "up")
        with nothing_left(roots):
            body()

    on_a_host_of_its_own(whole)
