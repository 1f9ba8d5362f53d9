"""What idle containers cost: memory by PSS of all their processes, and processor time."""

from __future__ import annotations

import time
from collections import Counter

from bench import procs
from bench.context import Context, end_boxes
from bench.model import Row
from bench.targets.base import IDLE, Target

_MIB = 1 << 20
#: With fewer containers, what the machine has less of is mostly chance.
_MANY = 10
#: What the machine keeps when containers are started until memory ends.
_RESERVE = 1 << 30


def memory(context: Context) -> None:
    """PSS of each of N idle containers, what the machine lost by them, and what templates take beside that.

    A page that several processes map counts for each with its part, so that the sum over all processes is what they
    have together; the part of a template that a container has mapped is in the container's figure.
    """
    for target in context.targets:
        boxes: list[str] = []
        before = procs.available_memory()
        for count in context.plan.pods:
            if not _grow(context, target, boxes, count):
                break
            time.sleep(context.plan.settle)
            _measure(context, target, boxes, before)
        for box in boxes:
            target.end(box)


def _grow(context: Context, target: Target, boxes: list[str], count: int) -> bool:
    """Start containers until there are ``count``; False, with a note, when the machine's memory is too small."""
    each = 0.0
    while len(boxes) < count:
        if boxes and not each:
            each = sum(_pss(target, boxes)) / len(boxes)
        if procs.available_memory() < _RESERVE + 2 * each:
            context.result.notes.append(f"{target.name}: no memory for more than {len(boxes)} of {count} containers.")
            return False
        boxes.append(target.start(IDLE))
    return True


def _pss(target: Target, boxes: list[str]) -> list[int]:
    return [sum(procs.pss(pid) for pid in target.pids(box)) for box in boxes]


def _row(context: Context, id: str, title: str) -> Row:
    return context.result.shared_row(id, title, "MiB")


def _measure(context: Context, target: Target, boxes: list[str], before: int) -> None:
    count = len(boxes)
    row = _row(context, f"{count}", f"memory (PSS) of each of {count} idle")
    if count >= _MANY:
        lost = _row(context, f"{count}.machine", f"memory the machine has less, for each of {count}")
        lost.add(target.name, (before - procs.available_memory()) / count / _MIB)
    by_name: Counter[str] = Counter()
    pods: set[int] = set()
    total = 0
    for box in boxes:
        sizes = {pid: procs.pss(pid) for pid in target.pids(box)}
        pods |= set(sizes)
        total += sum(sizes.values())
        for pid, size in sizes.items():
            by_name[procs.name(pid)] += size
        row.add(target.name, sum(sizes.values()) / _MIB)
    parts = ", ".join(f"{name} {size / count / _MIB:.1f}" for name, size in by_name.most_common())
    row.notes.append(f"{target.name}, MiB each: {parts}")
    if target is context.hako:
        templates = [context.hako.template(box) for box in boxes]
        if "" in templates:
            row.notes.append(f"{templates.count('')} of {count} VMs booted; the others are clones")
        template(context, pods, total, templates)


def template(context: Context, pods: set[int], total: int, templates: list[str]) -> None:
    """What the containers' templates take in memory, mapped or not; what containers have with their part of that."""
    count = len(templates)
    keepers = procs.descendants(pid for key, pid in context.hako.keepers().items() if key in templates)
    if not keepers:
        return
    files = {inode: size for pid in keepers for inode, size in procs.memory_files(pid).items()}
    mapped = sum(procs.mapped(pid, files) for pid in pods)
    own = sum(procs.pss(pid) for pid in keepers)
    whole = sum(files.values())
    row = _row(context, f"{count}.template", f"memory of their template, with {count} idle")
    row.add(context.hako.name, (whole + own) / _MIB)
    row.notes.append(
        f"MiB: files {whole / _MIB:.1f}, of which {mapped / _MIB:.1f} are mapped and counted with the containers; "
        f"processes that keep them {own / _MIB:.1f}"
    )
    row = _row(context, f"{count}.all", f"memory of each of {count} idle, with its part of that")
    row.add(context.hako.name, (total + max(whole - mapped, 0) + own) / count / _MIB)


def cpu(context: Context) -> None:
    """Processor time of an idle container: all runtimes in the same windows."""
    windows, seconds = context.plan.idle
    boxes = context.boxes(IDLE)
    time.sleep(context.plan.settle)
    row = context.result.row("cpu", f"processor time of an idle one, {windows * seconds:g} s", "ms/s")
    for _ in range(windows):
        before = {target: _threads(target, box) for target, box in boxes.items()}
        began = time.monotonic()
        time.sleep(seconds)
        passed = time.monotonic() - began
        for target, box in boxes.items():
            row.add(target.name, procs.cpu_used(before[target], _threads(target, box)) / 1e6 / passed)
    end_boxes(boxes)


def _threads(target: Target, box: str) -> dict[int, int]:
    """Nanoseconds of each thread of all processes of a container."""
    return {thread: ran for pid in target.pids(box) for thread, ran in procs.cpu_ns(pid).items()}
