"""What a container needs of the guest before crun can make it, all of which the VM keeps until it ends: modules and
parameters of the kernel, and memory file systems that several containers see.
"""

from __future__ import annotations

import os

from hako.agent import system
from hako.agent.loop import Loop
from hako.linux import syscalls
from hako.wire import calls

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

_MEMORY = "/run/hako/memory"
_PARAMETERS = "/proc/sys"
_NAME = frozenset("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_-")
_MAX_ENTRIES = 256
#: What the kernel itself calls for a module; a link to the host's, see guestimage/requested.py.
_MODPROBE = "/usr/sbin/modprobe"
_MAX_REQUESTS = 16
#: Modules that have been requested before.
_requested: set[str] = set()


def prepare(wanted: dict[str, Any]) -> None:
    """Make the guest ready for a container. Raises CallError.

    ``wanted`` has any of: ``modules``, kernel modules and whether the container is of no use without each; ``memory``,
    file systems below /run/hako/memory by name with their mount options, which are made where there are none yet;
    ``sysctls``, values by path below /proc/sys.
    """
    for name, needed in _entries(wanted, "modules", bool):
        _load(name, needed=needed)
    for name, options in _entries(wanted, "memory", str):
        _mount(name, options)
    for path, value in _entries(wanted, "sysctls", str):
        _set(path, value)


async def request(loop: Loop, names: object) -> None:
    """Load modules as if the kernel had asked for them; what the image does not have is left out. Raises CallError.

    For what the kernel would use and does not ask for.
    """
    if not isinstance(names, list) or len(names) > _MAX_REQUESTS:
        raise _bad(f"prepare.request: not a list of at most {_MAX_REQUESTS} names")
    if any(type(name) is not str or not name or not _NAME.issuperset(name) or name[0] == "-" for name in names):
        raise _bad("prepare.request: not a name")
    new = [name for name in names if name not in _requested]
    if not new:
        return
    _requested.update(new)
    try:
        pid = os.posix_spawn(_MODPROBE, ["modprobe", "-q", "-a", *new], {})
    except OSError:
        return  # an image without modules on the host
    await loop.child(pid)


def _bad(text: str) -> calls.CallError:
    return calls.CallError(calls.INVALID_ARGUMENT, text)


def _entries(wanted: dict[str, Any], key: str, kind: type) -> list[tuple[str, Any]]:
    found = wanted.get(key, {})
    if not isinstance(found, dict) or len(found) > _MAX_ENTRIES or any(type(one) is not kind for one in found.values()):
        raise _bad(f"prepare.{key}: not an object of at most {_MAX_ENTRIES} {kind.__name__} values")
    return list(found.items())


def _load(name: str, *, needed: bool) -> None:
    try:
        system.load_on_demand(name)
    except calls.CallError:
        if needed:
            raise


def _mount(name: str, options: str) -> None:
    if not name or not _NAME.issuperset(name):
        raise _bad("prepare.memory: not a name")
    path = f"{_MEMORY}/{name}"
    if os.path.ismount(path):
        return
    os.makedirs(path, exist_ok=True)
    flags = syscalls.MS_NOSUID | syscalls.MS_NODEV
    try:
        syscalls.mount("shm", path, "tmpfs", flags, options)
    except OSError as error:
        os.rmdir(path)
        raise _bad(f"cannot make a memory file system with the options {options}: {error.strerror}") from error


def _set(path: str, value: str) -> None:
    if any(part in ("", ".", "..") for part in path.split("/")):
        raise _bad(f"prepare.sysctls: {path!r} is not a path below {_PARAMETERS}")
    try:
        fd = os.open(f"{_PARAMETERS}/{path}", os.O_WRONLY | os.O_CLOEXEC)
        try:
            os.write(fd, value.encode())
        finally:
            os.close(fd)
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else str(error)
        name = path.replace("/", ".")
        raise _bad(f"the guest's kernel cannot have the parameter {name} set to {value!r}: {reason}") from error
