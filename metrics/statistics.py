"""How sure a score is, and whether one program is better than another on the same examples.

Resampling works on sums: every metric's aggregate is a function of the sum of its measurements' rows (`base.py`), so
a bootstrap resample is a vector of counts times the matrix of rows, and a permutation swaps rows between the two
programs. Both are the same for accuracy and for corpus BLEU. Everything is seeded, and no result depends on the
number of threads: sums are taken by `einsum`, which never calls a threaded library.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from statistics import NormalDist
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..errors import InputError
from .base import Measurement, Metric

Floats = NDArray[np.float64]

_EXACT = 12  # Up to this many differing examples, all 2^k sign flips are enumerated.
_CHUNK = 4_000_000  # Elements of one block of resampling weights.
_FEWEST = 8  # Racing never drops a candidate on fewer examples.
_FEWEST_DIFFERING = 5  # A sign test at 5 % needs this many lost rows, all of one sign: 2^-5 < 0.05 < 2^-4.
_ROUNDING = 1e-12  # Differences this close, relative to the range of scores, are the same difference.


@dataclass(frozen=True)
class Score:
    """A score over `n` examples with its 95 % confidence interval."""

    value: float
    low: float
    high: float
    n: int

    def as_dict(self) -> dict[str, float | int]:
        """The four numbers by name, as reports and compiled programs hold them."""
        return asdict(self)


@dataclass(frozen=True)
class PairedResult:
    """How our program compares with theirs on the same `n` examples.

    `difference` is our aggregate less theirs, `low` and `high` its 95 % interval. `p_value` is one-sided, the chance
    of a difference at least this large if the two programs were interchangeable; `p_two_sided` counts both
    directions. `wins`, `losses` and `ties` count examples by their scores. Where `paired_test` was given another
    confidence, the interval is at that.
    """

    difference: float
    low: float
    high: float
    p_value: float
    p_two_sided: float
    n: int
    wins: int
    losses: int
    ties: int

    def as_dict(self) -> dict[str, float | int]:
        """All numbers by name."""
        return asdict(self)


def wilson(successes: int, n: int, confidence: float = 0.95) -> tuple[float, float]:
    """The score interval for a proportion, without continuity correction.

    Wilson, "Probable inference, the law of succession, and statistical inference", JASA 22 (1927). Unlike the normal
    interval it is sound for few examples and at 0 and 1. Raises `InputError` unless 0 <= successes <= n and n >= 1.
    """
    _need(n >= 1, f"an interval over {n} examples does not exist", "at least one")
    _need(0 <= successes <= n, f"{successes} successes among {n} examples are impossible", f"0 to {n}")
    z = NormalDist().inv_cdf(0.5 + _fraction(confidence, "confidence") / 2)
    share = successes / n
    centre = (share + z * z / (2 * n)) / (1 + z * z / n)
    reach = z / (1 + z * z / n) * math.sqrt(share * (1 - share) / n + z * z / (4 * n * n))
    # At the ends the bound is 0 or 1 exactly; rounding must not move it inside.
    return (0.0 if successes == 0 else centre - reach), (1.0 if successes == n else centre + reach)


def bootstrap(
    measurements: Sequence[Measurement],
    aggregate: Metric | Callable[[Sequence[Measurement]], float],
    *,
    confidence: float = 0.95,
    resamples: int = 2000,
    seed: int = 0,
) -> tuple[float, float]:
    """The percentile bootstrap interval of the aggregate, resampling examples with replacement.

    Efron and Tibshirani, "An Introduction to the Bootstrap" (1993), section 13.3; for corpus metrics Koehn,
    "Statistical significance tests for machine translation evaluation" (EMNLP 2004). Give the metric itself as
    `aggregate`: any other function of a list of measurements works too, one resample at a time.
    """
    n = len(measurements)
    _need(n >= 1, "there are no measurements to resample", "at least one")
    rng = np.random.default_rng(seed)
    if isinstance(aggregate, Metric):
        rows = _matrix(measurements)
        values = [_aggregates(aggregate, _sums(counts, rows)) for counts in _counts(rng, n, resamples)]
    else:
        picks = rng.integers(n, size=(resamples, n))
        values = [np.array([aggregate([measurements[i] for i in pick]) for pick in picks])]
    return _percentiles(np.concatenate(values), confidence)


def interval(metric: Metric, measurements: Sequence[Measurement], seed: int = 0) -> Score:
    """The aggregate with its 95 % interval.

    Wilson's where every score is 0 or 1 on a 0..1 scale and the aggregate is the mean, the metric's own where it has
    one, the percentile bootstrap elsewhere. One example alone has nothing to resample: its interval is the metric's
    whole range. Raises `InputError` when there are no measurements.
    """
    n = len(measurements)
    value = metric.aggregate(measurements)
    scores = [measurement.score for measurement in measurements]
    if not metric.width and (metric.low, metric.high) == (0.0, 1.0) and set(scores) <= {0.0, 1.0}:
        return Score(value, *wilson(round(sum(scores)), n), n)
    if n == 1:
        return Score(value, metric.low, metric.high, n)
    if metric.own_interval:
        return Score(value, *metric.bounds(measurements, seed), n)
    return Score(value, *bootstrap(measurements, metric, seed=seed), n)


def paired_test(
    metric: Metric,
    ours: Sequence[Measurement],
    theirs: Sequence[Measurement],
    *,
    seed: int = 0,
    resamples: int = 5000,
    confidence: float = 0.95,
) -> PairedResult:
    """Test whether ours is better than theirs; the two sequences are over the same examples in the same order.

    The p-values are those of the paired permutation test on the difference of aggregates, which swaps the two
    programs' outputs of an example (for mean metrics: flips the difference's sign). All swaps are enumerated when at
    most 12 examples differ; otherwise `resamples` random ones are drawn and the observed one is counted among them,
    which keeps the test from rejecting too often (Phipson and Smyth 2010). For corpus metrics this is approximate
    randomization (Riezler and Maxwell 2005), as in sacrebleu. The interval, at `confidence`, is the paired
    bootstrap's; over one example it is the whole range of differences. Raises `InputError` when the lengths differ or
    are 0.
    """
    n = len(ours)
    _need(n == len(theirs), f"a paired test of {n} and {len(theirs)} measurements", "the same examples for both")
    _need(n >= 1, "a paired test has no measurements", "at least one")
    flips, draws = (np.random.default_rng(sequence) for sequence in np.random.SeedSequence(seed).spawn(2))
    difference = metric.aggregate(ours) - metric.aggregate(theirs)
    a, b = _matrix(ours), _matrix(theirs)
    one_sided, two_sided = _permutation(metric, a, b, difference, flips, resamples)
    reach = metric.high - metric.low
    if n == 1:
        low, high = -reach, reach
    else:
        both = [
            _aggregates(metric, _sums(counts, a)) - _aggregates(metric, _sums(counts, b))
            for counts in _counts(draws, n, resamples)
        ]
        low, high = _percentiles(np.concatenate(both), confidence)
    gaps = [x.score - y.score for x, y in zip(ours, theirs, strict=True)]
    wins, losses = sum(gap > 0 for gap in gaps), sum(gap < 0 for gap in gaps)
    return PairedResult(difference, low, high, one_sided, two_sided, n, wins, losses, n - wins - losses)


def losing(ours: Floats, theirs: Floats, *, level: float = 0.1) -> bool:
    """Whether a racing candidate can be dropped: it does worse than the incumbent on the examples both have seen.

    `ours` and `theirs` are scores of shape (n,) on the same examples. True when Student's one-sided paired t-test
    says so at `level`; never on fewer than 8 examples. When every difference is the same number the test has no
    variance to work with, and its sign decides. Looking after every example drops more good candidates than `level`
    says: keep it low.
    """
    n = len(ours)
    _need(n == len(theirs), f"a paired test of {n} and {len(theirs)} scores", "the same examples for both")
    _fraction(level, "level")
    gaps = np.asarray(ours, dtype=np.float64) - np.asarray(theirs, dtype=np.float64)
    if n < _FEWEST:
        return False
    mean, deviation = float(gaps.mean()), float(gaps.std(ddof=1))
    if deviation <= _ROUNDING * max(1.0, abs(mean)):
        return mean < -_ROUNDING
    from scipy.special import stdtr

    return bool(stdtr(n - 1, mean * math.sqrt(n) / deviation) < level)


def smallest_detectable_difference(n: int, *, sd: float = 0.5, power: float = 0.8, level: float = 0.05) -> float:
    """The true difference that a one-sided paired test over `n` examples finds with probability `power` at `level`.

    `sd` is the standard deviation of the per-example differences; 0.5 is that of two programs whose 0/1 scores differ
    on a quarter of the examples. Normal approximation: (z of 1 - level + z of power) * sd / sqrt(n); Cohen,
    "Statistical Power Analysis for the Behavioral Sciences" (1988), section 2.3.
    """
    _need(n >= 1, f"{n} examples detect nothing", "at least one")
    _need(sd >= 0, f"a standard deviation of {sd} does not exist", "0 or more")
    z = NormalDist().inv_cdf
    return (z(1 - _fraction(level, "level")) + z(_fraction(power, "power"))) * sd / math.sqrt(n)


def holm(p_values: Mapping[str, float]) -> dict[str, float]:
    """The p-values of several tests, corrected so that the chance of any false alarm among them stays at the level.

    Holm, "A simple sequentially rejective multiple test procedure", Scandinavian Journal of Statistics 6 (1979): the
    smallest of m is multiplied by m, the next by m - 1, and none is below a smaller one's. It needs no independence.
    Raises `InputError` for what is no probability.

    >>> holm({"rouge_l": 0.01, "bleu": 0.04, "exact_match": 0.3})
    {'rouge_l': 0.03, 'bleu': 0.08, 'exact_match': 0.3}
    """
    for name, value in p_values.items():
        _need(0 <= value <= 1, f"the p-value of {name!r} is {value}", "a number from 0 to 1")
    corrected, floor = {}, 0.0
    for place, name in enumerate(sorted(p_values, key=lambda name: p_values[name])):
        floor = max(floor, min(1.0, (len(p_values) - place) * p_values[name]))
        corrected[name] = floor
    return {name: corrected[name] for name in p_values}


def paired_deviation(metric: Metric, ours: Sequence[Measurement], theirs: Sequence[Measurement]) -> float:
    """The standard deviation of an example's share in the difference of aggregates, for the smallest detectable one.

    For a mean it is that of the examples' differences; for a corpus metric that of the delete-one jackknife's
    pseudo-values (Efron and Tibshirani 1993, section 11.5), of which the mean's is a special case. Where fewer than 5
    rows differ the data hardly tell how much rows differ, and a test that needs 5 lost rows to see a loss cannot see
    less: it is then that of 5 rows which differ by the mean difference, or by the whole range where none do. Raises
    `InputError` when the lengths differ or are 0.
    """
    n = len(ours)
    _need(n == len(theirs), f"a comparison of {n} and {len(theirs)} measurements", "the same examples for both")
    _need(n >= 1, "there are no measurements to compare", "at least one")
    a, b = _matrix(ours), _matrix(theirs)
    found = _jackknifed(_left_out(metric, a) - _left_out(metric, b)) if n > 1 else metric.high - metric.low
    gaps = [abs(x.score - y.score) for x, y in zip(ours, theirs, strict=True) if x.row != y.row]
    if len(gaps) >= _FEWEST_DIFFERING:
        return found
    each = math.fsum(gaps) / len(gaps) if any(gaps) else metric.high - metric.low
    return max(found, each * math.sqrt(min(1.0, _FEWEST_DIFFERING / n)))


def score_deviation(metric: Metric, measurements: Sequence[Measurement]) -> float:
    """`paired_deviation` of one program by itself, whose examples all do as well as the aggregate says elsewhere."""
    n = len(measurements)
    _need(n >= 1, "there are no measurements", "at least one")
    span = metric.high - metric.low
    found = _jackknifed(_left_out(metric, _matrix(measurements))) if n > 1 else span
    return found if found > _ROUNDING * span else span * math.sqrt(min(1.0, _FEWEST_DIFFERING / n))


def _left_out(metric: Metric, rows: Floats) -> Floats:
    """The aggregate without each row in turn."""
    return _aggregates(metric, _column_sums(rows) - rows)


def _jackknifed(left_out: Floats) -> float:
    n = len(left_out)
    return math.sqrt((n - 1) * math.fsum((left_out - left_out.mean()) ** 2))


def _permutation(
    metric: Metric, a: Floats, b: Floats, difference: float, rng: np.random.Generator, resamples: int
) -> tuple[float, float]:
    """The one-sided and the two-sided p-value of `difference` under swaps of the rows of `a` and `b` that differ."""
    gaps = (a - b)[np.any(a != b, axis=1)]
    differing = len(gaps)
    exact = differing <= _EXACT
    ours, theirs = _column_sums(a), _column_sums(b)
    slack = _ROUNDING * (metric.high - metric.low)
    larger = larger_either_way = drawn = 0
    for swaps in _all_swaps(differing) if exact else _random_swaps(rng, differing, resamples):
        moved = _sums(swaps, gaps)
        permuted = _aggregates(metric, ours - moved) - _aggregates(metric, theirs + moved)
        larger += int(np.count_nonzero(permuted >= difference - slack))
        larger_either_way += int(np.count_nonzero(np.abs(permuted) >= abs(difference) - slack))
        drawn += len(swaps)
    observed = 0 if exact else 1  # Enumeration holds the observed arrangement already.
    return (larger + observed) / (drawn + observed), (larger_either_way + observed) / (drawn + observed)


def _all_swaps(k: int) -> Iterator[NDArray[np.integer[Any]]]:
    yield np.arange(2**k)[:, None] >> np.arange(k) & 1


def _random_swaps(rng: np.random.Generator, k: int, resamples: int) -> Iterator[NDArray[np.integer[Any]]]:
    for size in _blocks(k, resamples):
        yield rng.integers(2, size=(size, k), dtype=np.int8)


def _counts(rng: np.random.Generator, n: int, resamples: int) -> Iterator[NDArray[np.integer[Any]]]:
    """How often each of `n` examples is drawn, in blocks of shape (some resamples, n)."""
    for size in _blocks(n, resamples):
        picks = rng.integers(n, size=(size, n)) + n * np.arange(size)[:, None]
        yield np.bincount(picks.ravel(), minlength=size * n).reshape(size, n)


def _blocks(width: int, total: int) -> Iterator[int]:
    most = max(1, _CHUNK // max(1, width))
    for start in range(0, total, most):
        yield min(most, total - start)


def _matrix(measurements: Sequence[Measurement]) -> Floats:
    return np.array([measurement.row for measurement in measurements], dtype=np.float64)


def _sums(weights: NDArray[np.integer[Any]], rows: Floats) -> Floats:
    """One weighted sum of `rows` (n, width) per line of `weights` (resamples, n)."""
    sums: Floats = np.einsum("rn,nw->rw", weights, rows)
    return sums


def _column_sums(rows: Floats) -> Floats:
    return np.array([math.fsum(column) for column in rows.T.tolist()])


def _aggregates(metric: Metric, totals: Floats) -> Floats:
    return np.array([metric.from_statistics(total) for total in totals])


def _percentiles(values: Floats, confidence: float) -> tuple[float, float]:
    tail = (1 - _fraction(confidence, "confidence")) / 2
    low, high = np.quantile(values, [tail, 1 - tail])
    return float(low), float(high)


def _fraction(value: float, name: str) -> float:
    _need(0 < value < 1, f"{name} is {value}", "a number between 0 and 1")
    return value


def _need(holds: bool, message: str, expected: str) -> None:
    if not holds:
        raise InputError(message, expected=expected)
