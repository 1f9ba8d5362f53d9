"""The namespaces that the containers of a pod share, where no container of its own stands for the pod.

A process holds them: it is the first one of its pid namespace, ends what is left there with itself, and reaps it.
"""

from __future__ import annotations

import os

from hako.agent import ephemeral
from hako.linux import syscalls
from hako.wire import calls

TYPE_CHECKING = False
if TYPE_CHECKING:
    import signal
    from typing import Any, NoReturn
else:
    import _signal as signal  # signal itself brings enum and re

_NAMESPACES = syscalls.CLONE_NEWIPC | syscalls.CLONE_NEWUTS | syscalls.CLONE_NEWPID
_MAX_ANSWER = 4096


def make(hostname: str, inside: dict[str, Any], whole: dict[str, Any]) -> int:
    """Make the namespaces, with ``hostname``; returns the pid of what holds them.

    ``inside`` and ``whole`` are kernel parameters, by path below /proc/sys: of these namespaces, and of the VM. Raises
    CallError.
    """
    ephemeral.prepare({"sysctls": whole})
    read, write = os.pipe2(os.O_CLOEXEC)
    middle = os.fork()
    if middle == 0:
        # No way back into the agent's code from here on.
        try:
            os.write(write, _make(hostname, inside).encode())
        finally:
            os._exit(0)
    os.close(write)
    with open(read, "rb") as file:
        answer = file.read(_MAX_ANSWER).decode()
    if not answer.isdigit():
        raise calls.CallError(calls.INTERNAL, f"the pod's namespaces: {answer or 'not made'}")
    return int(answer)


def _make(hostname: str, inside: dict[str, Any]) -> str:
    """In a process that ends soon: the pid of the holder, or what went wrong."""
    try:
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        syscalls.unshare(_NAMESPACES)
        _set_hostname(hostname)
        ephemeral.prepare({"sysctls": inside})
        holder = os.fork()
        if holder == 0:
            _hold()
    except OSError as error:
        return f"{error.strerror} {error.filename or ''}"
    except calls.CallError as error:
        return error.message
    return str(holder)


def _set_hostname(hostname: str) -> None:
    if hostname:
        with open("/proc/sys/kernel/hostname", "w", encoding="ascii") as file:
            file.write(hostname)


def _hold() -> NoReturn:
    """Reap whoever ends here without a parent, until killed from outside."""
    try:
        os.setsid()
        os.closerange(0, 1 << 16)
        signal.pthread_sigmask(signal.SIG_BLOCK, (signal.SIGCHLD,))
        while True:
            try:
                while os.waitpid(-1, os.WNOHANG)[0]:
                    pass
            except ChildProcessError:
                pass
            signal.sigwait((signal.SIGCHLD,))
    finally:
        os._exit(1)
