"""Pods under containerd, as Kubernetes has them: starts, calls, what idle ones cost, and many at once."""

from __future__ import annotations

import contextlib
import os
import sys
import time
from collections import Counter
from typing import TYPE_CHECKING

from bench import containerd, machine, procs
from bench.context import Context
from bench.model import BenchError, Phase
from bench.pieces import engines, idle
from bench.pieces.starts import kinds, median_phases

if TYPE_CHECKING:
    from bench.pods import Node, Pod

#: Milliseconds that a start of hako's may take, and MB that its shim may have.
START_BUDGET = 1500.0
SHIM_BUDGET = 35.0
_MIB = 1 << 20
_SOURCE = os.path.join(machine.CLONE, "src")


def pods(context: Context) -> None:
    """Pods of one container, with each handler."""
    if _SOURCE not in sys.path:
        sys.path.append(_SOURCE)
    try:
        from bench.pods import Node
    except ImportError as error:
        raise BenchError(f"No CRI client: {error}; scripts/install-bench-deps.sh installs python3-h2.") from error
    with contextlib.ExitStack() as stack:
        stack.callback(containerd.forget, context.hako)
        engine = stack.enter_context(containerd.Containerd(engines.shims(context)))
        context.result.notes.append(engine.version())
        node = Node(engine)
        node.wait_ready()
        for handler in engine.runtimes:
            node.remove(node.start(handler).id)
        _starts(context, node)
        _idle(context, node)
        if context.plan.pods_at_once:
            for handler in engine.runtimes:
                _at_once(context, node, handler, context.plan.pods_at_once)
        _left(context, node)


def _starts(context: Context, node: Node) -> None:
    """One pod after the other."""
    row = context.result.row
    whole = row("start", "pod: RunPodSandbox until its container runs", "ms", most=START_BUDGET)
    sandbox = row("sandbox", "pod: RunPodSandbox", "ms")
    container = row("container", "pod: create and start a container in it", "ms")
    ends = row("end", "pod: stop and remove", "ms")
    traces = []
    for _ in context.rounds(context.plan.pod_runs):
        for handler in node.engine.runtimes:
            pod = node.start(handler)
            whole.add(handler, pod.took)
            sandbox.add(handler, (pod.sandbox_ready - pod.begun) / 1e6)
            container.add(handler, (pod.running - pod.sandbox_ready) / 1e6)
            if handler == context.hako.name:
                traces.append(_trace(context, pod))
            ends.add(handler, node.remove(pod.id) * 1e3)
    context.result.phases = median_phases(traces)


def _trace(context: Context, pod: Pod) -> list[Phase]:
    """What hako and the calls were doing when, in ms from the first call."""
    calls = [
        ("RunPodSandbox", "call", pod.begun, pod.sandbox_ready),
        ("CreateContainer", "call", pod.sandbox_ready, pod.created),
        ("StartContainer", "call", pod.created, pod.running),
    ]
    spans = sorted([*calls, *context.hako.trace(_name(context, pod))], key=lambda span: span[2])
    return [Phase(name, lane, (begin - pod.begun) / 1e6, (end - pod.begun) / 1e6) for name, lane, begin, end in spans]


def _name(context: Context, pod: Pod) -> str:
    """What hako calls the container that stands for a pod. Raises BenchError."""
    found = next((str(record["id"]) for record in context.hako.listed() if record["id"].endswith(f"/{pod.id}")), "")
    if not found:
        raise BenchError(f"hako does not know the pod {pod.id}.")
    return found


def _idle(context: Context, node: Node) -> None:
    """What an idle pod costs, and commands in it."""
    row = context.result.row
    boxes = {handler: node.start(handler) for handler in node.engine.runtimes}
    time.sleep(context.plan.settle)
    shim = row("shim", "pod: resident memory of its shim", "MB", most=SHIM_BUDGET)
    memory = row("memory", "pod: memory (PSS) of all its processes, idle", "MiB")
    for handler, pod in boxes.items():
        shim.add(handler, procs.resident(node.shim(pod)) / 1e6)
        pids = node.processes(pod)
        sizes = {pid: procs.pss(pid) for pid in pids}
        memory.add(handler, sum(sizes.values()) / _MIB)
        memory.notes.append(f"{handler}, MiB: {_parts(sizes)}")
        if handler == context.hako.name:
            idle.template(context, pids, sum(sizes.values()), [context.hako.template(_name(context, pod))])
    calls = row("exec", "pod: ExecSync of `true`", "ms")
    ways = {handler: lambda pod=pod: node.execute(pod, "true") * 1e3 for handler, pod in boxes.items()}
    context.interleave(calls, ways, context.plan.calls, warm_up=True)
    for pod in boxes.values():
        node.remove(pod.id)


def _parts(sizes: dict[int, int]) -> str:
    """The memory of processes by their names, with how many there are."""
    total: Counter[str] = Counter()
    count: Counter[str] = Counter()
    for pid, size in sizes.items():
        name = procs.name(pid)
        total[name] += size
        count[name] += 1
    return ", ".join(f"{count[name]} {name} {size / _MIB:.1f}" for name, size in total.most_common())


def _at_once(context: Context, node: Node, handler: str, count: int) -> None:
    """Many pods at the same moment, and the memory of each when all run."""
    row = context.result.shared_row
    total = row(f"{count}.total", f"{count} pods at once, until all run", "ms")
    each = row(f"{count}.each", f"{count} pods at once, each", "ms")
    failed = row(f"{count}.failed", f"{count} pods at once, failures", "")
    memory = row(f"{count}.memory", f"memory (PSS) of each of {count} idle pods", "MiB")
    lost = row(f"{count}.machine", f"memory the machine has less, for each of {count} pods", "MiB")
    before = procs.available_memory()
    begun = time.monotonic()
    results = node.start_many(handler, count)
    total.add(handler, (time.monotonic() - begun) * 1e3)
    errors = [str(result) for result in results if isinstance(result, BenchError)]
    failed.add(handler, float(len(errors)))
    failed.notes += [f"{handler}: {line}" for line in kinds(errors)]
    boxes = [result for result in results if not isinstance(result, BenchError)]
    if boxes:
        time.sleep(context.plan.settle)
        lost.add(handler, (before - procs.available_memory()) / len(boxes) / _MIB)
    for pod in boxes:
        each.add(handler, pod.took)
        memory.add(handler, sum(map(procs.pss, node.processes(pod))) / _MIB)
    begun = time.monotonic()
    node.clear()
    took = (time.monotonic() - begun) * 1e3 / count
    row(f"{count}.end", f"{count} pods, stop and remove, each", "ms").add(handler, took)


def _left(context: Context, node: Node) -> None:
    """What is there of pods after all have been removed."""
    found = node.left()
    row = context.result.row("left", "shims, mounts and network namespaces left of pods", "")
    row.add("all", float(len(found)))
    row.notes += found
