"""Where demos come from, and which sets of them are tried.

A demo of a predictor holds values for its fields. Gold values come from the row, where the data has a column for the
field. What the data has no column for (an intermediate result, a rationale) is bootstrapped: the program runs on the
row, and its own values are kept when its final answer scores well enough (Khattab et al. 2023, BootstrapFewShot,
arXiv 2310.03714).
"""

from __future__ import annotations

import math
import random
import statistics
from collections.abc import Mapping, Sequence
from typing import Any

from ..models.sampling import derive_seed
from .base import Candidate, Evaluator, Outcome, Row

Demo = dict[str, Any]


def pools(evaluator: Evaluator, bootstrap: Candidate, rows: Sequence[Row]) -> dict[str, list[Demo]]:
    """The demos of every predictor. Only predictors with fields that the data does not label make the program run.

    bootstrap: the candidate that runs. Its own values are kept where it reached the metric's best score, or, for a
    metric that is not 0/1, where it did better than the median run.
    """
    found: dict[str, list[Demo]] = {}
    missing: list[str] = []
    for name, signature in evaluator.signatures.items():
        labelled = [_from_row(row, signature.fields, evaluator.columns(name)) for row in rows]
        complete = [demo for demo in labelled if demo is not None]
        if complete:
            found[name] = complete
        else:
            missing.append(name)
    if missing and rows:
        outcomes = evaluator.run(bootstrap, rows)
        threshold = _threshold(evaluator, outcomes)
        for name in missing:
            found[name] = _from_runs(evaluator, name, outcomes, threshold)
    return found


def _threshold(evaluator: Evaluator, outcomes: Sequence[Outcome]) -> float:
    low, high = evaluator.metric.low, evaluator.metric.high
    scores = [outcome.measurement.score for outcome in outcomes if outcome.measurement is not None]
    if not scores or set(scores) <= {low, high}:
        return high
    return max(statistics.median(scores), math.nextafter(low, high))


def _from_row(row: Row, fields: Mapping[str, Any], columns: Mapping[str, str]) -> Demo | None:
    """A demo made of the row's own values, or None when one is missing."""
    values = {**row.inputs, **row.labels}
    demo = {name: values.get(columns[name]) for name in fields if name in columns}
    if len(demo) < len(fields) or any(value is None for value in demo.values()):
        return None
    return {name: first_reference(value, fields[name].annotation) for name, value in demo.items()}


def _from_runs(evaluator: Evaluator, name: str, outcomes: Sequence[Outcome], threshold: float) -> list[Demo]:
    """Demos from a predictor's own calls in runs that scored at least `threshold`; gold values replace its own."""
    columns = evaluator.columns(name)
    fields = evaluator.signatures[name].fields
    demos = []
    for outcome in outcomes:
        good = outcome.measurement is not None and outcome.unread is None and outcome.measurement.score >= threshold
        steps = [step for step in outcome.steps if step.predictor == name] if good else []
        for step in steps[-1:]:
            values = {**outcome.row.inputs, **outcome.row.labels}
            gold = {field: values[column] for field, column in columns.items() if values.get(column) is not None}
            demo = {field: value for field, value in {**step.inputs, **step.outputs}.items() if field in fields}
            demo |= {field: first_reference(value, fields[field].annotation) for field, value in gold.items()}
            demos.append(demo)
    return demos


def first_reference(value: Any, annotation: Any) -> Any:
    """A gold value as a demo shows it: of several references for a text, the first."""
    if annotation is str and isinstance(value, list | tuple) and value:
        return value[0]
    return value


def sets(pool: Sequence[Demo], count: int, size: int, *, seed: int, name: str) -> tuple[tuple[Demo, ...], ...]:
    """`count` ordered draws of `size` demos without repetition; a candidate shows the first k of one of them."""
    drawn = []
    for index in range(count):
        generator = random.Random(derive_seed(seed, "demos", name, index))
        drawn.append(tuple(generator.sample(list(pool), min(size, len(pool)))))
    return tuple(drawn)
