"""Starting a sandbox process and being one.

A command line forks it from the interpreter that is running already; a program that uses the library, whose
threads and memory must not be forked, starts a fresh interpreter. Both end in _become(). Beside it stands a
guardian, a shell of half a megabyte that does nothing but wait for the sandbox process to vanish and clean
up after it if it was killed.
"""

from __future__ import annotations

import contextlib
import gc
import os
import signal
import socket
import sys

from hako.cgroup import home
from hako.config.load import apply_annotations
from hako.config.settings import Config
from hako.errors import HakoError, HostError, sentence
from hako.sandbox import client, guardian, lean, records
from hako.sandbox.spec import SandboxSpec
from hako.sandbox.trace import Trace, of_process
from hako.wire import jsontext

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine
    from typing import Any, NoReturn, Protocol

    from hako.cgroup.joining import Joining
    from hako.sandbox.early import Prepared
    from hako.sandbox.engine import Engine
    from hako.sandbox.machine import Machine

    class Face(Protocol):
        """What a sandbox process does beside running its engine."""

        #: Whether its VM is to start at once; otherwise that is for serve() to say.
        begins: bool

        async def serve(self, engine: Engine, running: Coroutine[Any, Any, None]) -> None:
            """Called with the engine, and what runs that to its end and is to be awaited. The process ends then."""

    #: Makes one of a JSON object and descriptors.
    FaceMaker = Callable[[dict[str, Any], list[int]], Face]

_READ_SIZE = 64 << 10
#: Descriptors that a face may need, and those of a sandbox.
_MAX_FDS = 8
#: As ps and top show it.
PROCESS_NAME = "hako-sandbox"

_REFUSAL_SECONDS = 5.0
_GONE = "The process that was to be the sandbox's is gone."


class Ends:
    """What a sandbox process gets from its starter: lock, control socket, and the owner's connection.

    The socket listens before the process exists, so that nobody has to wait for it to appear.
    """

    def __init__(self, lock: int, listener: socket.socket, owner: socket.socket) -> None:
        self.lock = lock
        self.listener = listener
        self.owner = owner

    @classmethod
    def make(cls, spec: SandboxSpec) -> tuple[Ends, socket.socket]:
        """Claim the sandbox; return the process's ends and the owner's connection. Raises ExistsError."""
        ours, theirs = socket.socketpair()
        try:
            return cls.claim(spec, theirs), ours
        except BaseException:
            ours.close()
            theirs.close()
            raise

    @classmethod
    def claim(cls, spec: SandboxSpec, owner: socket.socket) -> Ends:
        """Claim the sandbox for whoever has the other end of ``owner``. Raises ExistsError."""
        lock = records.claim(spec)
        try:
            listener = client.listen(client.socket_path(spec.id))
        except OSError as error:
            os.close(lock)
            records.reap(spec.id)
            raise HostError(f"Cannot make the control socket of sandbox {spec.id}: {error.strerror}.") from error
        return cls(lock, listener, owner)

    @classmethod
    def inherit(cls, numbers: list[str]) -> Ends:
        """The ends whose descriptors have these numbers."""
        lock, listener, owner = (int(number) for number in numbers)
        for fd in (lock, listener, owner):
            os.set_inheritable(fd, False)
        return cls(lock, socket.socket(fileno=listener), socket.socket(fileno=owner))

    def numbers(self) -> tuple[int, int, int]:
        """The descriptors."""
        return self.lock, self.listener.fileno(), self.owner.fileno()

    def close(self) -> None:
        """Drop the starter's copies."""
        os.close(self.lock)
        self.listener.close()
        self.owner.close()


def fork(
    spec: SandboxSpec, config: Config, trace: Trace | None = None, prepared: Prepared | None = None
) -> socket.socket:
    """Start the sandbox process by forking; the connection returned is its owner's.

    ``trace`` is what this process has done for the start so far; ``prepared`` becomes the process if it can.
    For single-threaded programs only. Raises ExistsError when the id or name is taken.
    """
    trace = trace or Trace()
    trace.begin("fork", "command")
    if prepared is not None and not config.pool.size:
        return _tell(prepared, spec, config, trace)
    ends, ours = Ends.make(spec)
    if _from_pool(spec, config, ends, trace):
        return ours
    _fork_and_become(spec, config, ends, ours, trace)
    return ours


def hand_over(
    prepared: Prepared, spec: SandboxSpec, config: Config, face: dict[str, Any], kept: tuple[int, ...], trace: Trace
) -> None:
    """Have the process that waits be the sandbox's: one that nobody owns, and that has a face besides.

    The face is made of the JSON object ``face`` and the descriptors ``kept``, see serve_prepared(). It never comes from
    the pool. Raises ExistsError when the id is taken, GoneError.
    """
    trace.begin("fork", "command")
    spec = _move(prepared, spec)
    ends, ours = Ends.make(spec)
    connection = socket.socket(fileno=prepared.take())
    try:
        connection.sendall(_description(spec, config, trace, face=face))
        socket.send_fds(connection, [b"\n"], [*ends.numbers(), *kept])
    except OSError as error:
        ends.close()
        records.reap(spec.id)
        raise client.GoneError(_GONE) from error
    finally:
        ends.close()
        ours.close()
        connection.close()


def turn_into(
    spec: SandboxSpec, config: Config, face: Face, kept: tuple[int, ...], trace: Trace, tell: Callable[[], None]
) -> NoReturn:
    """Have the calling process, which somebody has forked for that, be the sandbox's: one that nobody owns.

    ``kept`` are the face's descriptors. ``tell`` is called when nothing more can fail that is for the caller to
    answer for, and raises OSError when it has nobody to tell. Raises ExistsError when the id is taken, GoneError.
    """
    ends, ours = Ends.make(spec)
    ours.close()
    try:
        tell()
    except OSError as error:
        ends.close()
        records.reap(spec.id)
        raise client.GoneError("Whoever has asked for the sandbox is gone.") from error
    _become(spec, config, ends, trace, face, kept)


def _fork_and_become(spec: SandboxSpec, config: Config, ends: Ends, ours: socket.socket, trace: Trace) -> None:
    middle = os.fork()
    if middle == 0:
        # No way back into the caller's code from here on.
        try:
            ours.close()
            if os.fork() == 0:
                _become(spec, config, ends, trace)
        finally:
            os._exit(0)
    ends.close()
    os.waitpid(middle, 0)


def _tell(prepared: Prepared, spec: SandboxSpec, config: Config, trace: Trace) -> socket.socket:
    """Have the process that waits be the sandbox's; returns the owner's connection. Raises GoneError."""
    spec = _move(prepared, spec)
    connection = socket.socket(fileno=prepared.take())
    try:
        connection.sendall(_description(spec, config, trace))
    except OSError as error:
        connection.close()
        raise client.GoneError(_GONE) from error
    return connection


def _move(prepared: Prepared, spec: SandboxSpec) -> SandboxSpec:
    """Move the process that waits into its sandbox's cgroup; returns ``spec`` with what is known of that then.

    It is loading modules still, and the kernel takes a while for this. Raises HostError, GoneError.
    """
    if not spec.cgroup:
        return spec
    from hako.cgroup.api import Cgroup

    pid = prepared.pid()
    if not pid:
        raise client.GoneError(_GONE)
    home.remember()
    group = Cgroup.open(spec.cgroup)
    group.add(pid)
    return spec._replace(cgroup=group.to_json())


def _description(spec: SandboxSpec, config: Config, trace: Trace, **more: Any) -> bytes:
    """The line that a process which waits is told."""
    known = {"spec": spec.to_json(), "values": config.values, "origins": config.origins, "spans": trace.spans}
    return jsontext.dumps(known | {"home": home.directories()} | more) + b"\n"


def serve_prepared(connection: int, make_face: FaceMaker | None = None) -> None:
    """Be the process at the other end of _tell(): load what it needs, wait, and be the sandbox process.

    With ``make_face`` the other end is hand_over().
    """
    gc.disable()  # looking for garbage among modules that are being loaded takes a tenth of their time
    load_modules()
    owner = socket.socket(fileno=connection)
    line = first_line(owner)
    if not line:
        return
    description = jsontext.loads(line)
    spec, trace = SandboxSpec.from_json(description["spec"]), Trace()
    trace.spans = list(description["spans"])
    config = config_from(description)
    home.recall(description["home"])
    if make_face is not None:
        _, fds, _, _ = socket.recv_fds(owner, 1, _MAX_FDS)
        owner.close()
        for fd in fds[3:]:
            os.set_inheritable(fd, False)  # recv_fds() does not pass flags on
        face = make_face(description["face"], fds[3:])
        _become(spec, config, Ends.inherit([str(fd) for fd in fds[:3]]), trace, face, tuple(fds[3:]))
    try:
        ends = Ends.claim(spec, owner)
    except HakoError as error:
        _answer(owner, error)
        return
    _become(spec, config, ends, trace)


def load_modules() -> None:
    """Load what is needed until the guest is at work; then there is time for the rest."""
    lean.load_less()
    import asyncio  # noqa: F401

    from hako.cgroup import joining  # noqa: F401
    from hako.guestimage import api  # noqa: F401
    from hako.hypervisor import accelerator, qemu, tsc  # noqa: F401
    from hako.sandbox import machine  # noqa: F401
    from hako.storage import virtiofs  # noqa: F401


def first_line(owner: socket.socket) -> bytes:
    """Receive up to the first line's end and no further, for calls may follow; empty when nobody tells anything."""
    line = b""
    while not line.endswith(b"\n"):
        seen = owner.recv(_READ_SIZE, socket.MSG_PEEK)
        if not seen:
            return b""
        at = seen.find(b"\n")
        line += owner.recv(at + 1 if at >= 0 else len(seen))
    return line


def spawn(spec: SandboxSpec, config: Config) -> socket.socket:
    """Start the sandbox process as a program of its own; the connection returned is its owner's.

    Safe in any program. Raises ExistsError when the id or name is taken.
    """
    import subprocess

    description = {"spec": spec.to_json(), "values": config.values, "origins": config.origins}
    ends, ours = Ends.make(spec)
    if _from_pool(spec, config, ends, Trace()):
        return ours
    try:
        argv = [
            *guardian.interpreter("from hako.sandbox.daemon import main; main()"),
            jsontext.dumps(description).decode(),
        ]
        numbers = ends.numbers()
        subprocess.run(
            [*argv, *map(str, numbers)], pass_fds=numbers, stdin=subprocess.DEVNULL, start_new_session=True, check=True
        )
    except BaseException:
        ours.close()
        raise
    finally:
        ends.close()
    return ours


def _from_pool(spec: SandboxSpec, config: Config, ends: Ends, trace: Trace) -> bool:
    """Have a warm process be the sandbox's, if there is one; ``ends`` are closed then."""
    if not config.pool.size:
        return False
    from hako.sandbox import pool

    taken = pool.hand_over(spec, config, ends.numbers(), trace)
    if taken:
        ends.close()
    return taken


def main() -> None:
    """Entry of a spawned sandbox process: description and descriptors are arguments."""
    text, *numbers = sys.argv[1:]
    description = jsontext.loads(text.encode())
    config = config_from(description)
    trace = of_process("sandbox")
    # The starter waits for this process and must not wait for the sandbox.
    if os.fork() == 0:
        _become(SandboxSpec.from_json(description["spec"]), config, Ends.inherit(numbers), trace)
    os._exit(0)


def config_from(description: dict[str, Any]) -> Config:
    """The configuration that another process has sent."""
    return Config({key: _frozen(value) for key, value in description["values"].items()}, description["origins"])


def _frozen(value: object) -> object:
    """A setting's value as it was before it became JSON, which has no tuples."""
    return tuple(value) if isinstance(value, list) else value


def _become(
    spec: SandboxSpec,
    config: Config,
    ends: Ends,
    trace: Trace,
    face: Face | None = None,
    kept: tuple[int, ...] = (),
) -> NoReturn:
    """Leave everything of the starter behind, except for the descriptors ``kept``, and be the sandbox process."""
    try:
        signal.pthread_sigmask(signal.SIG_SETMASK, ())
        os.setsid()
        close_inherited((*ends.numbers(), *kept))
        leave_standard_streams(spec.id)
        _serve(spec, apply_annotations(config, spec.annotations), ends, trace, face)
    except BaseException as error:
        import traceback

        traceback.print_exc()
        refuse(spec, ends.owner, error)
    finally:
        os._exit(0)


def refuse(spec: SandboxSpec, owner: socket.socket, error: BaseException) -> None:
    """Answer the owner's first call with ``error``, and leave nothing: the sandbox could not even begin to serve."""
    _answer(owner, error)
    records.finish(records.new_state(spec) | {"error": sentence(error)})


def _answer(owner: socket.socket, error: BaseException) -> None:
    """Answer whatever the owner asks with ``error``, until it goes."""
    from hako.wire import calls, frames

    failure = calls.CallError(calls.FAILED_PRECONDITION, f"The sandbox could not be started: {sentence(error)}")
    owner.settimeout(_REFUSAL_SECONDS)
    with contextlib.suppress(OSError, frames.FrameError):
        decoder = frames.Decoder(calls.MAX_CALL)
        while data := owner.recv(1 << 16):
            for frame in decoder.feed(data):
                owner.sendall(frames.encode(frame.stream, frames.RESPONSE, calls.encode_error(failure)))


def close_inherited(kept: tuple[int, ...]) -> None:
    """Close what the starter had open: a lock or a pipe of its caller's must not live as long as the sandbox."""
    start = 3
    for fd in sorted(kept):
        os.closerange(start, fd)
        start = fd + 1
    os.closerange(start, os.sysconf("SC_OPEN_MAX"))


def leave_standard_streams(sandbox_id: str) -> None:
    """Standard input and output go nowhere, errors to the sandbox's log."""
    null = os.open("/dev/null", os.O_RDWR)
    log = os.open(
        os.path.join(records.run_dir(sandbox_id), "sandbox.log"), os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600
    )
    for source, target in ((null, 0), (null, 1), (log, 2)):
        os.dup2(source, target)
    os.close(null)
    os.close(log)
    os.chdir("/")
    os.umask(0o022)


def _serve(spec: SandboxSpec, config: Config, ends: Ends, earlier: Trace, face: Face | None) -> None:
    """Serve until the sandbox ends; the lock is held to the end. ``earlier`` is the trace up to here."""
    earlier.end("fork")
    trace = Trace(earlier)
    from hako.linux import syscalls
    from hako.storage.tree import private_mounts

    for number in (signal.SIGINT, signal.SIGHUP, signal.SIGPIPE):
        signal.signal(number, signal.SIG_IGN)
    syscalls.set_process_name(PROCESS_NAME)
    watch = guardian.start(f"from hako.sandbox.records import reap; reap({spec.id!r})")
    namespace = private_mounts()
    joining = None
    if spec.cgroup:
        from hako.cgroup.joining import Joining

        joining = Joining(spec.cgroup, done=bool(home.directories()))
    import asyncio

    asyncio.run(_serve_new(spec, config, ends, trace, namespace, joining, face))
    os.write(watch, guardian.DISMISSED)


def load_engine() -> type[Engine]:
    """Engine, loaded now if it is not yet."""
    from hako.sandbox.engine import Engine

    return Engine


async def _serve_new(
    spec: SandboxSpec,
    config: Config,
    ends: Ends,
    trace: Trace,
    namespace: int,
    joining: Joining | None,
    face: Face | None,
) -> None:
    """Start the VM, and the engine when the guest is at work."""
    from hako.sandbox.machine import Machine
    from hako.storage.tree import SharedTree

    trace.mark("sandbox process")
    tree = SharedTree(os.path.join(records.run_dir(spec.id), "shared"))
    machine = Machine(spec, config, tree, records.run_dir(spec.id), trace)
    machine.namespace, machine.joining = namespace, joining
    if face is None or face.begins:
        await machine.under_way()
    await run_engine(ends, machine, face)


async def run_engine(ends: Ends, machine: Machine, face: Face | None = None) -> None:
    """Serve until the sandbox ends, then fill the pool if that is wanted and was not done. See Engine.

    ``machine`` is the sandbox's VM, whatever has become of it so far, and is given back.
    """
    import asyncio

    try:
        engine = load_engine()(machine)
        gc.freeze()  # what is loaded stays
        gc.enable()
    except BaseException:
        await machine.close()
        raise
    refill = None
    if machine.config.pool.size and machine.namespace is not None:
        from hako.sandbox.refill import Refill

        refill = Refill(machine.namespace)
        engine.on_started = refill.soon
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, engine.stop_soon)
    running = engine.run(ends.listener, ends.owner)
    await (running if face is None else face.serve(engine, running))
    if refill is not None:
        refill.finish()
