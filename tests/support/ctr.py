"""Containers of a containerd with one of its runtimes, driven through ctr as people do."""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import re
import shutil
import subprocess
from collections.abc import Iterator
from typing import Any, NamedTuple, TypeVar

from support.containerd import IMAGE, RUNTIMES, Containerd
from support.engines import DIFFERENCES, Difference
from support.machine import Done, until
from support.terminals import OnTerminal

_T = TypeVar("_T")
_NUMBERS = itertools.count()


class Event(NamedTuple):
    """What containerd was told about a task."""

    topic: str  #: such as ``/tasks/start``
    content: dict[str, Any]


class Ctr:
    """A containerd with the runtime that a test's containers get."""

    def __init__(self, containerd: Containerd, runtime: str) -> None:
        self.containerd = containerd
        self.runtime = runtime
        self.hako = runtime == "hako"
        self.type = RUNTIMES[runtime]  #: what containerd calls it
        self.root = containerd.image.rootfs  #: the image's root directory, to be mounted read-only
        self.directory = f"{containerd.base}/scene{next(_NUMBERS)}"  #: for what this test's containers write
        os.mkdir(self.directory)

    def __call__(self, *args: str, **options: Any) -> Done:
        """Pass ``args`` to ctr, see Containerd.ctr()."""
        return self.containerd.ctr(*args, **options)

    def made(self, name: str, *command: str, options: tuple[str, ...] = (), image: str = IMAGE) -> list[str]:
        """The end of a command line that makes the container ``name``."""
        return ["--runtime", self.type, *options, image, name, *command]

    def run(
        self, *command: str, options: tuple[str, ...] = (), name: str = "once", image: str = IMAGE, **more: Any
    ) -> Done:
        """Run ``command`` in a container of its own, which is removed when it ends."""
        return self("run", "--rm", *self.made(name, *command, options=options, image=image), **more)

    def shell(self, script: str, **more: Any) -> str:
        """What a script prints in a container of its own."""
        return self.run("sh", "-c", script, **more).stdout

    def start(self, name: str, *command: str, options: tuple[str, ...] = ()) -> str:
        """Run ``command`` in the background; returns the path of the file that its output goes to."""
        log = f"{self.directory}/{name}.log"
        self("run", "--detach", *self.made(name, *command, options=("--log-uri", f"file://{log}", *options)))
        return log

    def exec(self, name: str, *command: str, options: tuple[str, ...] = (), id: str = "", **more: Any) -> Done:
        """Run ``command`` in a running container, to its end; ``id`` is what the process is called."""
        return self("task", "exec", "--exec-id", id or f"e{next(_NUMBERS)}", *options, name, *command, **more)

    def either(self, difference: Difference, *, runc: _T, hako: _T) -> _T:
        """What to expect under this runtime, where the two differ by design."""
        assert difference in DIFFERENCES
        return hako if self.hako else runc

    def on_terminal(self, *args: str) -> OnTerminal:
        """ctr with ``args`` on a new terminal."""
        first, *rest = self.containerd.argv(*args)
        program = shutil.which(first)
        assert program is not None
        return OnTerminal([program, *rest])

    def tasks(self) -> dict[str, tuple[int, str]]:
        """The process and the status of each task: ``RUNNING``, ``STOPPED``, ``PAUSED``, ``CREATED`` …."""
        _, *lines = self("task", "ls").stdout.splitlines()
        found = (line.split() for line in lines)
        return {name: (int(pid), status) for name, pid, status in found}

    def status(self, name: str) -> str:
        """The status of a task; empty where there is none."""
        return self.tasks().get(name, (0, ""))[1]

    def until_stopped(self, name: str) -> None:
        """Wait until containerd knows that a task has ended."""
        until(lambda: self.status(name) == "STOPPED", f"{name} has ended")

    def until_logged(self, log: str, text: str) -> str:
        """Wait until ``text`` is in the file ``log``; all of that."""

        def found() -> str:
            with open(log, encoding="utf-8", errors="replace") as file:
                said = file.read()
            return said if text in said else ""

        return until(found, f"{text!r} in {log}")

    def delete(self, name: str) -> int:
        """Remove a container whose task has ended; returns the exit code."""
        # ctr itself ends with 0 here.
        said = self("task", "delete", name).stderr
        self("container", "delete", name)
        found = re.search(r"exit with non-zero exit code (\d+)", said)
        return int(found[1]) if found else 0

    def delete_exec(self, name: str, id: str) -> int:
        """Remove a process that ``exec`` has started detached; returns the exit code, or 1 if it still runs."""
        return self("task", "delete", "--exec-id", id, name, check=False).status

    def remove(self, name: str) -> None:
        """Remove a container whatever state it is in."""
        self("task", "delete", "--force", name, check=False)
        self("container", "delete", name, check=False)

    def clear(self) -> None:
        """Remove all containers."""
        for name in self("container", "ls", "--quiet").stdout.split():
            self.remove(name)

    def shims(self) -> list[int]:
        """The processes of the runtime's shims."""
        found = self.containerd.machine.processes().items()
        return [pid for pid, command in found if re.search(r"^\S*(python\S* \S+ )?\S*shim\S* -namespace ", command)]

    def metrics(self, name: str) -> dict[str, Any]:
        """What a task uses, as containerd's message for cgroups of version 1 or 2."""
        return dict(json.loads(self("task", "metrics", "--format", "json", name).stdout))

    @contextlib.contextmanager
    def events(self) -> Iterator[Events]:
        """Listen to containerd's events until the end of the block."""
        path = f"{self.directory}/events"
        with open(path, "wb") as file:
            argv = self.containerd.argv("events")
            listener = subprocess.Popen(argv, env=self.containerd.machine.environment, stdout=file)
        heard = Events(path, may_lose_last=not self.hako)
        try:
            until(lambda: self._is_heard(heard), "events are heard")
            yield heard
        finally:
            listener.kill()
            listener.wait()
            os.unlink(path)

    def _is_heard(self, heard: Events) -> bool:
        # It does not say when it listens; this is an event that harms nothing.
        self("namespaces", "label", self.containerd.namespace, "asked=yes")
        return bool(heard.all())


def resize(terminal: OnTerminal) -> None:
    """Change the size of a shell's terminal until the shell sees it: ctr misses the first change if it comes early."""
    terminal.type("until [ \"$(stty size | cut -d' ' -f1)\" = 40 ]; do :; done; echo res''ized\r")
    for columns in range(100, 130):
        terminal.resize(40, columns)
        with contextlib.suppress(AssertionError):
            terminal.expect("resized", 1)
            return
    raise AssertionError("The size of the terminal has not changed.")


class Events:
    """What has been heard so far."""

    def __init__(self, path: str, *, may_lose_last: bool) -> None:
        self._path = path
        self._may_lose_last = may_lose_last

    def all(self) -> list[Event]:
        """The events in their order."""
        with open(self._path, encoding="utf-8") as file:
            found = re.findall(r"^\S+ \S+ .* (/\S+) (\{.*\})\n", file.read(), re.MULTILINE)
        return [Event(topic, json.loads(content)) for topic, content in found]

    def of(self, name: str) -> list[Event]:
        """Those of a container's task."""
        events = self.all()
        return [e for e in events if e.topic.startswith("/tasks/") and e.content.get("container_id") == name]

    def topics(self, name: str) -> list[str]:
        """What they were about: ``create``, ``start``, …"""
        return [event.topic.removeprefix("/tasks/") for event in self.of(name)]

    def until(self, name: str, *topics: str) -> list[Event]:
        """Wait until a container's events are ``topics`` in this order; return them.

        The shim of runc may end before it has sent its last event, so that one is not waited for there.
        """
        expected = [list(topics), *([list(topics[:-1])] if self._may_lose_last else [])]
        with contextlib.suppress(AssertionError):  # what there is says more
            until(lambda: self.topics(name) in expected, "events", 20)
        assert self.topics(name) in expected, f"{self.topics(name)} instead of {topics}"
        return self.of(name)
