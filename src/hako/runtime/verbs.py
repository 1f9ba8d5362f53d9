"""The verbs of ``hako-runtime`` with their flags, in the order of the help: those of runc 1.1 to 1.3.

The help, the parser and the shell's completion are all made from this table.
"""

from __future__ import annotations

from hako.runtime.flags import Flag

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

#: runc's exit code when exec itself fails; any other is that of the process.
EXEC_FAILED = 255
FAILED = 1


class Call:
    """What a verb's ``main`` gets. ``root`` is absolute; ``options`` are the verb's flags by long name."""

    __slots__ = ("args", "globals", "options", "root")

    def __init__(self, root: str, options: dict[str, Any], args: list[str], globals: dict[str, Any]) -> None:
        self.root = root
        self.options = options
        self.args = args
        self.globals = globals


class Verb:
    """One verb: ``module`` of this package has its ``main(call)``.

    ``least`` and ``most`` count the arguments (``most`` None: any number). With ``passes_on``, what follows the first
    argument is not for hako. ``failed`` is the exit code of an error; ``refused`` says why hako has no such verb.
    """

    __slots__ = ("about", "failed", "flags", "least", "module", "more", "most", "passes_on", "refused", "usage")

    def __init__(
        self,
        module: str,
        about: str,
        usage: str,
        flags: tuple[Flag, ...] = (),
        least: int = 0,
        most: int | None = 0,
        *,
        passes_on: bool = False,
        failed: int = FAILED,
        refused: str = "",
        more: str = "",
    ) -> None:
        self.module = module
        self.about = about
        self.usage = usage
        self.flags = flags
        self.least = least
        self.most = most
        self.passes_on = passes_on
        self.failed = failed
        self.refused = refused
        self.more = more


HELP = Flag("help", "bool", "h", "show help")

GLOBAL_FLAGS = (
    Flag("debug", "bool", help="show where an error comes from"),
    Flag("log", help="file to write errors to (default: standard error)"),
    Flag("log-format", help="format of the log: text or json", default="text"),
    Flag("root", help="directory for the state of containers (default: /run/hako/runtime)"),
    Flag("criu", help="taken for runc's sake; hako makes no checkpoints", default="criu"),
    Flag("systemd-cgroup", "bool", help='cgroupsPath has the form "slice:prefix:name" and is systemd\'s'),
    Flag("rootless", help="taken for runc's sake; hako runs as root", default="auto"),
    HELP,
    Flag("version", "bool", "v", "print the version"),
)

_CONTAINER = "<container-id>"
_BUNDLE = Flag("bundle", short="b", help="directory with config.json and the root filesystem (default: this one)")
_CONSOLE = Flag("console-socket", help="UNIX socket that gets the descriptor of the terminal's other end")
_PID_FILE = Flag("pid-file", help="file to write the process id to")
_NO_PIVOT = Flag("no-pivot", "bool", help="do not use pivot_root; in a VM it can always be used")
_NO_KEYRING = Flag("no-new-keyring", "bool", help="make no session keyring for the container")
_PRESERVE_FDS = Flag("preserve-fds", "int", help="how many descriptors from 3 on to hand to the container")
_DETACH = Flag("detach", "bool", "d", "do not wait for the process to end")
_FORMAT = Flag("format", short="f", help="table or json", default="table")
_NO_SUBREAPER = Flag("no-subreaper", "bool", help="taken for runc's sake; processes end in the VM")
_PIDFD_SOCKET = Flag(
    "pidfd-socket",
    help="UNIX socket that gets a pidfd of the process",
    refused="the process is in a VM, and the host has no pidfd of it",
)

_CREATE = (_BUNDLE, _CONSOLE, _PIDFD_SOCKET, _PID_FILE, _NO_PIVOT, _NO_KEYRING, _PRESERVE_FDS)
_RUN = (
    _BUNDLE, _CONSOLE, _PIDFD_SOCKET, _DETACH, Flag("keep", "bool", help="keep the container when its process ends"),
    _PID_FILE, _NO_SUBREAPER, _NO_PIVOT, _NO_KEYRING, _PRESERVE_FDS,
)  # fmt: skip
_EXEC = (
    _CONSOLE,
    _PIDFD_SOCKET,
    Flag("cwd", help="working directory in the container"),
    Flag("env", "list", "e", "set an environment variable, as NAME=VALUE"),
    Flag("tty", "bool", "t", "give the process a terminal"),
    Flag("user", short="u", help="user, as <uid>[:<gid>]"),
    Flag("additional-gids", "ints", "g", "one more group"),
    Flag("process", short="p", help="file with the process object, as config.json has it"),
    _DETACH,
    _PID_FILE,
    Flag("process-label", help="SELinux label of the process"),
    Flag("apparmor", help="AppArmor profile of the process"),
    Flag("no-new-privs", "bool", help="the process can gain no privileges"),
    Flag("cap", "list", "c", "one more capability"),
    _PRESERVE_FDS,
    Flag("cgroup", "list", help="cgroup below the container's, which must exist"),
    Flag("ignore-paused", "bool", help="also in a paused container"),
    Flag("no-subreaper", "bool"),
)

_NO_RDT = "a VM has no part of the processor's cache and memory bandwidth of its own"
_UPDATE = (
    Flag("resources", short="r", help="file with a resources object of OCI, - for standard input; all else is ignored"),
    Flag("blkio-weight", "int", help="weight of block input and output, 10 to 1000"),
    Flag("cpu-period", help="period of the limit of CPU time, in microseconds"),
    Flag("cpu-quota", help="limit of CPU time in each period, in microseconds"),
    Flag(
        "cpu-burst",
        help="CPU time that may be saved up, in microseconds",
        refused="the runtime in the VM does not know it",
    ),
    Flag("cpu-share", help="share of CPU time beside other containers"),
    Flag("cpu-rt-period", help="period of the limit of realtime CPU time, in microseconds"),
    Flag("cpu-rt-runtime", help="limit of realtime CPU time in each period, in microseconds"),
    Flag("cpu-idle", help="1: only CPU time that nobody else wants"),
    Flag("cpuset-cpus", help="processors to use, as 0-2,4"),
    Flag("cpuset-mems", help="memory nodes to use"),
    Flag("kernel-memory"),
    Flag("kernel-memory-tcp"),
    Flag("memory", help="limit of the memory, as 512m"),
    Flag("memory-reservation", help="memory that is left to the container when memory is short"),
    Flag("memory-swap", help="limit of memory and swap together, -1 for none"),
    Flag("pids-limit", "int", help="how many processes there may be"),
    Flag("l3-cache-schema", help="Intel RDT schema of the cache", refused=_NO_RDT),
    Flag("mem-bw-schema", help="Intel RDT schema of the memory bandwidth", refused=_NO_RDT),
)

_NO_CRIU = "hako cannot save or restore the processes of a container"

VERBS = {
    "create": Verb("create", "create a container", _CONTAINER, _CREATE, 1, 1),
    "start": Verb("start", "start the process of a created container", _CONTAINER, (), 1, 1),
    "run": Verb("run", "create and start a container", _CONTAINER, _RUN, 1, 1),
    "state": Verb("state", "print the state of a container, as JSON", _CONTAINER, (), 1, 1),
    "kill": Verb(
        "kill", "send a signal, SIGTERM if none is named, to the first process of a container",
        f"{_CONTAINER} [signal]", (Flag("all", "bool", "a", "to all processes of the container"),), 1, 2,
    ),
    "delete": Verb(
        "delete", "remove what is left of a container that has stopped", _CONTAINER,
        (Flag("force", "bool", "f", "kill the container if it runs; it need not exist"),), 1, 1,
    ),
    "exec": Verb(
        "execute", "run one more process in a container",
        f"{_CONTAINER} <command> [arguments]  || -p process.json {_CONTAINER}", _EXEC, 1, None,
        passes_on=True, failed=EXEC_FAILED,
    ),
    "ps": Verb(
        "ps", "list the processes of a container", f"{_CONTAINER} [ps options]", (_FORMAT,), 1, None, passes_on=True,
        more="The table has the processes as the container sees them. As JSON come the numbers of those processes of "
        "the\nhost that stand for them.",
    ),
    "list": Verb(
        "listing", "list the containers of the given root", "",
        (_FORMAT, Flag("quiet", "bool", "q", "print only the ids")),
    ),
    "pause": Verb("pause", "suspend all processes of a container", _CONTAINER, (), 1, 1),
    "resume": Verb("resume", "let the processes of a paused container go on", _CONTAINER, (), 1, 1),
    "update": Verb("update", "change the limits of a container", _CONTAINER, _UPDATE, 1, 1),
    "events": Verb(
        "events", "print what a container uses, and when its memory runs out, as JSON", _CONTAINER,
        (
            Flag("interval", "duration", help="time between two readings (default: 5s)", default=5.0),
            Flag("stats", "bool", help="print what it uses once, then end"),
        ), 1, 1,
    ),
    "spec": Verb(
        "spec", "write a config.json to start from", "",
        (
            Flag("bundle", short="b", help="directory to write it to (default: this one)"),
            Flag("rootless", "bool", help="for a container with a user namespace of the caller's"),
        ),
    ),
    "features": Verb("features", "print what the runtime supports, as JSON", ""),
    "completion": Verb("completion", "print the completion script for a shell", "bash", (), 1, 1),
    "checkpoint": Verb("", "", _CONTAINER, refused=_NO_CRIU),
    "restore": Verb("", "", _CONTAINER, refused=_NO_CRIU),
}  # fmt: skip
