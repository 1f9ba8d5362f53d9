"""``start``: find the shim that a new container belongs to, or make one, and print where it is.

A container that stands for a pod, or for itself, gets a shim, whose VM begins to start at once: containerd needs some
time until it says what is to run in it. The further containers of a pod get the address of the pod's shim.
"""

from __future__ import annotations

import contextlib
import sys

from hako.oci import pods
from hako.sandbox.early import Prepared
from hako.shim import face, places

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from hako.config.settings import Config
    from hako.sandbox.spec import SandboxSpec
    from hako.sandbox.trace import Trace
    from hako.shim.call import Call

#: Labels by which a sandbox is told from others, in what hako itself shows.
NAMESPACE_LABEL = "dev.hako.containerd.namespace"
CONTAINER_LABEL = "dev.hako.containerd.container"


def main(call: Call) -> int:
    """Print the address of the container's shim. Raises HakoError."""
    pod = pods.sandbox_of(places.annotations_of(call.bundle))
    if pod:
        answer = _join(call, pod)
    else:
        # Whatever the process is to be, it loads its modules while this one loads what is left, and finds that out.
        prepared = Prepared(face.serve)
        try:
            answer = _start(call, prepared)
        finally:
            prepared.close()
    sys.stdout.buffer.write(answer)
    sys.stdout.flush()
    return 0


def _join(call: Call, pod: str) -> bytes:
    from hako.errors import StateError
    from hako.shim import bootstrap

    given = bootstrap.read(call)
    address = places.address(call, pod, given.socket_dir)
    if not places.answers(address):
        raise StateError(f"The pod {pod}, which the container {call.id} is to join, is not running.")
    places.write_address(call.bundle, address)
    return given.answer(address)


def _start(call: Call, prepared: Prepared) -> bytes:
    from hako.config.load import load
    from hako.oci import namespaces
    from hako.runtime.making import read_config
    from hako.sandbox.trace import of_process
    from hako.shim import bootstrap

    trace = of_process("shim")
    given = bootstrap.read(call)
    # By the Sandbox API a pod has no config.json.
    spec = read_config(call.bundle)[1] if places.has_config(call.bundle) else {}
    if spec:
        namespaces.refuse_hosts(spec)
    address = places.address(call, call.id, given.socket_dir)
    _make(call, spec, address, load(given.config_file()), prepared, trace)
    return given.answer(address)


def _make(call: Call, spec: dict[str, Any], address: str, config: Config, prepared: Prepared, trace: Trace) -> None:
    """Make socket and cgroup, and have the process that was prepared be the shim."""
    from hako.runtime import hostcgroup
    from hako.sandbox import daemon, records

    sandbox = _describe(call, spec, config)
    if not records.is_alive(sandbox.id):
        records.reap(sandbox.id)
        records.forget(sandbox.id)
    with contextlib.ExitStack() as undo:
        listener = places.listen(address)
        undo.callback(listener.close)
        giving_up = undo.enter_context(contextlib.ExitStack())
        giving_up.callback(places.forget, address)
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
        places.write_address(call.bundle, address)
        told = face.describe(call, spec, address)
        daemon.hand_over(prepared, sandbox, config, told, (listener.fileno(),), trace)
        giving_up.pop_all()


def _describe(call: Call, spec: dict[str, Any], config: Config) -> SandboxSpec:
    from hako import ids
    from hako.sandbox import requests, sizes
    from hako.sandbox.spec import GIVEN_NETWORK

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
    from hako.errors import HakoError
    from hako.runtime import hostcgroup

    with contextlib.suppress(HakoError):  # what went wrong before is what the user has to know
        hostcgroup.delete(record)
