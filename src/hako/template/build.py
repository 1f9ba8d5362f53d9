"""Making a template: boot a VM, give back what it does not need, stop it, and write down what is left.

A share that clones get plugged in is plugged into the template's VM too, with nothing in it, for the guest's kernel to
find; it is taken away again before the VM is frozen.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable
from typing import Any, Protocol

from hako import log, store
from hako.agent_client import AgentClient, field
from hako.errors import HypervisorError, TimedOutError
from hako.hypervisor.base import Backends, Balloon, FreezeError, ShareVirtiofs, VmSpec
from hako.hypervisor.qemu import QemuVm
from hako.named import NamedTuple
from hako.template import files, identity, memory
from hako.wire.calls import PROTOCOL_VERSION

_log = log.get("template")

#: What the guest keeps free while the balloon takes the rest: with less its kernel would start to hunt for memory.
_RESERVE = 1 << 20
#: Seconds until a balloon that does not move any more has taken all it will get.
_STALLED = 0.4
_BALLOON_TIMEOUT = 20.0
_POLL = 0.05
#: Seconds until the guest's kernel has reported free pages (mm/page_reporting.c waits for 2), and some to do it in.
_REPORTING = 2.5


class KilledError(HypervisorError):
    """Somebody has killed the VM of a template that was being made: the next one may well succeed."""


class Share(Protocol):
    """What a VM's files come from, as far as it is of interest here: hako.storage.base.ShareDriver."""

    def plugged(self) -> ShareVirtiofs | None:
        """What is added to the running VM, None when nothing is."""

    async def start(self, path: str) -> int | None:
        """Serve ``path``; return the connected socket for ``Backends.share``, None when there is none."""

    async def close(self) -> None:
        """Give back everything."""


class Recipe(NamedTuple):
    """How to make a template. ``spec`` is that of a VM that is to be cloned from it."""

    spec: VmSpec
    identity: dict[str, Any]
    user: str
    binary: str
    timeout: float  #: seconds until the agent must have answered
    share: Callable[[], Share] | None = None  #: makes one such as clones get

    @property
    def key(self) -> str:
        """The template's name."""
        return identity.key(self.identity)


async def build(recipe: Recipe, root: str, nic: tuple[int, ...]) -> files.Template:
    """Make the template and publish it below ``root``. ``nic`` are the queues of a tap device, for a VM with a NIC.

    Hold the build lock. Call it from a thread that lives as long as it takes. Raises HypervisorError, HostError.
    """
    # Always the same one, so that a builder that is killed leaves nothing.
    empty = store.ensure_dir(os.path.join(root, "empty"))
    share = recipe.share() if recipe.share is not None else None
    if share is None or share.plugged() is None:
        return await _build(recipe, root, empty, Backends(nic=nic))
    try:
        backends = Backends(nic=nic, share=await share.start(empty), plugged=share.plugged())
        return await _build(recipe, root, empty, backends)
    except FreezeError as error:
        _log.warning(f"A template is made anew, without the share's device, so that its clones start slower. {error}")
        return await _build(recipe, root, empty, Backends(nic=nic))
    finally:
        await share.close()


async def _build(recipe: Recipe, root: str, empty: str, backends: Backends) -> files.Template:
    spec = identity.as_template(recipe.spec, empty)
    memory_fd = memory.new("hako-building", spec.memory)
    state_fd = memory.new("hako-building-state", 0)
    try:
        await _make(recipe, spec, backends._replace(memory=memory_fd, state=state_fd))
        return await asyncio.to_thread(files.publish, root, recipe.key, recipe.identity, memory_fd, state_fd)
    finally:
        os.close(memory_fd)
        os.close(state_fd)


async def _make(recipe: Recipe, spec: VmSpec, backends: Backends) -> None:
    vm = QemuVm(spec, user=recipe.user, binary=recipe.binary, backends=backends)
    agent: AgentClient | None = None
    try:
        await vm.start()
        agent = AgentClient(vm.agent_socket)
        died = asyncio.ensure_future(vm.wait())
        died.add_done_callback(lambda future: _on_death(agent, future))
        try:
            await agent.call("Hello", {"version": PROTOCOL_VERSION}, recipe.timeout)
        except TimedOutError:
            tail = " | ".join(vm.console_tail(5)) or "nothing"
            raise HypervisorError(
                f"The agent of a template's VM did not answer within {recipe.timeout:g} s; its console says: {tail}"
            ) from None
        if spec.find(Balloon) is not None:
            await _trim(vm, agent, spec.memory)
        shown = backends.plugged is not None and await _show(vm, backends.plugged)
        settled = await agent.call("Settle", {})
        if shown and settled.get("share") is not True:
            # A driver of the guest's may have taken it, and would go on with what each clone has instead.
            raise FreezeError("The guest has not left the share's device as it found it.")
        # The guest reports free pages two seconds after it got them. Were it frozen before, each clone would do that.
        await asyncio.sleep(_REPORTING)
        await vm.freeze()
    except HypervisorError as error:
        if vm.pid is None and (await vm.wait()).killed:
            raise KilledError(str(error)) from error
        raise
    finally:
        if agent is not None:
            agent.close()
        await vm.kill()


async def _show(vm: QemuVm, share: ShareVirtiofs) -> bool:
    """Plug the share in. Where it is refused, or its server is gone, clones find theirs as VMs that boot do."""
    try:
        await vm.plug(share)
    except HypervisorError as error:
        _log.warning(f"A template is made without the share's device, so that its clones start slower. {error}")
        return False
    return True


def _on_death(agent: AgentClient, future: asyncio.Future[Any]) -> None:
    if not future.cancelled() and future.exception() is None:
        agent.fail(HypervisorError(future.result().sentence("a template")))


async def _trim(vm: QemuVm, agent: AgentClient, size: int) -> None:
    """Have the balloon take all free memory once, so that QEMU gives it back to the host; then return it, untouched."""
    await agent.call("Settle", {"squeeze": True})
    info = await agent.call("Info", {})
    free = field(field(info, "memory", dict), "free", int)
    target = max(size - free + _RESERVE, 0)
    loop = asyncio.get_running_loop()
    start = moved = loop.time()
    least = await vm.balloon(target)
    while least > target and loop.time() - moved < _STALLED and loop.time() - start < _BALLOON_TIMEOUT:
        await asyncio.sleep(_POLL)
        now = await vm.balloon()
        if now < least:
            least, moved = now, loop.time()
    await vm.balloon(size)
    deadline = loop.time() + _BALLOON_TIMEOUT
    while await vm.balloon() < size:
        if loop.time() > deadline:
            raise HypervisorError("The guest of a template does not take its memory back from the balloon.")
        await asyncio.sleep(_POLL)
