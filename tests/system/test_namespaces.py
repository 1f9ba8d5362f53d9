"""Network namespaces: their names, and working inside them."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable

import pytest

from hako.errors import ExistsError, HostError, NotFoundError
from hako.linux import rtnetlink, syscalls
from hako.linux.netlink import Netlink
from hako.network import namespace as namespaces
from hako.network.api import Network
from support.netns import ip, links, namespace, on_a_host_of_its_own, opened, until, veth, write

pytestmark = pytest.mark.system


def test_named_namespaces() -> None:
    def body() -> None:
        path = namespaces.create("one")
        assert namespaces.names() == ["one"]
        assert ip("link", inside=path)[0]["flags"] == ["LOOPBACK", "UP", "LOWER_UP"]
        with pytest.raises(ExistsError, match="The network namespace one exists already"):
            namespaces.create("one")
        with pytest.raises(NotFoundError, match="does not exist"):
            namespaces.open_namespace(namespaces.path_of("two"))
        write(namespaces.path_of("file"), "")
        with pytest.raises(HostError, match="It is no network namespace"):
            Network.open(namespaces.path_of("file"))
        namespaces.remove("file")

        # Another mount namespace, such as a sandbox process's, holds a copy of the mount; the other end of the veth
        # shows whether the namespace lives.
        veth("h0", "eth0", path)
        pid, done = _in_a_copy_of_the_mounts(lambda: namespaces.remove("one"))
        assert done == 0
        assert not namespaces.names()
        until(lambda: links() == ["lo"])
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
        namespaces.remove("one")

    on_a_host_of_its_own(body)


def _in_a_copy_of_the_mounts(work: Callable[[], None]) -> tuple[int, int]:
    """Call ``work`` in a process with mounts of its own that goes on living; its pid, and 0 if it worked."""
    ready, told = os.pipe()
    pid = os.fork()
    if pid == 0:
        syscalls.unshare(syscalls.CLONE_NEWNS)
        try:
            work()
            os.write(told, b"\0")
        except BaseException:
            os.write(told, b"\1")
        signal.pause()
    status = os.read(ready, 1)[0]
    os.close(ready)
    os.close(told)
    return pid, status


def test_working_inside_leaves_the_caller_where_it_is() -> None:
    def body() -> None:
        def own() -> int:
            return os.stat("/proc/thread-self/ns/net").st_ino

        def fail() -> None:
            raise ValueError("from inside")

        with namespace("one") as path, opened(path) as fd:
            before = own()
            assert namespaces.inside(fd, own) == os.stat(path).st_ino != before
            assert own() == before
            with pytest.raises(ValueError, match="from inside"):
                namespaces.inside(fd, fail)
            with namespaces.inside(fd, Netlink) as kernel:
                assert [link.name for link in rtnetlink.links(kernel)] == ["lo"]
                with pytest.raises(OSError, match="No such device") as caught:
                    rtnetlink.find_link(kernel, "none")
                assert caught.value.filename == "none"

    on_a_host_of_its_own(body)
