"""A host of a test's own: a process in network and mount namespaces of which nothing reaches the machine's."""

from __future__ import annotations

import contextlib
import json
import os
import select
import socket
import struct
import subprocess
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from typing import Any

from hako.linux import rtnetlink, syscalls
from hako.linux.netlink import Netlink
from hako.network import namespace as namespaces
from hako.network.tap import Tap

#: The addresses of the test's host and of the namespace it is connected with.
HOST, BOX = "10.9.0.1", "10.9.0.2"
HOST6, BOX6 = "fd09::1", "fd09::2"


def on_a_host_of_its_own(body: Callable[[], None]) -> None:
    """Run ``body`` in a child process that has a network of its own; what it mounts goes with it."""
    pid = os.fork()
    if pid == 0:
        status = 1
        try:
            syscalls.unshare(syscalls.CLONE_NEWNET | syscalls.CLONE_NEWNS)
            syscalls.mount("", "/", flags=syscalls.MS_PRIVATE | syscalls.MS_REC)
            run("ip", "link", "set", "lo", "up")
            body()
            status = 0
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(status)
    assert os.waitpid(pid, 0)[1] == 0, "it failed in the child; see standard error"


def run(*argv: str, inside: str = "") -> str:
    """What a program says; ``inside`` is the file of the network namespace to run it in."""
    command = ["nsenter", f"--net={inside}", *argv] if inside else list(argv)
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, f"{command}: {done.stderr}"
    return done.stdout


def ip(*arguments: str, inside: str = "") -> Any:
    """The answer of ``ip`` as JSON."""
    return json.loads(run("ip", "-j", *arguments, inside=inside) or "[]")


def tc(*arguments: str, inside: str = "") -> Any:
    """The answer of ``tc`` as JSON."""
    return json.loads(run("tc", "-j", *arguments, inside=inside) or "[]")


@contextlib.contextmanager
def namespace(name: str) -> Iterator[str]:
    """A network namespace for the time of the block; its file."""
    path = namespaces.create(name)
    try:
        yield path
    finally:
        namespaces.remove(name)


@contextlib.contextmanager
def opened(path: str) -> Iterator[int]:
    """The descriptor of a network namespace for the time of the block."""
    fd = namespaces.open_namespace(path)
    try:
        yield fd
    finally:
        os.close(fd)


def veth(name: str, other: str, path: str) -> None:
    """Make a pair of interfaces: ``name`` here, ``other`` in the namespace of the file ``path``; both are up."""
    with opened(path) as fd:
        with Netlink() as kernel:
            rtnetlink.add_link(kernel, name, "veth", peer=f"{name}-peer")
            rtnetlink.set_link(kernel, rtnetlink.find_link(kernel, f"{name}-peer").index, namespace=fd)
            rtnetlink.set_link(kernel, rtnetlink.find_link(kernel, name).index, up=True)
        with namespaces.open_socket(fd) as kernel:
            index = rtnetlink.find_link(kernel, f"{name}-peer").index
            rtnetlink.set_link(kernel, index, name=other)
            rtnetlink.set_link(kernel, index, up=True)


@contextlib.contextmanager
def connected(name: str = "box") -> Iterator[str]:
    """A namespace as engines make them: ``eth0`` with addresses and default routes through this host's ``h0``."""
    with namespace(name) as path:
        veth("h0", "eth0", path)
        for address in (f"{HOST}/24", f"{HOST6}/64"):
            run("ip", "addr", "add", address, "dev", "h0", *(["nodad"] if ":" in address else []))
        run("ip", "addr", "add", f"{BOX}/24", "brd", "+", "dev", "eth0", inside=path)
        run("ip", "addr", "add", f"{BOX6}/64", "dev", "eth0", "nodad", inside=path)
        run("ip", "route", "add", "default", "via", HOST, inside=path)
        run("ip", "route", "add", "default", "via", HOST6, inside=path)
        yield path


def links(path: str = "") -> list[str]:
    """The names of the links here or in the namespace of that file."""
    return [entry["ifname"] for entry in ip("link", inside=path)]


def pings(address: str) -> bool:
    """Whether ``address`` answers an ICMP echo request within two seconds."""
    with socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_ICMP) as raw:
        body = struct.pack("!BBHHH", 8, 0, 0, 77, 1)
        checksum = 0xFFFF - sum(struct.unpack("!4H", body))
        raw.settimeout(2)
        raw.sendto(body[:2] + struct.pack("!H", checksum) + body[4:], (address, 0))
        with contextlib.suppress(TimeoutError):
            while True:
                answer, sender = raw.recvfrom(1500)
                if sender[0] == address and answer[20] == 0:
                    return True
        return False


def until(condition: Callable[[], bool]) -> None:
    """Wait for the kernel, which takes namespaces apart in the background."""
    deadline = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def write(path: str, text: str) -> None:
    """Write a file of /proc, or an ordinary one."""
    with open(path, "w", encoding="ascii") as file:
        file.write(text)


class Cable:
    """Stands for QEMU: carries frames between a VM's tap and a tap in another namespace, the guest's NIC."""

    def __init__(self, host: Tap, guest: Tap) -> None:
        self.longest = 0  #: bytes of the longest frame so far, with its header
        self._ends = {host.fds[0]: guest.fds[0], guest.fds[0]: host.fds[0]}
        self._stop_read, self._stop_write = os.pipe()
        for tap in (host, guest):
            tap.set_offloads()
        self._thread = threading.Thread(target=self._carry)
        self._thread.start()

    def _carry(self) -> None:
        poll = select.poll()
        for fd in (*self._ends, self._stop_read):
            poll.register(fd, select.POLLIN)
        while True:
            for fd, _ in poll.poll():
                if fd == self._stop_read:
                    return
                with contextlib.suppress(BlockingIOError, OSError):
                    frame = os.read(fd, 1 << 17)
                    self.longest = max(self.longest, len(frame))
                    os.write(self._ends[fd], frame)

    def close(self) -> None:
        """Pull the cable."""
        os.write(self._stop_write, b"x")
        self._thread.join()
        os.close(self._stop_read)
        os.close(self._stop_write)


@contextlib.contextmanager
def cable(host: Tap, guest: Tap) -> Iterator[Cable]:
    """A cable for the time of the block."""
    made = Cable(host, guest)
    try:
        yield made
    finally:
        made.close()
