"""Making a shim: what containerd has said becomes the description of a sandbox, a socket and a cgroup.

The process itself is forked by ``start``, or by a zygote for it.
"""

from __future__ import annotations

import contextlib

from hako import ids
from hako.config.load import load
from hako.errors import HakoError
from hako.named import NamedTuple
from hako.oci import namespaces, pods
from hako.runtime import hostcgroup
from hako.runtime.making import read_config
from hako.sandbox import records, requests, sizes
from hako.sandbox.spec import GIVEN_NETWORK
from hako.shim import places

TYPE_CHECKING = False
if TYPE_CHECKING:
    import socket
    from collections.abc import Iterator
    from typing import Any

    from hako.config.settings import Config
    from hako.sandbox.spec import SandboxSpec
    from hako.shim.bootstrap import Input
    from hako.shim.call import Call

#: Labels by which a sandbox is told from others, in what hako itself shows.
NAMESPACE_LABEL = "dev.hako.containerd.namespace"
CONTAINER_LABEL = "dev.hako.containerd.container"


class Plan(NamedTuple):
    """What a shim is to be; nothing of it is there yet."""

    sandbox: SandboxSpec
    config: Config
    spec: dict[str, Any]  #: the container's config.json; empty for a pod of the Sandbox API, which has none
    address: str


def plan(call: Call, given: Input) -> Plan:
    """What the shim for ``call`` is to be. Raises HakoError."""
    spec = read_config(call.bundle)[1] if places.has_config(call.bundle) else {}
    if spec:
        namespaces.refuse_hosts(spec)
    address = places.address(call, call.id, given.socket_dir)
    config = load(given.config_file())
    return Plan(_describe(call, spec, config), config, spec, address)


@contextlib.contextmanager
def made(call: Call, planned: Plan) -> Iterator[tuple[SandboxSpec, socket.socket]]:
    """The sandbox, with its cgroup, and the socket that listens for containerd; undone when the block fails.

    The caller closes the socket. Raises HakoError.
    """
    sandbox, spec = planned.sandbox, planned.spec
    if not records.is_alive(sandbox.id):
        records.reap(sandbox.id)
        records.forget(sandbox.id)
    with contextlib.ExitStack() as giving_up:
        listener = places.listen(planned.address)
        giving_up.callback(listener.close)
        giving_up.callback(places.forget, planned.address)
        if spec:
            cgroup = hostcgroup.create(
                call.id,
                spec,
                memory=sandbox.memory,
                systemd=_is_systemds(spec),
                announce=lambda _record: None,
            )
            giving_up.callback(_remove_cgroup, cgroup.to_json())
            sandbox = sandbox._replace(cgroup=cgroup.to_json())
        places.write_address(call.bundle, planned.address)
        yield sandbox, listener
        giving_up.pop_all()


def _describe(call: Call, spec: dict[str, Any], config: Config) -> SandboxSpec:
    annotations = dict(spec.get("annotations") or {})
    sandbox = requests.sandbox_spec(
        config,
        sandbox_id=ids.check(places.sandbox_id(call, call.id), "Sandbox id"),
        owned=False,
        retain=True,
        network=GIVEN_NETWORK,
        annotations=annotations,
        labels={NAMESPACE_LABEL: call.namespace, CONTAINER_LABEL: call.id},
    )
    return sizes.for_pod(sandbox, *pods.size(annotations))


def _is_systemds(spec: dict[str, Any]) -> bool:
    """Whether the cgroup's path is in systemd's form, ``slice:prefix:name``, as runc's shim is told by an option."""
    return str((spec.get("linux") or {}).get("cgroupsPath") or "").count(":") == 2


def _remove_cgroup(record: dict[str, Any]) -> None:
    with contextlib.suppress(HakoError):  # what went wrong before is what the user has to know
        hostcgroup.delete(record)
