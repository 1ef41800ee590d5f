"""The interval of the expected calibration error, for which the bootstrap's is not sound.

The error is a sum of sizes, and noise has a size too: of a program that is calibrated perfectly it is above 0 whatever
it answers (Kumar, Liang and Ma 2019, "Verified Uncertainty Calibration", arXiv 1909.10155). A resample adds the noise
once more, so that the percentile bootstrap's interval lies beside the truth, and to take off the bias that the
resamples show does not bring it back: without a gap there is more of it than with one.

So the two ends are found apart, from how many answers a bin has, how sure they are and how many of them are right:

- The upper end lets every gap be as far as Wilson's 95 % interval of the bin's accuracy allows, and adds the distances
  as variances are: the method of variance estimates recovery (Zou and Donner 2008, "Construction of confidence limits
  about effect measures: a general approach", Statistics in Medicine 27). Between bins the weights vary as well.
- The lower end is the smallest error under which one so large would be seen more often than in 2.5 % of samples: a test
  that is inverted (Davison and Hinkley, "Bootstrap Methods and their Application", 1997, section 5.5). The samples are
  drawn as right and wrong answers of each bin, whose accuracies are the confidences and gaps that make the error. The
  gaps stand in the bins where they are more than noise, which leaves most noise in the others, and so makes the lower
  end the smallest.

The lower end is 0 where no miscalibration is shown, and the interval holds the error that was measured. Answers are
taken for independent: several fields of one row count as so many answers.
"""

from __future__ import annotations

from statistics import NormalDist

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]

_TAIL = 0.025
_Z = NormalDist().inv_cdf(1 - _TAIL)
_DRAWS = 2000
_STEPS = 12  # of a bisection: a 4,096th of the error
_NOISE = 2.0  # standard deviations of a gap that may be nothing


def error_interval(counts: Floats, confidence: Floats, right: Floats, seed: int) -> tuple[float, float]:
    """The 95 % interval of the expected calibration error, from the three sums of each bin, of shape (bins,)."""
    there = counts > 0
    counts, confidence, right = counts[there], confidence[there], right[there]
    weights = counts / counts.sum()
    gaps = np.abs(right - confidence) / counts
    error = float((weights * gaps).sum())
    between = float((weights * (gaps - error) ** 2).sum() / counts.sum())
    upper = error + _reach(counts, confidence / counts, right / counts, weights, gaps, between)
    return _lower(counts, confidence, right, error, between, seed), min(1.0, upper)


def _reach(counts: Floats, sure: Floats, accuracy: Floats, weights: Floats, gaps: Floats, between: float) -> float:
    """How far above the error its upper end lies."""
    centre = (accuracy + _Z**2 / (2 * counts)) / (1 + _Z**2 / counts)
    half = _Z / (1 + _Z**2 / counts) * np.sqrt(accuracy * (1 - accuracy) / counts + _Z**2 / (4 * counts**2))
    farthest = np.maximum(np.abs(centre + half - sure), np.abs(centre - half - sure))
    parts = (weights * np.maximum(farthest - gaps, 0.0)) ** 2
    return float(np.sqrt(parts.sum() + _Z**2 * between))


def _lower(counts: Floats, confidence: Floats, right: Floats, error: float, between: float, seed: int) -> float:
    """The lower end: where the test stops to reject, found by bisection between 0 and the error."""
    total = counts.sum()
    sure, toward = confidence / counts, _gaps_of_one(counts, confidence, right)
    whole = np.rint(counts).astype(np.int64)

    def expected(true: float) -> bool:
        """Whether an error as large as what was seen is no surprise under this one."""
        generator = np.random.default_rng(seed)
        drawn = generator.binomial(whole, np.clip(sure + true * toward, 0.0, 1.0), (_DRAWS, len(whole)))
        seen = np.abs(drawn * (counts / np.maximum(whole, 1)) - confidence).sum(axis=1) / total
        if error > 0:
            seen = seen + generator.normal(size=_DRAWS) * np.sqrt(between) * true / error
        return float(np.mean(seen >= error - 1e-12)) >= _TAIL

    if expected(0.0):
        return 0.0
    low, high = 0.0, error
    for _ in range(_STEPS):
        middle = (low + high) / 2
        low, high = (low, middle) if expected(middle) else (middle, high)
    return low


def _gaps_of_one(counts: Floats, confidence: Floats, right: Floats) -> Floats:
    """The gap of each bin, right less confidence, that would make an error of 1: in proportion to what is no noise."""
    sure, smoothed = confidence / counts, (right + 1) / (counts + 2)
    gaps = (right - confidence) / counts
    noise = np.sqrt(np.maximum(sure * (1 - sure), smoothed * (1 - smoothed)) / counts)
    beyond = np.maximum(np.abs(gaps) - _NOISE * noise, 0.0)
    sizes = beyond if beyond.any() else np.abs(gaps)
    error = float((counts * sizes).sum() / counts.sum())
    return np.sign(gaps) * sizes / error if error > 0 else np.zeros_like(gaps)
