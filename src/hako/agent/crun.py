"""Running crun: arguments, its log, and what its errors mean."""

from __future__ import annotations

import fcntl
import os

from hako.agent.loop import Future, Loop
from hako.wire import calls, jsontext

TYPE_CHECKING = False
if TYPE_CHECKING:
    import signal
    from typing import Any
else:
    import _signal as signal  # signal itself brings enum and re

CRUN = "/usr/bin/crun"
_ROOT = "/run/crun"
_MAX_LOG = 64 << 10
_ENV = {"PATH": "/usr/bin:/usr/sbin:/bin:/sbin"}

#: How crun begins when the command itself, rather than the container around it, is at fault.
_COMMAND_FAULTS = ("executable file", "open executable", "exec ", "execve")


_ALL_SEALS = fcntl.F_SEAL_SEAL | fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_WRITE

_sealed = ""


def prepare() -> None:
    """Move crun into a sealed file in memory, from which it is started from now on.

    So that no container can write to it, crun makes such a copy of itself at each start and starts that, unless it
    finds that it is one already. That is half of the time of each start, and more under software emulation, where code
    at a new place in memory is translated anew.
    """
    global _sealed
    fd = os.memfd_create("crun", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    with open(CRUN, "rb") as file, open(fd, "wb", closefd=False) as copy:
        copy.write(file.read())
    fcntl.fcntl(fd, fcntl.F_ADD_SEALS, _ALL_SEALS)
    os.unlink(CRUN)
    _sealed = f"/proc/self/fd/{fd}"  # open for good


async def run(loop: Loop, args: list[str], log: str, *, stdio: tuple[int, int, int] | None = None) -> tuple[int, str]:
    """Run crun with ``args``; return its exit status and, if that is not 0, its last error message.

    ``stdio`` are the descriptors that become the container's; by default crun gets /dev/null.
    """
    return await finish(loop.child(spawn(args, log, stdio)), log)


def spawn(args: list[str], log: str, stdio: tuple[int, int, int] | None = None) -> int:
    """Start crun, to be followed by finish(); return its process id."""
    # Python ignores these two signals, and the agent is scheduled in its own way (main.py); a container's process
    # must find both as they were.
    defaults, scheduler = (signal.SIGPIPE, signal.SIGXFSZ), (os.SCHED_OTHER, os.sched_param(0))
    argv = ["crun", "--root", _ROOT, "--cgroup-manager", "cgroupfs", "--log", log, "--log-format", "json", *args]
    null = os.open("/dev/null", os.O_RDWR | os.O_CLOEXEC)
    try:
        fds = stdio or (null, null, null)
        # Above 2, so that no dup2 overwrites a descriptor that a later one still needs.
        actions = [(os.POSIX_SPAWN_DUP2, fd, number) for number, fd in enumerate(fds)]
        return os.posix_spawn(
            _sealed or CRUN, argv, _ENV, file_actions=actions, setsid=True, setsigdef=defaults, scheduler=scheduler
        )
    finally:
        os.close(null)


async def finish(ended: Future, log: str) -> tuple[int, str]:
    """Wait for the crun that spawn() has started; see run()."""
    status: int = await ended
    message = "" if status == 0 else _last_error(log)
    try:
        os.unlink(log)
    except FileNotFoundError:
        pass
    return status, message


def let_go(container_id: str) -> bool:
    """Let the process of a created container run, as ``crun start`` does; False if that has to do it.

    The process waits until somebody writes to a FIFO of its container, which is gone afterwards (src/libcrun/status.c).
    """
    path = f"{_ROOT}/{container_id}/exec.fifo"
    try:
        fd = os.open(path, os.O_WRONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError:
        return False  # nobody waits yet
    try:
        os.unlink(path)
        return os.write(fd, b"x") == 1
    except OSError:
        return False
    finally:
        os.close(fd)


def _last_error(log: str) -> str:
    try:
        with open(log, "rb") as file:
            lines = file.read(_MAX_LOG).splitlines()
    except OSError:
        return ""
    for line in reversed(lines):
        try:
            entry: Any = jsontext.loads(line)
        except ValueError:
            continue
        if isinstance(entry, dict) and entry.get("level") == "error" and isinstance(entry.get("msg"), str):
            return str(entry["msg"]).strip()
    return ""


def error(what: str, status: int, message: str) -> calls.CallError:
    """The CallError for a crun that failed while doing ``what``."""
    lowered = message.lower()
    exit_code = None
    if lowered.startswith(_COMMAND_FAULTS):
        exit_code = 127 if "no such file or directory" in lowered else 126
    text = message or f"crun ended with status {status} and said nothing"
    if exit_code:  # a sentence of its own for the user: the command is wrong, not what was being done
        return calls.CallError(calls.INVALID_ARGUMENT, text, exit_code)
    return calls.CallError(calls.INTERNAL, f"{what}: {text}", exit_code)
