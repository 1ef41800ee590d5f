"""What was found, its spans chosen by weights that dev has shown to be better.

A candidate that copied a field on dev has shown the best spans of every row, each with its log-likelihoods, and those
of null where the field may be null. What other weights (`SpanWeights`) would have taken from the same numbers takes no
model call to know. So each field's weights are fitted to the gold values, for every candidate that ran on all of dev:
those of the spans on a grid, and null's, for each point of the grid, to the threshold that loses least.

As in `recalibrate.py`, each fold of the rows is run with what the other folds give, only the rows are run of which
something else is taken, and the best of all is tried as one more candidate.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..metrics.base import FieldMetric, Metric
from ..metrics.matching import F1
from ..programs.spans import Copy, worth
from ..programs.state import SpanChoice, SpanWeights
from .base import Candidate, Evaluator, Outcome
from .copied import DIGITS, MARGIN, last_copy, with_weights
from .recalibrate import Known, Recalibrated, folds_of

REWARDS = (0.0, 0.05, 0.1, 0.15, 0.2, 0.35, 0.5, 0.7, 1.0)
CONTRASTS = (0.0, 0.15, 0.3, 0.5, 0.7, 0.9)
BESIDES = (0.0, 2.0, 4.0, 6.0, 9.0, 13.0)
STEP = 20.0  # so many times less a nat of `beside` is than one of reward or contrast
SURE = 1e-9  # a gain in goodness that is no rounding

Compare = Callable[[Any, Any], float]
Point = tuple[float, float, float]
"""The reward, the contrast and what is given for standing beside the other inputs' words."""


@dataclass(frozen=True)
class Offered:
    """One field in n rows: what the copies offered, and how good it is.

    copies: the last of each row; good: of each of its values [n, m], by the metric; null: how good null is [n]; known:
    where the row has a gold value [n]. Rows with fewer than m spans are filled up.
    """

    copies: tuple[Copy, ...]
    good: NDArray[np.float64]
    null: NDArray[np.float64]
    known: NDArray[np.bool_]

    @cached_property
    def _scores(self) -> NDArray[np.float64]:
        """What each span is chosen by [4, n, m]: log-likelihood, that under the other prompt, length, `beside`."""
        found = np.zeros((4, *self.good.shape))
        found[0] = -np.inf
        for row, copy in enumerate(self.copies):
            for place, (score, beside) in enumerate(zip(copy.scores, copy.beside, strict=True)):
                found[:, row, place] = score.total, score.against, score.length, beside
        return found

    @cached_property
    def grid(self) -> dict[Point, tuple[NDArray[np.float64], NDArray[np.float64]]]:
        """By reward, contrast and beside, for each row how much more the best span is worth than null, and how good it
        is. What no span has any of is left as it is by default.
        """
        usual = SpanWeights()
        contrasts = CONTRASTS if self._scores[1].any() else (0.0,)
        besides = BESIDES if self._scores[3].any() else (usual.beside,)
        return {point: self._taken(*point) for point in itertools.product(REWARDS, contrasts, besides)}

    def _taken(self, reward: float, contrast: float, beside: float) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        total, against, length, cue = self._scores
        worths = worth(total, against, length, cue, SpanWeights(reward=reward, contrast=contrast, beside=beside))
        rows, places = np.arange(len(self.copies)), worths.argmax(axis=1)
        null = [-np.inf if copy.null is None else copy.null[0] - contrast * copy.null[1] for copy in self.copies]
        best, bare = worths[rows, places], ~np.isfinite(worths).any(axis=1)  # nothing to copy: null in any case
        return np.where(bare, np.inf, best) - null, np.where(bare, self.null, self.good[rows, places])

    def goodness(self, weights: SpanWeights) -> NDArray[np.float64]:
        """How good the value is that some weights take [n]."""
        margins, good = self._taken(*_point(weights))
        return np.where(margins >= weights.absent, good, self.null)


def _point(weights: SpanWeights) -> Point:
    return weights.reward, weights.contrast, weights.beside


def offered(evaluator: Evaluator, name: str, outcomes: Sequence[Outcome]) -> dict[str, Offered]:
    """The fields that the predictor `name` copied in every one of the outcomes, of those with gold values."""
    signature, columns = evaluator.signatures[name], evaluator.columns(name)
    found = {}
    for field in signature.output_fields:
        compare = _comparing(evaluator.metric, columns.get(field))
        copies = [copy for outcome in outcomes if (copy := last_copy(outcome, name, field)) is not None]
        gold = [_gold(outcome, columns.get(field)) for outcome in outcomes]
        known = [row for row, value in enumerate(gold) if value is not _MISSING]
        if len(copies) < len(outcomes) or not known:
            continue
        good = np.zeros((len(copies), max(1, *(len(copy.values) for copy in copies))))
        null = np.zeros(len(copies))
        for row in known:
            good[row, : len(copies[row].values)] = [compare(gold[row], value) for value in copies[row].values]
            null[row] = compare(gold[row], None)
        found[field] = Offered(tuple(copies), good, null, np.array([value is not _MISSING for value in gold]))
    return found


def fitted(field: Offered, now: SpanWeights, rows: NDArray[np.int64] | None = None) -> SpanWeights:
    """The weights that take the best values in some rows (None: all); of equals, those nearest to those of `now`."""
    chosen = np.arange(len(field.copies)) if rows is None else rows
    chosen = chosen[field.known[chosen]]
    best, most = now, float(field.goodness(now)[chosen].sum())

    def distance(point: Point) -> float:
        reward, contrast, beside = (abs(x - y) for x, y in zip(point, _point(now), strict=True))
        return reward + contrast + beside / STEP

    for point in sorted(field.grid, key=lambda point: (distance(point), point)):
        margins, good = (held[chosen] for held in field.grid[point])
        null, total = _threshold(margins, good, field.null[chosen])
        if total > most + SURE:
            reward, contrast, beside = point
            best, most = SpanWeights(reward=reward, contrast=contrast, beside=beside, absent=null), total
    return best


def _threshold(
    margins: NDArray[np.float64], spans: NDArray[np.float64], nulls: NDArray[np.float64]
) -> tuple[float, float]:
    """The margin below which null is best taken, of equals the one nearest 0, and how good what is then taken is, in
    sum.
    """
    open_ = np.isfinite(margins)
    if not open_.any():
        return 0.0, float(spans.sum())
    order = np.argsort(margins[open_], kind="stable")
    held, gain = margins[open_][order], (nulls - spans)[open_][order]
    totals = spans.sum() + np.concatenate([[0.0], np.cumsum(gain)])  # by how many rows are null
    between = np.concatenate([[held[0] - MARGIN], (held[:-1] + held[1:]) / 2, [held[-1] + MARGIN]])
    apart = np.concatenate([[True], held[1:] > held[:-1], [True]])  # equal rows go together
    ways = [place for place in np.flatnonzero(apart) if totals[place] >= totals[apart].max() - SURE]
    place = min(ways, key=lambda each: (abs(between[each]), each))
    return round(float(between[place]), DIGITS), float(totals[place])


@dataclass(frozen=True)
class _Change:
    """Other weights of one predictor. crossed: by field those of each row, fitted on the other folds; whole: those that
    all rows give; gain: in the mean goodness of the fields.
    """

    fields: Mapping[str, Offered]
    crossed: Mapping[str, tuple[SpanWeights, ...]]
    whole: Mapping[str, SpanWeights]
    gain: float


def reweighed(evaluator: Evaluator, known: Sequence[Known], most_calls: float = math.inf) -> Recalibrated | None:
    """The candidate whose new weights promise the most: its score and what they gain. None where they promise no more
    than the first of `known` has.

    known: the candidates that ran on all of dev, the chosen one first; most_calls: the most rows that may be run.
    """
    best, most = None, known[0][0].score or 0.0
    for trial, outcomes in known if len(known[0][1]) > 1 else ():
        changes = {name: _change(evaluator, trial.candidate, name, outcomes) for name in trial.candidate.states}
        held = {name: change for name, change in changes.items() if change is not None and change.gain > SURE}
        promised = (trial.score or 0.0) + max((change.gain for change in held.values()), default=0.0)
        if held and promised > most:
            made = _made(trial.candidate, held, outcomes)
            if made.calls <= most_calls:
                best, most = made, promised
    return best


def _change(evaluator: Evaluator, candidate: Candidate, name: str, outcomes: Sequence[Outcome]) -> _Change | None:
    """The weights fitted for a predictor; None where it copies nothing that has gold values."""
    readout = candidate.states[name].readout
    fields = offered(evaluator, name, outcomes) if readout.kind == "span" else {}
    if not fields:
        return None
    choice = readout.span or SpanChoice()
    crossed: dict[str, tuple[SpanWeights, ...]] = {}
    gains = []
    for field, each in fields.items():
        now, found, good = choice.of(field), [SpanWeights()] * len(outcomes), np.zeros(len(outcomes))
        for fold, others in folds_of(len(outcomes)):
            weights = fitted(each, now, others)
            good[fold] = each.goodness(weights)[fold]
            for row in fold:
                found[row] = weights
        crossed[field] = tuple(found)
        gains.append(np.mean((good - each.goodness(now))[each.known]))
    whole = {field: fitted(each, choice.of(field)) for field, each in fields.items()}
    return _Change(fields, crossed, whole, float(np.mean(gains)))


def _made(candidate: Candidate, changes: Mapping[str, _Change], outcomes: Sequence[Outcome]) -> Recalibrated:
    """The candidate with new weights for some predictors, by what all rows have shown, and that of each fold."""
    changed = np.zeros(len(outcomes), dtype=bool)
    for change in changes.values():
        for field, each in change.fields.items():
            new = zip(each.copies, change.crossed[field], strict=True)
            changed |= [copy.best(weights) != copy.chosen for copy, weights in new]
    tried = []
    for fold, _ in folds_of(len(outcomes)):
        places = tuple(fold[changed[fold]].tolist())
        if places:
            of_fold = {
                name: {field: weights[places[0]] for field, weights in change.crossed.items()}
                for name, change in changes.items()
            }
            tried.append((with_weights(candidate, of_fold), places))
    whole = with_weights(candidate, {name: change.whole for name, change in changes.items()})
    return Recalibrated(whole, {name: "span" for name in changes}, tuple(tried), outcomes)


_MISSING = object()


def _gold(outcome: Outcome, column: str | None) -> Any:
    values = {**outcome.row.inputs, **outcome.row.labels}
    return _MISSING if column is None else values.get(column, _MISSING)


def _comparing(metric: Metric, column: str | None) -> Compare:
    """How good a value is beside a gold one: by a metric that compares this column by itself, else by token F1."""
    by: FieldMetric = F1()
    if isinstance(metric, FieldMetric) and (not metric.fields or column in metric.fields):
        by = metric
    return lambda gold, value: by.compare(by.references(gold, value), value).score
