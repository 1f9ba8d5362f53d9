"""Checks a config.json as far as hako itself relies on it; everything else is crun's to judge, and is passed on.

The shape is a table at the end of this file. An error names the place: ``$.process.args[0]: must be a text``.
A null where a value may be left out means that it is left out, and is removed, as Go's encoders do.
"""

from __future__ import annotations

from collections.abc import Callable

from hako.errors import ConfigError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

_Check = Callable[[object, str], None]

_UINT32 = (1 << 32) - 1
_INT64 = (1 << 63) - 1
_UINT64 = (1 << 64) - 1


def check(spec: object) -> dict[str, Any]:
    """Check a whole config.json; return it, nulls of known fields removed. Raises ConfigError."""
    _CONFIG(spec, "$")
    assert isinstance(spec, dict)
    return spec


def check_process(process: object) -> dict[str, Any]:
    """Check a process object, as config.json and `exec --process` have it; return it. Raises ConfigError."""
    _PROCESS(process, "$.process")
    assert isinstance(process, dict)
    return process


def _fail(path: str, wanted: str, value: object) -> ConfigError:
    names = {
        dict: "an object",
        list: "a list",
        str: "a text",
        bool: "a boolean",
        int: "a number",
        float: "a number",
        type(None): "null",
    }
    return ConfigError(f"{path}: must be {wanted}, not {names.get(type(value), type(value).__name__)}.")


def _text(value: object, path: str) -> None:
    if not isinstance(value, str):
        raise _fail(path, "a text", value)
    if "\0" in value:
        raise ConfigError(f"{path}: must not contain a NUL character.")
    try:
        value.encode()
    except UnicodeEncodeError:
        raise ConfigError(f"{path}: must be text that UTF-8 can hold.") from None


def _filled(value: object, path: str) -> None:
    _text(value, path)
    if not value:
        raise ConfigError(f"{path}: must not be empty.")


def _absolute(value: object, path: str) -> None:
    _filled(value, path)
    assert isinstance(value, str)
    if not value.startswith("/"):
        raise ConfigError(f"{path}: must be an absolute path, not {value!r}.")


def _boolean(value: object, path: str) -> None:
    if not isinstance(value, bool):
        raise _fail(path, "a boolean", value)


def _whole(low: int, high: int) -> _Check:
    def whole(value: object, path: str) -> None:
        # bool is an int to Python, but true is no number to JSON.
        if type(value) is not int:
            raise _fail(path, "a whole number", value)
        if not low <= value <= high:
            raise ConfigError(f"{path}: must be between {low} and {high}, not {value}.")

    return whole


def _list(item: _Check, *, filled: bool = False) -> _Check:
    def items(value: object, path: str) -> None:
        if not isinstance(value, list):
            raise _fail(path, "a list", value)
        if filled and not value:
            raise ConfigError(f"{path}: must not be empty.")
        for index, one in enumerate(value):
            item(one, f"{path}[{index}]")

    return items


def _map(item: _Check) -> _Check:
    def entries(value: object, path: str) -> None:
        if not isinstance(value, dict):
            raise _fail(path, "an object", value)
        for key, one in value.items():
            _text(key, f"{path}, a key")
            item(one, f"{path}[{key!r}]")

    return entries


def _object(fields: dict[str, _Check], required: tuple[str, ...] = ()) -> _Check:
    def known(value: object, path: str) -> None:
        if not isinstance(value, dict):
            raise _fail(path, "an object", value)
        for key in required:
            if value.get(key) is None:
                raise ConfigError(f"{path}.{key}: is missing.")
        for key, item in fields.items():
            if key not in value:
                continue
            if value[key] is None:
                del value[key]
            else:
                item(value[key], f"{path}.{key}")

    return known


def _mount(value: object, path: str) -> None:
    _MOUNT(value, path)
    assert isinstance(value, dict)
    is_bind = value.get("type") == "bind" or not {"bind", "rbind"}.isdisjoint(value.get("options") or ())
    if is_bind and not value.get("source"):
        raise ConfigError(f"{path}.source: is missing, and a bind mount needs it.")


_TEXTS = _list(_text)
_ID = _whole(0, _UINT32)
_SIGNED = _whole(-_INT64 - 1, _INT64)
_UNSIGNED = _whole(0, _UINT64)
_ANYTHING = _object({})

_MAPPING = _object({"containerID": _ID, "hostID": _ID, "size": _ID}, required=("containerID", "hostID", "size"))
_MOUNT = _object(
    {
        "destination": _filled,
        "type": _text,
        "source": _text,
        "options": _TEXTS,
        "uidMappings": _list(_MAPPING),
        "gidMappings": _list(_MAPPING),
    },
    required=("destination",),
)

_USER = _object({"uid": _ID, "gid": _ID, "umask": _ID, "additionalGids": _list(_ID), "username": _text})
_CAPABILITIES = _object(
    dict.fromkeys(("bounding", "effective", "inheritable", "permitted", "ambient"), _TEXTS),
)
_RLIMIT = _object({"type": _filled, "soft": _UNSIGNED, "hard": _UNSIGNED}, required=("type",))


def _rlimits(value: object, path: str) -> None:
    _list(_RLIMIT)(value, path)
    assert isinstance(value, list)
    seen: set[str] = set()
    for index, limit in enumerate(value):
        if limit["type"] in seen:
            raise ConfigError(f"{path}[{index}].type: {limit['type']} is given a second time.")
        seen.add(limit["type"])


_PROCESS = _object(
    {
        "terminal": _boolean,
        "consoleSize": _object({"height": _ID, "width": _ID}),
        "user": _USER,
        "args": _list(_text, filled=True),
        "env": _TEXTS,
        "cwd": _absolute,
        "capabilities": _CAPABILITIES,
        "rlimits": _rlimits,
        "noNewPrivileges": _boolean,
        "apparmorProfile": _text,
        "selinuxLabel": _text,
        "oomScoreAdj": _whole(-1000, 1000),
        "scheduler": _ANYTHING,
        "ioPriority": _ANYTHING,
        "execCPUAffinity": _ANYTHING,
    },
    required=("args", "cwd"),
)

_HOOK = _object({"path": _absolute, "args": _TEXTS, "env": _TEXTS, "timeout": _whole(1, _INT64)}, required=("path",))
_HOOKS = _object(
    dict.fromkeys(
        ("prestart", "createRuntime", "createContainer", "startContainer", "poststart", "poststop"), _list(_HOOK)
    ),
)

_RESOURCES = _object(
    {
        "devices": _list(
            _object({"allow": _boolean, "type": _text, "major": _SIGNED, "minor": _SIGNED, "access": _text})
        ),
        "memory": _object(
            {
                **dict.fromkeys(("limit", "reservation", "swap", "kernel", "kernelTCP"), _SIGNED),
                **dict.fromkeys(("disableOOMKiller", "useHierarchy", "checkBeforeUpdate"), _boolean),
                "swappiness": _UNSIGNED,
            }
        ),
        "cpu": _object(
            {
                **dict.fromkeys(("shares", "period", "realtimePeriod", "burst"), _UNSIGNED),
                **dict.fromkeys(("quota", "realtimeRuntime", "idle"), _SIGNED),
                **dict.fromkeys(("cpus", "mems"), _text),
            }
        ),
        "pids": _object({"limit": _SIGNED}),
        "blockIO": _ANYTHING,
        "hugepageLimits": _list(_object({"pageSize": _filled, "limit": _UNSIGNED}, required=("pageSize", "limit"))),
        "network": _ANYTHING,
        "rdma": _map(_ANYTHING),
        "unified": _map(_text),
    }
)
_DEVICE = _object(
    {"path": _absolute, "type": _filled, "major": _SIGNED, "minor": _SIGNED, "fileMode": _ID, "uid": _ID, "gid": _ID},
    required=("path", "type"),
)
_SECCOMP_ARGUMENT = _object(
    {"index": _whole(0, 5), "value": _UNSIGNED, "valueTwo": _UNSIGNED, "op": _filled},
    required=("index", "value", "op"),
)
_SECCOMP = _object(
    {
        "defaultAction": _filled,
        "defaultErrnoRet": _ID,
        "architectures": _TEXTS,
        "flags": _TEXTS,
        "listenerPath": _text,
        "listenerMetadata": _text,
        "syscalls": _list(
            _object(
                {"names": _TEXTS, "action": _filled, "errnoRet": _ID, "args": _list(_SECCOMP_ARGUMENT)},
                required=("names", "action"),
            )
        ),
    },
    required=("defaultAction",),
)
_TIME_OFFSET = _object({"secs": _SIGNED, "nanosecs": _ID})
_LINUX = _object(
    {
        "namespaces": _list(_object({"type": _filled, "path": _text}, required=("type",))),
        "uidMappings": _list(_MAPPING),
        "gidMappings": _list(_MAPPING),
        "devices": _list(_DEVICE),
        "cgroupsPath": _text,
        "resources": _RESOURCES,
        "sysctl": _map(_text),
        "seccomp": _SECCOMP,
        "rootfsPropagation": _text,
        "maskedPaths": _TEXTS,
        "readonlyPaths": _TEXTS,
        "mountLabel": _text,
        "intelRdt": _ANYTHING,
        "memoryPolicy": _ANYTHING,
        "netDevices": _ANYTHING,
        "personality": _object({"domain": _filled, "flags": _TEXTS}, required=("domain",)),
        "timeOffsets": _map(_TIME_OFFSET),
    }
)

_CONFIG = _object(
    {
        "ociVersion": _text,
        "root": _object({"path": _filled, "readonly": _boolean}, required=("path",)),
        "process": _PROCESS,
        "hostname": _text,
        "domainname": _text,
        "mounts": _list(_mount),
        "annotations": _map(_text),
        "hooks": _HOOKS,
        "linux": _LINUX,
        **dict.fromkeys(("windows", "solaris", "zos", "freebsd", "vm"), _ANYTHING),
    },
    required=("root", "process"),
)
