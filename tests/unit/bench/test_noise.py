"""Whether a machine is called quiet."""

from __future__ import annotations

import pytest

from bench import noise
from bench.noise import Sample

_LOOPS = (0.0100, 0.0101, 0.0102, 0.0101, 0.0100)


def samples(loops: tuple[float, ...] = _LOOPS, others: float = 0.02, steal: float = 0.0) -> list[Sample]:
    return [Sample(loop, others, steal) for loop in loops]


def test_a_quiet_machine_has_nothing_to_complain_of() -> None:
    assert noise.verdict(samples(), [0.05, 0.1, 0.3], 0.1) == noise.Verdict("quiet", [])


@pytest.mark.parametrize(
    ("found", "runc", "level", "word"),
    [
        (samples((0.010, 0.010, 0.012, 0.012, 0.012)), [], "noisy", "loop"),
        (samples((0.010, 0.010, 0.020, 0.020, 0.020)), [], "very noisy", "loop"),
        (samples(others=0.4), [], "noisy", "Other programs"),
        (samples(others=1.7), [], "very noisy", "1.7 processors"),
        (samples(steal=0.05), [], "noisy", "took 5%"),
        (samples(), [0.05, 0.4, 0.5], "noisy", "runc"),
        (samples(), [0.7], "very noisy", "runc"),
    ],
)
def test_each_kind_of_noise_is_named(found: list[Sample], runc: list[float], level: str, word: str) -> None:
    verdict = noise.verdict(found, runc, 0.1)
    assert verdict.level == level
    assert len(verdict.reasons) == 1
    assert word in verdict.reasons[0]


def test_one_disturbed_sample_is_no_noise() -> None:
    found = [*samples(), Sample(0.05, 2.0, 0.0)]
    assert noise.verdict(found, [], 0.1).level == "quiet"


def test_the_worst_reason_decides_and_all_are_told() -> None:
    verdict = noise.verdict(samples(others=0.4, steal=0.5), [0.05], 1.0)
    assert verdict.level == "very noisy"
    assert len(verdict.reasons) == 3


def test_ticks() -> None:
    assert noise.parse_ticks("cpu  10 1 5 100 20 2 3 7 0 0\n") == noise.Ticks(busy=21, idle=120, steal=7)


def test_the_real_machine_gives_samples() -> None:
    looked = noise.Noise()
    looked.sample()
    report = looked.report({"run.exit": [40.0, 41.0, 42.0]})
    assert report["verdict"] in ("quiet", "noisy", "very noisy")
    assert report["loop_ms"]["n"] == 1
    assert len(report["others_cpus"]) == 1
    assert report["runc_spread"] == pytest.approx(1 / 41, abs=1e-3)
