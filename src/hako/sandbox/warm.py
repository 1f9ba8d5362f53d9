"""A warm process: a sandbox process that has everything but a sandbox. See pool.py.

It has left whoever had it made, has mounts, share and an idle clone of its own, and waits. When it takes a sandbox it
gets that one's lock, sockets and description, gives the clone a new identity, and is its sandbox process from then
on. Otherwise it ends: when it is told to, when it is too old, or when nothing could use it any more.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import socket
import sys
import time
from collections.abc import Callable
from typing import Any

from hako import ids, log, store
from hako.cgroup import home
from hako.config.load import apply_annotations, load
from hako.config.settings import Config
from hako.errors import (
    AgentError,
    HakoError,
    HostError,
    HypervisorError,
    NotFoundError,
    ProtocolError,
    TimedOutError,
)
from hako.linux import syscalls
from hako.named import NamedTuple
from hako.sandbox import daemon, guardian, pool, records, refill, requests, vm
from hako.sandbox.machine import Machine, template_key
from hako.sandbox.rehearsal import rehearse
from hako.sandbox.spec import SandboxSpec
from hako.sandbox.trace import Trace
from hako.storage.tree import SharedTree, private_mounts

_log = log.get("pool")

#: Seconds between looks at whether it is still wanted.
_CHECK_SECONDS = 60.0
#: Seconds for a guest to take its identity, which it does in milliseconds.
_IDENTITY_SECONDS = 5.0
_MAX_FDS = 8
#: Lock, control socket, owner's connection and token of a sandbox.
_OFFERED = 4


class Handover(NamedTuple):
    """A sandbox that has been taken."""

    spec: SandboxSpec
    config: Config  #: without what the sandbox's annotations change
    ends: daemon.Ends
    trace: Trace


class WarmMachine(Machine):
    """A VM that is made before it is known for which sandbox."""

    def __init__(self, warm_id: str, config: Config, tree: SharedTree, run_dir: str) -> None:
        spec = requests.sandbox_spec(config, sandbox_id=warm_id)
        super().__init__(spec, config, tree, run_dir, Trace())

    def adopt(self, spec: SandboxSpec, config: Config, path: str, trace: Trace) -> None:
        """From now on this is the VM of ``spec``, its files are below ``path``; start() makes it so."""
        self.tree.moved(path)
        self.spec, self.config, self.trace = spec, config, trace

    async def prepare(self, directory: str) -> vm.Vm:
        """Get a VM that is a clone, and have it rehearse what it is for. Raises HakoError."""
        found = await self.start()
        if not found.info["template"]:
            raise HypervisorError("The virtual machine was booted: there is no template to clone it from.")
        try:
            await rehearse(found.agent, self.tree, directory)
        except (AgentError, HostError) as error:
            # It is ready all the same, only slower.
            _log.warning("A warm virtual machine could not rehearse.", reason=str(error))
        return found

    async def start(self) -> vm.Vm:
        """Get the VM; if it is there already, give it its identity and size. Raises HakoError."""
        found = self._vm
        if found is not None:
            self._take_along(found)
            try:
                return await self._introduce_anew(found)
            except (HypervisorError, TimedOutError, AgentError, ProtocolError) as error:
                # The pool is never the reason why something does not start.
                _log.warning("A warm virtual machine is of no use; another one is started.", reason=str(error))
                await self._end()
                self._extra = 0
        return await super().start()

    def _take_along(self, found: vm.Vm) -> None:
        """Move what the VM has already into the sandbox's cgroup: this process, QEMU, the file server."""
        if not self.spec.cgroup:
            return
        from hako.cgroup.api import Cgroup

        home.remember()
        group = Cgroup.open(self.spec.cgroup)
        server = self._share.pid if self._share is not None else None
        pids = [os.getpid(), *filter(None, (found.hypervisor.pid, server))]
        if server is not None:
            with contextlib.suppress(OSError), open(f"/proc/{server}/task/{server}/children", "rb") as file:
                pids += map(int, file.read().split())
        for pid in pids:
            with contextlib.suppress(NotFoundError):  # it has ended, which is told elsewhere
                group.add(pid)

    async def _introduce_anew(self, found: vm.Vm) -> vm.Vm:
        spec, hypervisor = self.spec, found.hypervisor
        hypervisor.spec = hypervisor.spec._replace(id=spec.id)
        mac = vm.own_mac(spec, hypervisor.spec)
        with self.trace.span("configure"):
            try:
                async with asyncio.timeout(_IDENTITY_SECONDS):
                    await vm.configure(found.agent, spec, mac)
            except TimeoutError:
                raise TimedOutError(f"The agent does not answer within {_IDENTITY_SECONDS:g} s.") from None
        await self.fit(spec.memory, spec.vcpus)
        found.info["pool"] = True
        return found


def main() -> None:
    """Entry of a warm process: arguments are its id and its cgroup's directories, its lock is refill.LOCK_FD."""
    warm_id, *cgroup = sys.argv[1:]
    home.enter(cgroup)
    # Whoever starts it waits for this process, and must not wait for the warm one.
    if os.fork():
        os._exit(0)
    try:
        daemon.close_inherited((refill.LOCK_FD,))
        os.set_inheritable(refill.LOCK_FD, False)
        os.chdir("/")
        os.umask(0o022)
        _live(warm_id)
    except BaseException as error:
        import traceback

        traceback.print_exc()
        refill.remember_failure(f"{type(error).__name__}: {error}")
        store.remove_tree(pool.entry_dir(warm_id))
    finally:
        os._exit(0)


def _live(warm_id: str) -> None:
    for number in (signal.SIGINT, signal.SIGHUP, signal.SIGPIPE):
        signal.signal(number, signal.SIG_IGN)
    syscalls.set_process_name("hako-warm")
    config, around = load(), pool.surroundings()
    watch = guardian.start(f"from hako.sandbox.pool import clean_up; clean_up({warm_id!r}, *sys.argv[1:])")
    namespace = private_mounts()

    async def live() -> Warm:
        warm = Warm(warm_id, config, around, namespace, watch)
        await warm.run()
        return warm

    warm = asyncio.run(live())
    os.write(watch, guardian.DISMISSED)
    if warm.taken is None and warm.replace:
        refill.fill_quietly(namespace)


class Warm:
    """The life of a warm process up to its end, or its sandbox's."""

    def __init__(self, warm_id: str, config: Config, around: list[int], namespace: int, watch: int) -> None:
        """``around`` are the surroundings() before this process left the mount ``namespace`` of the host."""
        self.id = warm_id
        self.taken: Handover | None = None
        #: It has gone because it was old: another one is to take its place.
        self.replace = False
        self._config = config
        self._around = around
        self._namespace = namespace
        self._watch = watch
        self._key = pool.key(config, around)
        self._state = pool.new_state(warm_id) | {"pid": os.getpid(), "key": self._key}
        self._since = time.monotonic()
        self._checking = asyncio.Lock()
        self._loop = asyncio.get_running_loop()
        #: Done when there is a sandbox (self.taken), or none to wait for any more.
        self._outcome: asyncio.Future[None] = self._loop.create_future()

    async def run(self) -> None:
        """Get ready, wait, and be the process of the sandbox that comes, if one does. Raises HakoError."""
        self._loop.add_signal_handler(signal.SIGTERM, self._end)
        path = pool.entry_dir(self.id)
        # What was opened through a descriptor stays in reach when the directory moves into that of a sandbox.
        folder = os.open(path, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        tree = SharedTree(os.path.join(path, "shared"))
        machine = WarmMachine(self.id, self._config, tree, f"/proc/self/fd/{folder}")
        machine.namespace = self._namespace
        door = Door(pool.listen(self.id), self._on_message)
        try:
            pool.write(self._state)
            if await self._get_ready(machine):
                await self._wait()
        finally:
            door.close()
            if self.taken is None:
                await machine.close()
                store.remove_tree(path)
            # Whoever wanted it gone knows now that it is; whoever came too late goes on at once.
            door.part()
        if self.taken is not None:
            await _be_sandbox(self.taken, machine)

    async def _get_ready(self, machine: WarmMachine) -> bool:
        """Have the VM cloned; False when this is not wanted any more. Raises HakoError."""
        making = asyncio.create_task(machine.prepare(pool.entry_dir(self.id)))
        either: set[asyncio.Future[Any]] = {making, self._outcome}
        try:
            await asyncio.wait(either, return_when=asyncio.FIRST_COMPLETED)
        finally:
            if not making.done():
                making.cancel()
                await asyncio.gather(making, return_exceptions=True)
        if self._outcome.done():
            return False
        found = making.result()
        found.agent.on_lost = machine.on_lost = self._on_lost
        daemon.load_engine()  # there will be no time for that
        self._state |= {"status": "ready", "ready_ns": time.time_ns(), "vm_pid": found.hypervisor.pid or 0}
        self._state |= {"info": found.info}
        pool.write(self._state)
        refill.forget_failures()
        # The next one, if the pool has more to come.
        self._loop.run_in_executor(None, refill.fill_quietly, self._namespace)
        return True

    async def _wait(self) -> None:
        while True:
            await asyncio.wait([self._outcome], timeout=_CHECK_SECONDS)
            if self._outcome.done():
                return self._outcome.result()
            await self._check()

    def _end(self) -> None:
        if not self._outcome.done():
            self._outcome.set_result(None)

    def _on_lost(self, error: HakoError) -> None:
        if not self._outcome.done():
            self._outcome.set_exception(error)

    async def _check(self) -> bool:
        """End if nobody could want it; True when it stays."""
        async with self._checking:
            reason = await asyncio.to_thread(self._why_not)
        if reason:
            _log.info("A warm virtual machine is given up.", id=self.id, reason=reason)
            self.replace = True  # unless there are enough, or none are wanted
            self._end()
        return not reason

    def _why_not(self) -> str:
        """Why nobody could want it; empty when somebody could."""
        try:
            config = load()
            others = pool.entries()
            if not any(entry.id == self.id for entry in others):
                return "it is not in the pool any more"
            # The oldest go first.
            if self.id in [entry.id for entry in others[: len(others) - config.pool.size]]:
                return "the pool has more than it should"
            if time.monotonic() - self._since > config.pool.max_age:
                return "it is old"
            if pool.key(config, self._around) != self._key:
                return "the configuration, the guest image or QEMU has changed"
            if self._state["status"] == "ready" and self._state["info"]["template"] != template_key(config):
                return "VMs are cloned from another template now"
        except (HakoError, OSError) as error:
            _log.warning("A warm process cannot see whether it is of use.", id=self.id, reason=str(error))
        return ""

    def _on_message(self, sock: socket.socket, message: dict[str, Any], fds: list[int]) -> bool:
        """Do what somebody asks for. False: the connection, and what came over it, is of no use."""
        match message.get("do"):
            case "adopt" if len(fds) == _OFFERED:
                return self._take(sock, message, fds)
            case "end":
                self._end()
                return True
            case "check":
                self._loop.create_task(self._check()).add_done_callback(lambda task: self._tell(sock, task))
                return True
        return False

    def _tell(self, sock: socket.socket, checked: asyncio.Task[bool]) -> None:
        if not checked.cancelled() and checked.exception() is None and checked.result():
            with contextlib.suppress(OSError):
                sock.send(b"stays")

    def _take(self, sock: socket.socket, message: dict[str, Any], fds: list[int]) -> bool:
        """Take the sandbox that is offered, if it fits and is not somebody else's by now."""
        if self._state["status"] != "ready" or self._outcome.done() or message.get("key") != self._key:
            return False
        spec = SandboxSpec.from_json(message["spec"])
        config = daemon.config_from(message)
        trace = Trace()
        trace.spans = list(message["spans"])
        lock, listener, owner, token = fds
        if not pool.take(token):
            return False
        os.write(self._watch, f"{ids.check(spec.id, 'Sandbox id')}\n".encode())
        os.rename(pool.entry_dir(self.id), os.path.join(records.run_dir(spec.id), records.WARM))
        with contextlib.suppress(OSError):  # whoever started it may be gone: the owner's connection will tell
            sock.send(pool.TAKEN)
        os.close(token)
        ends = daemon.Ends(lock, socket.socket(fileno=listener), socket.socket(fileno=owner))
        self.taken = Handover(spec, config, ends, trace)
        self._outcome.set_result(None)
        return True


class Door:
    """The socket of a warm process, and all that come through it. ``on_message`` owns the descriptors if it is True."""

    def __init__(
        self, listener: socket.socket, on_message: Callable[[socket.socket, dict[str, Any], list[int]], bool]
    ) -> None:
        self._listener = listener
        self._on_message = on_message
        self._guests: set[socket.socket] = set()
        self._loop = asyncio.get_running_loop()
        self._loop.add_reader(listener, self._on_guest)

    def _on_guest(self) -> None:
        try:
            sock, _ = self._listener.accept()
        except OSError:
            return
        sock.setblocking(False)
        if pool.peer(sock)[1] != os.geteuid():
            sock.close()
            return
        self._guests.add(sock)
        self._loop.add_reader(sock, self._on_readable, sock)
        self._on_readable(sock)  # it has mostly been sent already

    def _on_readable(self, sock: socket.socket) -> None:
        fds: list[int] = []
        used = False
        try:
            data, fds, flags, _ = socket.recv_fds(sock, pool.MAX_MESSAGE, _MAX_FDS)
            for fd in fds:
                os.set_inheritable(fd, False)  # recv_fds() does not pass flags on
            if data and not flags & (socket.MSG_TRUNC | socket.MSG_CTRUNC):
                message = json.loads(data)
                used = isinstance(message, dict) and self._on_message(sock, message, fds)
        except BlockingIOError:
            return
        except (OSError, HakoError, ValueError, KeyError, TypeError, AttributeError) as error:
            _log.warning("A warm process cannot do what it is asked to.", reason=f"{type(error).__name__}: {error}")
        if not used:
            for fd in fds:
                os.close(fd)
            self._guests.discard(sock)
            self._loop.remove_reader(sock)
            sock.close()

    def close(self) -> None:
        """Nobody else comes in, and those who are in are not listened to any more."""
        self._loop.remove_reader(self._listener)
        self._listener.close()
        for sock in self._guests:
            self._loop.remove_reader(sock)

    def part(self) -> None:
        """Close the connections of those who are in. Close the door before."""
        while self._guests:
            self._guests.pop().close()


async def _be_sandbox(taken: Handover, machine: WarmMachine) -> None:
    """Be the sandbox process of ``taken`` until it ends."""
    spec, ends = taken.spec, taken.ends
    taken.trace.end("pool")
    trace = Trace(taken.trace)
    try:
        daemon.leave_standard_streams(spec.id)
        os.symlink(os.path.join(records.WARM, "console.log"), os.path.join(records.run_dir(spec.id), "console.log"))
        syscalls.set_process_name(daemon.PROCESS_NAME)
        config = apply_annotations(taken.config, spec.annotations)
        machine.adopt(spec, config, os.path.join(records.run_dir(spec.id), records.WARM, "shared"), trace)
        await daemon.run_engine(ends, machine)
    except Exception as error:
        _log.failure("A sandbox that came to a warm process could not be served.", error, sandbox=spec.id)
        daemon.refuse(spec, ends.owner, error)
