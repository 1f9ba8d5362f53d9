"""Filling and draining the warm pool (pool.py): as many warm processes as the configuration asks for, never more."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import time
from collections.abc import Iterator

from hako import ids, log, store
from hako.config.load import load
from hako.config.settings import Config
from hako.errors import HakoError, HostError, TimedOutError
from hako.proc import BASE_ENV
from hako.sandbox.pool import Entry, connect, directory, entries, entry_dir, new_state, reap

_log = log.get("pool")

#: The lock of a warm process has this number in it.
LOCK_FD = 3
_NAMESPACE_FD = 4

#: Seconds for a container that has just been started, before the pool is filled beside it.
_GRACE_SECONDS = 1.0
#: Seconds for warm processes to end when they are asked to.
_END_SECONDS = 10.0
_POLL = 0.02
_MEMINFO = "/proc/meminfo"

#: Memory of the host that a warm one takes while it is made, and that the pool leaves to others at least.
_COST = 192 << 20
_LEFT_BYTES = 512 << 20
_LEFT_SHARE = 8
#: Seconds without another try after a failure, twice as long after each further one; and the most.
_BACK_OFF = (10.0, 600.0)


def fill(config: Config, *, namespace: int | None = None, asked: bool = False) -> list[str]:
    """Start what is missing of the pool, a few at a time: each one that gets ready goes on with the next.

    Returns the ids of those that are being made now. ``namespace`` is the host's mount namespace, for a process that
    has left it. Nothing is started while memory is short, or for a while after a failure; ``asked`` by a user it is
    tried all the same, and HostError says that memory is short.
    """
    if not config.pool.size:
        return []
    store.ensure_dir(directory(), 0o700)
    with _locked():
        _remove_unfinished()
        if asked:
            forget_failures()
        elif _backing_off():
            return []
        found = entries()
        making = [entry.id for entry in found if not entry.ready]
        count = len(found)
        while count < config.pool.size and len(making) < max(1, (os.cpu_count() or 1) // 2):
            if not _memory_suffices(len(making) + 1):
                if asked:
                    raise HostError("There is too little free memory for another virtual machine in the pool.")
                _log.info("The pool is not filled: memory is short.", warm=count)
                break
            making.append(_spawn(namespace))
            count += 1
    return making


@contextlib.contextmanager
def _locked() -> Iterator[None]:
    with store.locked(os.path.join(directory(), "lock")):
        yield


def _remove_unfinished() -> None:
    for name in os.listdir(directory()):
        if name.startswith(store.STAGING_PREFIX):
            store.remove_tree(os.path.join(directory(), name))


def _memory_suffices(making: int) -> bool:
    """Whether the host has memory for as many warm ones as are ``making``, and enough is left then."""
    found = {}
    with open(_MEMINFO, encoding="ascii") as file:
        for line in file:
            name, _, rest = line.partition(":")
            found[name] = rest
    total, available = (int(found[name].split()[0]) << 10 for name in ("MemTotal", "MemAvailable"))
    return available - making * _COST >= max(total // _LEFT_SHARE, _LEFT_BYTES)


def _spawn(namespace: int | None) -> str:
    """Start one warm process; returns its id. Raises HostError."""
    warm_id = ids.new_id()
    with store.staging_dir(directory()) as staging:
        lock = store.lock(os.path.join(staging, "lock"))
        assert lock is not None
        store.write_json(os.path.join(staging, "state.json"), new_state(warm_id))
        os.rename(staging, entry_dir(warm_id))
    try:
        _launch(warm_id, lock, namespace)
    except OSError as error:
        store.remove_tree(entry_dir(warm_id))
        raise HostError(f"Cannot start a process for the pool: {error.strerror}.") from error
    finally:
        os.close(lock)
    return warm_id


def _launch(warm_id: str, lock: int, namespace: int | None) -> None:
    import fcntl

    from hako.cgroup import home
    from hako.sandbox.guardian import interpreter

    argv = [*interpreter("from hako.sandbox.warm import main; main()"), warm_id, *home.directories()]
    if namespace is not None:
        argv = ["/usr/bin/nsenter", f"--mount=/proc/self/fd/{_NAMESPACE_FD}", "--", *argv]
    # Copies out of the way of the numbers that they are to become.
    sources = {LOCK_FD: lock} if namespace is None else {LOCK_FD: lock, _NAMESPACE_FD: namespace}
    high = {number: fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, 10) for number, fd in sources.items()}
    try:
        pid = os.posix_spawn(
            argv[0],
            argv,
            BASE_ENV | {name: value for name, value in os.environ.items() if name.startswith("HAKO_")},
            file_actions=[
                *((os.POSIX_SPAWN_OPEN, number, "/dev/null", os.O_RDWR, 0) for number in (0, 1)),
                (os.POSIX_SPAWN_OPEN, 2, os.path.join(entry_dir(warm_id), "warm.log"), os.O_WRONLY | os.O_CREAT, 0o600),
                *((os.POSIX_SPAWN_DUP2, fd, number) for number, fd in high.items()),
            ],
            setsid=True,
            setsigmask=(),
            setsigdef=[signal.SIGINT, signal.SIGHUP, signal.SIGPIPE, signal.SIGTERM],
        )
    finally:
        for fd in high.values():
            os.close(fd)
    # It ends at once: the warm process is its child, and nobody's zombie.
    os.waitpid(pid, 0)


def fill_quietly(namespace: int | None) -> None:
    """What fill() does, for those whose business it is not: nothing is raised. The configuration is read anew."""
    try:
        fill(load(), namespace=namespace)
    except (HakoError, OSError) as error:
        _log.warning("The pool cannot be filled.", reason=str(error))


class Refill:
    """Fills the pool once after the start of a sandbox, not beside it."""

    def __init__(self, namespace: int) -> None:
        """``namespace`` is the host's mount namespace, which this process has left."""
        self._namespace = namespace
        self._started = False
        self._done = False

    def soon(self) -> None:
        """A container has been started: fill the pool when it has had its time. Call it in an event loop."""
        import asyncio

        if not self._started:
            self._started = True
            asyncio.get_running_loop().call_later(_GRACE_SECONDS, self._in_thread)

    def _in_thread(self) -> None:
        import asyncio

        self._done = True
        asyncio.get_running_loop().run_in_executor(None, fill_quietly, self._namespace)

    def finish(self) -> None:
        """The sandbox has ended: fill the pool now, if its container was started and that has not been done."""
        if self._started and not self._done:
            self._done = True
            fill_quietly(self._namespace)


def _failures() -> str:
    return os.path.join(directory(), "failed.json")


def remember_failure(reason: str) -> None:
    """A warm process could not be made."""
    with contextlib.suppress(HostError):
        store.write_json(_failures(), {"count": _failed()[0] + 1, "time": time.time(), "reason": reason[:1000]})


def forget_failures() -> None:
    """One could be made, or is to be tried."""
    with contextlib.suppress(FileNotFoundError):
        os.unlink(_failures())


def last_failure() -> str:
    """Why the last warm process could not be made; empty when it could."""
    return _failed()[2]


def _failed() -> tuple[int, float, str]:
    record = store.read_json(_failures()) or {}
    count, when, reason = record.get("count"), record.get("time"), record.get("reason")
    if type(count) is int and isinstance(when, float):
        return max(count, 0), when, str(reason)
    return 0, 0.0, ""


def _backing_off() -> bool:
    count, when, _ = _failed()
    first, most = _BACK_OFF
    return count > 0 and 0 <= time.time() - when < min(first * 2 ** min(count - 1, 16), most)


def check() -> None:
    """Have each warm process see whether it is still wanted, and wait until those that are not have gone."""
    if os.path.isdir(directory()):
        with _locked():
            _ask([entry.id for entry in entries()], "check", time.monotonic() + _END_SECONDS)


def drain() -> int:
    """End all warm processes and wait until nothing of them is left; returns how many there were.

    Sandboxes that one of them has taken go on. Raises TimedOutError when one cannot be ended.
    """
    if not os.path.isdir(directory()):
        return 0
    with _locked():
        _remove_unfinished()
        forget_failures()
        names = [entry.id for entry in entries()]
        deadline = time.monotonic() + _END_SECONDS
        _ask(names, "end", deadline)
        while (left := entries()) and time.monotonic() < deadline:
            time.sleep(_POLL)
        for entry in left:
            _kill(entry)
    return len(names)


def _ask(names: list[str], what: str, deadline: float) -> None:
    """Tell each of ``names`` to do ``what`` and wait for its answer, or its end, until ``deadline``."""
    waiting = []
    for name in names:
        sock = _reach(name, deadline)
        if sock is not None:
            waiting.append(sock)
            with contextlib.suppress(OSError):
                sock.send(json.dumps({"do": what}).encode())
    for sock in waiting:
        with sock, contextlib.suppress(OSError):
            sock.settimeout(max(0.01, deadline - time.monotonic()))
            sock.recv(64)


def _reach(name: str, deadline: float) -> socket.socket | None:
    """A connection to a warm process, which may be so young that it does not listen yet; None when it has gone."""
    while time.monotonic() < deadline:
        try:
            return connect(name, _END_SECONDS)
        except OSError:
            if reap(name) or not os.path.isdir(entry_dir(name)):
                break
            time.sleep(_POLL)
    return None


def _kill(entry: Entry) -> None:
    """End a warm process that does not heed what it is told. Raises TimedOutError."""
    deadline = time.monotonic() + _END_SECONDS
    while not reap(entry.id):
        if not os.path.isdir(entry_dir(entry.id)):
            return
        with contextlib.suppress(OSError):
            if entry.pid > 1:
                os.kill(entry.pid, signal.SIGKILL)
        if time.monotonic() > deadline:
            raise TimedOutError(f"The warm process {entry.pid} does not end after SIGKILL; look for it with ps.")
        time.sleep(_POLL)
