"""Network namespaces: working inside one, and making named ones, ``<state root>/netns/<name>``.

A named namespace lives as long as its file, whatever becomes of the process that made it; that is what the clean-up
after a crash needs, for the CNI plugins take back what they gave inside the namespace.
"""

from __future__ import annotations

import contextlib
import errno
import os
from collections.abc import Callable
from typing import TypeVar

from hako import ids, paths, store
from hako.errors import ExistsError, HostError, NotFoundError
from hako.linux import rtnetlink, syscalls
from hako.linux.netlink import Netlink
from hako.threads import in_thread_of_its_own

T = TypeVar("T")

_OWN = "/proc/thread-self/ns/net"


def directory() -> str:
    """Where the named namespaces are."""
    return os.path.join(paths.state_root(), "netns")


def path_of(name: str) -> str:
    """The file of the namespace ``name``."""
    return os.path.join(directory(), ids.check(name, "The name of the network namespace"))


def inside(namespace: int, work: Callable[[], T]) -> T:
    """Call ``work`` in a thread that is in the namespace of the descriptor ``namespace``; return what it returns.

    The calling thread stays where it is, so this is safe in an asyncio program too, which it holds up meanwhile.
    What ``work`` opens (sockets, /dev/net/tun) belongs to the namespace for good, so ``work`` should do no more
    than that: in particular start no process.
    """

    def enter_and_work() -> T:
        syscalls.setns(namespace, syscalls.CLONE_NEWNET)
        return work()

    return in_thread_of_its_own(enter_and_work)


def open_namespace(path: str) -> int:
    """A descriptor of the network namespace at ``path``, such as ``/proc/123/ns/net`` or one's own.

    Raises NotFoundError when there is nothing, HostError when it is no network namespace.
    """
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError as error:
        raise NotFoundError(f"The network namespace {path} does not exist.") from error
    except OSError as error:
        raise HostError(f"Cannot open the network namespace {path}: {error.strerror}.") from error
    try:
        inside(fd, lambda: None)
    except OSError as error:
        os.close(fd)
        hint = "It is no network namespace" if error.errno == errno.EINVAL else error.strerror
        raise HostError(f"Cannot use the network namespace {path}: {hint}.") from error
    return fd


def is_hosts(namespace: int) -> bool:
    """Whether ``namespace`` is the one that this process or the host's first process is in."""
    found = os.fstat(namespace)
    for process in ("self", "1"):
        with contextlib.suppress(OSError):  # the first process may be closed even to root
            other = os.stat(f"/proc/{process}/ns/net")
            if (found.st_dev, found.st_ino) == (other.st_dev, other.st_ino):
                return True
    return False


def open_socket(namespace: int, groups: int = 0) -> Netlink:
    """A routing socket in ``namespace``."""
    return inside(namespace, lambda: Netlink(groups))


def create(name: str) -> str:
    """Make the namespace ``name`` with its loopback up and return its file.

    Call it where the mount shall be seen: on the host, not in a mount namespace of one's own. Raises ExistsError, or
    HostError when the kernel refuses.
    """
    store.ensure_dir(directory(), 0o700)
    path = path_of(name)
    try:
        os.close(os.open(path, os.O_RDONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o444))
    except FileExistsError as error:
        raise ExistsError(f"The network namespace {name} exists already.") from error
    except OSError as error:
        raise HostError(f"Cannot create {path}: {error.strerror}.") from error
    try:
        in_thread_of_its_own(lambda: _make(path))
    except BaseException as error:
        remove(name)
        if isinstance(error, OSError):
            raise HostError(f"Cannot make a network namespace: {error.strerror}.") from error
        raise
    return path


def _make(path: str) -> None:
    _new().close()
    syscalls.mount(_OWN, path, flags=syscalls.MS_BIND)


def create_unnamed(prepare: Callable[[Netlink], None]) -> int:
    """The descriptor of a new namespace that ends with it; ``prepare`` makes in it what is needed. Raises HostError."""

    def make() -> int:
        with _new() as kernel:
            prepare(kernel)
        return os.open(_OWN, os.O_RDONLY | os.O_CLOEXEC)

    try:
        return in_thread_of_its_own(make)
    except OSError as error:
        raise HostError(f"Cannot make a network namespace: {error.strerror}.") from error


def _new() -> Netlink:
    """Move the calling thread into a new namespace whose loopback is up."""
    syscalls.unshare(syscalls.CLONE_NEWNET)
    kernel = Netlink()
    try:
        rtnetlink.set_link(kernel, rtnetlink.find_link(kernel, "lo").index, up=True)
    except BaseException:
        kernel.close()
        raise
    return kernel


def remove(name: str) -> None:
    """Remove the namespace ``name``; none is fine. It goes with all that is in it once nobody else uses it.

    Also works in another mount namespace than the one it was made in: to remove the file unmounts it everywhere.
    """
    path = path_of(name)
    with contextlib.suppress(OSError):
        syscalls.umount(path, syscalls.MNT_DETACH)
    try:
        os.unlink(path)
    except FileNotFoundError:
        return
    except OSError as error:
        raise HostError(f"Cannot remove the network namespace {path}: {error.strerror}.") from error


def names() -> list[str]:
    """The namespaces that exist."""
    try:
        return sorted(name for name in os.listdir(directory()) if ids.is_valid(name))
    except FileNotFoundError:
        return []
