"""Scores that come in clusters: repeats of an example under sampled decoding, questions about one text.

The runs of one example are alike, so that R runs of n examples are less than R * n examples. Where every example was
run equally often, `pool_repeats` makes one measurement of its runs, and all of `statistics.py` holds for those. For
clusters of whatever sizes there are the clustered standard error and the bootstrap of whole clusters.
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Sequence

import numpy as np

from .base import Measurement, Metric
from .statistics import Score, _aggregates, _column_sums, _counts, _need, _percentiles, _sums


def pool_repeats(repeats: Sequence[Sequence[Measurement]]) -> list[Measurement]:
    """One measurement per example from several runs of it: the mean of its scores and statistics.

    `repeats` is by example; each must have been run equally often. What is then resampled and tested are examples, as
    it must be: the repeats of one example are alike, and to count them as so many examples would make every interval
    too narrow. Raises `InputError` when the counts differ or are 0.
    """
    counts = {len(each) for each in repeats}
    _need(counts != {0} and len(counts) <= 1, f"examples were run {sorted(counts)} times", "each equally often")
    return [
        Measurement(
            math.fsum(one.score for one in each) / len(each),
            tuple(math.fsum(part) / len(each) for part in zip(*(one.statistics for one in each), strict=True)),
        )
        for each in repeats
    ]


def clustered_error(scores: Sequence[float], clusters: Sequence[Hashable]) -> float:
    """The standard error of a mean whose scores come in clusters: repeats of an example, questions about one text.

    The root of the sum of squared cluster sums of deviations, times sqrt(G / (G - 1)) for G clusters, over n: Liang
    and Zeger, "Longitudinal data analysis using generalized linear models", Biometrika 73 (1986), with the usual
    correction for few clusters; for evaluations Miller, "Adding error bars to evals" (2024), section 2.2. Where every
    score is a cluster of its own it is the ordinary standard error. Raises `InputError` when the lengths differ or
    there are fewer than two clusters.
    """
    n = len(scores)
    _need(n == len(clusters), f"{n} scores in {len(clusters)} clusters", "the cluster of every score")
    mean = math.fsum(scores) / max(1, n)
    sums: dict[Hashable, list[float]] = {}
    for score, cluster in zip(scores, clusters, strict=True):
        sums.setdefault(cluster, []).append(score - mean)
    groups = len(sums)
    _need(groups >= 2, f"{groups} clusters have no spread", "at least two")
    return math.sqrt(groups / (groups - 1) * math.fsum(math.fsum(part) ** 2 for part in sums.values())) / n


def clustered_interval(
    metric: Metric,
    measurements: Sequence[Measurement],
    clusters: Sequence[Hashable],
    *,
    confidence: float = 0.95,
    resamples: int = 2000,
    seed: int = 0,
) -> Score:
    """The aggregate with a percentile bootstrap interval that resamples whole clusters, of whatever sizes.

    Davison and Hinkley, "Bootstrap Methods and their Application" (1997), section 3.8, strategy 1. `n` counts the
    clusters. One cluster alone has nothing to resample: its interval is the metric's whole range. Raises `InputError`
    when the lengths differ or are 0.
    """
    _need(len(measurements) == len(clusters), f"{len(measurements)} in {len(clusters)} clusters", "one for each")
    value = metric.aggregate(measurements)
    rows: dict[Hashable, list[tuple[float, ...]]] = {}
    for measurement, cluster in zip(measurements, clusters, strict=True):
        rows.setdefault(cluster, []).append(measurement.row)
    n = len(rows)
    if n == 1:
        return Score(value, metric.low, metric.high, n)
    totals = np.array([_column_sums(np.array(part)) for part in rows.values()])
    rng = np.random.default_rng(seed)
    found = [_aggregates(metric, _sums(counts, totals)) for counts in _counts(rng, n, resamples)]
    return Score(value, *_percentiles(np.concatenate(found), confidence), n)
