"""The default seccomp profile: an allow-list that depends on the container's capabilities."""

from __future__ import annotations

from collections.abc import Collection

from hako.oci import seccomp_table

_ALLOW = "SCMP_ACT_ALLOW"
_ERRNO = "SCMP_ACT_ERRNO"
_EPERM = 1
_ENOSYS = 38

#: Flags of clone(2) that make namespaces: mount, cgroup, UTS, IPC, user, PID and network.
_CLONE_NAMESPACES = 0x7E020000
_AF_VSOCK = 40


def profile(capabilities: Collection[str], architectures: Collection[str]) -> dict[str, object]:
    """The OCI seccomp object for a process whose bounding set is ``capabilities``.

    ``architectures`` are libseccomp's names, native first: a 64-bit kernel runs 32-bit programs too.
    """
    names = set()
    for group in seccomp_table.ALWAYS.values():
        names.update(group.split())
    for capability, group in seccomp_table.WITH_CAPABILITY.items():
        if capability in capabilities:
            names.update(group.split())
    rules: list[dict[str, object]] = [{"names": sorted(names), "action": _ALLOW}, *_personality()]
    # A container may not talk to the VM's sockets to the host; every other family is its own network's affair.
    rules.append(_conditional("socket", 0, _AF_VSOCK, "SCMP_CMP_NE"))
    if "CAP_SYS_ADMIN" not in capabilities:
        rules.append(_conditional("clone", 0, _CLONE_NAMESPACES, "SCMP_CMP_MASKED_EQ", 0))
        # The flags of clone3 are in memory, where a filter cannot look. "Not implemented" makes libc use clone.
        rules.append({"names": ["clone3"], "action": _ERRNO, "errnoRet": _ENOSYS})
    return {
        "defaultAction": _ERRNO,
        "defaultErrnoRet": _EPERM,
        "architectures": list(architectures),
        "syscalls": rules,
    }


def _personality() -> list[dict[str, object]]:
    return [_conditional("personality", 0, value, "SCMP_CMP_EQ") for value in seccomp_table.PERSONALITIES]


def _conditional(name: str, index: int, value: int, operator: str, value_two: int | None = None) -> dict[str, object]:
    argument: dict[str, object] = {"index": index, "value": value, "op": operator}
    if value_two is not None:
        argument["valueTwo"] = value_two
    return {"names": [name], "action": _ALLOW, "args": [argument]}
