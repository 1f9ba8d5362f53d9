"""Files in a container: reading, writing and metadata, on the root that each runtime gives it.

All runtimes have the same overlay on the same file system of the host, and the host has the files in its page cache:
what differs is the way through the share, not the disk. The work is done by the host's own Python, bind-mounted into
the containers, and timed by the host's clock.
"""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import sys
import tempfile
from collections.abc import Callable
from typing import NamedTuple

from bench import commands
from bench.context import Context
from bench.model import BenchError
from bench.targets.base import PREFIX, Target, Volume
from bench.targets.hako import Hako

SHARES = ("9p", "virtiofs")
_DIRECTORY = "/bench"
#: By its whole name: the host's /usr has a sleep that cannot run in there.
_IDLE = ("/bin/busybox", "sleep", "100000")
#: The number of a round before the first.
_WARM_UP = 999
_WORKER = os.path.join(os.path.dirname(os.path.dirname(os.path.abspath(__file__))), "worker.py")
_CONFIG_DIRECTORY = "/etc/hako"


class Work(NamedTuple):
    """One thing to do with files. ``amount`` of ``unit`` per round; ``unseen``: on a file the container never saw."""

    id: str
    title: str
    line: Callable[[int], str]  #: what the worker is told in a round
    amount: float
    unit: str  #: MB/s, or µs for the time of each operation
    unseen: str = ""  #: name of the file that the host makes first


def files(context: Context) -> None:
    """All the work, in turn on each runtime and each share of hako's."""
    reason = python_missing()
    if reason:
        raise BenchError(reason)
    with contextlib.ExitStack() as stack:
        sessions = {}
        for target in _targets(context, stack):
            try:
                sessions[target] = stack.enter_context(_Worker(target))
            except BenchError as error:
                context.result.notes.append(f"{target.name} is left out: {error}")
        if not any(isinstance(target, Hako) for target in sessions):
            raise BenchError("hako has no share that works here.")
        works = _works(context)
        rows = {
            work: context.result.row(work.id, work.title, work.unit,
                                     better="higher" if work.unit == "MB/s" else "lower")
            for work in works
        }  # fmt: skip
        for worker in sessions.values():
            _warm_up(worker, works)
        for number in context.rounds(context.plan.io_runs):
            for work in works:
                for target, worker in sessions.items():
                    rows[work].add(target.name, worker.do(work, number, context.plan.file_mib))
            for worker in sessions.values():
                worker.clean()


def _works(context: Context) -> list[Work]:
    mib, ops = context.plan.file_mib, context.plan.file_ops
    size = float(mib << 20)

    def per_file(id: str, title: str) -> Work:
        return Work(id, f"{title} each of {ops} files", lambda n: f"{id} dir{n} {ops}", ops, "µs")

    return [
        Work("write", f"write {mib} MiB and fsync", lambda n: f"write own{n} {mib}", size, "MB/s"),
        Work("read", f"read {mib} MiB, not seen before", lambda n: f"read unseen{n}", size, "MB/s", "unseen"),
        Work("again", f"read {mib} MiB again", lambda n: f"read unseen{n}", size, "MB/s"),
        Work("random-read", f"read 4 KiB at random, {ops} times", lambda n: f"randread other{n} {ops}", ops, "µs",
             "other"),
        Work("random-write", f"write 4 KiB at random, {ops} times, and fsync", lambda n: f"randwrite own{n} {ops}",
             ops, "µs"),
        per_file("create", "create"),
        per_file("stat", "stat"),
        per_file("scan", "list, with types,"),
        per_file("unlink", "unlink"),
    ]  # fmt: skip


def _warm_up(worker: _Worker, works: list[Work]) -> None:
    """Do everything once, with a little: what is done first loads programs, and is translated under emulation."""
    for work in works:
        worker.do(work, _WARM_UP, 1)
    worker.clean()


class _Worker:
    """A container with the worker in it. A context manager."""

    def __init__(self, target: Target) -> None:
        self._target = target
        self._stack = contextlib.ExitStack()

    def __enter__(self) -> _Worker:
        with contextlib.ExitStack() as stack:
            box = self._target.start(_IDLE, [Volume("/usr", "/usr")])
            stack.callback(self._target.end, box)
            self._root = self._target.rootfs(box) + _DIRECTORY
            argv = self._target.exec_argv(box, python_argv(_WORKER, _DIRECTORY), stdin=True)
            self._session = stack.enter_context(commands.session(argv, self._target.env))
            self._session.ask("hello", "ok")
            self._check_share(box)
            self._stack = stack.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def _check_share(self, box: str) -> None:
        """Whether the share is the one that was asked for. Raises BenchError."""
        kind = self._target.name.removeprefix("hako ")
        if not isinstance(self._target, Hako):
            return
        mounts = commands.run(
            self._target.exec_argv(box, ["/bin/busybox", "cat", "/proc/mounts"]), env=self._target.env
        ).output
        root = next((line.split()[2] for line in mounts.decode().splitlines() if line.split()[1] == "/"), "nothing")
        if root != kind:
            raise BenchError(f"{kind} was asked for, and the container's root is {root}.")

    def clean(self) -> None:
        """Remove what the last round has left."""
        self._session.ask("clean", "ok")

    def do(self, work: Work, number: int, mib: int) -> float:
        """The figure of one round of ``work``."""
        if work.unseen:
            with open(f"{self._root}/{work.unseen}{number}", "wb") as file:
                for _ in range(mib):
                    file.write(b"hako" * (1 << 18))
        seconds = self._session.ask(work.line(number), "ok")
        return work.amount / seconds / 1e6 if work.unit == "MB/s" else seconds / work.amount * 1e6


def _targets(context: Context, stack: contextlib.ExitStack) -> list[Target]:
    """hako once per share driver, and the others."""
    found: list[Target] = []
    for target in context.targets:
        if isinstance(target, Hako):
            for driver in SHARES:
                config = _config(
                    stack.enter_context(tempfile.TemporaryDirectory(prefix=f"{PREFIX}-{os.getpid()}-")), driver
                )
                variant = Hako(target.command, name=f"hako {driver}", config=config)
                stack.callback(variant.close)
                found.append(variant)
        else:
            found.append(target)
    return found


def _config(directory: str, driver: str) -> str:
    """The machine's configuration with another share driver; returns the file to name in $HAKO_CONFIG."""
    current = os.environ.get("HAKO_CONFIG") or os.path.join(_CONFIG_DIRECTORY, "config.toml")
    file = os.path.join(directory, "config.toml")
    drop_ins = os.path.join(os.path.dirname(current), "config.d")
    if os.path.isdir(drop_ins):
        shutil.copytree(drop_ins, os.path.join(directory, "config.d"))
    if os.path.exists(current):
        shutil.copyfile(current, file)
    else:
        open(file, "wb").close()
    os.makedirs(os.path.join(directory, "config.d"), exist_ok=True)
    with open(os.path.join(directory, "config.d", "zz-bench.toml"), "w", encoding="utf-8") as opened:
        opened.write(f'[share]\ndriver = "{driver}"\n')
    return file


def loader(program: str) -> str:
    """The dynamic loader that an ELF program asks for, by its real path. Raises BenchError."""
    with open(program, "rb") as file:
        found = re.search(rb"(/lib[\w/.-]*/ld-[\w.-]+)\0", file.read(1 << 16))
    if found is None:
        raise BenchError(f"{program} names no dynamic loader.")
    return os.path.realpath(found.group(1).decode())


def python_argv(program: str, *words: str) -> list[str]:
    """What runs a program of the clone in a container that has the host's /usr, which has no program of its own there.

    The loader is named because the container has another one, or none, where the program looks for it.
    """
    with open(program, encoding="utf-8") as file:
        text = file.read()
    return [loader(sys.executable), os.path.realpath(sys.executable), "-ISc", text, *words]


def python_missing() -> str:
    """Why this Python cannot run in a container that has the host's /usr; empty if it can."""
    for path in (os.path.realpath(sys.executable), loader(sys.executable)):
        if not path.startswith("/usr/"):
            return f"Files are measured by the Python of /usr, and {path} is not in it; start with /usr/bin/python3."
    return ""
