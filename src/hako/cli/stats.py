"""``hako stats``: what running containers use, in the VM and on the host."""

from __future__ import annotations

import contextlib
import sys
import time

from hako import units
from hako.cli import containers, options, tables
from hako.errors import HakoError
from hako.named import NamedTuple
from hako.sandbox import client, requests

_HEADER = ("CONTAINER ID", "NAME", "CPU %", "MEM USAGE / LIMIT", "MEM %", "PIDS", "VM PSS")


def parser() -> options.Parser:
    """The command line of this verb."""
    about = (
        "Show what running containers use. CPU and memory are the container's, in the VM; VM PSS is the host's memory "
        "for the whole virtual machine, shared pages counted in part."
    )
    parser = options.Parser("stats", about, "[OPTIONS] [CONTAINER...]")
    parser.add_argument("--no-stream", action="store_true", help="once, instead of again and again")
    parser.add_argument("--format", choices=("table", "json"), default="table", help="json: an object per line")
    parser.add_argument("--interval", type=options.positive_seconds, default=1.0, metavar="SECONDS",
        help="how long to measure (default: 1)")  # fmt: skip
    parser.add_argument("containers", metavar="CONTAINER", nargs="*")
    return parser


class Sample(NamedTuple):
    """What one container has used up to one moment."""

    at: float
    cpu: float  #: seconds
    memory: int
    limit: int
    pids: int
    pss: int  #: bytes on the host


def main(args: list[str]) -> int:
    """Print the table, once or until the user has seen enough."""
    asked = parser().parse_args(args)
    for ref in asked.containers:
        containers.find_running(ref, paused=True)
    before: dict[str, Sample] = {}
    first = True
    while True:
        targets = _targets(asked.containers)
        samples = _sample(targets)
        if not first:
            shown = [target for target in targets if target.id in samples]
            _show(shown, before, samples, json=asked.format == "json", clear=not asked.no_stream)
            if asked.no_stream or not targets:
                return 0
        first, before = False, samples
        time.sleep(asked.interval)


def _targets(refs: list[str]) -> list[containers.Target]:
    if not refs:
        live = (target for target in containers.all_targets() if target.record and target.is_live)
        return [target for target in live if target.status in ("running", "paused")]
    found = []
    for ref in refs:
        with contextlib.suppress(HakoError):  # ended meanwhile
            found.append(containers.find_running(ref, paused=True))
    return found


def _sample(targets: list[containers.Target]) -> dict[str, Sample]:
    samples = {}
    for target in targets:
        with contextlib.suppress(HakoError):
            answer = client.call(target.sandbox_id, "Stats", requests.target(target.container_id))
            samples[target.id] = Sample(
                time.monotonic(),
                _number(answer, "cpu", "usage_usec") / 1e6,
                _number(answer, "memory", "usage"),
                _number(answer, "memory", "limit") or int(target.state["spec"]["memory"]),
                _number(answer, "pids", "current"),
                pss(target.state["vm_pid"]),
            )
    return samples


def _number(answer: dict[str, object], group: str, name: str) -> int:
    """One number of the guest's answer; what is no number counts as 0."""
    table = answer.get(group)
    value = table.get(name) if isinstance(table, dict) else None
    return value if type(value) is int and value >= 0 else 0


def pss(pid: int) -> int:
    """Proportional set size of process ``pid`` in bytes, 0 when it cannot be read."""
    with contextlib.suppress(OSError, ValueError, IndexError), open(f"/proc/{pid}/smaps_rollup", "rb") as file:
        for line in file:
            if line.startswith(b"Pss:"):
                return int(line.split()[1]) << 10
    return 0


def _show(
    targets: list[containers.Target], before: dict[str, Sample], now: dict[str, Sample], *, json: bool, clear: bool
) -> None:
    rows = [(target, now[target.id], _percent(before.get(target.id), now[target.id])) for target in targets]
    if json:
        from json import dumps

        text = "".join(f"{dumps(_describe(*row))}\n" for row in rows)
    else:
        text = tables.table(_HEADER, [_row(*row) for row in rows]) + "\n"
    if clear and sys.stdout.isatty():
        text = f"\x1b[H\x1b[2J{text}"
    sys.stdout.write(text)
    sys.stdout.flush()


def _percent(before: Sample | None, now: Sample) -> float:
    return 100 * (now.cpu - before.cpu) / max(now.at - before.at, 1e-3) if before is not None else 0.0


def _row(target: containers.Target, sample: Sample, percent: float) -> tuple[str, ...]:
    return (
        target.short_id,
        target.name,
        f"{percent:.1f}%",
        f"{units.format_size(sample.memory)} / {units.format_size(sample.limit)}",
        f"{100 * sample.memory / max(sample.limit, 1):.1f}%",
        str(sample.pids),
        units.format_size(sample.pss),
    )


def _describe(target: containers.Target, sample: Sample, percent: float) -> dict[str, object]:
    return {
        "id": target.id,
        "name": target.name,
        "cpu_percent": round(percent, 2),
        "memory": sample.memory,
        "memory_limit": sample.limit,
        "pids": sample.pids,
        "vm_pss": sample.pss,
    }
