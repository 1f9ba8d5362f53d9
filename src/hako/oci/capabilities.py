"""Capabilities: the kernel's list, the ones a container has by default, and adding to and dropping from them."""

from __future__ import annotations

from collections.abc import Iterable

from hako.errors import ConfigError

_ALL = """
    CHOWN DAC_OVERRIDE DAC_READ_SEARCH FOWNER FSETID KILL SETGID SETUID SETPCAP LINUX_IMMUTABLE NET_BIND_SERVICE
    NET_BROADCAST NET_ADMIN NET_RAW IPC_LOCK IPC_OWNER SYS_MODULE SYS_RAWIO SYS_CHROOT SYS_PTRACE SYS_PACCT SYS_ADMIN
    SYS_BOOT SYS_NICE SYS_RESOURCE SYS_TIME SYS_TTY_CONFIG MKNOD LEASE AUDIT_WRITE AUDIT_CONTROL SETFCAP MAC_OVERRIDE
    MAC_ADMIN SYSLOG WAKE_ALARM BLOCK_SUSPEND AUDIT_READ PERFMON BPF CHECKPOINT_RESTORE
"""
_DEFAULT = """
    CHOWN DAC_OVERRIDE FSETID FOWNER MKNOD NET_RAW SETGID SETUID SETFCAP SETPCAP NET_BIND_SERVICE SYS_CHROOT KILL
    AUDIT_WRITE
"""

#: Every capability of Linux 5.9 and later, in the order of their numbers (capabilities(7)).
ALL = tuple(f"CAP_{name}" for name in _ALL.split())

#: What docker gives a container: enough to install packages and to drop to another user.
DEFAULT = tuple(f"CAP_{name}" for name in _DEFAULT.split())


def wanted(add: Iterable[str] = (), drop: Iterable[str] = ()) -> tuple[str, ...]:
    """The default capabilities changed by ``add`` and ``drop``, in the kernel's order.

    Names may be in small letters and without ``CAP_``; ``ALL`` means every one. A capability both added and dropped
    is there unless ALL was what added it. Raises ConfigError for an unknown name.
    """
    added, dropped = _names(add), _names(drop)
    chosen = set(DEFAULT)
    if "ALL" in dropped:
        chosen = set()
    if "ALL" in added:
        chosen = set(ALL)
    chosen = (chosen - dropped) | (added - {"ALL"})
    return tuple(name for name in ALL if name in chosen)


def for_process(names: Iterable[str], uid: int) -> dict[str, list[str]]:
    """The OCI capabilities object: the sets of root, or of another user, who gets them by set-user-id programs only."""
    bounding = list(names)
    own = bounding if uid == 0 else []
    return {"bounding": bounding, "effective": list(own), "permitted": list(own)}


def _names(given: Iterable[str]) -> set[str]:
    found = set()
    for one in given:
        name = one.strip().upper()
        if name != "ALL":
            name = f"CAP_{name.removeprefix('CAP_')}"
            if name not in ALL:
                raise ConfigError(f"There is no capability {one!r}: see capabilities(7) for their names.")
        found.add(name)
    return found
