"""A program that takes crun's place in tests: the same arguments, files and messages, no isolation at all.

A container is a directory with state, its processes are plain ones, its cgroup is a directory of plain files below
$HAKO_TEST_CGROUP. Run by hako.testing.agent with the standard library only. Annotations of a container change what
it does: ``fail`` names a verb that fails, ``hold`` one that waits for the file named in it to appear.
"""

from __future__ import annotations

import array
import ctypes
import fcntl
import json
import os
import pty
import shutil
import signal
import socket
import struct
import sys
import termios
import time

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, NoReturn

_PR_SET_PDEATHSIG = 1
_VALUES = (
    "--root",
    "--cgroup-manager",
    "--log",
    "--log-format",
    "--bundle",
    "--pid-file",
    "--console-socket",
    "--process",
    "--resources",
)


class Command:
    """One run of the program: its verb, options and container."""

    def __init__(self, words: list[str]) -> None:
        self.options: dict[str, str] = {}
        rest = []
        while words:
            word = words.pop(0)
            if word in _VALUES:
                self.options[word] = words.pop(0)
            else:
                rest.append(word)
        self.verb, *flags, self.id = rest
        self.flags = flags
        self.home = os.path.join(self.options["--root"], self.id)
        self.cgroup = os.path.join(os.environ["HAKO_TEST_CGROUP"], "hako", self.id)

    def fail(self, message: str) -> NoReturn:
        """End as crun does when something is wrong."""
        with open(self.options["--log"], "a", encoding="utf-8") as file:
            file.write(json.dumps({"msg": message, "level": "error", "time": "2026-01-01T00:00:00Z"}) + "\n")
        sys.exit(1)

    def config(self) -> dict[str, Any]:
        """The config.json of the container."""
        with open(os.path.join(self.home, "bundle"), encoding="utf-8") as file:
            return _read(os.path.join(file.read(), "config.json"))

    def obey(self, config: dict[str, Any]) -> None:
        """Do what the annotations ask for."""
        annotations = config.get("annotations", {})
        hold = annotations.get("hold." + self.verb)
        while hold and not os.path.exists(hold):
            time.sleep(0.005)
        if annotations.get("fail") == self.verb:
            self.fail(f"{self.verb} fails because the test wants it to")

    def create(self, *, start: bool) -> None:
        """``create`` and ``run --detach``."""
        config = _read(os.path.join(self.options["--bundle"], "config.json"))
        if os.path.exists(self.home):
            self.fail(f"container `{self.id}` already exists")
        os.makedirs(self.home)
        with open(os.path.join(self.home, "bundle"), "w", encoding="utf-8") as file:
            file.write(self.options["--bundle"])
        os.makedirs(self.cgroup)
        for name, text in (("cgroup.freeze", "0"), ("cgroup.events", "populated 1\nfrozen 1\n"), ("cgroup.procs", "")):
            _write(os.path.join(self.cgroup, name), text)
        os.mkfifo(os.path.join(self.home, "start"))
        self.launch(config["process"], wait=not start)
        self.obey(config)

    def launch(self, process: dict[str, Any], *, wait: bool) -> None:
        """Start a process, in its container's name, and leave."""
        program = shutil.which(process["args"][0], path="/usr/bin:/bin")
        if program is None:
            self.fail(f"executable file `{process['args'][0]}` not found in $PATH: No such file or directory")
        master = slave = -1
        if process.get("terminal"):
            master, slave = pty.openpty()
            size = process.get("consoleSize", {"height": 0, "width": 0})
            fcntl.ioctl(master, termios.TIOCSWINSZ, struct.pack("HHHH", size["height"], size["width"], 0, 0))
        pid = os.fork()
        if pid == 0:
            os.setsid()
            signal.signal(signal.SIGPIPE, signal.SIG_DFL)  # which Python ignores
            if wait:
                with open(os.path.join(self.home, "start"), "rb") as file:
                    file.read()
            if slave >= 0:
                fcntl.ioctl(slave, termios.TIOCSCTTY, 0)
                for number in (0, 1, 2):
                    os.dup2(slave, number)
                os.closerange(3, 64)
            os.execve(program, process["args"], {"PATH": "/usr/bin:/bin"})
        with open(os.path.join(self.cgroup, "cgroup.procs"), "a", encoding="ascii") as file:
            file.write(f"{pid}\n")
        if master >= 0:
            self.hand_over(master)
        _write(self.options["--pid-file"], str(pid))

    def hand_over(self, master: int) -> None:
        """Send the terminal to the console socket."""
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as sock:
            sock.connect(self.options["--console-socket"])
            sock.sendmsg([b"/dev/ptmx"], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", [master]))])

    def delete(self) -> None:
        """``delete --force``."""
        if not os.path.exists(self.home):
            if "--force" in self.flags:
                return
            self.fail(f"container `{self.id}` does not exist")
        self.obey(self.config())
        with open(os.path.join(self.cgroup, "cgroup.procs"), encoding="ascii") as file:
            pids = [int(line) for line in file]
        for pid in pids:
            try:
                os.kill(pid, signal.SIGKILL)
            except ProcessLookupError:
                continue
        shutil.rmtree(self.cgroup)
        shutil.rmtree(self.home)

    def run(self) -> None:
        """Do what is asked."""
        if self.verb in ("create", "run"):
            self.create(start=self.verb == "run")
        elif self.verb == "delete":
            self.delete()
        elif not os.path.exists(self.home):
            self.fail(f"container `{self.id}` does not exist")
        elif self.verb == "start":
            self.obey(self.config())
            _write(os.path.join(self.home, "start"), "go")
        elif self.verb == "exec":
            self.obey(self.config())
            self.launch(_read(self.options["--process"]), wait=False)
        elif self.verb == "update":
            self.obey(self.config())
            limit = _read(self.options["--resources"])["memory"]["limit"]
            _write(os.path.join(self.cgroup, "memory.max"), str(limit))
        else:
            self.fail(f"unknown command {self.verb}")


def _read(path: str) -> dict[str, Any]:
    with open(path, encoding="utf-8") as file:
        value: dict[str, Any] = json.load(file)
    return value


def _write(path: str, text: str) -> None:
    with open(path, "w", encoding="utf-8") as file:
        file.write(text)


if __name__ == "__main__":
    # One that waits for a config.json which never comes ends with the agent, as it does with a VM.
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    Command(sys.argv[1:]).run()
