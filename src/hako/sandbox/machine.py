"""The sandbox's VM and what stands behind its devices, as one thing that is started, sized and given back.

The normal way to get a VM is to clone a template; booting is the fallback, and how templates are made.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
from collections.abc import Callable, Coroutine, Iterator
from typing import Any

from hako.agent_client import field
from hako.cgroup.joining import Joining
from hako.config.settings import Config
from hako.errors import AgentError, HakoError, HostError, HypervisorError, ProtocolError, StateError, TimedOutError
from hako.hypervisor.base import MEMORY_STEP, Backends, CloneError, Hypervisor, MemoryDevice, Nic, ShareVirtiofs, VmSpec
from hako.network.tap import Tap
from hako.sandbox import requests, vm
from hako.sandbox.guestnet import GuestNetwork
from hako.sandbox.slots import slot
from hako.sandbox.spec import SandboxSpec
from hako.sandbox.trace import Trace
from hako.storage import shares
from hako.storage.base import ShareDriver
from hako.storage.tree import SharedTree
from hako.template import api as templates
from hako.template import memory
from hako.template.build import Recipe
from hako.template.files import Template
from hako.template.keeper import Held

log = logging.getLogger(__name__)

#: Seconds a guest has to give memory up; it goes on giving later.
_SHRINK_TIMEOUT = 10.0
#: Seconds until a clone's guest is at work, where no template has to be made and nobody has to be waited for.
_SOON = 0.25


class Machine:
    """The VM of one sandbox. ``close`` gives everything back, on every path."""

    def __init__(self, spec: SandboxSpec, config: Config, tree: SharedTree, run_dir: str, trace: Trace) -> None:
        """``tree`` is the directory that the guest is to see, ``run_dir`` where the console's log is written."""
        self.spec = spec
        self.config = config
        self.tree = tree
        self.trace = trace
        #: What QEMU was told that the VM is called, whosever it became later.
        self.name = ""
        #: Told why the share's helper process has ended by itself.
        self.on_lost: Callable[[HakoError], None] | None = None
        #: The host's mount namespace, for what is to outlive this sandbox.
        self.namespace: int | None = None
        self._run_dir = run_dir
        self._share: ShareDriver | None = None
        self._hypervisor: Hypervisor | None = None
        self._vm: vm.Vm | None = None
        self._background: set[asyncio.Task[Any]] = set()
        self.network = GuestNetwork()
        #: What is begun before QEMU can be started: the first card's tap, and the clone's memory.
        self._card: asyncio.Future[tuple[int, ...]] | None = None
        self._copied: tuple[int, asyncio.Future[None]] | None = None
        #: The process is on its way into the VM's cgroup.
        self.joining: Joining | None = None
        self._sizing = asyncio.Lock()
        self._extra = 0
        self._started = False
        self._closed = False
        self._memory = -1
        self._dropping: list[asyncio.Future[None]] = []
        self._starting: asyncio.Task[vm.Vm] | None = None
        self._under_way = asyncio.Event()

    async def under_way(self) -> None:
        """Begin to start; return when the guest is at work, or that has failed or takes longer than usual.

        Until then nobody is served, and nobody notices that whoever wants the VM has gone.
        """
        if self._starting is None:
            self._starting = asyncio.ensure_future(self.start())
            self._starting.add_done_callback(lambda _task: self._under_way.set())
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_SOON):
                await self._under_way.wait()

    async def ready(self) -> vm.Vm:
        """What start() returns, which may be under way. Who gives up waiting gives up the start. Raises HakoError."""
        if self._starting is None:
            self._starting = asyncio.ensure_future(self.start())
        return await self._starting

    async def start(self) -> vm.Vm:
        """Get the VM: agent ready, files mounted, as large as the sandbox asks for. Raises HakoError."""
        nic = _probe_nic()
        share = shares.make(self.config.share)
        self._share = share
        helper = asyncio.create_task(self._start_share(share))
        async with contextlib.AsyncExitStack() as closing:
            try:
                if nic:
                    # The kernel needs longer for it than anything else does before QEMU can start.
                    self._card = asyncio.ensure_future(asyncio.to_thread(self.network.add_card, vm.network_queues()))
                    closing.push_async_callback(asyncio.wait, {self._card})
                with self.trace.span("VM description"):
                    # In a thread of its own, because it may probe KVM for seconds; QEMU itself is started by this one.
                    plan = await asyncio.to_thread(vm.plan, self.spec, self.config, share, self.tree.path, nic=nic)
                self.tree.show_modules(plan.modules)
                held = None
                if self.config.template.enabled:
                    with self.trace.span("template"):
                        held = await templates.obtain(
                            plan.recipe,
                            self.config.template,
                            self._outside(_nic_source(nic)),
                            self.namespace,
                            self.in_background,
                        )
                if held is not None:
                    closing.callback(held.close)
                await closing.enter_async_context(slot(self.config.sandbox.start_timeout))
                if held is not None and plan.spec.sharing == "shared":
                    self._begin_copy(held, plan.spec.memory, closing)
                socket = await helper
            except BaseException:
                helper.cancel()
                await asyncio.gather(helper, return_exceptions=True)
                raise
            return await self._clone_or_boot(plan, share, socket, held)

    def _begin_copy(self, held: Held, size: int, closing: contextlib.AsyncExitStack) -> None:
        """Begin to copy a template's memory, which takes as long as helper and QEMU need to start."""
        fd = self._new_memory(size)
        done = asyncio.ensure_future(asyncio.to_thread(self._copy, held.memory, fd))
        # A start that is given up waits for it all the same: a thread cannot be stopped, and must not find other files
        # there.
        closing.push_async_callback(asyncio.wait, {done})
        self._copied = fd, done

    def _new_memory(self, size: int) -> int:
        """An empty file for the guest's memory. It stays open, or QEMU's end would take as long as giving that back."""
        self._memory = memory.new("hako-memory", size)
        return self._memory

    async def _start_share(self, share: ShareDriver) -> int | None:
        if self.joining is not None:
            await asyncio.to_thread(self.joining.wait)
        return await share.start(self.tree.path)

    def _outside(self, source: templates.NicSource) -> templates.NicSource:
        """``source``, from which templates are made, for a process that is in a container's cgroup."""
        joining = self.joining
        if joining is None:
            return source

        @contextlib.contextmanager
        def surroundings() -> Iterator[tuple[int, ...]]:
            with joining.outside(), source() as queues:
                yield queues

        return surroundings

    async def _clone_or_boot(self, plan: vm.Plan, share: ShareDriver, socket: int | None, held: Held | None) -> vm.Vm:
        if held is not None:
            try:
                return await self._run(plan, share, socket, held)
            except (HypervisorError, TimedOutError, AgentError, ProtocolError, HostError) as error:
                # A template is never the reason why something does not start.
                log.warning("A clone could not be started, so the VM boots: %s", error)
                if share.lost is None and not await self._was_killed():
                    templates.doubt(plan.recipe, self.config.template, certain=isinstance(error, CloneError))
                await self._end()
            share = self._share = shares.make(self.config.share)
            socket = await share.start(self.tree.path)
        try:
            return await self._run(plan, share, socket, None)
        except HypervisorError as error:
            # QEMU knows only that the helper is gone, the driver knows why.
            raise share.lost or error from error

    async def _was_killed(self) -> bool:
        """Whether somebody has killed the VM, which says nothing about its template."""
        if self._hypervisor is None or self._hypervisor.pid is not None:
            return False
        try:
            end = await self._hypervisor.wait()
        except StateError:
            return False  # it never ran
        return end.killed

    async def _run(self, plan: vm.Plan, share: ShareDriver, socket: int | None, held: Held | None) -> vm.Vm:
        from hako.hypervisor.qemu import QemuVm

        share.on_exit = self._on_share_lost
        spec, plugged = plan.spec, share.plugged()
        if held is None:
            # What is added to a clone is there from the start, and as much of it as is needed.
            devices = (*spec.devices, plugged) if plugged is not None else spec.devices
            spec = spec._replace(
                memory=max(spec.memory, self.spec.memory),
                vcpus=self.spec.vcpus,
                sharing="own" if spec.sharing == "private" else spec.sharing,
                devices=devices,
            )
        async with contextlib.AsyncExitStack() as ours:
            backends, filled = await self._backends(spec, socket, held, plugged, ours)
            hypervisor = QemuVm(
                spec,
                console_log=os.path.join(self._run_dir, "console.log"),
                console_cap=self.config.console.max_size,
                user=self.config.hypervisor.user,
                binary=self.config.hypervisor.qemu,
                backends=backends,
            )
            self._hypervisor = hypervisor
            self.name = spec.id
            with self.trace.span("QEMU"):
                await hypervisor.start(filled)
        self._under_way.set()
        return await self._introduce(plan, share, hypervisor, cloned=held is not None)

    async def _backends(
        self,
        spec: VmSpec,
        socket: int | None,
        held: Held | None,
        plugged: ShareVirtiofs | None,
        ours: contextlib.AsyncExitStack,
    ) -> tuple[Backends, asyncio.Future[None] | None]:
        """What stands behind the devices, closed by ``ours``; and when a clone's own memory is complete."""
        nic: tuple[int, ...] = ()
        card = spec.find(Nic)
        if card is not None:
            begun, self._card = self._card, None
            nic = await (begun or asyncio.to_thread(self.network.add_card, card.queues))
            self.network.cards_made()
            ours.callback(self.network.release)
        if held is not None and spec.sharing == "private":
            return Backends(held.memory, held.state, clone=True, share=socket, nic=nic), None
        if held is None:
            memory_fd = self._new_memory(spec.memory) if spec.sharing == "shared" else None
            return Backends(memory_fd, share=socket, nic=nic), None
        assert self._copied is not None
        # QEMU starts meanwhile, and looks at the memory when it has the state of the devices.
        memory_fd, copied = self._copied
        backends = Backends(memory_fd, held.state, clone=True, plugged=plugged, share=socket, nic=nic)
        return backends, copied

    def _copy(self, source: int, target: int) -> None:
        with self.trace.span("memory copy"):
            memory.copy(source, target)

    async def _introduce(self, plan: vm.Plan, share: ShareDriver, hypervisor: Hypervisor, *, cloned: bool) -> vm.Vm:
        timeout = self.config.sandbox.start_timeout
        if cloned:
            timeout = min(timeout, vm.CLONE_TIMEOUT)
        with self.trace.span("agent ready", "VM"):
            agent, hello = await vm.greet(hypervisor, self.spec.id, timeout)
        info = {
            "accelerator": plan.spec.accelerator,
            "image": plan.image,
            "template": plan.recipe.key if cloned else "",
            "share": share.mount_request().driver,
            **hello,
        }
        self._vm = vm.Vm(hypervisor, agent, info)
        with self.trace.span("configure", "VM"):
            await vm.configure(agent, self.spec, vm.own_mac(self.spec, hypervisor.spec))
        with self.trace.span("share", "VM"):
            await agent.call("MountShare", share.mount_request().params())
        if cloned:
            await self.fit(self.spec.memory, self.spec.vcpus)
        else:
            info |= {"memory": max(plan.spec.memory, self.spec.memory), "vcpus": self.spec.vcpus}
        if share.lost is not None:
            raise HypervisorError(str(share.lost))
        self._started = True
        return self._vm

    async def fit(self, size: int, vcpus: int) -> None:
        """Give the VM at least ``size`` bytes and ``vcpus`` processors, and take away what is too much.

        Returns when the guest has them; less memory than before is waited for for a moment only. Raises
        HypervisorError when the guest does not get what it needs.
        """
        if self._vm is None:
            raise HypervisorError(f"Sandbox {self.spec.id} has no VM.")
        async with self._sizing:
            await self._fit(self._vm, size, vcpus)

    async def _fit(self, found: vm.Vm, size: int, vcpus: int) -> None:
        hypervisor, info = found.hypervisor, found.info
        first = hypervisor.spec.memory
        device = hypervisor.spec.find(MemoryDevice)
        most = device.size if device is not None else 0
        extra = max(0, -(-(size - first) // MEMORY_STEP) * MEMORY_STEP)
        if extra > most:
            raise vm.too_large(size, first + most)
        vcpus = max(vcpus, hypervisor.spec.vcpus)
        if extra == self._extra and vcpus == info.get("vcpus", hypervisor.spec.vcpus):
            info |= {"memory": first + self._extra, "vcpus": vcpus}
            return
        with self.trace.span("size", "VM"):
            if vcpus > info.get("vcpus", hypervisor.spec.vcpus):
                await hypervisor.add_vcpus(vcpus)
            if extra != self._extra:
                self._extra = await hypervisor.resize_memory(extra, _SHRINK_TIMEOUT)
            got = await found.agent.call("Resized", {"vcpus": vcpus, "extra": self._extra})
        if self._extra < extra or got.get("vcpus") != vcpus:
            raise HypervisorError(
                f"The VM of {self.spec.id} got {(first + self._extra) >> 20} MiB of memory and "
                f"{field(got, 'vcpus', int)} vCPUs instead of {size >> 20} MiB and {vcpus}."
            )
        info |= {"memory": first + self._extra, "vcpus": vcpus}

    def _on_share_lost(self, error: HakoError) -> None:
        if self._hypervisor is None or self._hypervisor.pid is None:
            return  # the end of a VM, of which a helper's is a consequence, is reported by its agent's client
        if not self._started:
            # The guest would wait for its files for ever, and its agent with it.
            self.in_background(self._hypervisor.kill())
        elif self.on_lost is not None:
            self.on_lost(error)

    def in_background(self, work: Coroutine[Any, Any, Any]) -> None:
        """Do ``work`` beside everything else; it is given up when the sandbox ends."""
        task = asyncio.ensure_future(work)
        self._background.add(task)
        task.add_done_callback(self._background.discard)

    async def _end(self, *, last: bool = False) -> None:
        """End VM and helper; ``last``: what the guest saw goes too."""
        if self._vm is not None:
            self._vm.agent.close()
        self._vm = None
        self._started = False
        # All of this takes the kernel a while.
        ends: list[Coroutine[Any, Any, object]] = [self.network.close(), self._end_share(last=last)]
        if self._hypervisor is not None:
            ends.insert(0, self._hypervisor.kill())
        outcomes = await asyncio.gather(*ends, return_exceptions=True)
        # Nobody has to wait for what is left: whoever ends this process waits for its threads.
        self._dropping = [self.network.drop_cards()]
        if self._memory >= 0:
            self._dropping.append(asyncio.get_running_loop().run_in_executor(None, os.close, self._memory))
            self._memory = -1
        for outcome in outcomes:
            if isinstance(outcome, BaseException):
                raise outcome

    async def _end_share(self, *, last: bool) -> None:
        if self._share is not None:
            await self._share.close()
        if last and not self._closed:
            self._closed = True
            self.tree.close()

    async def kill(self) -> None:
        """End the VM at once; whoever waits for its guest is told. What it has stays until close()."""
        if self._hypervisor is not None:
            await self._hypervisor.kill()

    async def close(self) -> None:
        """Give everything back, the tree included. Can be repeated."""
        for task in self._background:
            task.cancel()
        await asyncio.gather(*self._background, return_exceptions=True)
        await self._end(last=True)


def _recipe(config: Config, *, nic: bool) -> Recipe:
    """Of the template for sandboxes that ask for nothing special."""
    return vm.plan(requests.sandbox_spec(config), config, shares.make(config.share), "/", nic=nic).recipe


def template_key(config: Config) -> str:
    """The key of the template that sandboxes with this configuration are cloned from. Raises HakoError."""
    return _recipe(config, nic=_probe_nic()).key


async def make_template(config: Config, *, anew: bool = False) -> Template:
    """The template that sandboxes with this configuration are cloned from, made if there is none. Raises HakoError."""
    nic = _probe_nic()
    recipe = await asyncio.to_thread(_recipe, config, nic=nic)
    try:
        return await templates.make(recipe, config.template, _nic_source(nic), anew=anew)
    except TimeoutError:
        raise TimedOutError("Another process has been making templates for too long; try again.") from None


def _probe_nic() -> bool:
    """Whether tap devices can be had."""
    try:
        os.close(os.open("/dev/net/tun", os.O_RDWR | os.O_CLOEXEC))
    except OSError as error:
        log.warning("The VM has no network card: /dev/net/tun cannot be opened (%s).", error.strerror)
        return False
    return True


def _nic_source(wanted: bool) -> templates.NicSource:
    @contextlib.contextmanager
    def open_nic() -> Iterator[tuple[int, ...]]:
        if not wanted:
            yield ()
            return
        tap = Tap.alone(vm.network_queues())
        try:
            yield tuple(tap.fds)
        finally:
            tap.close()

    return open_nic
