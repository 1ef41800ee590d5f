"""The references beside a compile's scores: how far one gets on the same rows without a language model.

One is TF-IDF and logistic regression, fitted on train (`optimizers/reference.py`) and measured by the task's own
metric, so that it stands beside the program's scores and tells when no language model is needed. It is only there where
the two can be compared: the program has one predictor, the data hold the gold values of its label outputs, and the
metric looks at nothing else. The other is one answer for every row, the most frequent of train: a program that is no
better has not learned to look at its inputs.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import dspy
import numpy as np

from ..metrics.base import FieldMetric, Metric
from ..metrics.function import FunctionMetric
from ..metrics.statistics import Score, interval
from ..metrics.weighted import Weighted
from ..optimizers.base import Row
from ..optimizers.heads import folds
from ..optimizers.reference import fit_reference, text_of
from ..optimizers.shown import label_of
from ..optimizers.student import as_demo
from ..programs.graph import Graph
from ..seeds import derive_seed
from ..signatures import choice_value, choices
from .evaluate import gold_fields
from .evaluator import Columns, predictors_of

MOST_ROWS = 1000  # what it costs grows with their cube

FREQUENT = 0.1  # the share of the train rows from which on a value is worth giving for every row

Predict = Callable[[Sequence[Row]], list[dict[str, Any]]]


@dataclass(frozen=True)
class _Label:
    """A label output: the data's column of its gold values, its type, and what its values are called."""

    column: str
    type: Any
    labels: tuple[str, ...]

    def gold(self, row: Row) -> str | None:
        """The gold label of a row, of several references the first; None where it has none."""
        value = row.labels.get(self.column, ())
        several = value if isinstance(value, list | tuple) else [value]
        return label_of(several[0], self.type) if several else None


def reference_scores(
    program: dspy.Module,
    metric: Metric,
    columns: Columns,
    train: Sequence[Row],
    splits: Mapping[str, Sequence[Row]],
    *,
    seed: int,
    interval_seed: int,
) -> dict[str, Score]:
    """The reference's score on each of `splits` that has rows; {} where there is nothing to compare.

    columns: predictor -> field -> the data's column of gold values; interval_seed: that of the program's own scores.
    """
    labels = _labels(program, metric, columns, [row for rows in (train, *splits.values()) for row in rows])
    predict = _fitted(labels, train, seed) if labels else None
    if predict is None:
        return {}
    scores, gold = {}, gold_fields(program)
    for name, rows in splits.items():
        if rows:
            pairs = zip(rows, predict(rows), strict=True)
            measurements = [metric.measure(_compared(row, gold), prediction) for row, prediction in pairs]
            scores[name] = interval(metric, measurements, interval_seed)
    return scores


def constant_scores(
    program: dspy.Module,
    metric: Metric,
    train: Sequence[Row],
    splits: Mapping[str, Sequence[Row]],
    *,
    interval_seed: int,
) -> dict[str, Score]:
    """The score, on each of `splits` that has rows, of giving each output the value that is most frequent in train; {}
    where the metric may look at more than the outputs' values, or one of them has no value that is frequent.
    """
    if not _compares_values(metric):
        return {}
    gold = gold_fields(program)
    held: dict[str, list[Any]] = {}
    for row in train:
        values = as_demo(row)
        for column in _compared(row, gold):
            if column in values:
                held.setdefault(column, []).append(values[column])
    answer = {column: _frequent(values) for column, values in held.items()}
    if not answer or any(value is _RARE for value in answer.values()):
        return {}
    return {
        name: interval(metric, [metric.measure(_compared(row, gold), answer) for row in rows], interval_seed)
        for name, rows in splits.items()
        if rows
    }


_RARE = object()


def _frequent(values: Sequence[Any]) -> Any:
    """The most frequent of some values, the first of equals; `_RARE` where none is frequent."""
    counts = Counter(map(repr, values))
    found, count = counts.most_common(1)[0]
    return next(value for value in values if repr(value) == found) if count >= FREQUENT * len(values) else _RARE


def _compares_values(metric: Metric) -> bool:
    """Whether a metric is told from the outputs' values, so that nothing has to run for it."""
    if isinstance(metric, Weighted):
        return all(_compares_values(part) for part in metric.metrics)
    return isinstance(metric, FieldMetric)


def _labels(program: dspy.Module, metric: Metric, columns: Columns, rows: Sequence[Row]) -> tuple[_Label, ...]:
    """The label outputs of the program's only predictor, if they are all that the metric looks at; else none."""
    predictors = predictors_of(program)
    if len(predictors) != 1 or len(program.named_predictors()) != 1:
        return ()
    (name, predictor), known = *predictors.items(), columns
    outputs = predictor.signature.output_fields
    found = tuple(
        _Label(known[name][field], output.annotation, labels)
        for field, output in outputs.items()
        if field in known.get(name, {}) and (labels := choices(output.annotation)) is not None
    )
    gold = gold_fields(program)
    compared = {column for row in rows for column in _compared(row, gold)}
    whole = len(found) == len(outputs) and (isinstance(program, Graph) or program is predictor)
    return found if _looks_only_at(metric, {label.column for label in found}, compared, whole) else ()


def _looks_only_at(metric: Metric, fields: set[str], compared: set[str], whole: bool) -> bool:
    """Whether a metric can be told from `fields` alone. compared: what the examples label; whole: `fields` are all of
    the program's outputs, of which a Python function may look at any.
    """
    if isinstance(metric, Weighted):
        return all(_looks_only_at(part, fields, compared, whole) for part in metric.metrics)
    if isinstance(metric, FunctionMetric):
        return whole
    return isinstance(metric, FieldMetric) and bool(fields) and set(metric.fields or compared) <= fields


def _fitted(labels: Sequence[_Label], train: Sequence[Row], seed: int) -> Predict | None:
    """What gives each row a label for every label output; None where train does not show two labels of each."""
    fits = []
    for label in labels:
        held = [(text_of(row.inputs), gold) for row in train if (gold := label.gold(row)) is not None]
        if len({gold for _, gold in held}) < 2:
            return None
        places = np.array([label.labels.index(gold) for _, gold in held], dtype=np.int64)
        parts = folds(places, -(-len(held) // MOST_ROWS), derive_seed(seed, "reference rows"))
        texts, answers = zip(*(pair for pair, part in zip(held, parts, strict=True) if part == 0), strict=True)
        fits.append((label, fit_reference(texts, answers, label.labels, seed=seed)))

    def predict(rows: Sequence[Row]) -> list[dict[str, Any]]:
        texts = [text_of(row.inputs) for row in rows]
        made: list[dict[str, Any]] = [{} for _ in rows]
        for label, fit in fits:
            for prediction, said in zip(made, fit.predict(texts), strict=True):
                prediction[label.column] = choice_value(label.type, said)
        return made

    return predict


def _compared(row: Row, fields: frozenset[str] | None) -> dict[str, Any]:
    return {name: value for name, value in row.labels.items() if fields is None or name in fields}
