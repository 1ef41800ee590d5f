"""Accuracy, macro-F1 and the Matthews correlation over labels, equal to scikit-learn's.

Macro-F1 and MCC are no means over examples: they are computed from three counts a label (gold, predicted, correct),
which add up over the examples. The counts stand in a row of fixed width, so the labels must be known beforehand: from
the option `labels`, or from the type of the field (`Literal`, Enum, bool), which `Metric.with_labels` is told.

MCC for several classes is Gorodkin, "Comparing two K-category assignments by a K-category correlation coefficient"
(Computational Biology and Chemistry 28, 2004), which equals Matthews (1975) for two.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING, Annotated, Any, Literal, Self

from pydantic import BeforeValidator

from ..errors import InputError, nearest
from .base import FieldMetric, Measurement
from .values import as_text, plain, tuple_of

if TYPE_CHECKING:
    import numpy as np

_Labels = Annotated[tuple[str | bool | int, ...], BeforeValidator(tuple_of)]


def label_text(value: Any) -> str:
    """What a label is called: `true`, `3`, `billing`, `null`; runs of white space in a text are made one space."""
    value = plain(value)
    if isinstance(value, bool):
        return "true" if value else "false"
    return "null" if value is None else " ".join(as_text(value).split())


@dataclass(frozen=True, kw_only=True)
class Accuracy(FieldMetric):
    """1 where the predicted label is the gold label or one of several, else 0; the aggregate is their mean."""

    name = "accuracy"
    fields: tuple[str, ...] = ()
    ignore_case: bool = False

    def compare(self, gold: Sequence[Any], prediction: Any) -> Measurement:
        """See `FieldMetric.compare`."""
        return Measurement(float(_key(prediction, self.ignore_case) in {_key(one, self.ignore_case) for one in gold}))


@dataclass(frozen=True, kw_only=True)
class _Counted(FieldMetric):
    """What is computed from the counts of labels: gold, predicted and correct, each in the order of `labels`.

    Of several gold labels the predicted one counts where it is among them, else the first. A predicted text that is no
    label is a miss of the gold label. An example's own score is the highest where the label is right, else the lowest.
    """

    fields: tuple[str, ...] = ()
    labels: _Labels = ()
    ignore_case: bool = False

    def __post_init__(self) -> None:
        keys = [_key(label, self.ignore_case) for label in self.labels]
        if self.labels and ("" in keys or len(set(keys)) < max(2, len(keys))):
            raise InputError(
                f"the labels {list(self.labels)!r} of metric {self.name!r} cannot be told apart",
                expected="at least two, each different from the others and not empty",
            )

    def with_labels(self, labels: Mapping[str, Sequence[str]]) -> Self:
        """See `Metric.with_labels`. The option `labels` goes before the field's type."""
        known = [label for field, values in labels.items() if field in (self.fields or labels) for label in values]
        return self if self.labels or not known else replace(self, labels=tuple(dict.fromkeys(known)))

    @property
    def width(self) -> int:
        """See `Metric.width`."""
        return 3 * len(self._places)

    @property
    def aggregation(self) -> Literal["mean", "corpus"]:
        """See `Metric.aggregation`."""
        return "corpus"

    @cached_property
    def _places(self) -> dict[str, int]:
        if not self.labels:
            raise InputError(
                f"metric {self.name!r} does not know the labels",
                expected="the option `labels`, such as [billing, technical], or a field whose type names them",
            )
        return {_key(label, self.ignore_case): place for place, label in enumerate(self.labels)}

    def compare(self, gold: Sequence[Any], prediction: Any) -> Measurement:
        """See `FieldMetric.compare`."""
        places = self._places
        ours = _key(prediction, self.ignore_case)
        keys = [_key(one, self.ignore_case) for one in gold]
        if unknown := [key for key in keys if key not in places]:
            raise InputError(
                f"metric {self.name!r} found the gold label {unknown[0]!r}",
                expected=f"one of {', '.join(places)}",
                nearest=nearest(unknown[0], places),
            )
        counts = [0.0] * (3 * len(places))
        counts[places[ours if ours in keys else keys[0]]] = 1
        if ours in places:
            counts[len(places) + places[ours]] = 1
            counts[2 * len(places) + places[ours]] = float(ours in keys)
        return Measurement(self.high if ours in keys else self.low, tuple(counts))

    def _counts(self, total: np.ndarray) -> list[tuple[int, int, int]]:
        gold, predicted, correct = total.reshape(3, -1).round().astype(int).tolist()
        return list(zip(gold, predicted, correct, strict=True))


@dataclass(frozen=True, kw_only=True)
class MacroF1(_Counted):
    """The mean of the labels' F1 over the labels that occur, in the gold values or in the predictions.

    It equals `sklearn.metrics.f1_score(average="macro", zero_division=0)` over those labels.
    """

    name = "macro_f1"

    def from_statistics(self, total: np.ndarray) -> float:
        """Macro-F1 of the summed counts."""
        scores = [2 * correct / (gold + ours) for gold, ours, correct in self._counts(total) if gold + ours]
        return math.fsum(scores) / len(scores)


@dataclass(frozen=True, kw_only=True)
class Mcc(_Counted):
    """The correlation of predicted and gold labels, -1..1: 0 for guessing, and where all are of one label.

    It equals `sklearn.metrics.matthews_corrcoef`, to which all texts that are no label are one further label.
    """

    name = "mcc"
    low = -1.0

    def from_statistics(self, total: np.ndarray) -> float:
        """The correlation in the summed counts."""
        counts = self._counts(total)
        n = sum(gold for gold, _, _ in counts)
        strangers = n - sum(ours for _, ours, _ in counts)
        both = n * sum(correct for _, _, correct in counts) - sum(gold * ours for gold, ours, _ in counts)
        in_gold = n * n - sum(gold * gold for gold, _, _ in counts)
        in_ours = n * n - sum(ours * ours for _, ours, _ in counts) - strangers * strangers
        return max(-1.0, min(1.0, both / math.sqrt(in_gold * in_ours))) if in_gold and in_ours else 0.0


def _key(value: Any, ignore_case: bool) -> str:
    text = label_text(value)
    return text.casefold() if ignore_case else text
