"""With which rights QEMU runs: as a system user of its own, with the capabilities its devices need and no others.

util-linux' setpriv makes the change between our fork and QEMU, so that no Python runs in the forked child. It also has
the kernel kill QEMU when the thread that started it ends, however it ends.
"""

from __future__ import annotations

import os
import stat

from hako import log, proc
from hako.errors import HostError
from hako.hypervisor.base import Share9p, VmSpec
from hako.named import NamedTuple

_log = log.get("hypervisor")

#: System user QEMU runs as where it exists.
DEFAULT_USER = "hako-vm"

# What 9p with passed-through owners and modes does on the guest's behalf: own, enter, read, write and mark files of
# any owner. Left out on purpose: mknod (no device nodes of the guest's on the host) and dac_read_search, which
# opens files by handle past every mount boundary.
SHARE_CAPABILITIES = ("chown", "dac_override", "fowner", "fsetid")

_reported: set[str] = set()


class Account(NamedTuple):
    """The user QEMU runs as."""

    uid: int
    gid: int
    groups: tuple[int, ...] = ()


def find_account(user: str, accelerator: str) -> Account | None:
    """The account to run QEMU under, or None to keep the current one.

    None for a caller that is not root and cannot change users anyway; and, said once in the log, when ``user`` does not
    exist or when it could not open /dev/kvm that ``accelerator`` "kvm" needs.
    """
    if os.geteuid() != 0:
        return None
    import pwd

    try:
        entry = pwd.getpwnam(user)
    except KeyError:
        _say_once(f"User {user} does not exist, so QEMU runs as root; create it with: useradd --system {user}")
        return None
    groups: tuple[int, ...] = ()
    if accelerator == "kvm":
        groups = device_groups("/dev/kvm", entry.pw_uid) or ()
        if not groups and not _is_open_to_all("/dev/kvm"):
            _say_once(f"User {user} cannot be let at /dev/kvm through its group, so QEMU runs as root.")
            return None
    return Account(entry.pw_uid, entry.pw_gid, groups)


def device_groups(path: str, uid: int) -> tuple[int, ...] | None:
    """The group through which user ``uid`` may read and write the device ``path``, None when there is none."""
    try:
        status = os.stat(path)
    except OSError:
        return None
    readable = status.st_mode & (stat.S_IRGRP | stat.S_IWGRP) == stat.S_IRGRP | stat.S_IWGRP
    # A device of group root is not opened up to others by making them members of that group.
    return (status.st_gid,) if readable and status.st_gid != 0 and uid != 0 else None


def _is_open_to_all(path: str) -> bool:
    try:
        mode = os.stat(path).st_mode
    except OSError:
        return False
    return mode & (stat.S_IROTH | stat.S_IWOTH) == stat.S_IROTH | stat.S_IWOTH


def capabilities(spec: VmSpec) -> tuple[str, ...]:
    """The Linux capabilities QEMU needs for the devices of ``spec``."""
    return SHARE_CAPABILITIES if any(isinstance(device, Share9p) for device in spec.devices) else ()


def launch_prefix(account: Account | None, caps: tuple[str, ...], *, root: bool) -> list[str]:
    """The command that QEMU's command line follows. Raises HostError when setpriv is missing.

    ``root`` says whether the caller is root; only then can users and capabilities be changed.
    """
    setpriv = proc.find("setpriv")
    if setpriv is None:
        raise HostError("setpriv is not installed. Install the package util-linux.")
    argv = [setpriv, "--no-new-privs", "--pdeathsig", "KILL"]
    if not root:
        return argv
    if account is not None:
        groups = ["--groups", ",".join(map(str, account.groups))] if account.groups else ["--clear-groups"]
        argv += ["--reuid", str(account.uid), "--regid", str(account.gid), *groups]
    wanted = ",".join(["-all", *(f"+{name}" for name in caps)])
    return [*argv, "--inh-caps", wanted, "--ambient-caps", wanted, "--bounding-set", wanted]


def _say_once(text: str) -> None:
    if text not in _reported:
        _reported.add(text)
        _log.warning(text)
