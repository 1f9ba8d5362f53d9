"""``start``: find the shim that a new container belongs to, or make one, and print where it is.

A container that stands for a pod, or for itself, gets a shim, whose VM begins to start at once: containerd needs some
time until it says what is to run in it. The further containers of a pod get the address of the pod's shim.
"""

from __future__ import annotations

import os
import sys

from hako.oci import pods
from hako.shim import ask, places

TYPE_CHECKING = False
if TYPE_CHECKING:
    from hako.config.settings import Config
    from hako.sandbox.early import Prepared
    from hako.shim.call import Call


def main(call: Call) -> int:
    """Print the address of the container's shim. Raises HakoError."""
    pod = pods.sandbox_of(places.annotations_of(call.bundle))
    if pod:
        _print(_join(call, pod))
        return 0
    answer = ask.ask(call)
    if answer is None:
        answer, config = _start(call)
        _print(answer)
        ask.leave_zygote(config)
    else:
        _print(answer)
    return 0


def _print(answer: bytes) -> None:
    os.write(sys.stdout.fileno(), answer)


def _join(call: Call, pod: str) -> bytes:
    from hako.errors import StateError
    from hako.shim import bootstrap

    given = bootstrap.read(call)
    address = places.address(call, pod, given.socket_dir)
    if not places.answers(address):
        raise StateError(f"The pod {pod}, which the container {call.id} is to join, is not running.")
    places.write_address(call.bundle, address)
    return given.answer(address)


def _start(call: Call) -> tuple[bytes, Config]:
    """Make the container's shim; returns what to print, and the configuration."""
    from hako.sandbox.early import Prepared
    from hako.shim import face

    # The process that is to be the shim loads its modules while this one loads what is left.
    prepared = Prepared(face.serve)
    try:
        return _make(call, prepared)
    finally:
        prepared.close()


def _make(call: Call, prepared: Prepared) -> tuple[bytes, Config]:
    from hako.sandbox import daemon
    from hako.sandbox.trace import of_process
    from hako.shim import bootstrap, face, making

    trace = of_process("shim")
    given = bootstrap.read(call)
    planned = making.plan(call, given)
    with making.made(call, planned) as (sandbox, listener):
        told = face.describe(call, planned.spec, planned.address)
        daemon.hand_over(prepared, sandbox, planned.config, told, (listener.fileno(),), trace)
    listener.close()
    return given.answer(planned.address), planned.config
