"""Medians and spreads of small samples, and the ratio of two of them. Pure functions."""

from __future__ import annotations

import random
import statistics
from collections.abc import Sequence
from typing import NamedTuple

_RESAMPLES = 1000
#: With fewer values than this on a side, resampling would only repeat them: all pairs are compared instead.
_ENOUGH = 5


class Summary(NamedTuple):
    """A sample in short. ``q1`` and ``q3`` are the quartiles, ``mad`` the median of the distances from the median."""

    n: int
    min: float
    q1: float
    median: float
    q3: float
    max: float
    mad: float

    @property
    def spread(self) -> float:
        """The interquartile range as a part of the median; 0 for a single value."""
        return (self.q3 - self.q1) / self.median if self.median else 0.0


class Ratio(NamedTuple):
    """How many times as much, and between which bounds. ``method``: bootstrap (95 %) or pairs (least and greatest)."""

    value: float
    low: float
    high: float
    method: str


def summarize(values: Sequence[float]) -> Summary:
    """The summary of at least one value. Raises ValueError for none."""
    if not values:
        raise ValueError("there is nothing to summarize")
    ordered = sorted(values)
    median = statistics.median(ordered)
    mad = statistics.median(abs(value - median) for value in ordered)
    return Summary(len(ordered), ordered[0], quantile(ordered, 0.25), median, quantile(ordered, 0.75), ordered[-1], mad)


def quantile(ordered: Sequence[float], part: float) -> float:
    """The value below which ``part`` (0 to 1) of the ascending values lie, between two neighbours if need be."""
    at = part * (len(ordered) - 1)
    low = int(at)
    high = min(low + 1, len(ordered) - 1)
    return ordered[low] + (ordered[high] - ordered[low]) * (at - low)


def ratio(ours: Sequence[float], theirs: Sequence[float]) -> Ratio | None:
    """The median of ``ours`` divided by that of ``theirs``, with its bounds; None where that cannot be done."""
    if not ours or not theirs or min(theirs) <= 0:
        return None
    value = statistics.median(ours) / statistics.median(theirs)
    if min(len(ours), len(theirs)) < _ENOUGH:
        pairs = [mine / other for mine in ours for other in theirs]
        return Ratio(value, min(pairs), max(pairs), "pairs")
    chance = random.Random(1)  # the same sample gives the same bounds
    found = sorted(
        statistics.median(chance.choices(ours, k=len(ours))) / statistics.median(chance.choices(theirs, k=len(theirs)))
        for _ in range(_RESAMPLES)
    )
    return Ratio(value, quantile(found, 0.025), quantile(found, 0.975), "bootstrap")
