"""What a metric is: one example in, a score and the numbers that a corpus metric adds up out.

Every metric is a function of a sum. A metric whose aggregate is the mean adds up `(1, score)` over the examples and
divides; BLEU adds up n-gram counts and lengths and computes one score from the totals. Because aggregation is always
"sum, then `from_statistics`", resampling and permutation tests (`statistics.py`) need no knowledge of the metric.

All scores are on the metric's own range `low`..`high`, higher is better. The built-in metrics use 0..1 (MCC -1..1):
BLEU and chrF are sacrebleu's 0..100 divided by 100; TER, an error rate, and the calibration error are told as what is
left of 1, and perplexity, which has no upper end, as 1 over it.

The standard error is the delete-one jackknife's, which needs the sums alone as well: Efron and Tibshirani, "An
Introduction to the Bootstrap" (1993), equation 11.5. For a mean it is the sample's standard deviation over the root of
n.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, Protocol, final

from ..errors import InputError
from .values import answer, as_text, labels, references

if TYPE_CHECKING:
    import numpy as np


class Record(Protocol):
    """Field names and values: any mapping, a `dspy.Example`, a `dspy.Prediction`."""

    def keys(self) -> Iterable[str]:
        """The field names."""

    def __getitem__(self, key: str, /) -> Any:
        """The value of one field."""


@dataclass(frozen=True)
class Measurement:
    """One example's result.

    `score` is on the metric's range, higher is better. `statistics` is what a corpus metric adds up over the examples,
    `Metric.width` numbers; it is empty for a metric whose aggregate is the mean of the scores.
    """

    score: float
    statistics: tuple[float, ...] = ()

    @property
    def row(self) -> tuple[float, ...]:
        """The numbers summed over the examples: the statistics, or `(1, score)` where the aggregate is the mean."""
        return self.statistics or (1.0, self.score)


@dataclass(frozen=True)
class Declaration:
    """What a metric says of itself: the range of its scores, which end is good, how examples become one score.

    `aggregation` is `mean` (of the examples' scores) or `corpus` (one score of the summed statistics). `interval` is
    how `statistics.interval` finds the 95 % interval, `error` what `Metric.standard_error` estimates; `own_interval` is
    `Metric.own_interval`.
    """

    name: str
    low: float
    high: float
    aggregation: Literal["mean", "corpus"]
    direction: Literal["higher is better"] = "higher is better"
    error: str = "delete-one jackknife"
    own_interval: str = ""

    @property
    def interval(self) -> str:
        """How the 95 % interval is found."""
        if self.own_interval:
            return self.own_interval
        wilson = self.aggregation == "mean" and (self.low, self.high) == (0.0, 1.0)
        return "Wilson where every score is 0 or 1, else percentile bootstrap" if wilson else "percentile bootstrap"


class Metric(ABC):
    """How good a prediction is. `measure` is called from several threads at once and keeps no state.

    - `name`: what reports call it; `low`, `high`: the finite range of its scores.
    - `fields`: the output fields compared, `()` for every field that the example labels.
    - `width`: how many numbers `Measurement.statistics` holds, 0 where the aggregate is the mean.
    - `own_interval`: how `bounds` finds the interval, "" where `statistics.interval` does.

    A corpus metric gives `statistics` in `measure`, sets `width`, and overrides `from_statistics`; nothing else.
    """

    name: str
    low: float = 0.0
    high: float = 1.0
    fields: tuple[str, ...] = ()
    own_interval: str = ""

    @property
    def width(self) -> int:
        """How many numbers `Measurement.statistics` holds; 0 where the aggregate is the mean."""
        return 0

    @abstractmethod
    def measure(self, example: Record, prediction: Record) -> Measurement:
        """Score `prediction` against the gold values in `example`.

        A gold list beside a prediction that is not a list is several references. Raises `InputError` when a compared
        field is missing from either side; a bad prediction is a low score, never an exception.
        """

    def worst(self, example: Record) -> Measurement:
        """The measurement of an output that could not be read: the lowest score there is.

        A corpus metric counts it as an empty output, so that the references' length still weighs on the total.
        """
        return Measurement(self.low)

    def from_statistics(self, total: np.ndarray) -> float:
        """The aggregate from the sum of `Measurement.row` over the examples."""
        return float(total[1] / total[0])

    def bounds(self, measurements: Sequence[Measurement], seed: int) -> tuple[float, float]:
        """The 95 % interval of the aggregate of two or more examples, for a metric whose `own_interval` says how.

        It is there where the aggregate of few examples is off to one side, which the bootstrap would double.
        """
        raise NotImplementedError(f"metric {self.name!r} has no interval of its own")

    @property
    def aggregation(self) -> Literal["mean", "corpus"]:
        """Whether the aggregate is the mean of the scores or one score of the summed statistics."""
        return "corpus" if self.width else "mean"

    @final
    def describe(self) -> Declaration:
        """The range, the direction, the aggregation and the standard error."""
        return Declaration(self.name, self.low, self.high, self.aggregation, own_interval=self.own_interval)

    def with_labels(self, labels: Mapping[str, Sequence[str]]) -> Metric:
        """This metric, told which labels an output field can take; a metric that has no use for them is returned as is.

        `labels`: the texts of the values of every output field whose type is finite, by field.
        """
        return self

    @final
    def standard_error(self, measurements: Sequence[Measurement]) -> float:
        """The standard error of `aggregate`: the delete-one jackknife's; NaN for one example, which tells nothing."""
        import numpy as np

        n = len(measurements)
        if not n:
            raise InputError(f"metric {self.name!r} has nothing to aggregate", expected="at least one measurement")
        if n == 1:
            return math.nan
        rows = np.array([measurement.row for measurement in measurements], dtype=np.float64)
        total = np.array([math.fsum(column) for column in rows.T.tolist()])
        without = np.array([self.from_statistics(total - row) for row in rows])
        return float(np.sqrt((n - 1) / n * np.sum((without - without.mean()) ** 2)))

    @final
    def aggregate(self, measurements: Sequence[Measurement]) -> float:
        """The score of a whole set of examples. The order of the examples does not change a single bit of it."""
        import numpy as np

        if not measurements:
            raise InputError(f"metric {self.name!r} has nothing to aggregate", expected="at least one measurement")
        columns = zip(*(measurement.row for measurement in measurements), strict=True)
        return self.from_statistics(np.array([math.fsum(column) for column in columns]))


class FieldMetric(Metric):
    """A metric that compares one field at a time.

    Over several fields the score is the mean of the fields' scores and the statistics are added up, so that BLEU over
    two fields is BLEU over the segments of both.
    """

    @abstractmethod
    def compare(self, gold: Sequence[Any], prediction: Any) -> Measurement:
        """Score one value against its references, of which there is at least one."""

    def measure(self, example: Record, prediction: Record) -> Measurement:
        """See `Metric.measure`."""
        parts = []
        for field, gold in self._gold(example).items():
            value = answer(prediction, field, metric=self.name)
            parts.append(self.compare(self.references(gold, value), value))
        return _pool(parts)

    def worst(self, example: Record) -> Measurement:
        """See `Metric.worst`."""
        parts = [self.compare(self.references(gold, ""), "") for gold in self._gold(example).values()]
        return Measurement(self.low, _pool(parts).statistics)

    def references(self, gold: Any, prediction: Any) -> Sequence[Any]:
        """The references that a gold value holds: several for a list beside a prediction that is not a list."""
        return references(gold, prediction)

    def _gold(self, example: Record) -> dict[str, Any]:
        return labels(example, self.fields, metric=self.name)


class TextMetric(FieldMetric):
    """A metric that compares texts. Values of other types are compared as `as_text` writes them."""

    @abstractmethod
    def compare_text(self, gold: Sequence[str], prediction: str) -> Measurement:
        """Score one text against its references, of which there is at least one."""

    def compare(self, gold: Sequence[Any], prediction: Any) -> Measurement:
        """See `FieldMetric.compare`."""
        return self.compare_text([as_text(value) for value in gold], as_text(prediction))


def _pool(parts: Sequence[Measurement]) -> Measurement:
    score = math.fsum(part.score for part in parts) / len(parts)
    sums = zip(*(part.statistics for part in parts), strict=True)
    return Measurement(score, tuple(math.fsum(column) for column in sums))
