"""The interval of the calibration error holds the truth as often as it says, in programs of which the truth is known."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from numpy.typing import NDArray

from cuecard.metrics import Measurement, Weighted, bootstrap, interval, metric
from cuecard.metrics.calibration import CalibrationError
from cuecard.metrics.calibration_interval import error_interval

Floats = NDArray[np.float64]
BINS = 10
PROGRAMS: dict[str, tuple[Callable[[np.random.Generator, int], Floats], Callable[[Floats], Floats]]] = {
    "calibrated": (lambda rng, n: rng.uniform(0.5, 1, n), lambda sure: sure),
    "calibrated, and sure": (lambda rng, n: 1 - rng.beta(1, 12, n) / 2, lambda sure: sure),
    "always 98.5 % sure, and right as often": (lambda rng, n: np.full(n, 0.985), lambda sure: sure),
    "too sure by .1": (lambda rng, n: rng.uniform(0.5, 1, n), lambda sure: sure - 0.1),
    "too sure by .3": (lambda rng, n: rng.uniform(0.6, 1, n), lambda sure: sure - 0.3),
    "too sure where it is surest": (lambda rng, n: rng.uniform(0.5, 1, n), lambda s: np.where(s > 0.9, s - 0.25, s)),
    "always 98.5 % sure, and right 93 times": (lambda rng, n: np.full(n, 0.985), lambda sure: np.full(len(sure), 0.93)),
}


def sums(sure: Floats, values: Floats) -> Floats:
    found: Floats = np.bincount(np.searchsorted(np.arange(1, BINS) / BINS, sure), values, BINS)
    return found


def truth(name: str) -> float:
    """The binned error of many answers without noise."""
    drawn, right = PROGRAMS[name]
    sure = drawn(np.random.default_rng(0), 200_000)
    return float(np.abs(sums(sure, right(sure) - sure)).sum() / len(sure))


def answers(name: str, rng: np.random.Generator, n: int) -> list[Floats]:
    """The three sums of each bin."""
    drawn, right = PROGRAMS[name]
    sure = drawn(rng, n)
    hits = (rng.random(n) < right(sure)).astype(float)
    return [sums(sure, np.ones(n)), sums(sure, sure), sums(sure, hits)]


@pytest.mark.parametrize("name", PROGRAMS)
@pytest.mark.parametrize("n", [50, 300])
def test_it_holds_the_truth_about_95_times_in_100(name: str, n: int) -> None:
    rng = np.random.default_rng(11)
    true, held = truth(name), 0
    for seed in range(120):
        low, high = error_interval(*answers(name, rng, n), seed)
        held += low - 1e-9 <= true <= high + 1e-9
    assert held >= 120 * 0.95 - 2.6 * np.sqrt(120 * 0.95 * 0.05)


def measurements(name: str, n: int, seed: int) -> list[Measurement]:
    rng = np.random.default_rng(seed)
    drawn, right = PROGRAMS[name]
    found = []
    for sure in drawn(rng, n).tolist():
        hit = float(rng.random() < right(np.array([sure]))[0])
        one = np.array([sure])
        row = np.concatenate([sums(one, np.array([each])) for each in (1.0, sure, hit)])
        found.append(Measurement(1 - abs(hit - sure), tuple(row.tolist())))
    return found


def test_it_is_the_metrics_own_and_the_bootstrap_would_miss_the_truth() -> None:
    ours = CalibrationError()
    missed = 0
    for seed in range(10):
        rows = measurements("calibrated", 200, seed)
        score = interval(ours, rows, seed)
        assert 0 <= score.low < score.value < score.high <= 1
        assert (score.low, score.high) == ours.bounds(rows, seed)
        missed += bootstrap(rows, ours, resamples=300, seed=seed)[1] < 1
    assert missed == 10
    assert ours.describe().interval == "Wilson bounds of the bins above, an inverted test below"


def test_it_shows_a_program_that_is_too_sure_and_narrows_with_more_answers() -> None:
    ours = CalibrationError()
    few, many = (interval(ours, measurements("too sure by .3", n, 1)) for n in (50, 800))
    assert many.high < 0.75 and many.high - many.low < 0.5 * (few.high - few.low)
    assert interval(ours, measurements("calibrated", 400, 3)).high == 1


def test_the_order_of_rows_changes_nothing_and_a_seed_gives_one_interval() -> None:
    rows = measurements("too sure by .1", 100, 2)
    assert interval(CalibrationError(), rows, 4) == interval(CalibrationError(), rows[::-1], 4)


@pytest.mark.parametrize("hit", [0.0, 1.0])
def test_the_ends(hit: float) -> None:
    """All answers wrong, or all right, and the program as sure as can be."""
    certain = [Measurement(hit, (*([0.0] * 9), 1.0, *([0.0] * 9), 1.0, *([0.0] * 9), hit))] * 30
    score = interval(CalibrationError(), certain)
    assert score.value == hit
    ends = (pytest.approx(0.886, abs=0.01), 1) if hit else (0, pytest.approx(0.116, abs=0.01))
    assert (score.low, score.high) == ends


def test_in_a_weighted_sum_it_counts_with_its_weight() -> None:
    parts = [CalibrationError(), metric("exact_match")]
    rows = measurements("calibrated", 100, 5)
    right = [Measurement(float(n % 4 > 0)) for n in range(100)]
    both = Weighted(parts, [1.0, 3.0])
    summed = [
        Measurement(0.25 * one.score + 0.75 * other.score, (*one.row, *other.row))
        for one, other in zip(rows, right, strict=True)
    ]
    first, second, found = interval(parts[0], rows), interval(parts[1], right), interval(both, summed)
    assert found.value == pytest.approx(0.25 * first.value + 0.75 * second.value)
    assert found.low == pytest.approx(0.25 * first.low + 0.75 * second.low)
    assert found.high == pytest.approx(0.25 * first.high + 0.75 * second.high)
    assert Weighted([metric("bleu"), metric("f1")]).own_interval == ""
