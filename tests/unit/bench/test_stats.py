"""Medians, spreads and ratios."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bench import stats

TIMES = st.lists(st.floats(0.001, 1e6), min_size=1, max_size=30)


def test_a_summary_of_known_values() -> None:
    assert stats.summarize([4.0, 1.0, 3.0, 2.0, 100.0]) == stats.Summary(5, 1.0, 2.0, 3.0, 4.0, 100.0, 1.0)
    assert stats.summarize([7.0]) == stats.Summary(1, 7.0, 7.0, 7.0, 7.0, 7.0, 0.0)


def test_the_spread_is_not_moved_by_one_slow_run() -> None:
    assert stats.summarize([10.0, 10.0, 10.0, 10.0, 500.0]).spread == 0
    assert stats.summarize([8.0, 10.0, 12.0]).spread == pytest.approx(0.2)


def test_nothing_has_no_summary() -> None:
    with pytest.raises(ValueError):
        stats.summarize([])


@given(TIMES)
def test_a_summary_is_in_order(values: list[float]) -> None:
    found = stats.summarize(values)
    assert found.min <= found.q1 <= found.median <= found.q3 <= found.max
    assert found.n == len(values)
    assert found.mad >= 0


@pytest.mark.parametrize(("part", "expected"), [(0, 1.0), (0.25, 2.0), (0.5, 3.0), (0.9, 4.6), (1, 5.0)])
def test_quantiles(part: float, expected: float) -> None:
    assert stats.quantile([1.0, 2.0, 3.0, 4.0, 5.0], part) == pytest.approx(expected)


def test_few_values_are_compared_pair_by_pair() -> None:
    assert stats.ratio([20.0, 40.0], [2.0, 10.0]) == stats.Ratio(5.0, 2.0, 20.0, "pairs")


def test_many_values_are_resampled_and_always_give_the_same() -> None:
    ours, theirs = [20.0, 22.0, 21.0, 19.0, 20.0, 300.0], [10.0, 10.5, 9.5, 10.0, 10.0]
    found = stats.ratio(ours, theirs)
    assert found is not None
    assert found.method == "bootstrap"
    assert found.value == pytest.approx(2.05)
    assert 1.8 < found.low <= found.value <= found.high
    assert found.low < found.high
    assert stats.ratio(ours, theirs) == found


@given(TIMES, TIMES)
def test_a_ratio_is_within_its_bounds(ours: list[float], theirs: list[float]) -> None:
    found = stats.ratio(ours, theirs)
    assert found is not None
    assert min(ours) / max(theirs) <= found.low * (1 + 1e-9)
    assert found.low <= found.high
    assert found.high <= max(ours) / min(theirs) * (1 + 1e-9)


@pytest.mark.parametrize(("ours", "theirs"), [([], [1.0]), ([1.0], []), ([1.0], [0.0, 1.0])])
def test_no_ratio_where_there_is_nothing_to_divide(ours: list[float], theirs: list[float]) -> None:
    assert stats.ratio(ours, theirs) is None
