"""The guardian of a process that owns something: a shell that waits for its end, and cleans up if it was killed."""

from __future__ import annotations

import os
import sys

from hako.cgroup import home

#: What a guardian is told at an end that needs no cleaning up.
DISMISSED = b"done\n"

#: Goes into the cgroups whose number and directories come first: the sandbox's is to be empty at its end.
_SCRIPT = (
    'n=$1; shift; while [ "$n" -gt 0 ]; do echo 0 >"$1/cgroup.procs"; shift; n=$((n - 1)); done 2>/dev/null; '
    'while read -r word; do [ "$word" = done ] && exit 0; set -- "$@" "$word"; done; exec "$@" 2>/dev/null'
)


def start(code: str) -> int:
    """Start a guardian, which runs ``code`` when the pipe that is returned is closed before it is DISMISSED.

    Call it before private_mounts(). Other lines that are written to the pipe become arguments of ``code``.
    """
    read, write = os.pipe2(os.O_CLOEXEC)
    before = home.directories()
    argv = ["sh", "-c", _SCRIPT, "hako-guardian", str(len(before)), *before, *interpreter(code)]
    roots = {name: value for name, value in os.environ.items() if name.startswith("HAKO_")}
    env = {"PATH": "/usr/bin:/bin", **roots}
    os.posix_spawn("/bin/sh", argv, env, file_actions=[(os.POSIX_SPAWN_DUP2, read, 0)], setsid=True)
    os.close(read)
    return write


def interpreter(code: str) -> list[str]:
    """A command that runs ``code`` with this hako and its libraries, isolated from the program's surroundings."""
    root = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
    libraries = [path for path in sys.path if path.endswith(("/site-packages", "/dist-packages"))]
    return [sys.executable, "-IS", "-c", f"import sys; sys.path += {[root, *libraries]!r}; {code}"]
