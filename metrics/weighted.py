"""A weighted sum of metrics as one metric."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Literal

from ..errors import InputError
from .base import Measurement, Metric, Record

if TYPE_CHECKING:
    import numpy as np


class Weighted(Metric):
    """The sum of `weights[i] * metrics[i]`, the weights normalised to sum to 1.

    Its aggregate is the weighted sum of the parts' aggregates, so a corpus metric keeps its corpus score. When a part
    is a corpus metric, the statistics are the parts' rows one after the other; otherwise the aggregate is the mean.
    Where a part has an interval of its own, so has the sum: the weighted sum of the parts' ends, which is wider than it
    need be, and as wide as it has to be where all parts are off at once.
    """

    def __init__(self, metrics: Sequence[Metric], weights: Sequence[float] | None = None) -> None:
        """One positive weight per metric; equal weights by default. Raises `InputError` for anything else."""
        weights = [1.0] * len(metrics) if weights is None else weights
        if not metrics:
            raise InputError("a weighted sum has no metrics", expected="at least one")
        if len(weights) != len(metrics):
            raise InputError(f"a weighted sum has {len(metrics)} metrics and {len(weights)} weights")
        if bad := [weight for weight in weights if not (math.isfinite(weight) and weight > 0)]:
            raise InputError(f"the weight {bad[0]!r} cannot be used", expected="a number above 0")
        total = math.fsum(weights)
        self.metrics = tuple(metrics)
        self.weights = tuple(weight / total for weight in weights)
        self.name = " + ".join(f"{weight:.3g} {part.name}" for weight, part in zip(self.weights, metrics, strict=True))
        self.low = self._sum([part.low for part in metrics])
        self.high = self._sum([part.high for part in metrics])
        fields = dict.fromkeys(field for part in metrics for field in part.fields)
        self.fields = tuple(fields) if all(part.fields for part in metrics) else ()
        self.own_interval = "weighted sum of the parts' ends" if any(part.own_interval for part in metrics) else ""

    @property
    def width(self) -> int:
        """See `Metric.width`."""
        return sum(self._widths) if any(part.width for part in self.metrics) else 0

    def measure(self, example: Record, prediction: Record) -> Measurement:
        """See `Metric.measure`."""
        return self._combine(lambda part: part.measure(example, prediction))

    def worst(self, example: Record) -> Measurement:
        """See `Metric.worst`."""
        return self._combine(lambda part: part.worst(example))

    def from_statistics(self, total: np.ndarray) -> float:
        """See `Metric.from_statistics`."""
        if not self.width:
            return super().from_statistics(total)
        scores, start = [], 0
        for part, width in zip(self.metrics, self._widths, strict=True):
            scores.append(part.from_statistics(total[start : start + width]))
            start += width
        return self._sum(scores)

    def bounds(self, measurements: Sequence[Measurement], seed: int) -> tuple[float, float]:
        """See `Metric.bounds`."""
        from .statistics import interval

        ends, start = [], 0
        for part, width in zip(self.metrics, self._widths, strict=True):
            rows = [each.statistics[start : start + width] for each in measurements]
            mine = [Measurement(row[1] / row[0] if not part.width else part.low, row) for row in rows]
            ends.append(interval(part, mine, seed))
            start += width
        return self._sum([end.low for end in ends]), self._sum([end.high for end in ends])

    @property
    def aggregation(self) -> Literal["mean", "corpus"]:
        """See `Metric.aggregation`."""
        return "corpus" if any(part.aggregation == "corpus" for part in self.metrics) else "mean"

    def with_labels(self, labels: Mapping[str, Sequence[str]]) -> Weighted:
        """See `Metric.with_labels`."""
        told = [part.with_labels(labels) for part in self.metrics]
        same = all(ours is theirs for ours, theirs in zip(told, self.metrics, strict=True))
        return self if same else Weighted(told, self.weights)

    @property
    def _widths(self) -> list[int]:
        return [part.width or 2 for part in self.metrics]

    def _combine(self, measure: Callable[[Metric], Measurement]) -> Measurement:
        parts = [measure(part) for part in self.metrics]
        rows = [number for part in parts for number in part.row] if self.width else []
        return Measurement(self._sum([part.score for part in parts]), tuple(rows))

    def _sum(self, numbers: Sequence[float]) -> float:
        return math.fsum(weight * number for weight, number in zip(self.weights, numbers, strict=True))
