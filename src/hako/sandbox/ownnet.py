"""The network that hako itself gives a sandbox, by CNI plugins; see docs/network.md.

The plugins run while the VM starts, and connect a network namespace that has no name: it ends with the sandbox
process. Before anybody can use the VM the guest has its interfaces. If the process is killed, hako.sandbox.records
finds the plugins' note and has them take back what they gave.
"""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from hako.errors import HakoError
from hako.sandbox.etcfiles import EtcFiles, Names
from hako.sandbox.spec import GIVEN_NETWORK, NO_NETWORK, SandboxSpec
from hako.sandbox.trace import Trace

if TYPE_CHECKING:
    from hako.network.cni import Result
    from hako.network.ports import Reservation
    from hako.sandbox.guestnet import GuestNetwork
    from hako.sandbox.vm import Vm

log = logging.getLogger(__name__)


class OwnNetwork:
    """Owns namespace, ports and attachment of one sandbox; for a sandbox without network every method does nothing."""

    def __init__(self, spec: SandboxSpec, trace: Trace) -> None:
        self._spec = spec
        self._trace = trace
        self._files = EtcFiles(spec)
        self._making: asyncio.Task[Result] | None = None
        self._ports: Reservation | None = None
        self._namespace = -1
        #: What is known of it, for people and programs: name, addresses, ports.
        self.state: dict[str, Any] = {}

    @property
    def wanted(self) -> bool:
        """Whether the sandbox has a network of its own."""
        return self._spec.network not in (NO_NETWORK, GIVEN_NETWORK)

    def start(self, on_failed: Callable[[HakoError], None]) -> None:
        """Begin to make the network beside everything else; ``on_failed`` is told when that fails."""
        if not self.wanted:
            return

        def made(task: asyncio.Task[Result]) -> None:
            error = None if task.cancelled() else task.exception()
            if isinstance(error, HakoError):
                on_failed(error)

        self._making = asyncio.create_task(asyncio.to_thread(self._make))
        self._making.add_done_callback(made)

    def _make(self) -> Result:
        # Here, in a thread beside the VM's start: it takes as long as a plugin.
        from hako.network import cni, ports
        from hako.network import namespace as namespaces

        with self._trace.span("network plugins"):
            self._ports = ports.Reservation([entry for option in self._spec.ports for entry in ports.parse(option)])
            self._namespace = namespaces.create_unnamed(lambda _kernel: None)
            return cni.add(self._spec.id, self._path, self._ports.mappings, self._spec.network)

    @property
    def _path(self) -> str:
        """The namespace as other processes find it."""
        return f"/proc/{os.getpid()}/fd/{self._namespace}"

    async def connect(self, vm: Vm, guest: GuestNetwork) -> None:
        """Wait for the network, give it to the guest of ``vm``, and complete the containers' files.

        Raises HakoError, with a plugin's own words when it was one that failed.
        """
        if self._making is None:
            return
        with self._trace.span("network", "VM"):
            result = await asyncio.shield(self._making)
            await guest.connect(self._path, vm.hypervisor, vm.agent)
        self._files.fill(_names(self._spec, result))
        assert self._ports is not None
        ports = [mapping._asdict() for mapping in self._ports.mappings]
        self.state = {"name": self._spec.network, "addresses": result.addresses, "ports": ports}

    def mounts(self, directory: str, spec: dict[str, Any]) -> list[dict[str, Any]]:
        """What to mount into a container with this config.json besides; ``directory`` is for the files.

        They are complete when connect() has returned. Raises HostError.
        """
        return self._files.mounts(directory, spec) if self.wanted else []

    async def close(self) -> None:
        """Give everything back; the guest must have been untied from it. Can be repeated."""
        if self._making is not None:
            await asyncio.wait([self._making])  # nothing can stop the thread
            await asyncio.to_thread(self._take_back)

    def _take_back(self) -> None:
        from hako.network import cni

        try:
            cni.delete(self._spec.id, force=True)
        except HakoError as error:
            log.error("%s", error)
        if self._ports is not None:
            self._ports.close()
        if self._namespace >= 0:
            os.close(self._namespace)
            self._namespace = -1


def _names(spec: SandboxSpec, result: Result) -> Names:
    from hako.network import dns

    text = dns.resolv_conf(
        dns.host_resolv_conf(),
        ipv6=any(":" in address for address in result.addresses),
        servers=spec.dns or result.nameservers,
        search=spec.dns_search or result.search,
        options=result.options,
    )
    return Names(text, [address.partition("/")[0] for address in result.addresses])
