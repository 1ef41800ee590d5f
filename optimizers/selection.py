"""How sure it is that the best of many candidates beats the baseline.

The best of many on the same examples looks better than it is: among thirty candidates that are all as good as the
baseline, a plain paired test calls the best one better in three searches of ten. So the winner's difference is compared
with the largest difference that any of the candidates would show if each were interchangeable with the baseline: the
single-step max test over permutations of Westfall and Young, "Resampling-Based Multiple Testing" (1993), section 2.3.
Swapping the baseline's output of an example with every candidate's at once keeps the candidates' likeness to each
other, so that twenty variants of one prompt do not count as twenty chances.

Candidates that a race dropped are left out, though they were chances too: measured on candidates without any merit,
the level of 0.05 is 0.03 to 0.12 (lower where the same examples are hard for all), and 0.3 to 0.5 for a plain test.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from ..metrics.base import Measurement, Metric

ROUNDING = 1e-12  # Differences this close, relative to the range of scores, are the same difference.


def best_of_many(
    metric: Metric,
    candidates: Sequence[Sequence[Measurement]],
    baseline: Sequence[Measurement],
    *,
    seed: int,
    resamples: int = 2000,
    of: Sequence[Measurement] | None = None,
) -> float:
    """The one-sided p-value of the largest difference between a candidate's aggregate and the baseline's.

    candidates: at least one, each measured on the baseline's examples in its order; of: the one whose difference is
    tested in place of the largest, which is one of them. The observed arrangement is counted
    among the `resamples` random ones (Phipson and Smyth 2010), so the value is never 0.
    """
    swaps = np.random.default_rng(seed).integers(2, size=(resamples, len(baseline)), dtype=np.int8)
    theirs = _rows(baseline)
    observed, largest = -np.inf, np.full(resamples, -np.inf)
    for candidate in candidates:
        ours = _rows(candidate)
        difference = metric.aggregate(candidate) - metric.aggregate(baseline)
        observed = max(observed, difference) if of is None else metric.aggregate(of) - metric.aggregate(baseline)
        moved = np.einsum("rn,nw->rw", swaps, ours - theirs)
        permuted = _aggregates(metric, ours.sum(axis=0) - moved) - _aggregates(metric, theirs.sum(axis=0) + moved)
        largest = np.maximum(largest, permuted)
    slack = ROUNDING * (metric.high - metric.low)
    return (int(np.count_nonzero(largest >= observed - slack)) + 1) / (resamples + 1)


def _rows(measurements: Sequence[Measurement]) -> NDArray[np.float64]:
    return np.array([measurement.row for measurement in measurements], dtype=np.float64)


def _aggregates(metric: Metric, totals: NDArray[np.float64]) -> NDArray[np.float64]:
    return np.array([metric.from_statistics(total) for total in totals])
