"""What guards the devices of a container made by crun.ahead: the program that crun would make of the usual rules.

Usual are rules that forbid everything and then allow no more than what every container may use, which is what engines
ask for unless somebody wants more. crun allows that much in any case, and before it looks at other rules
(src/libcrun/cgroup-resources.c).
"""

from __future__ import annotations

import os

from hako.agent import cgroups
from hako.linux import bpf

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

# include/uapi/linux/bpf.h: program and attach type, and struct bpf_cgroup_dev_ctx: access_type (the access wanted,
# shifted by 16, and the kind of device), major, minor.
_CGROUP_DEVICE, _DEVICE = 15, 6
_ACCESS_TYPE, _MAJOR, _MINOR = 0, 4, 8
_CHARACTER = 2
_MKNOD = 1
# Instructions: a word of the context into a register; numbers and registers into registers; jumps.
_LOAD, _MOVE, _MOVE_REGISTER, _AND, _SHIFT_RIGHT = 0x61, 0xB7, 0xBC, 0x54, 0x74
_IF_EQUAL, _UNLESS_EQUAL, _EXIT = 0x16, 0x56, 0x95

#: Character devices by major number: null, zero, full, random, urandom; tty, console, ptmx; terminals.
_ALLOWED: dict[int, tuple[int, ...] | None] = {1: (3, 5, 7, 8, 9), 5: (0, 1, 2), 136: None}


def are_usual(rules: object) -> bool:
    """Whether ``rules``, the ``devices`` of an OCI config's resources, come to what guard() allows."""
    if not isinstance(rules, list) or not rules or not all(isinstance(rule, dict) for rule in rules):
        return False
    first = rules[0]
    if first.get("allow") or first.get("type", "a") != "a" or {"major", "minor"} & set(first):
        return False
    if set(first.get("access", "")) != set("rwm"):
        return False
    return all(not rule.get("allow") or _is_allowed(rule) for rule in rules[1:])


def _is_allowed(rule: dict[str, Any]) -> bool:
    if rule.get("type") in ("c", "b") and rule.get("access") == "m":
        return True
    major, minor = rule.get("major"), rule.get("minor")
    if rule.get("type") != "c" or type(major) is not int or major not in _ALLOWED:
        return False
    minors = _ALLOWED[major]
    return minors is None or minor in minors


def guard(key: str) -> bool:
    """Make the cgroup of a container and guard its devices; False if the kernel does not want that."""
    try:
        cgroups.make(key)
        program = bpf.load(_CGROUP_DEVICE, _DEVICE, _program(), b"hako_devices")
        group = os.open(cgroups.directory(key), os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            bpf.attach_for_good(program, group, _DEVICE)
        finally:
            os.close(group)
            os.close(program)
    except OSError:
        return False
    return True


def _program() -> bytes:
    """Allows making a node of any device, and any use of those that are allowed."""
    allow = bpf.op(_MOVE, 0, 0, 0, 1) + bpf.op(_EXIT, 0, 0, 0, 0)
    deny = bpf.op(_MOVE, 0, 0, 0, 0) + bpf.op(_EXIT, 0, 0, 0, 0)
    # r2: kind and access, r3: major, r4: minor
    code = b"".join(bpf.op(_LOAD, 2 + at, 1, field, 0) for at, field in enumerate((_ACCESS_TYPE, _MAJOR, _MINOR)))
    # Whatever the kind: only making a node is wanted.
    code += bpf.op(_MOVE_REGISTER, 5, 2, 0, 0) + bpf.op(_SHIFT_RIGHT, 5, 0, 0, 16)
    code += bpf.op(_UNLESS_EQUAL, 5, 0, 2, _MKNOD) + allow
    code += bpf.op(_AND, 2, 0, 0, 0xFFFF)
    code += bpf.op(_IF_EQUAL, 2, 0, 2, _CHARACTER) + deny
    for major, minors in _ALLOWED.items():
        tests = b"".join(bpf.op(_UNLESS_EQUAL, 4, 0, 2, minor) + allow for minor in minors or ()) or allow
        code += bpf.op(_UNLESS_EQUAL, 3, 0, len(tests) // 8, major) + tests
    return code + deny
