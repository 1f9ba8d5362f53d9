"""Calling containers that run: exec, state, the agent; and ending them."""

from __future__ import annotations

import contextlib
import os
import sys
import time
from collections.abc import Callable, Sequence
from typing import Any

from bench import commands, interrupts
from bench.context import Context, end_boxes
from bench.model import BenchError
from bench.targets.base import IDLE, STOPPABLE, WAIT_STOPPABLE, Target
from bench.targets.runc import LIFE, HakoRuntime, Runc, runcs

_SOURCE = os.path.join(os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__)))), "src")
_CALLS_PER_VALUE = 20
#: What ``hako-runtime state`` may take.
STATE_MILLISECONDS = 45.0


def execute(context: Context) -> None:
    """One more process in a running container, to its exit."""
    boxes = context.boxes(IDLE)
    row = context.result.row("exit", "exec `true`, to exit", "ms")
    context.interleave(row, _timed(boxes, lambda target, box: target.exec_argv(box, ["true"])), context.plan.calls,
                       warm_up=True)  # fmt: skip
    end_boxes(boxes)


def state(context: Context) -> None:
    """Asking for a container's state, and the least that any command costs."""
    boxes = context.boxes(IDLE)
    row = context.result.row("state", "state (`hako inspect`, `runc state`)", "ms")
    context.interleave(row, _timed(boxes, lambda target, box: target.state_argv(box)), context.plan.calls,
                       warm_up=True)  # fmt: skip
    row = context.result.row("version", "print the version", "ms")
    context.interleave(row, _timed(boxes, lambda target, _: target.version_argv()), context.plan.calls,
                       warm_up=False)  # fmt: skip
    end_boxes(boxes)


def runtime(context: Context) -> None:
    """The commands of hako-runtime that engines give, and the same of runc, without an engine."""
    ours = HakoRuntime(context.hako)
    reason = ours.missing()
    if reason:
        raise BenchError(reason)
    with contextlib.ExitStack() as stack:
        stack.callback(_close, ours)
        ours.prepare()
        targets = [ours, *runcs(context.targets)]
        boxes: dict[Target, str] = {target: target.start(IDLE) for target in targets}
        row = context.result.row("state", "`hako-runtime state`, `runc state`", "ms", most=STATE_MILLISECONDS)
        context.interleave(row, _timed(boxes, lambda target, box: target.state_argv(box)), context.plan.calls,
                           warm_up=True)  # fmt: skip
        row = context.result.row("exec", "`hako-runtime exec` and `runc exec` of `true`", "ms")
        context.interleave(row, _timed(boxes, lambda target, box: target.exec_argv(box, ["true"])),
                           context.plan.calls, warm_up=True)  # fmt: skip
        end_boxes(boxes)
        _lives(context, targets)


def _lives(context: Context, targets: Sequence[Runc]) -> None:
    """Creating, starting and deleting a container, each by itself and all together."""
    whole = context.result.row("cycle", "create, start and delete --force", "ms")
    rows = {part: context.result.row(part.split()[0], part, "ms") for part in LIFE}
    for _ in context.rounds(context.plan.runs):
        for target in targets:
            name = target.new_name()
            times = {
                part: commands.run(argv, env=target.env, output=False).total * 1e3
                for part, argv in zip(LIFE, target.life(name), strict=True)
            }
            target.names.discard(name)
            whole.add(target.name, sum(times.values()))
            for part, milliseconds in times.items():
                rows[part].add(target.name, milliseconds)


def _close(target: Target) -> None:
    """Clean up after ``target``; a signal meanwhile must not stop that."""
    with interrupts.ignored():
        target.close()


def _timed(boxes: dict[Target, str], argv: Callable[[Target, str], list[str]]) -> dict[str, Callable[[], float]]:
    """For each runtime a way to measure the milliseconds of a command."""

    def way(target: Target, box: str) -> Callable[[], float]:
        return lambda: target.time(argv(target, box)) * 1e3

    return {target.name: way(target, box) for target, box in boxes.items()}


def stop(context: Context) -> None:
    """Asking a container that heeds SIGTERM to end, until it has; then removing it."""
    stops = context.result.row("stop", "stop, until it has ended", "ms")
    deletes = context.result.row("delete", "delete what has ended", "ms")
    for _ in context.rounds(context.plan.runs):
        for target in context.targets:
            box = target.start(STOPPABLE)
            target.time(target.exec_argv(box, WAIT_STOPPABLE))
            stops.add(target.name, target.stop(box) * 1e3)
            deletes.add(target.name, target.time(target.delete_argv(box)) * 1e3)
            target.end(box)


def agent(context: Context) -> None:
    """One call to the agent and back, and one line to a process in the container and back."""
    boxes = context.boxes(IDLE)
    calls = context.result.row("call", "call of hako's agent and back", "ms")
    echo = context.result.row("echo", "a line into a container and back", "ms")
    with contextlib.ExitStack() as stack:
        ways = {}
        try:
            ways[context.hako.name] = _agent_call(context, boxes[context.hako], stack)
        except (ImportError, BenchError) as error:
            context.result.notes.append(f"Calls of the agent were not measured: {error}")
        context.interleave(calls, ways, context.plan.calls, warm_up=True)
        lines = {}
        for target, box in boxes.items():
            argv = target.exec_argv(box, ["cat"], stdin=True)
            found = stack.enter_context(commands.session(argv, target.env))
            lines[target.name] = lambda found=found: _mean(lambda: found.ask("hako", "hako")) * 1e3
        context.interleave(echo, lines, context.plan.calls, warm_up=True)
    end_boxes(boxes)


def _agent_call(context: Context, box: str, stack: contextlib.ExitStack) -> Callable[[], float]:
    """A way to measure the milliseconds of a call that does nothing: the signal 0, by the clone's own client."""
    if _SOURCE not in sys.path:
        sys.path.append(_SOURCE)
    from hako.errors import HakoError
    from hako.sandbox import client

    found = context.hako.inspect(box)
    params: dict[str, Any] = {"container": found["id"], "signal": 0}
    sandbox = str(found["sandbox"]["id"])
    try:
        sock = stack.enter_context(client.connect(sandbox))
        client.exchange(sock, "Kill", params)
    except HakoError as error:
        raise BenchError(str(error)) from error
    return lambda: _mean(lambda: _seconds(lambda: client.exchange(sock, "Kill", params))) * 1e3


def _mean(measure: Callable[[], float]) -> float:
    return sum(measure() for _ in range(_CALLS_PER_VALUE)) / _CALLS_PER_VALUE


def _seconds(work: Callable[[], object]) -> float:
    started = time.monotonic()
    work()
    return time.monotonic() - started
