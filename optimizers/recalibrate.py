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
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ..programs.state import Calibration
from ..signatures import choices, write
from .base import Candidate, Evaluator, Outcome, Row, Trial
from .calibrate import fit_bias, rounded

FOLDS = 10
METHODS = ("none", "batch", "bias")  # those that need nothing but what was seen on dev

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


@dataclass(frozen=True)
class _Field:
    """What a candidate has shown of one label output on dev's rows: the log-likelihoods [n, K] of its labels and the
    gold ones' places, -1 where a row has none.
    """

    labels: tuple[str, ...]
    totals: NDArray[np.float64]
    answers: NDArray[np.int64]

    def chosen(self, offsets: NDArray[np.float64]) -> NDArray[np.int64]:
        """The places of the labels that are chosen, less `offsets` [K] or [n, K]."""
        return (self.totals - offsets).argmax(axis=1)  # type: ignore[no-any-return]

    def right(self, offsets: NDArray[np.float64]) -> float:
        """The share of the rows that have a gold label for which it is chosen."""
        known = self.answers >= 0
        return float(np.mean(self.chosen(offsets)[known] == self.answers[known]))

    def offsets(self, method: str, rows: NDArray[np.int64]) -> NDArray[np.float64]:
        """What a method takes from each label's log-likelihood, by what these rows have shown."""
        if method == "none":
            return np.zeros(len(self.labels))
        totals, answers = self.totals[rows], self.answers[rows]
        mean: NDArray[np.float64] = totals.mean(axis=0)
        known = answers >= 0
        return fit_bias(totals[known], answers[known], mean) if method == "bias" and known.any() else mean

    def crossed(self, method: str) -> NDArray[np.float64]:
        """The offsets [n, K] of each row by the other folds' rows."""
        found = np.zeros_like(self.totals)
        for fold, others in folds_of(len(self.totals)):
            found[fold] = self.offsets(method, others)
        return found


def folds_of(count: int) -> list[tuple[NDArray[np.int64], NDArray[np.int64]]]:
    """The rows' places in folds, each with those of all others."""
    places = np.arange(count)
    return [(places[fold::FOLDS], places[places % FOLDS != fold]) for fold in range(min(FOLDS, count))]


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
        gains = {name: _gain(trial.candidate, name, each, methods) for name, each in fields.items() if each}
        gains = {name: (method, gain) for name, (method, gain) in gains.items() if gain > 0}
        promised = (trial.score or 0.0) + max((gain for _, gain in gains.values()), default=0.0)
        if gains and promised > most:
            chosen = {name: (method, fields[name]) for name, (method, _) in gains.items()}
            made = _made(trial.candidate, chosen, outcomes)
            if made.calls <= most_calls:
                best, most = made, promised
    return best


def _fields(evaluator: Evaluator, candidate: Candidate, name: str, outcomes: Sequence[Outcome]) -> dict[str, _Field]:
    """A predictor's label outputs, of those that it chose for every row and for which some rows have gold labels."""
    found = {}
    readout, signature, columns = candidate.states[name].readout, evaluator.signatures[name], evaluator.columns(name)
    for field, output in signature.output_fields.items() if readout.kind == "choice" and not readout.heads else ():
        made = [[each for who, each in o.choices if who == name and each.field == field] for o in outcomes]
        labels = choices(output.annotation)
        if labels is None or not all(made):
            continue
        gold = [{**o.row.inputs, **o.row.labels}.get(columns.get(field, "")) for o in outcomes]
        texts = ["" if value is None else write(value, output.annotation) for value in gold]
        answers = np.array([labels.index(text) if text in labels else -1 for text in texts])
        if (answers >= 0).any():
            found[field] = _Field(tuple(labels), np.array([each[-1].totals for each in made]), answers)
    return found


def _gain(candidate: Candidate, name: str, fields: Mapping[str, _Field], methods: Sequence[str]) -> tuple[str, float]:
    """The best method for a predictor, the first of equals, and what it gains: a share of the mean field's rows."""
    before = [each.right(_now(candidate, name, field, each.labels)) for field, each in fields.items()]
    after = {method: [each.right(each.crossed(method)) for each in fields.values()] for method in methods}
    gains = {method: float(np.mean(right) - np.mean(before)) for method, right in after.items()}
    method = max(methods, key=lambda each: gains[each])
    return method, gains[method]


def _now(candidate: Candidate, name: str, field: str, labels: Sequence[str]) -> NDArray[np.float64]:
    """The offsets [K] that a candidate has."""
    calibration = candidate.states[name].readout.calibration
    offsets = {} if calibration is None else calibration.offsets.get(field, {})
    return np.array([offsets.get(label, 0.0) for label in labels])


def _made(
    candidate: Candidate, chosen: Mapping[str, tuple[str, Mapping[str, _Field]]], outcomes: Sequence[Outcome]
) -> Recalibrated:
    """The candidate with new calibrations for some predictors, by what all rows have shown, and that of each fold."""
    changed = np.zeros(len(outcomes), dtype=bool)
    for name, (method, fields) in chosen.items():
        for field, each in fields.items():
            now = each.chosen(_now(candidate, name, field, each.labels))
            changed |= now != each.chosen(each.crossed(method))

    def by(rows: NDArray[np.int64]) -> Candidate:
        states = dict(candidate.states)
        for name, (method, fields) in chosen.items():
            readout = states[name].readout
            old = Calibration(method="batch", offsets={}) if readout.calibration is None else readout.calibration
            offsets = {field: given for field, given in old.offsets.items() if field not in fields}
            if method != "none":
                offsets |= {field: rounded(each.labels, each.offsets(method, rows)) for field, each in fields.items()}
            new = Calibration(method=old.method if method == "none" else method, offsets=offsets) if offsets else None
            states[name] = states[name].model_copy(update={"readout": readout.model_copy(update={"calibration": new})})
        return Candidate(states)

    folds = [(tuple(fold[changed[fold]].tolist()), others) for fold, others in folds_of(len(outcomes))]
    tried = tuple((by(others), places) for places, others in folds if places)
    methods = {name: method for name, (method, _) in chosen.items()}
    return Recalibrated(by(np.arange(len(outcomes))), methods, tried, outcomes)
