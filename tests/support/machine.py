"""A machine of its own for a daemon that is tested, as far as a daemon can change one.

It has a network namespace, so that its bridges, addresses and firewall rules are nobody else's, and a mount namespace,
in which /run/netns, /run/containerd and CNI's records are empty. Processes and cgroups are the machine's, as they are
for a daemon that is installed.
"""

from __future__ import annotations

import contextlib
import glob
import json
import os
import re
import shlex
import signal
import subprocess
import time
from collections.abc import Callable
from typing import NamedTuple, TypeVar

PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
# What engines keep outside the directories that they are given.
_FRESH = ("/run/netns", "/run/containerd", "/var/lib/cni")
_HOLD = """\
mount --make-rshared / && ip link set lo up || exit
for directory; do mkdir -p "$directory" && mount -t tmpfs none "$directory" || exit; done
echo ready
read -r line
"""

_T = TypeVar("_T")


def until(condition: Callable[[], _T], what: str, seconds: float = 60) -> _T:
    """Wait until ``condition()`` is true, and return its answer. Fails with ``what`` when that takes too long."""
    deadline = time.monotonic() + seconds
    while not (found := condition()):
        assert time.monotonic() < deadline, f"not after {seconds:.0f} s: {what}"
        time.sleep(0.05)
    return found


class Done(NamedTuple):
    """How a command ended."""

    status: int
    stdout: str
    stderr: str


class Machine:
    """The namespaces that an engine lives in, and a directory for it; they last until ``close``."""

    def __init__(self, base: str) -> None:
        self.base = base
        os.makedirs(base)
        argv = ["unshare", "--mount", "--net", "--propagation", "private", "--", "sh", "-c", _HOLD, base, *_FRESH]
        self._holder = subprocess.Popen(
            argv, env=self.environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        assert self._holder.stdout is not None
        assert self._holder.stdout.readline() == "ready\n", "no namespaces for an engine"
        self._mounts = set(self._mount_points())

    @property
    def environment(self) -> dict[str, str]:
        """What an engine's programs get: nothing of the tests' own variables."""
        return {"PATH": PATH, "HOME": self.base, "TERM": "xterm"}

    def inside(self, *argv: str) -> list[str]:
        """``argv``, to be run in these namespaces."""
        return ["nsenter", f"--target={self._holder.pid}", "--mount", "--net", "--", *argv]

    def run(self, argv: list[str], *, input: bytes = b"", timeout: float = 60, check: bool = True) -> Done:
        """Run ``argv`` to its end. With ``check``, its failure fails the test and shows what it said."""
        done = subprocess.run(
            argv, env=self.environment, input=input, capture_output=True, timeout=timeout, check=False
        )  # fmt: skip
        stdout, stderr = (data.decode(errors="replace") for data in (done.stdout, done.stderr))
        assert not check or done.returncode == 0, f"{argv} ended with {done.returncode}: {stdout}{stderr}"
        return Done(done.returncode, stdout, stderr)

    def output(self, *argv: str, timeout: float = 60) -> str:
        """What a program says in these namespaces. Fails when the program does."""
        return self.run(self.inside(*argv), timeout=timeout).stdout

    def leftovers(self, seconds: float = 15) -> list[str]:
        """What is here beyond what was at the beginning, once it has had ``seconds`` to go."""
        deadline = time.monotonic() + seconds
        while (found := self._find()) and time.monotonic() < deadline:
            time.sleep(0.1)
        return found

    def _find(self) -> list[str]:
        found = [f"process {pid}: {command}" for pid, command in self.processes().items()]
        found += [f"mount {point}" for point in self.mounts()]
        found += [f"namespace {name}" for name in self.output("ls", "/run/netns").split()]
        found += [f"socket {path}" for path in self.sockets()]
        links = [entry["ifname"] for entry in json.loads(self.output("ip", "-j", "link"))]
        return found + [f"link {link}" for link in links if link.startswith(("veth", "tap"))]

    def processes(self) -> dict[int, str]:
        """The processes in these namespaces, besides the one that holds them, with their command lines."""
        mine = [(kind, os.readlink(f"/proc/{self._holder.pid}/ns/{kind}")) for kind in ("mnt", "net")]
        found = {}
        for name in filter(str.isdigit, os.listdir("/proc")):
            with contextlib.suppress(OSError):  # it has ended
                if int(name) != self._holder.pid and any(os.readlink(f"/proc/{name}/ns/{k}") == ns for k, ns in mine):
                    with open(f"/proc/{name}/cmdline", encoding="utf-8", errors="replace") as file:
                        found[int(name)] = file.read().replace("\0", " ").strip()
        return found

    def sockets(self) -> list[str]:
        """The sockets of shims, as paths in these namespaces."""
        return self.output("find", "/run/containerd", "-type", "s").split()

    def mounts(self) -> list[str]:
        """The mount points that have come since the beginning."""
        return [point for point in self._mount_points() if point not in self._mounts]

    def _mount_points(self) -> list[str]:
        with open(f"/proc/{self._holder.pid}/mountinfo", encoding="utf-8") as file:
            return [line.split()[4] for line in file]

    def close(self) -> None:
        """Give the namespaces back, and end what is still in them."""
        for pid in self.processes():
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        assert self._holder.stdout is not None
        self._holder.stdout.close()
        self._holder.communicate(timeout=10)


def remove_cgroups(name: str, own: str = "(?!)") -> list[str]:
    """Remove the cgroups below all that are called ``name``, and these.

    Returns which of them were containers': not ``name`` itself, and nothing whose name is ``own``, an expression.
    """
    found = []
    for root in glob.glob(f"/sys/fs/cgroup/**/{name}/", recursive=True):
        for folder, _, _ in os.walk(root, topdown=False):
            if folder != root and not re.fullmatch(own, os.path.basename(folder)):
                found.append(f"cgroup {folder}")
            with contextlib.suppress(OSError):  # something is in it, which has been told
                os.rmdir(folder)
    return found


def write_launcher(path: str, command: str, variables: dict[str, str]) -> None:
    """Write a program that runs ``command`` with ``variables``; monitors pass on little of their own environment."""
    words = [f"{name}={value}" for name, value in variables.items()]
    with open(path, "w", encoding="utf-8") as file:
        file.write(f'#!/bin/sh\nexec env {shlex.join([*words, command])} "$@"\n')
        os.fchmod(file.fileno(), 0o755)
