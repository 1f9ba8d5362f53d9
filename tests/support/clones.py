"""Many VMs at once, and what is seen of their template from outside."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import subprocess
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

from hako import paths

_T = TypeVar("_T")
_R = TypeVar("_R")

#: 9p maps the template's memory privately, virtiofs copies it.
DRIVERS = ("9p", "virtiofs")

_PYTHON = os.path.realpath("/usr/bin/python3")


def with_driver(driver: str) -> list[str]:
    """Options of ``hako run`` for a share driver."""
    return ["--annotation", f"dev.hako.share-driver={driver}"]


def python(code: str) -> tuple[list[str], list[str]]:
    """Options and command of ``hako run`` for ``code`` run by the host's Python, of the standard library's C part."""
    loader = os.path.realpath("/lib64/ld-linux-x86-64.so.2")
    command = [loader, "--library-path", os.path.dirname(loader), _PYTHON, "-IS", "-u", "-c", code]
    return ["-v", "/usr:/usr:ro"], command


@contextlib.contextmanager
def alive(argv: list[list[str]]) -> Iterator[list[subprocess.Popen[str]]]:
    """All these commands, running at once with pipes; they are killed at the end if they still run."""
    with contextlib.ExitStack() as stack:
        found = []
        for one in argv:
            child = subprocess.Popen(
                one, text=True, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE
            )
            stack.enter_context(child)
            stack.callback(child.kill)
            found.append(child)
        yield found


def each(items: list[_T], work: Callable[[_T], _R], at_once: int = 10) -> list[_R]:
    """``work`` for each of ``items``, some at once; the first failure is raised."""
    with ThreadPoolExecutor(at_once) as pool:
        return list(pool.map(work, items))


def checksum(key: str, state: str = "") -> str:
    """Digest of the memory that the keeper of template ``key`` holds; ``state`` is where keepers are recorded."""
    with open(os.path.join(state or paths.state_root(), "templates", f"{key}.json"), encoding="ascii") as file:
        pid = int(json.load(file)["pid"])
    digest = hashlib.sha256()
    with open(f"/proc/{pid}/fd/3", "rb") as memory:
        assert f"hako-template-{key}" in os.readlink(f"/proc/{pid}/fd/3")
        while block := memory.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def footprint(pids: list[int]) -> int:
    """Bytes of the host's memory that these processes have: their own, and their shares of what others have too."""
    total = 0
    for pid in pids:
        with open(f"/proc/{pid}/smaps_rollup", encoding="ascii") as file:
            total += sum(int(line.split()[1]) << 10 for line in file if line.startswith("Pss:"))
    return total


def until(condition: Callable[[], object], seconds: float = 60.0) -> bool:
    """Wait for ``condition()`` to be true, and tell whether it came to be."""
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.1)
    return True
