"""Compiling a seccomp profile to the kernel's filter program ahead of time, by libseccomp on the host.

crun compiles a container's profile with libseccomp each time it makes one. In an emulated guest that is half of
the time a container takes to start, and the result is always the same; so it is done here, once per profile,
kept on disk, and handed to crun as the annotation ``run.oci.seccomp_bpf_data`` (crun(1)). What this module does
not know it leaves to crun.
"""

from __future__ import annotations

import base64
import contextlib
import ctypes
import json
import os
from typing import Any

from hako import digests, paths, store
from hako.errors import HostError

ANNOTATION = "run.oci.seccomp_bpf_data"

# include/seccomp.h of libseccomp 2.5
_ACTIONS = {
    "SCMP_ACT_KILL": 0x00000000,
    "SCMP_ACT_KILL_THREAD": 0x00000000,
    "SCMP_ACT_KILL_PROCESS": 0x80000000,
    "SCMP_ACT_TRAP": 0x00030000,
    "SCMP_ACT_ERRNO": 0x00050000,
    "SCMP_ACT_LOG": 0x7FFC0000,
    "SCMP_ACT_ALLOW": 0x7FFF0000,
}
_OPERATORS = {
    "SCMP_CMP_NE": 1,
    "SCMP_CMP_LT": 2,
    "SCMP_CMP_LE": 3,
    "SCMP_CMP_EQ": 4,
    "SCMP_CMP_GE": 5,
    "SCMP_CMP_GT": 6,
    "SCMP_CMP_MASKED_EQ": 7,
}
_UNKNOWN_SYSCALL = -1
_EPERM = 1
_EEXIST = 17
_OPTIMIZE = 8  # SCMP_FLTATR_CTL_OPTIMIZE; 2 is a binary tree: a dozen comparisons a call instead of hundreds
_KNOWN_FIELDS = frozenset({"defaultAction", "defaultErrnoRet", "architectures", "syscalls"})


class _Comparison(ctypes.Structure):
    _fields_ = (("arg", ctypes.c_uint), ("op", ctypes.c_int), ("a", ctypes.c_uint64), ("b", ctypes.c_uint64))


class _Unsupported(Exception):
    """The profile has something that is better left to crun."""


def precompile(spec: dict[str, Any]) -> dict[str, Any]:
    """``spec`` with its seccomp profile compiled, or as it is when that cannot be done here."""
    profile = spec.get("linux", {}).get("seccomp")
    if not isinstance(profile, dict) or ANNOTATION in (spec.get("annotations") or {}):
        return spec
    program = _cached(profile)
    if program is None:
        return spec
    linux = {key: value for key, value in spec["linux"].items() if key != "seccomp"}
    annotations = {**(spec.get("annotations") or {}), ANNOTATION: base64.b64encode(program).decode()}
    return {**spec, "linux": linux, "annotations": annotations}


def _cached(profile: dict[str, Any]) -> bytes | None:
    text = json.dumps(profile, sort_keys=True).encode()
    directory = os.path.join(paths.cache_dir(), "seccomp")
    path = os.path.join(directory, digests.of(b"1" + text))
    try:
        with open(path, "rb") as file:
            return file.read()
    except FileNotFoundError:
        pass
    try:
        program = compile_profile(profile)
    except (_Unsupported, OSError, AttributeError, KeyError, TypeError, ValueError):
        return None
    with contextlib.suppress(HostError):  # a full disk: it is made again next time
        store.ensure_dir(directory)
        store.write_atomic(path, program)
    return program


def compile_profile(profile: dict[str, Any]) -> bytes:
    """The filter program (struct sock_filter[]) of an OCI seccomp profile.

    Rules as runc's and crun's: unknown system calls are passed over, a rule that gives the default action is
    too, conditions on several arguments must all hold, several on one argument are alternatives.
    """
    if not _KNOWN_FIELDS.issuperset(key for key, value in profile.items() if value):
        raise _Unsupported
    library = _load()
    default = _action(profile["defaultAction"], profile.get("defaultErrnoRet"))
    context = library.seccomp_init(default)
    if not context:
        raise _Unsupported
    try:
        for name in profile.get("architectures") or ():
            token = library.seccomp_arch_resolve_name(name.removeprefix("SCMP_ARCH_").lower().encode())
            if token == 0:
                raise _Unsupported
            _check(library.seccomp_arch_add(context, token), -_EEXIST)
        for rule in profile.get("syscalls") or ():
            action = _action(rule["action"], rule.get("errnoRet"))
            if action != default:
                for name in rule["names"]:
                    _add(library, context, action, name, rule.get("args") or [])
        _check(library.seccomp_attr_set(context, _OPTIMIZE, 2))
        return _export(library, context)
    finally:
        library.seccomp_release(context)


def _action(name: str, errno: int | None) -> int:
    if name not in _ACTIONS:
        raise _Unsupported
    value = _ACTIONS[name]
    return value | ((_EPERM if errno is None else errno) & 0xFFFF) if name == "SCMP_ACT_ERRNO" else value


def _add(library: ctypes.CDLL, context: int, action: int, name: str, args: list[dict[str, Any]]) -> None:
    number = library.seccomp_syscall_resolve_name(name.encode())
    if number == _UNKNOWN_SYSCALL:
        return
    conditions = [
        _Comparison(arg["index"], _OPERATORS[arg["op"]], arg["value"], arg.get("valueTwo") or 0) for arg in args
    ]
    indexes = [condition.arg for condition in conditions]
    groups = [conditions] if len(set(indexes)) == len(indexes) else [[one] for one in conditions]
    for group in groups:
        array = (_Comparison * len(group))(*group)
        _check(library.seccomp_rule_add_array(context, action, number, len(group), array), -_EEXIST)


def _check(status: int, *allowed: int) -> None:
    if status < 0 and status not in allowed:
        raise _Unsupported


def _export(library: ctypes.CDLL, context: int) -> bytes:
    fd = os.memfd_create("seccomp", os.MFD_CLOEXEC)
    try:
        _check(library.seccomp_export_bpf(context, fd))
        size = os.fstat(fd).st_size
        return os.pread(fd, size, 0)
    finally:
        os.close(fd)


def _load() -> ctypes.CDLL:
    library = ctypes.CDLL("libseccomp.so.2", use_errno=True)
    library.seccomp_init.restype = ctypes.c_void_p
    library.seccomp_init.argtypes = (ctypes.c_uint32,)
    library.seccomp_release.argtypes = (ctypes.c_void_p,)
    library.seccomp_release.restype = None
    library.seccomp_arch_resolve_name.restype = ctypes.c_uint32
    library.seccomp_arch_resolve_name.argtypes = (ctypes.c_char_p,)
    library.seccomp_arch_add.argtypes = (ctypes.c_void_p, ctypes.c_uint32)
    library.seccomp_syscall_resolve_name.argtypes = (ctypes.c_char_p,)
    library.seccomp_rule_add_array.argtypes = (
        ctypes.c_void_p, ctypes.c_uint32, ctypes.c_int, ctypes.c_uint, ctypes.c_void_p,
    )  # fmt: skip
    library.seccomp_attr_set.argtypes = (ctypes.c_void_p, ctypes.c_int, ctypes.c_uint32)
    library.seccomp_export_bpf.argtypes = (ctypes.c_void_p, ctypes.c_int)
    return library
