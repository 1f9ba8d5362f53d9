"""The command line of the benchmark, and the order of a run."""

from __future__ import annotations

import argparse
import contextlib
import os
import shutil
import sys
import time
from collections.abc import Sequence

from bench import commands, containerd, engines, interrupts, machine
from bench.context import FULL, QUICK, Context, Plan
from bench.model import BASE, BenchError, PieceResult, Results
from bench.noise import Noise
from bench.pieces import PIECES, Piece
from bench.report import text
from bench.report.save import save
from bench.targets import TARGETS
from bench.targets.base import Target
from bench.targets.hako import Hako
from bench.targets.runc import HakoRuntime

_TERMINATED = 128


def parser() -> argparse.ArgumentParser:
    """The options."""
    parser = argparse.ArgumentParser("bench", description="Measures hako beside runc, interleaved in one run.")
    add = parser.add_argument
    add("--quick", action="store_true", help="fewer rounds, within three minutes")
    add("--only", action="append", default=[], metavar="NAME[,NAME...]", help="only these pieces")
    add("--list", action="store_true", help="list the pieces and end")
    add("--runs", type=_positive, metavar="N", help="rounds of what starts containers; calls have twice as many")
    add("--pods", type=_numbers, metavar="N[,N...]", help="numbers of idle containers whose memory is measured")
    add("--pods-at-once", type=int, metavar="N", help="number of pods that are started at once; 0 for none")
    add("--starts", type=_numbers, metavar="N[,N...]", help="numbers of containers that are started at once")
    add("--targets", type=_words, default=list(TARGETS), metavar="NAME[,NAME...]",
        help=f"runtimes to measure (default: {','.join(TARGETS)})")  # fmt: skip
    add("--hako", default="hako", metavar="COMMAND", help="the hako to measure (default: the one on the PATH)")
    add("--out", default=os.path.join(machine.CLONE, "build", "bench"), metavar="DIRECTORY",
        help="where results.json, report.txt, report.md and the plots go (default: build/bench)")  # fmt: skip
    add("--publish", action="store_true", help="also write the plots for docs/performance.md, to docs/bench")
    return parser


def _positive(word: str) -> int:
    number = int(word)
    if number < 1:
        raise ValueError("not positive")
    return number


def _numbers(word: str) -> tuple[int, ...]:
    return tuple(sorted({_positive(part) for part in word.split(",")}))


def _words(word: str) -> list[str]:
    return [part for part in word.split(",") if part]


def main(argv: Sequence[str] | None = None) -> int:
    """Measure, print and write; returns the exit code: 0, 1 when something could not be measured, 2 for bad options."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    asked = parser().parse_args(arguments)
    if asked.list:
        width = max(len(piece.name) for piece in PIECES)
        print("\n".join(f"{piece.name:<{width}}  {piece.about}" for piece in PIECES))
        return 0
    try:
        pieces = choose(asked.only)
        unknown = set(asked.targets) - set(TARGETS)
        if unknown:
            raise BenchError(f"There is no runtime {min(unknown)}; there are {', '.join(TARGETS)}.")
    except BenchError as error:
        print(f"bench: {error}", file=sys.stderr)
        return 2
    try:
        with interrupts.raised():
            results = measure(pieces, plan(asked), asked.targets, asked.hako, arguments)
    except BenchError as error:
        print(f"bench: {error}", file=sys.stderr)
        return 1
    except interrupts.Interrupted as interrupted:
        print("bench: interrupted; everything has been removed.", file=sys.stderr)
        return _TERMINATED + interrupted.number
    print("\n".join(text.noise_lines(results)))
    written = save(results, asked.out, publish=asked.publish)
    print(f"Written: {', '.join(os.path.relpath(path) for path in written)}")
    return 1 if any(piece.error for piece in results.pieces) else 0


def choose(only: Sequence[str]) -> list[Piece]:
    """The pieces with these names (each may be several, with commas), all for none. Raises BenchError."""
    wanted = [name for words in only for name in _words(words)]
    known = [piece.name for piece in PIECES]
    for name in wanted:
        if name not in known:
            raise BenchError(f"There is no piece {name}; there are {', '.join(known)}.")
    return [piece for piece in PIECES if not wanted or piece.name in wanted]


def plan(asked: argparse.Namespace) -> Plan:
    """How much to measure."""
    chosen = QUICK if asked.quick else FULL
    if asked.runs:
        chosen = chosen._replace(
            runs=asked.runs, engine_runs=asked.runs, pod_runs=asked.runs, calls=2 * asked.runs,
            io_runs=min(asked.runs, chosen.io_runs),
        )  # fmt: skip
    if asked.pods:
        chosen = chosen._replace(pods=asked.pods)
    if asked.pods_at_once is not None:
        chosen = chosen._replace(pods_at_once=asked.pods_at_once)
    if asked.starts:
        rounds = dict(chosen.at_once)
        chosen = chosen._replace(at_once=tuple((count, rounds.get(count, 1)) for count in asked.starts))
    return chosen


def measure(pieces: Sequence[Piece], plan: Plan, names: Sequence[str], command: str, arguments: list[str]) -> Results:
    """Everything from the first look at the machine to the last clean-up. Raises BenchError."""
    noise = Noise()
    with contextlib.ExitStack() as stack:
        hako = Hako(shutil.which(command) or command)
        reason = hako.missing()
        if reason:
            raise BenchError(reason)
        stack.callback(_end, hako)
        targets = _targets(hako, names, stack)
        results = Results(machine.machine(), machine.versions(targets), {}, arguments, [])
        print("\n".join(text.heading(results)))
        difference = machine.difference(hako.command)
        if difference:
            print(f"WARNING: {difference}")
        print(flush=True)
        limit = time.monotonic() + plan.limit
        for piece in pieces:
            if time.monotonic() > limit:
                result = PieceResult(piece.name)
                result.notes.append("Left out: the time was over. Name it with --only.")
            else:
                result = _measure_piece(piece, hako, targets, plan, noise)
            results.pieces.append(result)
            print("\n".join(text.piece_lines(result)), flush=True)
            print(flush=True)
        noise.sample()
    base = {row.id: row.series[BASE] for row in results.rows() if row.unit == "ms" and BASE in row.series}
    results.noise.update(noise.report(base))
    return results


def _targets(hako: Hako, names: Sequence[str], stack: contextlib.ExitStack) -> list[Target]:
    """The runtimes that can be used here, ready. hako itself is always prepared: others take their image from it."""
    hako.sweep()
    engines.sweep()
    containerd.forget(hako)
    HakoRuntime(hako).sweep()
    hako.prepare()
    found: list[Target] = []
    for name in names:
        target = TARGETS[name](hako)
        reason = target.missing()
        if reason:
            print(f"WARNING: {name} is left out. {reason}")
            continue
        if target is not hako:
            stack.callback(_end, target)
            target.sweep()
            target.prepare()
        found.append(target)
    return found


def _end(target: Target) -> None:
    """Clean up after ``target``; a signal meanwhile must not stop that."""
    with interrupts.ignored():
        commands.end_all()
        target.close()


def _measure_piece(piece: Piece, hako: Hako, targets: Sequence[Target], plan: Plan, noise: Noise) -> PieceResult:
    """What ``piece`` finds; that it failed is part of the result, and its containers are gone in any case."""
    result = PieceResult(piece.name)
    begun = time.monotonic()
    noise.sample()
    try:
        piece.measure(Context(hako, targets, plan, noise, result))
    except (BenchError, OSError, LookupError, ValueError) as error:
        result.error = str(error) if isinstance(error, BenchError) else f"{type(error).__name__}: {error}"
        for target in targets:
            for name in sorted(target.names):
                target.end(name)
    result.finish()
    result.seconds = time.monotonic() - begun
    return result
