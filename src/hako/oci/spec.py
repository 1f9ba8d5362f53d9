"""The OCI runtime config.json of a container, from its image's configuration and the user's options.

The defaults are docker's, without a network namespace: the VM is the network boundary, and the containers of one
sandbox share its network.
"""

from __future__ import annotations

import posixpath
import re
from collections.abc import Mapping, Sequence
from typing import Any

from hako import arch
from hako.errors import ConfigError
from hako.named import NamedTuple
from hako.oci import capabilities, environment, seccomp, users

OCI_VERSION = "1.0.2"
DEFAULT_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
DEFAULT_SHM = 64 << 20

_CPU_PERIOD = 100_000  # microseconds
_HOSTNAME = re.compile(r"[A-Za-z0-9](?:[A-Za-z0-9.-]{0,62}[A-Za-z0-9])?\Z")
_NAMESPACES = ("pid", "ipc", "uts", "mount", "cgroup")

#: What shows more of the kernel than a container should see, or lets it change the kernel.
_MASKED = (
    "/proc/asound",
    "/proc/acpi",
    "/proc/interrupts",
    "/proc/kcore",
    "/proc/keys",
    "/proc/latency_stats",
    "/proc/timer_list",
    "/proc/timer_stats",
    "/proc/sched_debug",
    "/proc/scsi",
    "/sys/firmware",
    "/sys/devices/virtual/powercap",
)
_READ_ONLY = ("/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger")

# Type, major, minor of the devices a container may use; None is every number. Making nodes is allowed for all.
_DEVICES = (
    ("c", None, None, "m"),
    ("b", None, None, "m"),
    ("c", 1, 3, "rwm"),  # null
    ("c", 1, 5, "rwm"),  # zero
    ("c", 1, 7, "rwm"),  # full
    ("c", 1, 8, "rwm"),  # random
    ("c", 1, 9, "rwm"),  # urandom
    ("c", 5, 0, "rwm"),  # tty
    ("c", 5, 1, "rwm"),  # console
    ("c", 5, 2, "rwm"),  # ptmx
    ("c", 136, None, "rwm"),  # pts/*
)


class RunOptions(NamedTuple):
    """What a user may ask for beside the image. Sizes in bytes; empty or None is the image's or the default."""

    args: Sequence[str] = ()
    entrypoint: str | None = None  #: replaces the image's; the empty text takes it away
    env: Sequence[str] = ()  #: ``NAME=VALUE``, or ``NAME`` for the caller's value
    cwd: str = ""
    user: str = ""  #: ``NAME|UID[:GROUP|GID]``
    tty: bool = False
    hostname: str = ""
    readonly: bool = False  #: the root file system
    memory: int | None = None
    cpus: float | None = None
    pids_limit: int | None = None
    tmpfs: Sequence[str] = ()  #: ``PATH[:OPTION,…]``
    mounts: Sequence[tuple[str, str, bool]] = ()  #: source, destination, read-only
    cap_add: Sequence[str] = ()
    cap_drop: Sequence[str] = ()
    no_new_privileges: bool = False
    seccomp: bool = True
    shm_size: int = DEFAULT_SHM


def build(
    image_config: Mapping[str, Any],
    options: RunOptions,
    *,
    rootfs: str,
    container_id: str = "",
    root_path: str = "rootfs",
) -> dict[str, Any]:
    """The config.json of a container.

    ``image_config`` is the checked configuration of the image (Env, Cmd, …), ``rootfs`` its root directory, where
    user names are looked up; ``root_path`` is what config.json says. Without a host name the container gets the
    first 12 characters of ``container_id``. Raises ConfigError for options that cannot be met, ImageError for an
    image whose user database cannot be used.
    """
    hostname = options.hostname or container_id[:12]
    if hostname and not _HOSTNAME.match(hostname):
        raise ConfigError(f"{hostname!r} is not a host name: use up to 64 letters, digits, '-' and '.'.")
    names = capabilities.wanted(options.cap_add, options.cap_drop)
    linux: dict[str, Any] = {
        "resources": resources(options),
        "namespaces": [{"type": kind} for kind in _NAMESPACES],
        "maskedPaths": list(_MASKED),
        "readonlyPaths": list(_READ_ONLY),
    }
    if options.seccomp:
        linux["seccomp"] = seccomp.profile(names, arch.current().seccomp)
    spec = {
        "ociVersion": OCI_VERSION,
        "process": _process(image_config, options, names, rootfs, hostname),
        "root": {"path": root_path, "readonly": options.readonly},
        "mounts": mounts(options),
        "linux": linux,
    }
    if hostname:
        spec["hostname"] = hostname
    return spec


def exec_process(
    base: Mapping[str, Any],
    args: list[str],
    *,
    env: Sequence[str] = (),
    cwd: str = "",
    user: str = "",
    terminal: bool = False,
    privileged: bool = False,
    rootfs: str = "",
) -> dict[str, Any]:
    """The process object for a further process in a container whose first one is ``base``.

    What is not given is the first process's. ``user`` is looked up in ``rootfs``, the container's root as the host
    sees it; without it only numbers can be used. ``privileged`` gives every capability.
    Raises ConfigError as build() does.
    """
    process = {key: value for key, value in base.items() if key != "consoleSize"}
    process |= {"args": list(args), "terminal": terminal}
    entries = [str(entry) for entry in base.get("env") or []]
    if user:
        who = users.resolve(user, rootfs)
        process["user"] = who.to_oci()
        entries = [entry for entry in entries if environment.name(entry) != "HOME"]
        entries.append(f"HOME={who.home}")
    entries = environment.merge(entries, env)
    process["env"] = environment.defaults(entries, _terminal(terminal))
    if cwd:
        process["cwd"] = _absolute(cwd)
    old = base.get("capabilities")
    if privileged:
        process["capabilities"] = capabilities.for_process(capabilities.ALL, 0)
    elif user and isinstance(old, dict):
        uid = process["user"]["uid"]
        process["capabilities"] = capabilities.for_process(old.get("bounding") or (), uid)
    return process


def command(image_config: Mapping[str, Any], options: RunOptions) -> list[str]:
    """The command to run, by docker's rules. Raises ConfigError when there is none.

    Arguments replace the image's Cmd; a new entrypoint also takes the image's Cmd away, which belonged to the old.
    """
    if options.entrypoint is not None:
        start = [options.entrypoint] if options.entrypoint else []
        line = [*start, *options.args]
    else:
        line = [*(image_config.get("Entrypoint") or ()), *(options.args or image_config.get("Cmd") or ())]
    if not line:
        raise ConfigError("The image names no command to run: add one after the image.")
    if not line[0]:
        raise ConfigError("The command to run is empty: give the name or path of a program.")
    if any("\0" in word for word in line):
        raise ConfigError("The command to run contains a NUL character.")
    return line


def resources(options: RunOptions) -> dict[str, Any]:
    """The OCI resources object: limits that were asked for, and docker's device rules. Raises ConfigError."""
    devices: list[dict[str, Any]] = [{"allow": False, "access": "rwm"}]
    for kind, major, minor, access in _DEVICES:
        rule: dict[str, Any] = {"allow": True, "type": kind, "access": access}
        rule |= {key: number for key, number in (("major", major), ("minor", minor)) if number is not None}
        devices.append(rule)
    found: dict[str, Any] = {"devices": devices}
    if options.memory is not None:
        if options.memory <= 0:
            raise ConfigError(f"A memory limit of {options.memory} bytes cannot be set: ask for more than 0.")
        found["memory"] = {"limit": options.memory, "swap": options.memory}
    if options.cpus is not None:
        quota = int(options.cpus * _CPU_PERIOD)
        # The kernel refuses a quota of less than a millisecond.
        if quota < 1000:
            raise ConfigError(f"{options.cpus:g} CPUs cannot be had: ask for 0.01 at least.")
        found["cpu"] = {"quota": quota, "period": _CPU_PERIOD}
    if options.pids_limit is not None and options.pids_limit > 0:
        found["pids"] = {"limit": options.pids_limit}
    return found


def mounts(options: RunOptions) -> list[dict[str, Any]]:
    """Docker's mounts, then the user's; one of the user's replaces a default one of the same place.

    Raises ConfigError for a place that is not absolute or is used twice.
    """
    wanted: dict[str, dict[str, Any]] = {}
    own = [_tmpfs(text) for text in options.tmpfs]
    own += [_bind(source, destination, readonly=readonly) for source, destination, readonly in options.mounts]
    for mount in own:
        place = mount["destination"]
        if place in wanted:
            raise ConfigError(f"Two mounts were asked for at {place}: leave one of them out.")
        if place == "/":
            raise ConfigError("A mount cannot be at /, which is the image's: name a directory below it.")
        wanted[place] = mount
    kept = [mount for mount in _default_mounts(options) if mount["destination"] not in wanted]
    # Outer ones first, or they would cover the inner ones.
    return kept + sorted(wanted.values(), key=lambda mount: str(mount["destination"]).count("/"))


def _default_mounts(options: RunOptions) -> list[dict[str, Any]]:
    safe = ["nosuid", "noexec", "nodev"]
    table: tuple[tuple[str, str, str, list[str]], ...] = (
        ("/proc", "proc", "proc", safe),
        ("/dev", "tmpfs", "tmpfs", ["nosuid", "strictatime", "mode=755", "size=65536k"]),
        ("/dev/pts", "devpts", "devpts", ["nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620", "gid=5"]),
        ("/sys", "sysfs", "sysfs", [*safe, "ro"]),
        ("/sys/fs/cgroup", "cgroup", "cgroup", [*safe, "relatime", "ro"]),
        ("/dev/mqueue", "mqueue", "mqueue", safe),
        ("/dev/shm", "tmpfs", "shm", [*safe, "mode=1777", f"size={options.shm_size}"]),
    )
    return [
        {"destination": place, "type": kind, "source": source, "options": list(flags)}
        for place, kind, source, flags in table
    ]


def _tmpfs(text: str) -> dict[str, Any]:
    place, _, asked = text.partition(":")
    given = [option for option in asked.split(",") if option]
    # What is asked for wins over its opposite among the defaults.
    safe = [flag for flag in ("nosuid", "noexec", "nodev") if flag.removeprefix("no") not in given]
    flags = [*safe, *(option for option in given if option not in safe)]
    return {"destination": _place(place, "tmpfs"), "type": "tmpfs", "source": "tmpfs", "options": flags}


def _bind(source: str, destination: str, *, readonly: bool) -> dict[str, Any]:
    flags = ["rbind", "rprivate", "rro" if readonly else "rw"]
    return {"destination": _place(destination, source), "type": "bind", "source": source, "options": flags}


def _place(path: str, what: str) -> str:
    if not path.startswith("/") or "\0" in path:
        raise ConfigError(f"Cannot mount {what} at {path!r}: the path in the container must be absolute.")
    return posixpath.normpath(f"/{path.lstrip('/')}")


def _absolute(cwd: str) -> str:
    if not cwd.startswith("/") or "\0" in cwd:
        raise ConfigError(f"The working directory {cwd!r} must be an absolute path in the container.")
    return posixpath.normpath(f"/{cwd.lstrip('/')}")


def _terminal(tty: bool) -> list[tuple[str, str]]:
    return [("TERM", "xterm")] if tty else []


def _process(
    image: Mapping[str, Any], options: RunOptions, names: tuple[str, ...], rootfs: str, hostname: str
) -> dict[str, Any]:
    user = users.resolve(options.user or str(image.get("User") or ""), rootfs)
    # An image may say its directory without the leading slash, as docker accepts it.
    cwd = _absolute(options.cwd or f"/{image.get('WorkingDir') or ''}")
    preset = [("PATH", DEFAULT_PATH), *_terminal(options.tty), ("HOME", user.home)]
    if hostname:
        preset.insert(1, ("HOSTNAME", hostname))
    entries = environment.merge(image.get("Env") or (), options.env)
    return {
        "terminal": options.tty,
        "user": user.to_oci(),
        "args": command(image, options),
        "env": environment.defaults(entries, preset),
        "cwd": cwd,
        "capabilities": capabilities.for_process(names, user.uid),
        "noNewPrivileges": options.no_new_privileges,
        "oomScoreAdj": 0,
    }
