"""The process that stands for a container's process on the host.

Engines know a container by the process whose id the runtime writes to --pid-file: they look up its namespaces, send it
signals, and wait for its end. The container's process is in a VM, so this one takes its place: it is in the
container's network namespace and cgroup, has its standard streams and terminal, passes signals on, and ends as it ends.
It sees the container's files as its root, in namespaces of its own, so that programs that enter these (`podman cp`,
`podman top`) find there what they would find with another runtime, and containers can name them to join this one.

It is forked from the command that is running already. fork() makes it, go() tells it what it stands for; until then it
ends with the command.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import select
import signal
import socket
import struct
import termios
from collections.abc import Callable

from hako.errors import HakoError, HostError
from hako.linux import syscalls
from hako.linux.title import set_title
from hako.sandbox import client, requests
from hako.wire import calls, frames, jsontext

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, NoReturn

#: Exit status when the container's process was lost with its VM.
LOST = 137
_MAX_MESSAGE = 1 << 20
#: The kernel's, for the process itself, or of no meaning to another one.
_KEPT = frozenset(
    {signal.SIGKILL, signal.SIGSTOP, signal.SIGCHLD, signal.SIGSEGV, signal.SIGBUS, signal.SIGFPE, signal.SIGILL}
)


class StandIn:
    """The command's side: a process that waits to be told what it stands for."""

    def __init__(self, pid: int, channel: socket.socket) -> None:
        self.pid = pid
        self._channel = channel
        self._said = b""

    def go(self, sandbox_id: str, container_id: str, exec_id: str, title: str, view: dict[str, Any] | None) -> None:
        """Tell it, and wait until it has the container's process in its hands. Raises HostError.

        ``view`` is what it is to see: the directory ``rootfs``, and ``mounts`` as source, destination, read-only.
        """
        message = {"sandbox": sandbox_id, "container": container_id, "exec": exec_id, "title": title, "view": view}
        try:
            self._channel.sendall(jsontext.dumps(message) + b"\n")
            answer = self._line()
        except OSError as error:
            raise HostError(f"The process that stands for {container_id} is gone: {error.strerror}.") from error
        if answer != b"held":
            reason = answer.decode(errors="replace").strip() or "it was killed"
            raise HostError(f"The process that stands for {container_id} ended: {reason}")

    def wait(self) -> int:
        """Wait for its end after go(); returns the exit status of the container's process."""
        answer = self._line()
        return int(answer) if answer.isdigit() else LOST

    def _line(self) -> bytes:
        """What it says next; empty when it is gone."""
        while b"\n" not in self._said:
            data = self._channel.recv(1 << 12)
            if not data:
                break
            self._said += data
        line, _, self._said = self._said.partition(b"\n")
        return line

    @property
    def has_ended(self) -> bool:
        """Whether wait() returns at once."""
        return b"\n" in self._said

    def fileno(self) -> int:
        """Readable when wait() has something to return that it had not before."""
        return self._channel.fileno()

    def kill(self) -> None:
        """End it, and wait until it is gone."""
        with contextlib.suppress(ProcessLookupError):
            os.kill(self.pid, signal.SIGKILL)
        with contextlib.suppress(OSError):
            while self._channel.recv(64):
                pass
        self._channel.close()


def fork(*, enter: Callable[[], None], own_namespaces: bool, terminal: int | None) -> StandIn:
    """Make the process. ``enter`` is called in it first, to join namespaces and cgroups.

    ``terminal`` is the slave end of its terminal, if it has one; it stays the caller's. Whoever is the subreaper above
    the command becomes its parent. Raises HostError.
    """
    ours, theirs = socket.socketpair()
    middle = os.fork()
    if middle == 0:
        status = 1
        try:
            ours.close()
            status = _middle(theirs, enter, own_namespaces=own_namespaces, terminal=terminal)
        finally:
            os._exit(status)
    theirs.close()
    os.waitpid(middle, 0)
    answer = ours.recv(_MAX_MESSAGE)
    if not answer.startswith(b"pid "):
        ours.close()
        reason = answer.decode(errors="replace").strip() or "it was killed."
        raise HostError(f"The process that stands for the container could not be made: {reason}")
    return StandIn(int(answer.split()[1]), ours)


def _middle(channel: socket.socket, enter: Callable[[], None], *, own_namespaces: bool, terminal: int | None) -> int:
    """Enter where the process is to be, and fork it, for a process id namespace is for children only."""
    try:
        enter()
        if own_namespaces:
            syscalls.unshare(syscalls.CLONE_NEWPID | syscalls.CLONE_NEWIPC | syscalls.CLONE_NEWUTS)
        # It must not be able to answer before this process has said who it is.
        read, write = os.pipe2(os.O_CLOEXEC)
        pid = os.fork()
        if pid == 0:
            os.close(write)
            os.read(read, 1)
            _be(channel, terminal)
        channel.sendall(b"pid %d\n" % pid)
        return 0
    except (OSError, HakoError) as error:
        text = str(error) if isinstance(error, HakoError) else f"{error.strerror}: {error.filename}."
        channel.sendall(text.encode())
        return 1


def _be(channel: socket.socket, terminal: int | None) -> NoReturn:
    status = LOST
    try:
        os.setsid()
        if terminal is not None:
            fcntl.ioctl(terminal, termios.TIOCSCTTY, 0)
            for number in (0, 1, 2):
                os.dup2(terminal, number)
        start, end = sorted((3, channel.fileno()))
        os.closerange(start, end)
        os.closerange(channel.fileno() + 1, os.sysconf("SC_OPEN_MAX"))
        watched = _Signals()
        data = b""
        while not data.endswith(b"\n"):
            more = channel.recv(1 << 16)
            if not more or len(data) > _MAX_MESSAGE:
                os._exit(status)  # the command has given up
            data += more
        status = _stand(channel, jsontext.loads(data), watched, has_terminal=terminal is not None)
        with contextlib.suppress(OSError):
            channel.sendall(b"%d\n" % status)
    except BaseException as error:
        with contextlib.suppress(OSError):
            channel.sendall(f"{type(error).__name__}: {error}".encode())
    finally:
        os._exit(status)


class _Signals:
    """Collects every signal that can be caught, from now on."""

    def __init__(self) -> None:
        self._read, write = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
        signal.set_wakeup_fd(write, warn_on_full_buffer=False)
        for number in signal.valid_signals() - _KEPT:
            with contextlib.suppress(OSError, ValueError):  # the C library's own
                signal.signal(number, lambda *_: None)
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        signal.pthread_sigmask(signal.SIG_SETMASK, ())

    def fileno(self) -> int:
        return self._read

    def take(self) -> bytes:
        with contextlib.suppress(BlockingIOError):
            return os.read(self._read, 256)
        return b""


def _stand(channel: socket.socket, told: dict[str, Any], watched: _Signals, *, has_terminal: bool) -> int:
    """Hold the container's process until it ends; returns its exit status."""
    target = requests.target(told["container"], told["exec"])
    sock = client.connect(told["sandbox"])
    set_title(told["title"])
    if told["view"] is not None:
        with contextlib.suppress(OSError):
            _look(told["view"])
    wait = client.PendingCall(sock, "Wait", {**target, "hold": True})
    channel.sendall(b"held\n")
    poll = select.poll()
    poll.register(sock, select.POLLIN)
    poll.register(watched, select.POLLIN)
    number = 1
    if has_terminal:
        # Whoever has the other end may have set its size before anybody could be told.
        number += 2
        if any(_terminal_size()):
            sock.sendall(_on_signal(number, signal.SIGWINCH, target, has_terminal=True))
    while True:
        for fd, _ in poll.poll():
            if fd != watched.fileno():
                try:
                    end = wait.advance()
                except HakoError:
                    return LOST
                if end is not None:
                    status = end.get("exit_status")
                    return status & 0xFF if type(status) is int else LOST
                continue
            for came in watched.take():
                number += 2
                with contextlib.suppress(OSError):  # its end is about to be told
                    sock.sendall(_on_signal(number, came, target, has_terminal=has_terminal))


def _on_signal(number: int, came: int, target: dict[str, Any], *, has_terminal: bool) -> bytes:
    """The request that passes the signal ``came`` on; its answer is of no interest."""
    method, params = "Kill", {**target, "signal": came, "all": False}
    if came == signal.SIGWINCH and has_terminal:
        rows, columns = _terminal_size()
        method, params = "Resize", {**target, "width": columns, "height": rows}
    return frames.encode(number, frames.REQUEST, calls.encode_request(method, params))


def _terminal_size() -> tuple[int, int]:
    """Rows and columns of this process's terminal."""
    rows, columns, _, _ = struct.unpack("HHHH", fcntl.ioctl(0, termios.TIOCGWINSZ, bytes(8)))
    return rows, columns


def _look(view: dict[str, Any]) -> None:
    """Make the container's files the root of this process, as far as they are the host's. Raises OSError."""
    syscalls.unshare(syscalls.CLONE_NEWNS)
    syscalls.mount("", "/", flags=syscalls.MS_SLAVE | syscalls.MS_REC)
    with contextlib.ExitStack() as opened:

        def keep(fd: int) -> int:
            opened.callback(os.close, fd)
            return fd

        mounts = []
        for source, destination, readonly in view["mounts"]:
            with contextlib.suppress(OSError):
                mount = keep(syscalls.clone_mount(source))
                if readonly:
                    syscalls.make_readonly(f"/proc/self/fd/{mount}")
                mounts.append((mount, destination))
        rootfs = view["rootfs"]
        # On top of itself: only what is mounted can become the root.
        syscalls.attach_mount(keep(syscalls.clone_mount(rootfs)), rootfs)
        root = keep(os.open(rootfs, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC))
        for mount, destination in mounts:
            # By now the container may have put anything there, or nothing.
            with contextlib.suppress(OSError):
                syscalls.attach_mount(mount, "", dir_fd=keep(syscalls.openat2(root, destination, os.O_PATH)))
        with contextlib.suppress(OSError):
            place = keep(syscalls.openat2(root, "proc", os.O_PATH | os.O_DIRECTORY))
            flags = syscalls.MS_NOSUID | syscalls.MS_NODEV | syscalls.MS_NOEXEC
            syscalls.mount("proc", f"/proc/self/fd/{place}", "proc", flags)
        os.fchdir(root)
    syscalls.pivot_root(".", ".")
    syscalls.umount(".", syscalls.MNT_DETACH)
    os.chdir("/")
