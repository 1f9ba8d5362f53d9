"""``start``: find the shim that a new container belongs to, or make one, and print where it is.

A container that stands for a pod, or for itself, gets a shim, whose VM begins to start at once: containerd needs some
time until it says what is to run in it. The further containers of a pod get the address of the pod's shim.
"""

from __future__ import annotations

import contextlib
import os
import sys

from hako import ids
from hako.config.load import load
from hako.errors import HakoError, StateError
from hako.oci import namespaces, pods
from hako.runtime import hostcgroup
from hako.runtime.making import read_config
from hako.sandbox import daemon, records, requests
from hako.sandbox.spec import GIVEN_NETWORK, SandboxSpec
from hako.sandbox.trace import of_process
from hako.shim import bootstrap, places
from hako.shim.face import Face

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from hako.config.settings import Config
    from hako.shim.call import Call

#: Labels by which a sandbox is told from others, in what hako itself shows.
NAMESPACE_LABEL = "dev.hako.containerd.namespace"
CONTAINER_LABEL = "dev.hako.containerd.container"


def main(call: Call) -> int:
    """Print the address of the container's shim. Raises HakoError."""
    trace = of_process("shim")
    given = bootstrap.read(call)
    spec = _read_spec(call.bundle)
    pod = pods.sandbox_of(spec.get("annotations") or {})
    if pod:
        address = _join(call, pod, given.socket_dir)
    else:
        address = places.address(call, call.id, given.socket_dir)
        _start(call, spec, address, load(given.config_file()), trace)
    sys.stdout.buffer.write(given.answer(address))
    sys.stdout.flush()
    return 0


def _read_spec(bundle: str) -> dict[str, Any]:
    """The checked config.json; empty when there is none, which is so for a pod by the Sandbox API."""
    if not os.path.exists(os.path.join(bundle, "config.json")):
        return {}
    return read_config(bundle)[1]


def _join(call: Call, pod: str, socket_dir: str) -> str:
    address = places.address(call, pod, socket_dir)
    if not places.answers(address):
        raise StateError(f"The pod {pod}, which the container {call.id} is to join, is not running.")
    places.write_address(call.bundle, address)
    return address


def _start(call: Call, spec: dict[str, Any], address: str, config: Config, trace: Any) -> None:
    if spec:
        namespaces.refuse_hosts(spec)
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
        face = Face(call, spec, listener, address)
        daemon.fork_with_face(sandbox, config, face.serve, face.fds, trace)
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
    memory, cpus = pods.size(annotations)
    if memory:
        sandbox = sandbox._replace(memory=max(sandbox.memory, requests.whole_mebibytes(memory + requests.OVERHEAD)))
    return sandbox._replace(vcpus=max(sandbox.vcpus, -int(-cpus // 1)))


def _is_systemds(spec: dict[str, Any]) -> bool:
    """Whether the cgroup's path is in systemd's form, ``slice:prefix:name``, as runc's shim is told by an option."""
    return str((spec.get("linux") or {}).get("cgroupsPath") or "").count(":") == 2


def _remove_cgroup(record: dict[str, Any]) -> None:
    with contextlib.suppress(HakoError):  # what went wrong before is what the user has to know
        hostcgroup.delete(record)
