"""A zygote: a process that has loaded what a sandbox process needs, and forks one for each that asks.

Loading it takes longer than everything else that is done until QEMU is started, and takes memory, which the forked
processes share. A zygote ends when it was not used for a while, when its files are gone, and when the program has been
replaced. Nothing is lost with it: whoever finds none does without.
"""

from __future__ import annotations

import contextlib
import gc
import os
import signal
import socket
import sys
import time

from hako.linux.title import set_title
from hako.sandbox import daemon, zygotes
from hako.wire import jsontext

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable
    from typing import Any, NoReturn, Protocol

    class Work(Protocol):
        """What a zygote is for."""

        def load(self) -> None:
            """Load what the forked processes need."""

        def prepare(self) -> None:
            """Make ahead what the next one will need; called when there is time."""

        def forked(self) -> None:
            """Give up what prepare() has made: a forked process has it."""

        def live(self, connection: socket.socket, request: dict[str, Any]) -> None:
            """Be the process that is asked for, in the forked process, which ends when this returns."""


#: Whoever has had it started is still busy with a start of his own.
_DELAY_SECONDS = 1.0
#: Seconds without requests after which there is time for something else.
_QUIET_SECONDS = 0.5
#: Seconds between looks at whether it is still wanted.
_CHECK_SECONDS = 60.0
_BACKLOG = 128


class Zygote:
    """The one whose name is ``known_as`` and whose lock is the open file ``lock``; run() is its whole life."""

    def __init__(self, known_as: str, lock: int, keep: float, work: Work) -> None:
        self._known_as = known_as
        self._lock = lock
        self._keep = keep
        self._work = work
        self._used = time.monotonic()
        self._files = _program_files()

    def run(self) -> None:
        """Fork processes until nobody seems to want any. Raises OSError, HostError."""
        listener = self._listen()
        inode = _inode(zygotes.socket_path(self._known_as))
        signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # the kernel buries those who end
        try:
            prepared = False
            while self._is_wanted(inode):
                listener.settimeout(_CHECK_SECONDS if prepared else _QUIET_SECONDS)
                try:
                    connection, _ = listener.accept()
                except TimeoutError:
                    if not prepared:
                        self._work.prepare()
                    prepared = True
                    continue
                prepared = False
                with connection:
                    if self._files != _states(self._files):
                        return
                    if os.fork() == 0:
                        self._become(listener, connection)
                self._work.forked()
                self._used = time.monotonic()
        finally:
            if inode and inode == _inode(zygotes.socket_path(self._known_as)):
                zygotes.forget(self._known_as)

    def _listen(self) -> socket.socket:
        path = zygotes.socket_path(self._known_as)
        listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
        folder = os.open(os.path.dirname(path), os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(path)
            listener.bind(zygotes.at(folder, path))
            listener.listen(_BACKLOG)
        finally:
            os.close(folder)
        return listener

    def _is_wanted(self, inode: int) -> bool:
        return inode == _inode(zygotes.socket_path(self._known_as)) and time.monotonic() - self._used < self._keep

    def _become(self, listener: socket.socket, connection: socket.socket) -> NoReturn:
        # No way back into the zygote's code from here on.
        try:
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
            listener.close()
            os.close(self._lock)
            connection.settimeout(None)
            connection.sendall(zygotes.READY)
            line = daemon.first_line(connection)
            if line:
                self._work.live(connection, jsontext.loads(line))
        finally:
            os._exit(0)


def main(work: Work) -> None:
    """Be the zygote whose lock, name and time are the arguments, as zygotes.start() gives them."""
    lock, known_as, keep, _room = sys.argv[1:]
    set_title(f"hako-zygote {zygotes.directory()}")
    daemon.close_inherited((int(lock),))
    os.set_inheritable(int(lock), False)
    os.chdir("/")
    zygotes.write_record(known_as)
    time.sleep(_DELAY_SECONDS)
    gc.disable()  # looking for garbage would copy the pages that forked processes share
    work.load()
    gc.freeze()
    Zygote(known_as, int(lock), float(keep), work).run()


def _inode(path: str) -> int:
    try:
        return os.lstat(path).st_ino
    except OSError:
        return 0


def _program_files() -> dict[str, tuple[int, ...]]:
    """The files of hako's that have been loaded, and the interpreter, with what tells another version of each."""
    loaded = [getattr(module, "__file__", None) for name, module in sys.modules.items() if name.startswith("hako")]
    return _states([sys.executable, *(path for path in loaded if path)])


def _states(paths: Iterable[str]) -> dict[str, tuple[int, ...]]:
    return {path: _state(path) for path in paths}


def _state(path: str) -> tuple[int, ...]:
    try:
        status = os.stat(path)
    except OSError:
        return ()
    return status.st_ino, status.st_mtime_ns, status.st_size
