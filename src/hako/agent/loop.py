"""The agent's event loop: file descriptors, children and coroutines on one thread, without asyncio.

asyncio would cost 7 MiB and a second of start-up inside the guest; what the agent needs of it is this file.
"""

from __future__ import annotations

import errno
import os
import select
import time

TYPE_CHECKING = False
if TYPE_CHECKING:
    import signal
    from collections.abc import Callable, Coroutine, Generator
    from typing import Any
else:
    import _signal as signal  # signal itself brings enum and re

READ = select.EPOLLIN
WRITE = select.EPOLLOUT

#: Exit statuses of children nobody has asked for yet; a container's first process can end before its pid is known.
_MAX_UNCLAIMED = 4096


class Future:
    """A value that comes later; coroutines await it."""

    __slots__ = ("_callbacks", "done", "value")

    def __init__(self) -> None:
        self.done = False
        self.value: Any = None
        self._callbacks: list[Callable[[], None]] = []

    def set(self, value: object) -> None:
        """Give the value, once; later calls change nothing."""
        if self.done:
            return
        self.done = True
        self.value = value
        callbacks, self._callbacks = self._callbacks, []
        for callback in callbacks:
            callback()

    def on_done(self, callback: Callable[[], None]) -> None:
        """Call ``callback`` when the value is there, at once if it is there already."""
        if self.done:
            callback()
        else:
            self._callbacks.append(callback)

    def __await__(self) -> Generator[Future, None, Any]:
        if not self.done:
            yield self
        return self.value


class Loop:
    """Watches file descriptors by epoll, reaps children, resumes coroutines."""

    def __init__(self) -> None:
        self._epoll = select.epoll()
        self._handlers: dict[int, Callable[[int], None]] = {}
        self._masks: dict[int, int] = {}
        self._children: dict[int, Future] = {}
        self._unclaimed: dict[int, int] = {}
        self._holding = 0
        self._timers: list[tuple[float, Callable[[], None]]] = []
        self._wake_read, self._wake_write = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)

    def start(self) -> None:
        """Begin to reap children. Called once, in the main thread."""
        signal.set_wakeup_fd(self._wake_write, warn_on_full_buffer=False)
        signal.signal(signal.SIGCHLD, lambda _number, _frame: None)
        self.watch(self._wake_read, READ, self._on_signal)

    def close(self) -> None:
        """Give back the loop's own descriptors."""
        for fd in (self._wake_read, self._wake_write):
            self.forget(fd)
            os.close(fd)
        self._epoll.close()

    def watch(self, fd: int, events: int, handler: Callable[[int], None]) -> None:
        """Call ``handler(ready events)`` whenever ``fd`` is ready for ``events``; 0 suspends watching."""
        old = self._masks.get(fd, 0)
        self._handlers[fd] = handler
        self._masks[fd] = events
        if events == old:
            return
        if not events:
            self._epoll.unregister(fd)
        elif old:
            self._epoll.modify(fd, events)
        else:
            self._epoll.register(fd, events)

    def forget(self, fd: int) -> None:
        """Stop watching ``fd``; call it before closing the fd."""
        if self._masks.pop(fd, 0):
            self._epoll.unregister(fd)
        self._handlers.pop(fd, None)

    def after(self, seconds: float, callback: Callable[[], None]) -> None:
        """Call ``callback`` once, ``seconds`` from now."""
        self._timers.append((time.monotonic() + seconds, callback))

    def sleep(self, seconds: float) -> Future:
        """A future that is done ``seconds`` from now."""
        future = Future()
        self.after(seconds, lambda: future.set(None))
        return future

    def child(self, pid: int) -> Future:
        """The future exit status of child ``pid``, just started: its exit code, or 128 + the signal that ended it."""
        self._unclaimed.pop(pid, None)  # of an earlier process with the same number
        return self._children.setdefault(pid, Future())

    def adopted(self, pid: int) -> Future:
        """The same of a process that became a child by the death of its parent, and may have ended already.

        Its status is sure to be known if hold_exits() was in force when its parent was started.
        """
        if pid not in self._unclaimed:
            return self._children.setdefault(pid, Future())
        future = Future()
        future.set(self._unclaimed.pop(pid))
        return future

    def hold_exits(self) -> None:
        """Remember how unknown children end, until release_exits() was called as often as this.

        Not for longer than that: numbers of processes are used again.
        """
        self._holding += 1

    def release_exits(self) -> None:
        """The reverse of hold_exits()."""
        self._holding -= 1
        if not self._holding:
            self._unclaimed.clear()

    def spawn(self, coroutine: Coroutine[Future, None, None]) -> None:
        """Run ``coroutine``; it must handle its own errors."""
        try:
            future = coroutine.send(None)
        except StopIteration:
            return
        future.on_done(lambda: self.spawn(coroutine))

    def run(self, until: Future) -> None:
        """Serve until ``until`` has its value."""
        while not until.done:
            self._run_once()

    def _run_once(self) -> None:
        timeout = -1.0
        if self._timers:
            timeout = max(0.0, min(when for when, _ in self._timers) - time.monotonic())
        try:
            ready = self._epoll.poll(timeout)
        except OSError as error:
            if error.errno != errno.EINTR:
                raise
            return
        for fd, events in ready:
            handler = self._handlers.get(fd)
            if handler is not None and self._masks.get(fd):
                handler(events)
        if self._timers:
            self._run_timers()

    def _run_timers(self) -> None:
        now = time.monotonic()
        due = [callback for when, callback in self._timers if when <= now]
        self._timers = [timer for timer in self._timers if timer[0] > now]
        for callback in due:
            callback()

    def _on_signal(self, _events: int) -> None:
        os.read(self._wake_read, 4096)  # epoll has just said that there is something to read
        while True:
            try:
                pid, status = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                return
            if pid == 0:
                return
            code = os.waitstatus_to_exitcode(status)
            self._claim(pid, code if code >= 0 else 128 - code)

    def _claim(self, pid: int, status: int) -> None:
        future = self._children.pop(pid, None)
        if future is not None:
            future.set(status)
        elif self._holding:
            self._unclaimed[pid] = status
            if len(self._unclaimed) > _MAX_UNCLAIMED:
                del self._unclaimed[next(iter(self._unclaimed))]
