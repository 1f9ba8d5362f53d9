"""Kernel parameters of a container: those of its own namespaces are crun's to set, the others are the VM's.

The containers of a VM share its network, so what begins with ``net.`` is set once for all of them, as for a pod. So is
what has no namespaces at all: the kernel is the containers' own.
"""

from __future__ import annotations

from hako.errors import ConfigError

_IPC = ("kernel.msgmax", "kernel.msgmnb", "kernel.msgmni", "kernel.sem", "kernel.shmall", "kernel.shmmax")
_IPC_TOO = ("kernel.shmmni", "kernel.shm_rmid_forced")
_UTS = ("kernel.domainname", "kernel.hostname")
_PREFIX = "fs.mqueue."


def split(given: dict[str, str]) -> tuple[dict[str, str], dict[str, str]]:
    """``linux.sysctl`` in two: for the container's namespaces by name, for the VM by path below /proc/sys.

    Raises ConfigError for what is no name.
    """
    inside: dict[str, str] = {}
    whole: dict[str, str] = {}
    for name, value in given.items():
        path = _path(name)
        dotted = path.replace("/", ".")
        if dotted in (*_IPC, *_IPC_TOO, *_UTS) or dotted.startswith(_PREFIX):
            inside[dotted] = value
        else:
            whole[path] = value
    return inside, whole


def _path(name: str) -> str:
    """sysctl(8): the first separator of a name tells which of ``.`` and ``/`` separates, the other one is literal."""
    slash, dot = name.find("/"), name.find(".")
    slashed = slash >= 0 and (dot < 0 or slash < dot)
    parts = name.split("/" if slashed else ".")
    if not slashed:
        parts = [part.replace("/", ".") for part in parts]
    if len(parts) < 2 or any(part in ("", ".", "..") for part in parts):
        raise ConfigError(f"$.linux.sysctl[{name!r}]: is no name of a kernel parameter, such as net.core.somaxconn.")
    return "/".join(parts)
