"""Starting containers: a single one, its phases, and many at once."""

from __future__ import annotations

import re
import statistics
import time
from collections import Counter

from bench import commands
from bench.context import Context
from bench.model import BenchError, Phase
from bench.targets.base import PREFIX, Target

#: The phase of a start that ends when the agent has answered.
AGENT_READY = "agent ready"
#: The phases that make the VM, by clone or by boot: the first of them begins it.
VM_BEGINS = ("clone", "QEMU", AGENT_READY)
#: The phase that ends when the container runs.
STARTED = ("start", "create")
_AT_ONCE_SECONDS = 600.0
#: Names of containers and sandboxes in messages.
_NAMES = re.compile(rf"{PREFIX}-[0-9-]+|\b[0-9a-f]{{16}}\b")
_MOST_KINDS = 5
_MOST_TEXT = 150


def run(context: Context) -> None:
    """From the command to its first output and to its exit, in the foreground."""

    def to_exit(target: Target) -> float:
        return target.run(["true"]).total * 1e3

    def to_output(target: Target) -> float:
        done = target.run(["echo", "hako"])
        if done.first is None or done.output != b"hako\n":
            raise BenchError(f"{target.name} printed {done.output[:40]!r} where hako was expected.")
        return done.first * 1e3

    exits = context.result.row("exit", "run `true`, to exit", "ms")
    outputs = context.result.row("output", "run `echo`, to first output", "ms")
    for _ in context.rounds(context.plan.runs):
        for target in context.targets:
            exits.add(target.name, to_exit(target))
        for target in context.targets:
            outputs.add(target.name, to_output(target))


def phases(context: Context) -> None:
    """The phases of a start of hako in the background, and how long the VM takes until its agent answers."""
    ready = context.result.row("agent-ready", "VM begun to agent ready", "ms")
    started = context.result.row("started", "command to container started", "ms")
    traces = []
    booted = 0
    hako = context.hako
    for _ in context.rounds(context.plan.runs):
        begun = time.monotonic_ns()
        name = hako.start()
        returned = time.monotonic_ns()
        spans = hako.trace(name)
        booted += not hako.template(name)
        hako.end(name)
        if not spans:
            raise BenchError("hako has written down no trace of the start.")
        trace = [Phase(text, lane, (begin - begun) / 1e6, (end - begun) / 1e6) for text, lane, begin, end in spans]
        traces.append([*trace, Phase("returned", "command", (returned - begun) / 1e6, (returned - begun) / 1e6)])
        for row, milliseconds in ((ready, until_ready(trace)), (started, until_started(trace))):
            if milliseconds is not None:
                row.add(hako.name, milliseconds)
    if 0 < booted < len(traces):
        context.result.notes.append(f"{booted} of {len(traces)} VMs booted; the others were cloned.")
    context.result.phases = median_phases(traces)


def until_ready(trace: list[Phase]) -> float | None:
    """Milliseconds from where the VM is begun to its agent's answer; None if the trace does not have it."""
    ends = [phase.end for phase in trace if phase.name == AGENT_READY]
    begins = [phase.begin for phase in trace if phase.name in VM_BEGINS]
    return ends[0] - min(begins) if ends else None


def until_started(trace: list[Phase]) -> float | None:
    """Milliseconds from the command until the container runs; None if the trace does not have it."""
    ends = [phase.end for name in STARTED for phase in trace if phase.name == name]
    return ends[0] if ends else None


def median_phases(traces: list[list[Phase]]) -> list[Phase]:
    """One trace of several: medians of begin and end over those traces whose names are the most common ones."""
    if not traces:
        return []
    kinds = Counter(tuple((phase.name, phase.lane) for phase in trace) for trace in traces)
    names = kinds.most_common(1)[0][0]
    alike = [trace for trace in traces if tuple((phase.name, phase.lane) for phase in trace) == names]
    return [
        Phase(name, lane, statistics.median(trace[at].begin for trace in alike),
              statistics.median(trace[at].end for trace in alike))
        for at, (name, lane) in enumerate(names)
    ]  # fmt: skip


def at_once(context: Context) -> None:
    """Many starts at the same moment: until all have ended, each one's own time, and how many failed."""
    for count, rounds in context.plan.at_once:
        total = context.result.row(f"{count}.total", f"{count} starts at once, until the last has ended", "ms")
        each = context.result.row(f"{count}.each", f"{count} starts at once, each", "ms")
        failed = context.result.row(f"{count}.failed", f"{count} starts at once, failures", "")
        for _ in context.rounds(rounds):
            for target in context.targets:
                names = [target.new_name() for _ in range(count)]
                argvs = [target.run_argv(name, ["true"]) for name in names]
                begun = time.monotonic()
                results = commands.run_at_once(argvs, env=target.env, timeout=_AT_ONCE_SECONDS)
                total.add(target.name, (time.monotonic() - begun) * 1e3)
                errors = []
                for name, result in zip(names, results, strict=True):
                    if isinstance(result, BenchError) or result.status != 0:
                        errors.append(str(result) if isinstance(result, BenchError) else result.error)
                        target.end(name)
                        continue
                    target.names.discard(name)
                    each.add(target.name, result.total * 1e3)
                failed.add(target.name, float(len(errors)))
                failed.notes += [f"{target.name}: {line}" for line in kinds(errors)]


def kinds(errors: list[str]) -> list[str]:
    """Error messages in short: those that differ only in names are counted together; the most frequent ones."""
    alike = Counter(_NAMES.sub("...", text)[:_MOST_TEXT] for text in errors)
    lines = [f"{times} x {text}" for text, times in alike.most_common(_MOST_KINDS)]
    left = len(alike) - len(lines)
    return [*lines, f"and {left} other kinds of failure"] if left > 0 else lines
