"""Finding, starting and ending zygotes; see zygote.py. Imports next to nothing itself: commands wait for it.

In a directory of hako's live state each has a lock, a record that says which process it is, and a socket. They are
named after its surroundings and its program: it stands in for nobody who would be another kind of process.
"""

from __future__ import annotations

import _socket
import os
import sys

from hako import digests, paths
from hako.linux import surroundings

#: What a zygote says when there is a process for whoever has connected.
READY = b"+"
#: Seconds until that must have happened; otherwise there is as good as none.
_PATIENCE = 2.0
#: Seconds in which a zygote that is to end must have ended.
_STOP_SECONDS = 5.0
#: A process can show as long a command line as it was started with: forked ones are to show what they are.
_ROOM = " " * 256
_SOCKET, _RECORD, _LOCK = ".sock", ".json", ".lock"


def directory() -> str:
    """Where they are found."""
    return os.path.join(paths.state_root(), "zygotes")


def name(kind: str) -> str:
    """That of a zygote of ``kind`` for the calling process."""
    roots = (kind, __file__, sys.executable, paths.state_root(), paths.data_root())
    return digests.of("\0".join(roots).encode() + b"\0" + surroundings.describe())[:32]


def socket_path(known_as: str) -> str:
    """The socket of the zygote with this name."""
    return os.path.join(directory(), known_as + _SOCKET)


def lock_path(known_as: str) -> str:
    """The lock file of the zygote with this name."""
    return os.path.join(directory(), known_as + _LOCK)


def record_path(known_as: str) -> str:
    """The record of the zygote with this name: which process it is."""
    return os.path.join(directory(), known_as + _RECORD)


def at(folder: int, path: str) -> str:
    """An address for the socket ``path`` in the open directory ``folder``: one is limited to 107 bytes."""
    return f"/proc/self/fd/{folder}/{os.path.basename(path)}"


def connect(kind: str) -> _socket.socket | None:
    """A connection to a process that a zygote has forked for the caller and that does what it is told; None: do it
    yourself. A process that is told nothing ends."""
    path = socket_path(name(kind))
    try:
        folder = os.open(os.path.dirname(path), os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError:
        return None
    sock = _socket.socket(_socket.AF_UNIX, _socket.SOCK_STREAM | _socket.SOCK_CLOEXEC)
    try:
        sock.settimeout(_PATIENCE)
        sock.connect(at(folder, path))
        if sock.recv(1) == READY:
            sock.settimeout(None)
            return sock
    except OSError:
        pass  # it has just ended, or is as busy as if it had
    finally:
        os.close(folder)
    sock.close()
    return None


def start(kind: str, code: str, keep: float) -> None:
    """Have a zygote run ``code`` in a fresh interpreter, if there is none for the caller's surroundings yet.

    It is to end ``keep`` seconds after its last use. Raises OSError, HakoError.
    """
    from hako import store
    from hako.sandbox.guardian import interpreter

    store.ensure_dir(directory(), 0o700)
    known_as = name(kind)
    lock = store.lock(lock_path(known_as), wait=False)
    if lock is None:
        return
    try:
        argv = [*interpreter(code), str(lock), known_as, str(keep), _ROOM]
        null = [(os.POSIX_SPAWN_OPEN, number, os.devnull, os.O_RDWR, 0) for number in (0, 1, 2)]
        os.set_inheritable(lock, True)
        os.posix_spawn(argv[0], argv, os.environ, file_actions=null, setsid=True)
    finally:
        os.close(lock)


def write_record(known_as: str) -> None:
    """Write down that the calling process is the zygote with this name. Raises HostError."""
    from hako import store
    from hako.linux.processes import started

    store.write_json(record_path(known_as), {"pid": os.getpid(), "started": started(os.getpid())})


def forget(known_as: str) -> None:
    """Remove the files of the zygote with this name. Its lock must be held."""
    for path in (socket_path(known_as), record_path(known_as), lock_path(known_as)):
        try:
            os.unlink(path)
        except FileNotFoundError:
            continue


def stop_all() -> None:
    """End all zygotes. The processes that they have forked go on."""
    try:
        entries = os.listdir(directory())
    except FileNotFoundError:
        return
    for entry in entries:
        if entry.endswith(_LOCK):
            _stop(entry.removesuffix(_LOCK))


def _stop(known_as: str) -> None:
    import signal
    import time

    from hako import store
    from hako.linux.processes import started

    deadline = time.monotonic() + _STOP_SECONDS
    while time.monotonic() < deadline:
        try:
            lock = store.lock(lock_path(known_as), wait=False, create=False)
        except FileNotFoundError:
            return
        if lock is not None:
            forget(known_as)
            os.close(lock)
            return
        # One that has only just been started has no record yet.
        record = store.read_json(record_path(known_as)) or {}
        pid = record.get("pid")
        if type(pid) is int and pid > 1 and started(pid) == record.get("started"):
            try:
                os.kill(pid, signal.SIGKILL)
            except ProcessLookupError:
                continue
        time.sleep(0.005)
