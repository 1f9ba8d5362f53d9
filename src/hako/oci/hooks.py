"""Running the hooks of a config.json on the host.

Where each kind runs: prestart, createRuntime, poststart and poststop in the runtime's own namespaces; createContainer,
whose program is found on the host, in the container's network namespace (the others of its namespaces are in the
guest). startContainer is a program of the container: it stays in the guest's config.json, and crun runs it there.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from hako import log
from hako.errors import HostError
from hako.wire import jsontext

if TYPE_CHECKING:
    import subprocess

_log = log.get("hooks")

#: After these the container is what it is: a failure is reported, and the next hook runs.
_TOLERANT = ("poststart", "poststop")
#: So many bytes of a hook's output are kept for an error.
_KEPT = 16 << 10
_CHUNK = 64 << 10


def run(
    hooks: Sequence[Mapping[str, Any]],
    state: Mapping[str, Any],
    *,
    where: str,
    cwd: str = "",
    enter: Callable[[], None] | None = None,
    warn: Callable[[str], None] | None = None,
) -> None:
    """Run ``hooks``, which have passed hako.oci.check, one after the other, each with ``state`` on its standard input.

    ``where`` is their kind, such as ``prestart``. ``cwd`` is the directory to run them in, empty for the caller's own.
    ``enter`` is called before each in the thread that starts it, and so can put it into namespaces that are a thread's
    own. A hook has the seconds of its ``timeout``, or all the time it wants; what it leaves running in the background
    is not waited for. Raises HostError when one fails; of poststart and poststop, ``warn`` (by default the log) is told
    that instead, and the next one runs.
    """
    text = jsontext.dumps(dict(state))
    for index, hook in enumerate(hooks):
        try:
            _run_one(hook, text, cwd, enter)
        except HostError as error:
            message = f"error running hook #{index}: {error} ({where} {hook['path']})"
            if where not in _TOLERANT:
                raise HostError(message) from error
            (warn or _log.warning)(message)


def _run_one(hook: Mapping[str, Any], state: bytes, cwd: str, enter: Callable[[], None] | None) -> None:
    if enter is None:
        _start_and_watch(hook, state, cwd)
        return

    def work() -> None:
        try:
            enter()
        except OSError as error:
            raise HostError(f"cannot enter the container's namespaces: {error.strerror}") from error
        _start_and_watch(hook, state, cwd)

    from hako.threads import in_thread_of_its_own

    # What enter() changes of a thread cannot always be changed back, so the thread ends with the hook.
    in_thread_of_its_own(work)


def _start_and_watch(hook: Mapping[str, Any], state: bytes, cwd: str) -> None:
    import subprocess

    path = hook["path"]
    entries = (entry.partition("=") for entry in hook.get("env") or ())
    stdin = os.memfd_create("state", os.MFD_CLOEXEC)
    try:
        os.write(stdin, state)
        os.lseek(stdin, 0, os.SEEK_SET)
        process = subprocess.Popen(
            list(hook.get("args") or [path]),
            executable=path,
            # Without any it has the runtime's, as with runc.
            env={name: value for name, _, value in entries} if hook.get("env") else None,
            cwd=cwd or None,
            stdin=stdin,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            start_new_session=True,
            preexec_fn=_unblock_signals,
        )
    except OSError as error:
        raise HostError(f"fork/exec {path}: {(error.strerror or str(error)).lower()}") from error
    finally:
        os.close(stdin)
    with process:
        _watch(process, hook.get("timeout"))


def _unblock_signals() -> None:
    """The command holds interrupts back while it makes a container; a hook is not to inherit that."""
    import signal

    signal.pthread_sigmask(signal.SIG_SETMASK, ())


def _watch(process: subprocess.Popen[bytes], timeout: float | None) -> None:
    """Wait for the end of ``process``; raise HostError for a bad one."""
    import signal

    output = _Output(process)
    try:
        in_time = output.follow(timeout)
    except BaseException:
        os.killpg(process.pid, signal.SIGKILL)
        raise
    finally:
        output.close()
    if not in_time:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        raise HostError(f"hook ran past specified timeout of {timeout:.1f}s")
    status = process.wait()
    if status != 0:
        how = f"signal: {signal.strsignal(-status)}" if status < 0 else f"exit status {status}"
        stdout, stderr = output.texts()
        raise HostError(f"error running hook: {how}, stdout: {stdout}, stderr: {stderr}")


class _Output:
    """The beginnings of what a process writes, read until the process itself has ended."""

    def __init__(self, process: subprocess.Popen[bytes]) -> None:
        assert process.stdout is not None
        assert process.stderr is not None
        self._pidfd = os.pidfd_open(process.pid)
        self._kept = {process.stdout.fileno(): b"", process.stderr.fileno(): b""}
        for fd in self._kept:
            os.set_blocking(fd, False)

    def follow(self, timeout: float | None) -> bool:
        """Whether the process ended within ``timeout`` seconds."""
        import select
        import time

        deadline = None if timeout is None else time.monotonic() + timeout
        poller = select.poll()
        for fd in (self._pidfd, *self._kept):
            poller.register(fd, select.POLLIN)
        while True:
            left = None if deadline is None else max(0.0, deadline - time.monotonic()) * 1000
            ready = {fd for fd, _ in poller.poll(left)}
            for fd in ready & self._kept.keys():
                if not self._take(fd):
                    poller.unregister(fd)
            if self._pidfd in ready:
                for fd in self._kept:
                    self._drain(fd)
                return True
            if deadline is not None and time.monotonic() >= deadline:
                return False

    def _take(self, fd: int) -> bool:
        """Read once; False at the end."""
        data = os.read(fd, _CHUNK)
        self._kept[fd] = (self._kept[fd] + data)[:_KEPT]
        return bool(data)

    def _drain(self, fd: int) -> None:
        """Read what is there, as far as it is kept: others may still be writing."""
        try:
            while len(self._kept[fd]) < _KEPT and self._take(fd):
                pass
        except BlockingIOError:
            return

    def texts(self) -> tuple[str, ...]:
        """Standard output and standard error."""
        return tuple(data.decode(errors="replace") for data in self._kept.values())

    def close(self) -> None:
        """Give back the process's descriptor; the pipes are the caller's."""
        os.close(self._pidfd)
