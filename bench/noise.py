"""Whether the machine was quiet enough: a loop of fixed work and what others took, sampled between measurements."""

from __future__ import annotations

import os
import time
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from bench import stats

_LOOPS = 3
_QUIET_SECONDS = 0.1
#: Bounds above which a difference of some percent means nothing, and above which only orders of magnitude do.
LOOP_SPREAD = (0.10, 0.30)  #: interquartile range of the loop / its median
RUNC_SPREAD = (0.25, 0.60)  #: the same of runc's own times, the median over all rows of times
OTHERS = (0.25, 0.80)  #: processors that others kept busy while the benchmark slept
STEAL = (0.03, 0.10)  #: part of the time that the machine below took away
LOAD = (0.75, 3.0)  #: load average for each processor before anything was measured


class Sample(NamedTuple):
    """One look at the machine: seconds of the loop, processors that others used, part of the time stolen."""

    loop: float
    others: float
    steal: float


class Verdict(NamedTuple):
    """``level`` is quiet, noisy or very noisy; ``reasons`` are sentences, none for quiet."""

    level: str
    reasons: list[str]


class Ticks(NamedTuple):
    """Processor time of the whole machine since it booted, in ticks of all processors."""

    busy: int
    idle: int
    steal: int


def parse_ticks(text: str) -> Ticks:
    """The first line of /proc/stat."""
    user, nice, system, idle, iowait, irq, softirq, steal = (int(word) for word in text.split()[1:9])
    return Ticks(user + nice + system + irq + softirq, idle + iowait, steal)


def read_ticks() -> Ticks:
    """The machine's ticks now."""
    with open("/proc/stat", encoding="ascii") as file:
        return parse_ticks(file.readline())


class Noise:
    """Collects samples. Take them when nothing of the benchmark runs but idle containers."""

    def __init__(self) -> None:
        self.samples: list[Sample] = []
        self.load_before = self.load_most = os.getloadavg()[0]
        self._begin = read_ticks()

    def sample(self) -> None:
        """Look once; takes about a fifth of a second."""
        loop = min(_loop() for _ in range(_LOOPS))
        before = read_ticks()
        time.sleep(_QUIET_SECONDS)
        after = read_ticks()
        total = sum(after) - sum(before)
        others = (after.busy - before.busy) / total * (os.cpu_count() or 1) if total else 0.0
        self.samples.append(Sample(loop, others, self._steal(after)))
        self.load_most = max(self.load_most, os.getloadavg()[0])

    def _steal(self, now: Ticks) -> float:
        total = sum(now) - sum(self._begin)
        return (now.steal - self._begin.steal) / total if total else 0.0

    def report(self, runc: Mapping[str, Sequence[float]]) -> dict[str, Any]:
        """For results.json: the samples in short, the load, and the verdict. ``runc``: runc's times by row."""
        spreads = [stats.summarize(values).spread for values in runc.values() if len(values) > 2]
        found = verdict(self.samples, spreads, self.load_before / (os.cpu_count() or 1))
        loops = stats.summarize([sample.loop * 1e3 for sample in self.samples]) if self.samples else None
        return {
            "verdict": found.level,
            "reasons": found.reasons,
            "loop_ms": loops._asdict() if loops else {},
            "others_cpus": [round(sample.others, 2) for sample in self.samples],
            "runc_spread": round(stats.summarize(spreads).median, 3) if spreads else None,
            "load_before": round(self.load_before, 2),
            "load_most": round(self.load_most, 2),
            "load_after": round(os.getloadavg()[0], 2),
        }


def verdict(samples: Sequence[Sample], runc_spreads: Sequence[float], load: float) -> Verdict:
    """What the samples, the spreads of runc's own times and the load before (for each processor) say of the machine."""
    level, reasons = 0, []

    def judge(value: float, bounds: tuple[float, float], text: str) -> None:
        nonlocal level
        found = sum(value > bound for bound in bounds)
        level = max(level, found)
        if found:
            reasons.append(text)

    if samples:
        loop = stats.summarize([sample.loop for sample in samples]).spread
        judge(loop, LOOP_SPREAD, f"A loop of fixed work varied by {loop:.0%} (quartiles) during the run.")
        others = stats.summarize([sample.others for sample in samples]).median
        judge(others, OTHERS, f"Other programs kept {others:.1f} processors busy.")
        steal = samples[-1].steal
        judge(steal, STEAL, f"The host of this virtual machine took {steal:.0%} of the time away.")
    judge(load, LOAD, f"The load average for each processor was {load:.1f} when it began.")
    if runc_spreads:
        spread = stats.summarize(runc_spreads).median
        judge(spread, RUNC_SPREAD, f"runc's own times varied by {spread:.0%} (quartiles, median over its figures).")
    return Verdict(("quiet", "noisy", "very noisy")[level], reasons)


def _loop() -> float:
    started = time.perf_counter()
    sum(range(500_000))
    return time.perf_counter() - started
