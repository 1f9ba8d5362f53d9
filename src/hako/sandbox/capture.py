"""Feeding and catching a process's streams through pipes, for calls that return output."""

from __future__ import annotations

import os
import selectors
import threading
import time
from types import TracebackType
from typing import TYPE_CHECKING, Any

from hako.errors import TimedOutError
from hako.sandbox import requests

if TYPE_CHECKING:
    from hako.sandbox.api import Process
    from hako.sandbox.requests import Result

_CHUNK = 1 << 16


def named(stdin: int | None, stdout: int | None, stderr: int | None) -> dict[str, int]:
    """The given descriptors by the names the sandbox process knows them by."""
    given = {"stdin": stdin, "stdout": stdout, "stderr": stderr}
    return {name: fd for name, fd in given.items() if fd is not None}


class Pipes:
    """Three pipes to a process: ``child()`` are its ends, ``finish()`` feeds, reads and waits."""

    def __init__(self, input: bytes | str | None) -> None:
        self._fed = input is not None
        self.input = input.encode() if isinstance(input, str) else input or b""
        self._child: dict[str, int] = {}
        self._ours: dict[str, int] = {}

    def __enter__(self) -> Pipes:
        for name in ("stdin", "stdout", "stderr"):
            if name == "stdin" and not self._fed:
                continue
            read, write = os.pipe()
            ours, theirs = (write, read) if name == "stdin" else (read, write)
            self._ours[name], self._child[name] = ours, theirs
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        for fd in (*self._child.values(), *self._ours.values()):
            os.close(fd)
        self._child, self._ours = {}, {}

    def child(self) -> dict[str, Any]:
        """The process's ends, by parameter name."""
        return dict(self._child)

    def take(self) -> dict[str, int]:
        """Our ends, by name; whoever takes them owns them. The process must have its own by now."""
        self._drop_child()
        ours, self._ours = self._ours, {}
        return ours

    def _drop_child(self) -> None:
        for fd in self._child.values():
            os.close(fd)
        self._child = {}

    def finish(self, process: Process, timeout: float | None) -> Result:
        """Feed the input, read the output, wait for the end. Raises TimedOutError."""
        self._drop_child()
        feeder: threading.Thread | None = None
        if "stdin" in self._ours:
            feeder = threading.Thread(target=_feed, args=(self._ours.pop("stdin"), self.input), daemon=True)
            feeder.start()
        deadline = None if timeout is None else time.monotonic() + timeout
        output = self._read(deadline)
        left = None if deadline is None else max(0.001, deadline - time.monotonic())
        return requests.with_output(process.wait(left), output["stdout"], output["stderr"])

    def _read(self, deadline: float | None) -> dict[str, bytes]:
        output = {"stdout": bytearray(), "stderr": bytearray()}
        with selectors.DefaultSelector() as selector:
            for name in output:
                selector.register(self._ours[name], selectors.EVENT_READ, name)
            while selector.get_map():
                left = None if deadline is None else deadline - time.monotonic()
                if left is not None and left <= 0:
                    raise TimedOutError("The command did not end in time.")
                for key, _ in selector.select(left):
                    data = os.read(key.fd, _CHUNK)
                    output[key.data] += data
                    if not data:
                        selector.unregister(key.fd)
        return {name: bytes(data) for name, data in output.items()}


def _feed(fd: int, data: bytes) -> None:
    view = memoryview(data)
    try:
        while view:
            view = view[os.write(fd, view) :]
    except BrokenPipeError:
        pass
    finally:
        os.close(fd)
