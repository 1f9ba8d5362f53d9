"""``hako-runtime spec``: writes a config.json to start from, which any OCI runtime takes."""

from __future__ import annotations

import os

from hako.errors import ConfigError, ExistsError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from hako.runtime.verbs import Call

#: What all runtimes of today know; nothing in the file is newer.
_OCI_VERSION = "1.0.2"
_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
_CAPABILITIES = ("CAP_AUDIT_WRITE", "CAP_KILL", "CAP_NET_BIND_SERVICE")
_SAFE = ("nosuid", "noexec", "nodev")
_MOUNTS: tuple[tuple[str, str, str, tuple[str, ...]], ...] = (
    ("/proc", "proc", "proc", ()),
    ("/dev", "tmpfs", "tmpfs", ("nosuid", "strictatime", "mode=755", "size=65536k")),
    ("/dev/pts", "devpts", "devpts", ("nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620", "gid=5")),
    ("/dev/shm", "tmpfs", "shm", (*_SAFE, "mode=1777", "size=65536k")),
    ("/dev/mqueue", "mqueue", "mqueue", _SAFE),
    ("/sys", "sysfs", "sysfs", (*_SAFE, "ro")),
    ("/sys/fs/cgroup", "cgroup", "cgroup", (*_SAFE, "relatime", "ro")),
)
_NAMESPACES = ("pid", "network", "ipc", "uts", "mount")
_MASKED = (
    "/proc/acpi", "/proc/asound", "/proc/kcore", "/proc/keys", "/proc/latency_stats", "/proc/sched_debug",
    "/proc/scsi", "/proc/timer_list", "/proc/timer_stats", "/sys/firmware",
)  # fmt: skip
_READONLY = ("/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger")


def main(call: Call) -> int:
    """Write it. A file that is there already is left alone."""
    import json

    directory = call.options["bundle"] or "."
    text = json.dumps(config(rootless=call.options["rootless"]), indent="\t")
    path = os.path.join(directory, "config.json")
    try:
        with open(path, "x", encoding="utf-8") as file:
            file.write(text)
    except FileExistsError:
        raise ExistsError(f"File {path} exists. Remove it first.") from None
    except OSError as error:
        raise ConfigError(f"Cannot write {path}: {error.strerror}.") from error
    return 0


def config(*, rootless: bool = False) -> dict[str, Any]:
    """The config.json of a container that runs ``sh`` on a terminal.

    ``rootless`` gives it a user namespace in which the caller is root, and no limits, which only root could set.
    """
    names = list(_CAPABILITIES)
    linux: dict[str, Any] = {
        "resources": {"devices": [{"allow": False, "access": "rwm"}]},
        "namespaces": [{"type": kind} for kind in _NAMESPACES],
        "maskedPaths": list(_MASKED),
        "readonlyPaths": list(_READONLY),
    }
    if rootless:
        del linux["resources"]
        linux["namespaces"].append({"type": "user"})
        linux["uidMappings"] = [{"containerID": 0, "hostID": os.geteuid(), "size": 1}]
        linux["gidMappings"] = [{"containerID": 0, "hostID": os.getegid(), "size": 1}]
    return {
        "ociVersion": _OCI_VERSION,
        "process": {
            "terminal": True,
            "user": {"uid": 0, "gid": 0},
            "args": ["sh"],
            "env": [f"PATH={_PATH}", "TERM=xterm"],
            "cwd": "/",
            "capabilities": {kind: list(names) for kind in ("bounding", "effective", "permitted", "ambient")},
            "rlimits": [{"type": "RLIMIT_NOFILE", "hard": 1024, "soft": 1024}],
            "noNewPrivileges": True,
        },
        "root": {"path": "rootfs", "readonly": True},
        "hostname": "hako",
        "mounts": [_mount(*row, rootless=rootless) for row in _MOUNTS],
        "linux": linux,
    }


def _mount(place: str, kind: str, source: str, options: tuple[str, ...], *, rootless: bool) -> dict[str, Any]:
    mount: dict[str, Any] = {"destination": place, "type": kind, "source": source}
    # The group of terminals, 5, is not in a mapping of one id.
    kept = [option for option in options if not (rootless and option.startswith("gid="))]
    return {**mount, "options": kept} if kept else mount
