"""Calibration of labels: whether a program that is 80 % sure is right eight times in ten.

The expected calibration error (Naeini, Cooper and Hauskrecht, AAAI 2015; Guo et al. 2017, "On Calibration of Modern
Neural Networks", arXiv 1706.04599, equation 3) sorts answers into bins of equal width by the confidence in the label
that was chosen, and takes the mean gap between confidence and accuracy, weighted by the answers in a bin. A bin is open
below and closed above, as in Guo et al. With three sums a bin (answers, confidence, right answers) it is a corpus
metric: n_b / n times the gap of the means is the gap of the sums over n.

The interval is the metric's own: see `calibration_interval.py`.

An answer does not tell how sure a program was: the likelihoods of the labels that it chose among do, which whoever runs
the program hands on.
"""

from __future__ import annotations

import math
from bisect import bisect_left
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Annotated, Any, Protocol

from pydantic import Field

from ..errors import InputError
from .base import Measurement, Metric, Record
from .labels import label_text
from .values import answer, labels, references

if TYPE_CHECKING:
    import numpy as np


@dataclass(frozen=True)
class LabelChoice:
    """A label that was chosen. `scores`: the log-likelihood in nats, calibrated, of every label there was."""

    label: str
    scores: Mapping[str, float]

    @property
    def confidence(self) -> float:
        """The probability of the label: the softmax over the set of labels. NaN where none of them is possible."""
        most = max(self.scores.values())
        if not math.isfinite(most):
            return math.nan
        return math.exp(self.scores[self.label] - most) / math.fsum(math.exp(s - most) for s in self.scores.values())


class ChosenAnswer(Protocol):
    """An answer beside the choices that it was made of, by output field."""

    @property
    def gold(self) -> Mapping[str, Any]:
        """The labels that are compared."""

    @property
    def prediction(self) -> Mapping[str, Any]:
        """What the program gave."""

    @property
    def choices(self) -> Mapping[str, LabelChoice]:
        """The last choice of each output field that was chosen among labels."""


@dataclass(frozen=True, kw_only=True)
class CalibrationError(Metric):
    """1 less the expected calibration error.

    An example's own score is 1 less the gap between its confidence and whether it is right, 0 or 1. The statistics are
    how many answers fall into each bin, the sum of their confidence, and how many of them are right.
    """

    name = "calibration_error"
    own_interval = "Wilson bounds of the bins above, an inverted test below"
    fields: tuple[str, ...] = ()
    bins: Annotated[int, Field(ge=1, le=1000)] = 10

    @property
    def width(self) -> int:
        """See `Metric.width`."""
        return 3 * self.bins

    def measure(self, example: Record, prediction: Record) -> Measurement:
        """Raises `InputError`: an answer alone is not enough."""
        raise InputError(
            f"metric {self.name!r} looks at how sure the program was, which an answer alone does not tell",
            hint="Run the program on a Cuecard target: cuecard eval, or cuecard.evaluate in Python.",
        )

    def measure_all(self, cases: Sequence[ChosenAnswer]) -> list[Measurement | str]:
        """The measurement of each answer; where there was no choice, a text that says so and what to do."""
        return [self._measured(case) for case in cases]

    def worst(self, example: Record) -> Measurement:
        """See `Metric.worst`. An output that could not be read counts as wrong, and the program as sure of it."""
        count = len(self.fields) or len(labels(example, (), metric=self.name))
        return Measurement(self.low, self._row([(1.0, False)] * count))

    def from_statistics(self, total: np.ndarray) -> float:
        """What the expected calibration error in the summed statistics leaves of 1."""
        counts, confidence, right = total.reshape(3, -1)
        return max(0.0, min(1.0, 1.0 - float(abs(right - confidence).sum() / counts.sum())))

    def bounds(self, measurements: Sequence[Measurement], seed: int) -> tuple[float, float]:
        """See `Metric.bounds`."""
        import numpy as np

        from .calibration_interval import error_interval

        total = np.array([math.fsum(column) for column in zip(*(each.row for each in measurements), strict=True)])
        counts, confidence, right = total.reshape(3, -1)
        low, high = error_interval(counts, confidence, right, seed)
        return max(0.0, 1.0 - high), 1.0 - low

    def _measured(self, case: ChosenAnswer) -> Measurement | str:
        sure: list[tuple[float, bool]] = []
        for field, gold in labels(case.gold, self.fields, metric=self.name).items():
            said = answer(case.prediction, field, metric=self.name)
            choice = case.choices.get(field)
            if choice is None:
                return (
                    f"the field {field!r} was not chosen among labels, so that nothing says how sure the program was: "
                    "give it a type with a finite set of values and set `readout: choice` where it is made (a "
                    "recording of --record-outputs without `choices` was made by an older version: record the outputs "
                    "again, or --replay a recording of the calls)"
                )
            if label_text(said) != label_text(choice.label):
                return f"the field {field!r} is {said!r}, and what was chosen is {choice.label!r}"
            confidence = choice.confidence
            if math.isnan(confidence):
                return f"none of the labels of the field {field!r} is possible to the model"
            sure.append((confidence, label_text(choice.label) in {label_text(one) for one in references(gold, said)}))
        score = 1.0 - math.fsum(abs(right - confidence) for confidence, right in sure) / len(sure)
        return Measurement(score, self._row(sure))

    def _row(self, sure: Sequence[tuple[float, bool]]) -> tuple[float, ...]:
        """The statistics of answers of such confidence, which are right or wrong."""
        row = [0.0] * self.width
        for confidence, right in sure:
            place = bisect_left(self._edges, confidence)
            row[place] += 1.0
            row[self.bins + place] += confidence
            row[2 * self.bins + place] += right
        return tuple(row)

    @cached_property
    def _edges(self) -> tuple[float, ...]:
        """The edges between bins; one belongs to the bin below it."""
        return tuple(place / self.bins for place in range(1, self.bins))
