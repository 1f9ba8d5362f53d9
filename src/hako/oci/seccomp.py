"""The default seccomp profile: an allow-list that depends on the container's capabilities."""

from __future__ import annotations

from collections.abc import Collection

from hako.oci import seccomp_table

_ALLOW = "SCMP_ACT_ALLOW"
_ERRNO = "SCMP_ACT_ERRNO"
_EPERM = 1
_ENOSYS = 38

# Flags of clone(2) that make namespaces: mount, cgroup, UTS, IPC, user, PID and network.
_CLONE_FLAGS = (0x00020000, 0x02000000, 0x04000000, 0x08000000, 0x10000000, 0x20000000, 0x40000000)
_CLONE_NAMESPACES = sum(_CLONE_FLAGS)
_AF_VSOCK = 40


def profile(capabilities: Collection[str], architectures: Collection[str]) -> dict[str, object]:
    """The OCI seccomp object for a process whose bounding set is ``capabilities``.

    ``architectures`` are libseccomp's names, native first: a 64-bit kernel runs 32-bit programs too.
    """
    allowed: set[str] = set()
    refused = set(seccomp_table.NEVER.split())
    for group in seccomp_table.ALWAYS.values():
        allowed.update(group.split())
    for capability, group in seccomp_table.WITH_CAPABILITY.items():
        (allowed if capability in capabilities else refused).update(group.split())
    # A call guarded by several capabilities needs one of them. clone and clone3 have rules of their own below.
    refused -= allowed | {"clone", "clone3"}
    rules: list[dict[str, object]] = [
        {"names": sorted(allowed), "action": _ALLOW},
        {"names": sorted(refused), "action": _ERRNO, "errnoRet": _EPERM},
        # A container may not talk to the VM's sockets to the host; other families are its own network's affair.
        _conditional("socket", _AF_VSOCK, "SCMP_CMP_NE"),
        _conditional("socket", _AF_VSOCK, "SCMP_CMP_EQ", refuse=True),
        *(_conditional("personality", value, "SCMP_CMP_EQ") for value in seccomp_table.PERSONALITIES),
    ]
    if "CAP_SYS_ADMIN" not in capabilities:
        rules.append(_conditional("clone", _CLONE_NAMESPACES, "SCMP_CMP_MASKED_EQ", 0))
        rules += [_conditional("clone", flag, "SCMP_CMP_MASKED_EQ", flag, refuse=True) for flag in _CLONE_FLAGS]
        # The flags of clone3 are in memory, where a filter cannot look. "Not implemented" makes libc use clone.
        rules.append({"names": ["clone3"], "action": _ERRNO, "errnoRet": _ENOSYS})
    return {
        "defaultAction": _ERRNO,
        "defaultErrnoRet": _ENOSYS,
        "architectures": list(architectures),
        "syscalls": rules,
    }


def _conditional(
    name: str, value: int, operator: str, value_two: int | None = None, *, refuse: bool = False
) -> dict[str, object]:
    """A rule on the first argument of the call ``name``."""
    argument: dict[str, object] = {"index": 0, "value": value, "op": operator}
    if value_two is not None:
        argument["valueTwo"] = value_two
    rule: dict[str, object] = {"names": [name], "action": _ERRNO if refuse else _ALLOW, "args": [argument]}
    return rule | ({"errnoRet": _EPERM} if refuse else {})
