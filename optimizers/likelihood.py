"""How likely the gold answers are, and what a change of the prompt adds to that.

The log-likelihood of a gold answer changes with every example, and not only where an answer flips, so it tells two
prompts apart on fewer examples than a metric does. Of a label that is chosen by likelihood it is the logarithm of the
probability by which it is chosen: after calibration, normalised over the labels.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import dspy

from ..errors import InputError
from ..metrics.base import Measurement, Metric
from ..metrics.statistics import paired_test
from ..programs.readout import Choice, calibrated
from ..programs.state import ReadOut
from .base import Outcome
from .shown import gold_label

Unit = Literal["label", "token"]
Known = Sequence[float | None]


@dataclass(frozen=True)
class Likelihood:
    """What a demo adds to the gold answer's log-likelihood: the mean over `n` examples of the difference in nats per
    label or per token, with its 95 % interval.
    """

    adds: float
    low: float
    high: float
    n: int
    unit: Unit


def label_likelihoods(
    name: str,
    signature: type[dspy.Signature],
    columns: Mapping[str, str],
    readout: ReadOut,
    outcomes: Sequence[Outcome],
) -> list[float | None]:
    """For each row, the log-probability that a predictor's choices by likelihood gave the gold labels, in nats, the
    mean over its fields; None where it made no choice whose gold label the row holds.

    columns: field -> the column of its gold value.
    """
    found: list[float | None] = []
    types = {field: output.annotation for field, output in signature.output_fields.items()}
    for outcome in outcomes:
        made = {choice.field: choice for predictor, choice in outcome.choices if predictor == name}
        logs = [
            _log_probability(readout, choice, gold)
            for field, choice in made.items()
            if (gold := gold_label(outcome.row, columns.get(field), types[field])) is not None
        ]
        found.append(math.fsum(logs) / len(logs) if logs else None)
    return found


def likelihood_added(winner: Known, other: Known, unit: Unit, *, seed: int = 0) -> Likelihood | None:
    """The mean difference of the rows that have a log-likelihood under both; None where there is no such row."""
    pairs = [(a, b) for a, b in zip(winner, other, strict=True) if a is not None and b is not None]
    finite = [(a, b) for a, b in pairs if math.isfinite(a) and math.isfinite(b)]
    if not finite:
        return None
    metric = _LogLikelihood([value for pair in finite for value in pair])
    ours, theirs = ([Measurement(pair[side]) for pair in finite] for side in (0, 1))
    paired = paired_test(metric, ours, theirs, seed=seed)
    return Likelihood(paired.difference, paired.low, paired.high, paired.n, unit)


class _LogLikelihood(Metric):
    """The mean of log-likelihoods that are there already, between the least and the greatest of them."""

    name = "log-likelihood"

    def __init__(self, values: Sequence[float]) -> None:
        self.low, self.high = min(values), max(values)

    def measure(self, example: Any, prediction: Any) -> Measurement:
        raise InputError("log-likelihoods are not measured on predictions")


def _log_probability(readout: ReadOut, choice: Choice, label: str) -> float:
    """The log-probability of a label by which the read-out chooses, normalised over the labels."""
    scores = calibrated(readout, choice.field, choice.labels, choice.totals)
    most = max(scores.values())
    return scores[label] - most - math.log(math.fsum(math.exp(score - most) for score in scores.values()))
