"""virtiofs: served by virtiofsd, a process of its own, to a VM whose memory it shares.

Two programs go by that name: the older one in C that comes with QEMU up to 7.2, and its successor in Rust. They are
given the same behaviour by different options.

The sandbox mode is ``namespace``: virtiofsd has only the shared tree as its root, no network, and no process but
itself in sight, so that a guest that breaks it has broken out into the files it had anyway. Mounts that are made in the
tree later reach it by propagation (see SharedTree).
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import socket
import subprocess
from collections.abc import Callable

from hako import log, proc
from hako.errors import HakoError, HostError
from hako.hypervisor import confine
from hako.hypervisor.base import Device, ShareVirtiofs
from hako.hypervisor.console import BoundedLog, SocketReader
from hako.named import NamedTuple
from hako.proc import BASE_ENV, run
from hako.storage.base import NAME, TAG, MountRequest

_log = log.get("storage")

#: Where the program is, the older one first: it is the one that belongs to the host's QEMU.
PLACES = ("/usr/lib/qemu/virtiofsd", "/usr/libexec/virtiofsd", "/usr/lib/virtiofsd")

# What it needs to shut itself in. It gives these up before it serves anything.
_START_CAPABILITIES = ("sys_admin", "setpcap")
# What it then works with: what 9p has (see hypervisor/confine.py), the users that it acts as, and files' capabilities.
# No mknod: device nodes made by a guest have no good use on the host.
_CAPABILITIES = (*confine.SHARE_CAPABILITIES, "setuid", "setgid", "setfcap")

# It holds a descriptor for each file that the guest remembers.
_MAX_FILES = 1_000_000
_CAP_SYS_RESOURCE = 24

#: How long a killed helper may take to disappear before that is reported.
_REAP_TIMEOUT = 10.0

#: Within so many seconds of its end without a failure it is known whether QEMU has ended, too.
_PEACE = 1.0


class Program(NamedTuple):
    """An installed virtiofsd."""

    path: str
    rust: bool  #: the successor, with options of its own


def find_program(path: str = "") -> Program:
    """The virtiofsd at ``path``; empty: the one that is installed. Raises HostError when there is none."""
    for place in (path,) if path else PLACES:
        if os.access(place, os.X_OK) and os.path.isfile(place):
            # What lies among QEMU's own programs is QEMU's; a path may hold either, so it is asked.
            return Program(place, rust="/qemu/" not in place and _is_rust(place))
    found = None if path else proc.find("virtiofsd")
    if found is not None:
        return Program(found, _is_rust(found))
    if path:
        raise HostError(f"There is no program {path}, which the setting share.virtiofsd names.")
    raise HostError(
        "virtiofsd is not installed. Install the package qemu-system-common, or virtiofsd on newer systems, "
        'or use the setting share.driver = "9p".'
    )


def _is_rust(path: str) -> bool:
    # QEMU's prints its copyright after its version, the successor one line with its version alone.
    return b"QEMU" not in run([path, "--version"], timeout=10, check=False).stdout


def arguments(program: Program, path: str, fd: int, cache: str, max_files: int) -> list[str]:
    """The command line that has ``program`` serve ``path`` to the one connection of the listening socket ``fd``.

    ``max_files`` is the most descriptors it may have; 0 leaves the limit as it is.
    """
    # Mounts in the tree are not announced as file systems of their own: the guest's kernel 6.1 drops the inode that
    # such a mount stands on when memory is short, and hits a BUG when a container on one ends (generic_shutdown_super).
    common = [program.path, f"--fd={fd}", f"--rlimit-nofile={max_files}", "--thread-pool-size=0"]
    if program.rust:
        cache = "never" if cache == "none" else cache
        options = ["--xattr", "--posix-acl", "--inode-file-handles=never"]
        options += ["--killpriv-v2", "--modcaps=-mknod", "--log-level=warn", "--sandbox=namespace"]
        return [*common, f"--cache={cache}", *options, f"--shared-dir={path}"]
    # Locks are the guest's own kernel's: those of virtiofsd cannot be waited for.
    options = ["sandbox=namespace", f"cache={cache}", "xattr", "posix_acl", "modcaps=-mknod"]
    options += ["killpriv_v2", "no_flock", "no_posix_lock", "no_writeback", "log_level=warn"]
    # It has no way to write a comma, which separates its options.
    return [*common, "-f", "-o", ",".join(options), "-o", f"source={path}"]


def private_socket() -> tuple[socket.socket, socket.socket]:
    """A listening socket with one connection waiting in it, and the other end of that connection.

    The socket has a name that the kernel picked, not a file, so nothing can be left behind. Nobody else can slip in:
    with a queue of one, ours is the only connection there can ever be.
    """
    while True:
        listener = socket.socket(socket.AF_UNIX)
        ours = socket.socket(socket.AF_UNIX)
        try:
            listener.bind("")
            listener.listen(0)
            ours.setblocking(False)
            ours.connect(listener.getsockname())
            ours.setblocking(True)
            return listener, ours
        except BlockingIOError:  # somebody else's connection is in the queue
            ours.close()
            listener.close()
        except BaseException:
            ours.close()
            listener.close()
            raise


class VirtiofsShare:
    """Shares a directory by a virtiofsd process. See ShareDriver for the contract.

    ``binary`` is the program's path (empty: the installed one), ``cache`` what the guest may remember: auto, none or
    always.
    """

    sharing = "shared"

    def __init__(self, binary: str = "", cache: str = "auto") -> None:
        self._binary = binary
        self._cache = cache
        self.on_exit: Callable[[HakoError], None] | None = None
        self.lost: HakoError | None = None
        self._process: subprocess.Popen[bytes] | None = None
        self._socket: socket.socket | None = None
        self._words = BoundedLog()
        self._stack = contextlib.ExitStack()
        self._ended: asyncio.Future[None] | None = None
        self._closing = False

    @property
    def pid(self) -> int | None:
        return self._process.pid if self._process is not None and self._process.returncode is None else None

    def device(self, path: str) -> Device | None:  # noqa: ARG002 - the protocol has it
        return None

    def plugged(self) -> ShareVirtiofs | None:
        return ShareVirtiofs(TAG)

    def mount_request(self) -> MountRequest:
        return MountRequest("virtiofs", TAG, NAME, "")

    async def start(self, path: str) -> int | None:
        if os.geteuid() != 0:
            raise HostError('virtiofs can only be used by root; use the setting share.driver = "9p".')
        if "," in path:
            raise HostError(f"virtiofsd cannot share {path}, whose name contains a comma.")
        program = find_program(self._binary)
        try:
            self._socket = self._spawn(program, path)
        except BaseException:
            await self.close()
            raise
        return self._socket.fileno()

    def _spawn(self, program: Program, path: str) -> socket.socket:
        max_files, more = _max_files()
        prefix = confine.launch_prefix(None, (*_START_CAPABILITIES, *more, *_CAPABILITIES), root=True)
        with contextlib.ExitStack() as theirs:
            listener, ours = private_socket()
            theirs.callback(listener.close)
            self._stack.callback(ours.close)
            read_end, write_end = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
            self._stack.callback(os.close, read_end)
            theirs.callback(os.close, write_end)
            argv = [*prefix, *arguments(program, path, listener.fileno(), self._cache, max_files)]
            _log.debug("Starting virtiofsd.", argv=argv)
            try:
                self._process = subprocess.Popen(
                    argv,
                    stdin=subprocess.DEVNULL,
                    stdout=write_end,
                    stderr=write_end,
                    pass_fds=(listener.fileno(),),
                    env=BASE_ENV,
                    cwd="/",
                    start_new_session=True,
                )
            except OSError as error:
                raise HostError(f"Cannot start {argv[0]}: {error.strerror}.") from error
        reader = SocketReader(read_end, self._words)
        self._stack.callback(reader.stop)
        self._watch(self._process, reader)
        return ours

    def _watch(self, process: subprocess.Popen[bytes], reader: SocketReader) -> None:
        """Learn of the process's end from the kernel, at once."""
        loop = asyncio.get_running_loop()
        self._ended = loop.create_future()
        pidfd = os.pidfd_open(process.pid)
        ended = self._ended

        def end() -> None:
            loop.remove_reader(pidfd)
            os.close(pidfd)
            # What it forked is in its process group, whose number is not given away before it is reaped.
            _kill_group(process.pid)
            process.wait()
            reader.drain()
            ended.set_result(None)
            # It ends in peace when QEMU does, which is reported by whoever watches QEMU. But the older program has a
            # process that does the work, and hides it in its own status when that one is killed.
            if process.returncode != 0:
                report()
            else:
                loop.call_later(_PEACE, report)

        def report() -> None:
            if self._closing:
                return
            self.lost = HostError(self._sentence(process.returncode))
            if self.on_exit is not None:
                self.on_exit(self.lost)

        loop.add_reader(pidfd, end)

    def _sentence(self, returncode: int) -> str:
        words = " | ".join(line.rstrip(".") for line in self._words.tail(3)) or "it said nothing"
        if returncode < 0:
            try:
                how = f"was ended by signal {signal.Signals(-returncode).name}"
            except ValueError:
                how = f"was ended by signal {-returncode}"
        else:
            how = f"failed with status {returncode}" if returncode else "ended by itself"
        return f"virtiofsd, which serves the files of the VM, {how}: {words}."

    async def close(self) -> None:
        self._closing = True
        try:
            if self._process is not None and self._ended is not None and not self._ended.done():
                _kill_group(self._process.pid)
                await asyncio.wait({self._ended}, timeout=_REAP_TIMEOUT)
                if not self._ended.done():
                    _log.warning("virtiofsd does not end after SIGKILL.", pid=self._process.pid)
        finally:
            self._stack.close()
            self._socket = None


def _kill_group(leader: int) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.killpg(leader, signal.SIGKILL)


def _max_files() -> tuple[int, tuple[str, ...]]:
    """As many descriptors as virtiofsd can be given here, at most _MAX_FILES, and the capability that this takes."""
    import resource

    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    with open("/proc/self/status", encoding="ascii") as status:
        line = next(line for line in status if line.startswith("CapEff:"))
    if hard >= _MAX_FILES or not int(line.split()[1], 16) >> _CAP_SYS_RESOURCE & 1:
        return min(hard, _MAX_FILES), ()
    with open("/proc/sys/fs/nr_open", encoding="ascii") as limit:
        return min(int(limit.read()), _MAX_FILES), ("sys_resource",)
