"""cruns that have been started ahead: each waits for the config.json of a container that nobody has asked for yet.

A template is frozen with one of each kind, so that its clones need not start a program, link it and have it read its
arguments, nor make a control group and load what guards the devices. Kinds differ in which of the standard streams are
pipes, for those cannot be exchanged afterwards. One suits a container with just these streams and no terminal, with the
usual rules for devices and without hooks; any other is made in the ordinary way, and they go on waiting.
"""

from __future__ import annotations

import fcntl
import os

from hako.agent import cgroups, crun, devices, system
from hako.agent.loop import Loop
from hako.wire import jsontext

TYPE_CHECKING = False
if TYPE_CHECKING:
    import signal
    from typing import Any
else:
    import _signal as signal  # signal itself brings enum and re

#: Which standard streams are pipes, of each one that is started; the others are the null device. These are: what
#: engines run without input, what they run with it, and a pod's pause container.
KINDS = ((1, 2), (0, 1, 2), ())
_NAMES = ("stdin", "stdout", "stderr")
#: What containers are called in the guest, with a number after it. No container of the host's can have this name.
_KEY = "_ahead"
#: It has come as far as it can within 5 s. No other file than its config.json would make it wait.
_TRIES = 500
_PAUSE = 0.01
_OPENAT = "257 "
#: What a pipe holds, and what it can be made to hold, in bytes.
_PIPE = 64 << 10
_MAX_CONFIG = 1 << 20


class Ahead:
    """One crun that waits. ``pipes`` are its pipes, (read, write) by descriptor: they are the taker's."""

    def __init__(self, loop: Loop, kind: int, base: str, scratch: str) -> None:
        """Start one of KINDS. ``base`` is where containers have their directories, its files begin with ``scratch``."""
        self._loop = loop
        self.key = f"{_KEY}{kind}"
        self._directory = f"{base}/{self.key}"
        self._config = f"{self._directory}/config.json"
        self.pid_file, self.log = scratch + ".pid", scratch + ".log"
        self._guarded = devices.guard(self.key)
        os.makedirs(self._directory)
        os.mkfifo(self._config, 0o600)
        self.pipes = {number: os.pipe2(os.O_CLOEXEC) for number in KINDS[kind]}
        null = os.open("/dev/null", os.O_RDWR | os.O_CLOEXEC)
        try:
            args = ["create", "--bundle", self._directory, "--pid-file", self.pid_file, self.key]
            # Of the input it has the end that reads, of the outputs those that write.
            ends = [self.pipes[number][number > 0] if number in self.pipes else null for number in range(3)]
            self._pid = crun.spawn(args, self.log, (ends[0], ends[1], ends[2]))
        finally:
            os.close(null)
        self.ended = loop.child(self._pid)

    async def waits(self) -> None:
        """Return when it waits for its config.json, or after a while."""
        for _ in range(_TRIES):
            if self.ended.done or cgroups.read(f"/proc/{self._pid}/syscall").startswith(_OPENAT):
                return
            await self._loop.sleep(_PAUSE)

    def suits(self, spec: dict[str, Any], streams: dict[str, Any]) -> bool:
        """Whether the container with this OCI config and these streams can be made by it."""
        if self.ended.done or spec.get("process", {}).get("terminal") is True:
            return False
        if any((streams.get(name) is not None) != (at in self.pipes) for at, name in enumerate(_NAMES)):
            return False
        if spec.get("hooks"):
            return False  # they are told the container's name, which is not this one's
        return self._guarded and devices.are_usual(_rules(spec))

    def go(self, spec: dict[str, Any]) -> bool:
        """Give it its config.json. False when it does not wait for one, or one that is too large."""
        resources = spec.get("linux", {}).get("resources", {})
        data = jsontext.dumps({**spec, "linux": {**spec["linux"], "resources": {**resources, "devices": []}}})
        try:
            fd = os.open(self._config, os.O_WRONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        except OSError:
            return False
        try:
            if len(data) > _PIPE and fcntl.fcntl(fd, fcntl.F_SETPIPE_SZ, _MAX_CONFIG) < len(data):
                return False
            # It reads the file once more, to keep a copy. A new file takes the guest less than one that is renamed.
            os.unlink(self._config)
            system.write(self._config, data)
            return os.write(fd, data) == len(data)
        except OSError:
            return False
        finally:
            os.close(fd)

    def drop(self) -> None:
        """It is not wanted: end it, and remove what is its own."""
        if not self.ended.done:
            os.kill(self._pid, signal.SIGKILL)
        for path in (self._config, self.log):
            try:
                os.unlink(path)
            except FileNotFoundError:
                continue
        os.rmdir(self._directory)
        cgroups.remove(self.key)


def _rules(spec: dict[str, Any]) -> object:
    linux = spec.get("linux")
    resources = linux.get("resources") if isinstance(linux, dict) else None
    return resources.get("devices") if isinstance(resources, dict) else None
