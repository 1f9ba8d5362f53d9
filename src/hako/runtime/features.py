"""``hako-runtime features``: what containers can be given, in the form of OCI's features structure (version 1.2).

What is listed holds for a container in the guest, which crun 1.8.1 makes there under Linux 6.1.
"""

from __future__ import annotations

import sys

from hako.oci import capabilities
from hako.runtime.version import SPEC_VERSION
from hako.version import __version__

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from hako.runtime.verbs import Call

HOOKS = ("prestart", "createRuntime", "createContainer", "startContainer", "poststart", "poststop")
#: Mount options that come with their opposite or their recursive form are in one row.
_MOUNT_OPTIONS = """
    defaults bind rbind remount tmpcopyup
    ro rw rro rrw
    suid nosuid rsuid rnosuid dev nodev rdev rnodev exec noexec rexec rnoexec
    sync async rasync dirsync rdirsync mand nomand rmand rnomand
    atime noatime ratime rnoatime diratime nodiratime rdiratime rnodiratime
    relatime norelatime rrelatime rnorelatime strictatime nostrictatime rstrictatime rnostrictatime
    shared rshared slave rslave private rprivate unbindable runbindable
"""
NAMESPACES = ("cgroup", "ipc", "mount", "network", "pid", "time", "user", "uts")
#: SCMP_ACT_NOTIFY is not among them: its listener would have to be outside the VM.
_ACTIONS = "ALLOW ERRNO KILL KILL_PROCESS KILL_THREAD LOG TRACE TRAP"
_OPERATORS = "EQ GE GT LE LT MASKED_EQ NE"
_ARCHITECTURES = """
    AARCH64 ARM MIPS MIPS64 MIPS64N32 MIPSEL MIPSEL64 MIPSEL64N32 PARISC PARISC64 PPC PPC64 PPC64LE RISCV64 S390 S390X
    X32 X86 X86_64
"""
_FLAGS = "LOG SPEC_ALLOW TSYNC"
#: Annotations that change what hako or crun does; those that end with a dot stand for all that begin so.
_UNSAFE_ANNOTATIONS = ("dev.hako.", "io.katacontainers.config.", "run.oci.")


def main(_call: Call) -> int:
    """Print them."""
    import json

    sys.stdout.write(json.dumps(features(), indent=4) + "\n")
    return 0


def features() -> dict[str, Any]:
    """The features structure."""
    return {
        "ociVersionMin": "1.0.0",
        "ociVersionMax": SPEC_VERSION,
        "hooks": list(HOOKS),
        "mountOptions": sorted(_MOUNT_OPTIONS.split()),
        "linux": {
            "namespaces": list(NAMESPACES),
            "capabilities": list(capabilities.ALL),
            "cgroup": {"v1": False, "v2": True, "systemd": True, "systemdUser": False, "rdma": False},
            "seccomp": {
                "enabled": True,
                "actions": _prefixed("SCMP_ACT_", _ACTIONS),
                "operators": _prefixed("SCMP_CMP_", _OPERATORS),
                "archs": _prefixed("SCMP_ARCH_", _ARCHITECTURES),
                "knownFlags": _prefixed("SECCOMP_FILTER_FLAG_", _FLAGS),
                "supportedFlags": _prefixed("SECCOMP_FILTER_FLAG_", _FLAGS),
            },
            "apparmor": {"enabled": False},
            "selinux": {"enabled": False},
            "intelRdt": {"enabled": False},
            # The share's file system knows no mapping of ids.
            "mountExtensions": {"idmap": {"enabled": False}},
        },
        "annotations": {"dev.hako.version": __version__},
        "potentiallyUnsafeConfigAnnotations": list(_UNSAFE_ANNOTATIONS),
    }


def _prefixed(prefix: str, names: str) -> list[str]:
    return [prefix + name for name in names.split()]
