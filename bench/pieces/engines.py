"""Containers under engines (docker, podman, ctr) with hako and with runc as runtime, and the network of docker."""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Callable

from bench import commands, containerd, engines
from bench.context import Context
from bench.model import BenchError
from bench.pieces import files, streams
from bench.targets.base import IDLE
from bench.targets.runc import HakoRuntime, runcs

#: How many times runc's a container of docker may take with hako.
BUDGET = 3.0
#: The same for `ctr run`, which makes neither a network nor logs, so that the runtime is most of it.
CTR_BUDGET = 5.0
_PEER = os.path.join(os.path.dirname(os.path.dirname(os.path.abspath(__file__))), "peer.py")
_PORT = "5001"
_TURNS = 200


def docker(context: Context) -> None:
    """``docker run`` on the bridge network, and ``docker exec``."""
    with engines.Docker(_image(context)) as engine:
        _measure(context, engine, BUDGET, BUDGET)


def podman(context: Context) -> None:
    """``podman run`` on its default network, and ``podman exec``."""
    with engines.Podman(_image(context)) as engine:
        _measure(context, engine, None, None)


def ctr(context: Context) -> None:
    """``ctr run``, without a network, and ``ctr task exec``."""
    with contextlib.ExitStack() as stack:
        stack.callback(containerd.forget, context.hako)
        engine = stack.enter_context(containerd.Containerd(shims(context)))
        _measure(context, engine, CTR_BUDGET, None)


def shims(context: Context) -> engines.Image:
    """hako's image, for the shims that take part. Raises BenchError."""
    shim = context.hako.beside(containerd.SHIM)
    if not shim:
        raise BenchError(f"There is no {containerd.SHIM} beside hako; `make install` installs both.")
    runtimes = {context.hako.name: shim} | {runc.name: runc.command for runc in runcs(context.targets)}
    return engines.Image(context.hako.image_root, runtimes)


def _image(context: Context) -> engines.Image:
    """hako's image, for the runtimes that take part. Raises BenchError."""
    oci = HakoRuntime(context.hako)
    reason = oci.missing()
    if reason:
        raise BenchError(reason)
    runtimes = {target.name: target.command for target in [oci, *runcs(context.targets)]}
    return engines.Image(context.hako.image_root, runtimes)


def _measure(context: Context, engine: engines.Engine, run_times: float | None, exec_times: float | None) -> None:
    """``run_times`` and ``exec_times`` are how many times runc's the two may take."""
    context.result.notes.append(engine.version())
    runs = context.result.row("run", f"`{engine.run_words}` of `true`, to exit", "ms", times=run_times)
    execs = context.result.row("exec", f"`{engine.exec_words}` of `true`, to exit", "ms", times=exec_times)
    boxes = {runtime: engine.start(runtime, IDLE) for runtime in engine.runtimes}
    for runtime, box in boxes.items():
        engine.run(runtime, ["true"])
        engine.execute(box, ["true"])
    for _ in context.rounds(context.plan.engine_runs):
        for runtime in boxes:
            runs.add(runtime, engine.run(runtime, ["true"]) * 1e3)
        for runtime, box in boxes.items():
            execs.add(runtime, engine.execute(box, ["true"]) * 1e3)


def tcp(context: Context) -> None:
    """TCP between the host and a container on docker's bridge: bytes each way, and turns of one byte."""
    reason = files.python_missing()
    if reason:
        raise BenchError(reason)
    with contextlib.ExitStack() as stack:
        engine = stack.enter_context(engines.Docker(_image(context)))
        peers = {runtime: _peer(engine, runtime, stack) for runtime in engine.runtimes}
        for line, title in (("send", "TCP, bytes into a container"), ("receive", "TCP, bytes out of a container")):
            row = context.result.row(line, title, "MB/s", better="higher")
            ways = {name: _rate(peer, line, context.plan.stream_seconds) for name, peer in peers.items()}
            context.interleave(row, ways, context.plan.io_runs, warm_up=False)
        row = context.result.row("turn", "TCP, a byte into a container and one back", "µs")
        turns = {name: _turn(peer) for name, peer in peers.items()}
        context.interleave(row, turns, context.plan.calls, warm_up=True)


def _peer(engine: engines.Engine, runtime: str, stack: contextlib.ExitStack) -> commands.Session:
    """The host's end of a connection to a new container, whose process is the other end."""
    command = files.python_argv(_PEER, "serve", _PORT)
    address = engine.address(engine.start(runtime, command, ["-v", "/usr:/usr:ro"]))
    argv = engine.inside(sys.executable, "-IS", _PEER, "connect", address, _PORT)
    session = stack.enter_context(commands.session(argv, engine.env))
    if session.line() != "connected":
        raise BenchError(f"There is no connection to the container of {runtime}.")
    return session


def _rate(peer: commands.Session, line: str, seconds: float) -> Callable[[], float]:
    """A way to measure the MB/s of as many bytes as go about ``seconds``; a first, short one says how many."""

    def rate(size: int) -> float:
        return size / peer.ask(f"{line} {size}", "ok") / 1e6

    rate(streams.TRIAL)
    size = streams.amount(rate(streams.TRIAL), seconds)
    return lambda: rate(size)


def _turn(peer: commands.Session) -> Callable[[], float]:
    """A way to measure the microseconds of a turn."""
    return lambda: peer.ask(f"turns {_TURNS}", "ok") / _TURNS * 1e6
