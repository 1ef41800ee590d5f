"""What was found, its choices calibrated by what dev has shown of them.

A candidate that chose a label for every dev row has shown each label's log-likelihood there. What another calibration
would have chosen from the same numbers takes no model call to know. So every way to calibrate, for every candidate that
ran on all of dev, is compared at once, and the best is tried as one more candidate.

What is fitted on dev's rows must not be measured on them: each fold of the rows is run with the calibration that the
other folds give, and the candidate that is kept has the one of all rows (cross-validation; Stone 1974). The rows' own
labels can't help then. Where nothing can be told from the inputs, a fitted bias gives the most frequent label, which
the likelihoods alone need not.

Only the rows for which another label is chosen are run; what became of the others is known.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from ..programs.state import Calibration
from .base import Candidate, Evaluator, Outcome, Row, Trial
from .calibrate import bias, rounded
from .shown import Shown, shown

FOLDS = 10
Method = Literal["none", "batch", "bias"]
METHODS: tuple[Method, ...] = ("none", "batch", "bias")  # those that need nothing but what was seen on dev

Known = tuple[Trial, Sequence[Outcome]]
"""A candidate that ran on all of dev, and what became of each row."""


@dataclass(frozen=True)
class Recalibrated:
    """A candidate with other calibrations. methods: those, by predictor; folds: what is run in its place on which of
    the dev rows; before: what became of the rows under the old ones.
    """

    candidate: Candidate
    methods: Mapping[str, str]
    folds: tuple[tuple[Candidate, tuple[int, ...]], ...]
    before: Sequence[Outcome]

    @property
    def calls(self) -> int:
        """How many rows are run."""
        return sum(len(places) for _, places in self.folds)

    def run(self, evaluator: Evaluator, rows: Sequence[Row]) -> list[Outcome]:
        """The outcome of each dev row under its fold's candidate, in order."""
        found = list(self.before)
        for candidate, places in self.folds:
            for place, outcome in zip(places, evaluator.run(candidate, [rows[place] for place in places]), strict=True):
                found[place] = outcome
        return found


def folds_of(count: int) -> list[tuple[NDArray[np.int64], NDArray[np.int64]]]:
    """The rows' places in folds, each with those of all others."""
    places = np.arange(count)
    return [(places[fold::FOLDS], places[places % FOLDS != fold]) for fold in range(min(FOLDS, count))]


@dataclass(frozen=True)
class _Change:
    """Another calibration of one predictor. fields: its label outputs; crossed: what it takes from each label's
    log-likelihood [n, K] on each row, fitted on the other folds; gain: in correct labels, a share of the rows.
    """

    method: Method
    fields: Mapping[str, Shown]
    crossed: Mapping[str, NDArray[np.float64]]
    gain: float

    def of_fold(self, row: int) -> dict[str, NDArray[np.float64]]:
        """The offsets [K] of each field for a row's fold."""
        return {field: offsets[row] for field, offsets in self.crossed.items()}

    def of_all(self) -> dict[str, NDArray[np.float64]]:
        """The offsets [K] of each field that all rows give."""
        return {field: _offsets(self.method, each) for field, each in self.fields.items()}


def recalibrated(
    evaluator: Evaluator, known: Sequence[Known], allowed: Sequence[str], most_calls: float = math.inf
) -> Recalibrated | None:
    """The candidate whose new calibrations promise the most: its score and what they gain in correct labels. None where
    they promise no more than the first of `known` has.

    known: the candidates that ran on all of dev, the chosen one first; allowed: the methods that may be used;
    most_calls: the most rows that may be run.
    """
    methods = [method for method in METHODS if method in allowed]
    best, most = None, known[0][0].score or 0.0
    for trial, outcomes in known if methods and len(known[0][1]) > 1 else ():
        fields = {name: _fields(evaluator, trial.candidate, name, outcomes) for name in trial.candidate.states}
        changes = {name: _change(trial.candidate, name, each, methods) for name, each in fields.items() if each}
        changes = {name: change for name, change in changes.items() if change.gain > 0}
        promised = (trial.score or 0.0) + max((change.gain for change in changes.values()), default=0.0)
        if changes and promised > most:
            made = _made(trial.candidate, changes, outcomes)
            if made.calls <= most_calls:
                best, most = made, promised
    return best


def _fields(evaluator: Evaluator, candidate: Candidate, name: str, outcomes: Sequence[Outcome]) -> dict[str, Shown]:
    """A predictor's label outputs, of those that it chose for every row and for which some rows have gold labels."""
    readout = candidate.states[name].readout
    if not readout.chooses or readout.heads:
        return {}
    found = shown(evaluator, name, outcomes)
    return {field: each for field, each in found.items() if len(each.rows) == len(outcomes) and each.known.any()}


def _change(candidate: Candidate, name: str, fields: Mapping[str, Shown], methods: Sequence[Method]) -> _Change:
    """The best of the methods for a predictor, the first of equals."""
    before = np.mean([each.right(_now(candidate, name, field, each)) for field, each in fields.items()])
    changes = []
    for method in methods:
        crossed = {field: _crossed(method, each) for field, each in fields.items()}
        after = np.mean([each.right(crossed[field]) for field, each in fields.items()])
        changes.append(_Change(method, fields, crossed, float(after - before)))
    return max(changes, key=lambda change: change.gain)


def _offsets(method: str, shown: Shown) -> NDArray[np.float64]:
    """What a method takes from each label's log-likelihood [K], by what was seen."""
    if method == "none":
        return np.zeros(len(shown.labels))
    return bias(shown) if method == "bias" else np.asarray(shown.totals.mean(axis=0))


def _crossed(method: str, shown: Shown) -> NDArray[np.float64]:
    """The offsets [n, K] of each row by the other folds' rows."""
    found = np.zeros_like(shown.totals)
    for fold, others in folds_of(len(shown.totals)):
        found[fold] = _offsets(method, replace(shown, totals=shown.totals[others], answers=shown.answers[others]))
    return found


def _now(candidate: Candidate, name: str, field: str, shown: Shown) -> NDArray[np.float64]:
    """The offsets [K] that a candidate has."""
    calibration = candidate.states[name].readout.calibration
    offsets = {} if calibration is None else calibration.offsets.get(field, {})
    return np.array([offsets.get(label, 0.0) for label in shown.labels])


def _made(candidate: Candidate, changes: Mapping[str, _Change], outcomes: Sequence[Outcome]) -> Recalibrated:
    """The candidate with new calibrations for some predictors, by what all rows have shown, and that of each fold."""
    changed = np.zeros(len(outcomes), dtype=bool)
    for name, change in changes.items():
        for field, each in change.fields.items():
            changed |= each.chosen(_now(candidate, name, field, each)) != each.chosen(change.crossed[field])
    tried = []
    for fold, _ in folds_of(len(outcomes)):
        places = tuple(fold[changed[fold]].tolist())
        if places:
            of_fold = {name: change.of_fold(places[0]) for name, change in changes.items()}
            tried.append((_with(candidate, changes, of_fold), places))
    whole = _with(candidate, changes, {name: change.of_all() for name, change in changes.items()})
    return Recalibrated(whole, {name: change.method for name, change in changes.items()}, tuple(tried), outcomes)


def _with(
    candidate: Candidate, changes: Mapping[str, _Change], offsets: Mapping[str, Mapping[str, NDArray[np.float64]]]
) -> Candidate:
    """A candidate whose predictors have these offsets; those of outputs that are not changed stay."""
    states = dict(candidate.states)
    for name, change in changes.items():
        readout = states[name].readout
        old = Calibration(method="batch", offsets={}) if readout.calibration is None else readout.calibration
        kept = {field: given for field, given in old.offsets.items() if field not in change.fields}
        method = old.method if change.method == "none" else change.method
        if change.method != "none":
            kept |= {field: rounded(change.fields[field].labels, new) for field, new in offsets[name].items()}
        calibration = Calibration(method=method, offsets=kept) if kept else None
        states[name] = states[name].model_copy(
            update={"readout": readout.model_copy(update={"calibration": calibration})}
        )
    return Candidate(states)
