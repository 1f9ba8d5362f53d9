"""Reading and writing the files of a cgroup, with errors that say what could not be set and where."""

from __future__ import annotations

import os

from hako.errors import HostError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

#: Version 1 shows no limit as a number near 2^63, rounded down to pages.
_UNLIMITED = 1 << 62
_MAX_READ = 1 << 20


def read(directory: str, name: str) -> str:
    """The text of a cgroup's file, empty when there is none."""
    try:
        fd = os.open(f"{directory}/{name}", os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return ""
    data = b""
    try:
        while len(data) < _MAX_READ and (more := os.read(fd, 64 << 10)):
            data += more
    except OSError:
        pass  # the cgroup has just gone
    finally:
        os.close(fd)
    return data.decode(errors="replace").strip()


def number(directory: str, name: str) -> int | None:
    """A file's number; None for ``max`` and other texts, for what is no limit, and when there is no such file."""
    text = read(directory, name)
    if not text.isdigit():
        return None
    value = int(text)
    return value if value < _UNLIMITED else None


def table(directory: str, name: str) -> dict[str, int]:
    """A file of ``name value`` lines."""
    lines = (line.partition(" ") for line in read(directory, name).splitlines())
    return {key: int(value) for key, _, value in lines if value.isdigit()}


def write(directory: str, name: str, value: str) -> None:
    """Write a cgroup's file, which must exist. Raises OSError."""
    fd = os.open(f"{directory}/{name}", os.O_WRONLY | os.O_TRUNC | os.O_CLOEXEC)
    try:
        os.write(fd, value.encode())
    finally:
        os.close(fd)


def exists(directory: str, name: str) -> bool:
    """Whether a cgroup has the file."""
    return os.access(f"{directory}/{name}", os.F_OK)


def put(directory: str | None, names: Sequence[str], value: str, origin: str) -> None:
    """Set the first of the files ``names`` that exists to ``value``, for the field ``origin`` of config.json.

    ``directory`` is None when the host does not have the controller. Raises HostError.
    """
    if directory is None:
        raise missing(names[0].partition(".")[0], origin)
    name = next((name for name in names if exists(directory, name)), names[0])
    try:
        write(directory, name, value)
    except OSError as error:
        raise refused(directory, name, value, origin, error) from error


def refused(directory: str, name: str, value: str, origin: str, error: OSError) -> HostError:
    """The error for a file that could not be written."""
    if isinstance(error, FileNotFoundError):
        reason = "this kernel does not have it"
        if exists(directory, "cgroup.controllers"):
            reason += ", or a cgroup above has processes of its own and therefore cannot pass the controller on"
    else:
        reason = str(error.strerror)
    return HostError(f"Cannot set linux.resources.{origin}: writing {value} to {directory}/{name}: {reason}.")


def missing(controller: str, origin: str) -> HostError:
    """The error for a limit that needs a controller which the host does not have."""
    return HostError(
        f"Cannot set linux.resources.{origin}: the host has no cgroup controller {controller}; "
        "enable it in the kernel, or remove the limit."
    )


def below(directory: str) -> Iterable[str]:
    """The cgroup and all below it, innermost first; nothing when it does not exist."""
    for folder, _, _ in os.walk(directory, topdown=False):
        yield folder


def processes(directory: str) -> set[int]:
    """The processes in the cgroup and in all below it."""
    found: set[int] = set()
    for folder in below(directory):
        found.update(int(word) for word in read(folder, "cgroup.procs").split() if word.isdigit())
    found.discard(0)  # stands for a process of another PID namespace
    return found
