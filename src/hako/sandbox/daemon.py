"""Starting a sandbox process and being one.

A command line forks it from the interpreter that is running already; a program that uses the library, whose
threads and memory must not be forked, starts a fresh interpreter. Both end in run(). Beside it stands a
guardian, a shell of half a megabyte that does nothing but wait for the sandbox process to vanish and clean
up after it if it was killed.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import sys

from hako.config.load import load
from hako.config.settings import Config
from hako.errors import HakoError
from hako.sandbox import records
from hako.sandbox.spec import SandboxSpec

_GUARDIAN = 'read -r word && exit 0; exec "$@" 2>/dev/null'


def fork(spec: SandboxSpec, config: Config) -> socket.socket:
    """Start the sandbox process by forking; the connection returned is its owner's.

    For single-threaded programs only. Raises ExistsError when the id or name is taken.
    """
    lock = records.claim(spec)
    ours, theirs = socket.socketpair()
    middle = os.fork()
    if middle == 0:
        # No way back into the caller's code from here on.
        status = 1
        try:
            ours.close()
            if os.fork() == 0:
                os.setsid()
                _leave_standard_streams(spec.id)
                run(spec, config, theirs, lock)
            status = 0
        finally:
            os._exit(status)
    theirs.close()
    os.close(lock)
    os.waitpid(middle, 0)
    return ours


def spawn(spec: SandboxSpec) -> socket.socket:
    """Start the sandbox process as a program of its own; the connection returned is its owner's.

    Safe in any program. Raises ExistsError when the id or name is taken.
    """
    import subprocess

    lock = records.claim(spec)
    ours, theirs = socket.socketpair()
    try:
        # The intermediate process ends at once, so that the caller has no child to wait for.
        code = "from hako.sandbox.daemon import main; main()"
        argv = [*interpreter(code), json.dumps(spec.to_json()), str(theirs.fileno()), str(lock)]
        subprocess.run(argv, pass_fds=(theirs.fileno(), lock), stdin=subprocess.DEVNULL, check=True)
    finally:
        theirs.close()
        os.close(lock)
    return ours


def main() -> None:
    """Entry of a spawned sandbox process: description, owner's socket and lock are arguments."""
    description, owner, lock = sys.argv[1:]
    spec = SandboxSpec.from_json(json.loads(description))
    if os.fork() != 0:
        os._exit(0)
    os.setsid()
    _leave_standard_streams(spec.id)
    try:
        run(spec, load(), socket.socket(fileno=int(owner)), int(lock))
    finally:
        os._exit(0)


def interpreter(code: str) -> list[str]:
    """A command that runs ``code`` with this hako, isolated from the user's environment."""
    root = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
    return [sys.executable, "-I", "-c", f"import sys; sys.path.insert(0, {root!r}); {code}"]


def _leave_standard_streams(sandbox_id: str) -> None:
    """Standard input and output go nowhere, errors to the sandbox's log."""
    null = os.open("/dev/null", os.O_RDWR)
    log = os.open(
        os.path.join(records.run_dir(sandbox_id), "sandbox.log"), os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600
    )
    for source, target in ((null, 0), (null, 1), (log, 2)):
        os.dup2(source, target)
    os.close(null)
    os.close(log)
    os.chdir("/")
    os.umask(0o022)


def _start_guardian(sandbox_id: str) -> int:
    """Start the guardian; return the pipe whose closing without a word alarms it."""
    read, write = os.pipe2(os.O_CLOEXEC)
    code = f"from hako.sandbox.records import reap; reap({sandbox_id!r})"
    argv = ["sh", "-c", _GUARDIAN, "hako-guardian", *interpreter(code)]
    roots = {name: value for name, value in os.environ.items() if name.startswith("HAKO_")}
    env = {"PATH": "/usr/bin:/bin", **roots}
    os.posix_spawn("/bin/sh", argv, env, file_actions=[(os.POSIX_SPAWN_DUP2, read, 0)], setsid=True)
    os.close(read)
    return write


def run(spec: SandboxSpec, config: Config, owner: socket.socket, lock: int) -> None:
    """Be the sandbox process: serve until the sandbox ends. Never raises; ``lock`` is held to the end."""
    from hako.linux import syscalls
    from hako.sandbox.vm import Trace
    from hako.storage.tree import private_mounts

    trace = Trace()
    for number in (signal.SIGINT, signal.SIGHUP, signal.SIGPIPE):
        signal.signal(number, signal.SIG_IGN)
    os.set_inheritable(owner.fileno(), False)
    os.set_inheritable(lock, False)
    syscalls.set_process_name("hako-sandbox")
    guardian = _start_guardian(spec.id)
    try:
        private_mounts()
        import asyncio

        from hako.sandbox.engine import Engine

        trace.mark("process ready")

        async def serve() -> None:
            engine = Engine(spec, config, trace)
            asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, engine.stop_soon)
            await engine.run(owner)

        asyncio.run(serve())
        os.write(guardian, b"done\n")
    except HakoError as error:
        print(f"hako-sandbox: {error}", file=sys.stderr)
    except Exception:
        import traceback

        traceback.print_exc()
