"""Templates that no VM stands behind: files and memory are real, the guest is a pattern."""

from __future__ import annotations

import contextlib
import hashlib
import os
from collections.abc import Iterator
from typing import Any

from hako.hypervisor.base import VmSpec
from hako.template import files, identity, memory
from hako.template.build import Recipe

MEMORY = 4 << 20

SPEC = VmSpec("pod1", "/images/vmlinux", "/images/initrd", "quiet", MEMORY, sharing="private")


def recipe(timeout: float = 20.0, **changes: Any) -> Recipe:
    """The recipe of a VM; ``changes`` to its identity make it another one."""
    what = {"format": 1, "hako": "1", "protocol": 1, "qemu": ["/qemu", 1, 1], "memory": MEMORY, "image": "a"}
    return Recipe(SPEC, what | changes, "root", "", timeout)


@contextlib.contextmanager
def guest(seed: int = 0, used: int = 1 << 20) -> Iterator[tuple[int, int]]:
    """What a frozen VM leaves, of which ``used`` bytes are used: memory and state, two descriptors."""
    with contextlib.ExitStack() as stack:
        fds = []
        for name, size in (("memory", MEMORY), ("state", 0)):
            fds.append(memory.new(name, size))
            stack.callback(os.close, fds[-1])
        block = hashlib.sha256(b"%d" % seed).digest() * (memory.PAGE // 32)
        for offset in range(0, used, memory.PAGE):
            os.pwrite(fds[0], block, offset * 2)
        os.write(fds[1], b"state %d " % seed * 1000)
        yield fds[0], fds[1]


def publish(root: str, seed: int = 0, used: int = 1 << 20, **changes: Any) -> files.Template:
    """A template on disk below ``root``."""
    what = recipe(**changes).identity
    with guest(seed, used) as (memory_fd, state_fd):
        return files.publish(root, identity.key(what), what, memory_fd, state_fd)


def damages() -> dict[str, Any]:
    """Ways to spoil a template, by name: functions of its directory."""

    def cut(name: str) -> Any:
        return lambda path: os.truncate(os.path.join(path, name), os.path.getsize(os.path.join(path, name)) // 2)

    def flip(name: str) -> Any:
        def change(path: str) -> None:
            with open(os.path.join(path, name), "r+b") as file:
                file.seek(os.path.getsize(file.name) // 2)
                byte = file.read(1)
                file.seek(-1, os.SEEK_CUR)
                file.write(bytes([byte[0] ^ 4]))

        return change

    def lose(name: str) -> Any:
        return lambda path: os.unlink(os.path.join(path, name))

    kinds = {"cut": cut, "flip": flip, "lose": lose}
    names = ("memory", "state", "manifest.json")
    return {f"{kind}-{name}": make(name) for kind, make in kinds.items() for name in names}
