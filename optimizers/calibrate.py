"""Calibration of choices: what to subtract from each label's log-likelihood.

- contextual: the label's log-likelihood for content-free inputs (Zhao et al. 2021, arXiv 2102.09690; averaged over
  `N/A`, `[MASK]` and the empty text, as there);
- batch: its mean over unlabelled inputs (Zhou et al. 2023, arXiv 2309.17249): those that the candidate runs on anyway
  (`by_batch`), which costs nothing but to choose again (`overtaken`);
- bias: fitted on labelled rows by multinomial logistic regression with one bias per label and one common scale, drawn
  towards the batch calibration by a ridge penalty. Only the argmax is used, so the scale divides out.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..programs.readout import Choice, calibrated
from ..programs.state import Calibration, PredictorState
from ..signatures import choices, write
from .base import Candidate, Evaluator, Outcome, Row

CONTENT_FREE = ("N/A", "[MASK]", "")
BATCH_ROWS = 32
BIAS_ROWS = 128
RIDGE = 0.05
SAMPLED = ("batch", "bias")  # the methods that take rows


def calibrate(
    evaluator: Evaluator,
    candidate: Candidate,
    methods: Mapping[str, str],
    rows: Sequence[Row],
    *,
    limit: int | None = None,
) -> Candidate:
    """`candidate` with calibrations fitted for the predictors named in `methods` (predictor -> method).

    rows: labelled rows; of those that are not among the demos the first 32 serve `batch`, the first 128 `bias`, or the
    first `limit`, where it is lower.
    """
    shown = [demo for state in candidate.states.values() for demo in state.demos]
    rows = [row for row in rows if not any(shows(demo, row) for demo in shown)]
    states = dict(candidate.states)
    for name in sorted(name for name, method in methods.items() if method == "contextual"):
        states[name] = _with(states[name], "contextual", _contextual(evaluator, candidate, name))
    sampled = {name: method for name, method in methods.items() if method in SAMPLED}
    if sampled:
        needed = BIAS_ROWS if "bias" in sampled.values() else BATCH_ROWS
        needed = needed if limit is None else min(needed, limit)
        outcomes = evaluator.run(candidate, rows[:needed])
        for name, method in sorted(sampled.items()):
            mine = outcomes if method == "bias" else outcomes[:BATCH_ROWS]
            states[name] = _with(states[name], method, _from_outcomes(evaluator, name, method, mine))
    return Candidate(states)


def by_batch(
    evaluator: Evaluator, candidate: Candidate, names: Sequence[str], outcomes: Sequence[Outcome]
) -> Candidate:
    """`candidate` with batch calibrations of the predictors `names`, by what it has seen in `outcomes`."""
    states = dict(candidate.states)
    for name in names:
        states[name] = _with(states[name], "batch", _from_outcomes(evaluator, name, "batch", outcomes))
    return Candidate(states)


def overtaken(candidate: Candidate, names: Sequence[str], outcomes: Sequence[Outcome]) -> list[int]:
    """The places of the outcomes in which the predictors `names` of `candidate` would choose other labels now."""

    def chooses(name: str, choice: Choice) -> str:
        scores = calibrated(candidate.states[name].readout, choice.field, choice.labels, choice.totals)
        return max(scores, key=lambda label: scores[label])

    return [
        place
        for place, outcome in enumerate(outcomes)
        if any(name in names and chooses(name, choice) != choice.chosen for name, choice in outcome.choices)
    ]


def shows(demo: Mapping[str, Any], row: Row) -> bool:
    """Whether a demo holds all of a row's inputs: the model would have read the answer."""
    values = list(demo.values())
    return all(value in values for value in row.inputs.values())


def _with(state: PredictorState, method: Any, offsets: dict[str, dict[str, float]]) -> PredictorState:
    calibration = Calibration(method=method, offsets=offsets) if offsets else None
    return state.model_copy(update={"readout": state.readout.model_copy(update={"calibration": calibration})})


def rounded(labels: Sequence[str], offsets: NDArray[np.float64]) -> dict[str, float]:
    """Offsets around 0, to four digits: what is written down is what was used."""
    centred = offsets - offsets.mean()
    return {label: round(float(offset), 4) for label, offset in zip(labels, centred, strict=True)}


def _contextual(evaluator: Evaluator, candidate: Candidate, name: str) -> dict[str, dict[str, float]]:
    inputs = evaluator.signatures[name].input_fields
    seen = [evaluator.probe(candidate, name, dict.fromkeys(inputs, text)) for text in CONTENT_FREE]
    by_field: dict[str, list[Choice]] = {}
    for choice in (choice for probes in seen for choice in probes):
        by_field.setdefault(choice.field, []).append(choice)
    return {field: rounded(made[0].labels, _totals(made).mean(axis=0)) for field, made in by_field.items()}


def _totals(made: Sequence[Choice]) -> NDArray[np.float64]:
    return np.array([choice.totals for choice in made], dtype=np.float64)


def _from_outcomes(
    evaluator: Evaluator, name: str, method: str, outcomes: Sequence[Outcome]
) -> dict[str, dict[str, float]]:
    signature, columns = evaluator.signatures[name], evaluator.columns(name)
    offsets = {}
    for field, output in signature.output_fields.items():
        labels = choices(output.annotation)
        if labels is None:
            continue
        made, gold = [], []
        for outcome in outcomes:
            mine = [choice for predictor, choice in outcome.choices if predictor == name and choice.field == field]
            if mine:
                value = {**outcome.row.inputs, **outcome.row.labels}.get(columns.get(field, ""))
                made.append(mine[-1])
                gold.append(None if value is None else write(value, output.annotation))
        if not made:
            continue
        totals = _totals(made)
        known = [place for place, label in enumerate(gold) if label in labels]
        if method == "bias" and known:
            answers = np.array([labels.index(str(gold[place])) for place in known])
            offsets[field] = rounded(labels, fit_bias(totals[known], answers, totals.mean(axis=0)))
        else:
            offsets[field] = rounded(labels, totals.mean(axis=0))
    return offsets


def fit_bias(
    totals: NDArray[np.float64], answers: NDArray[np.int64], prior: NDArray[np.float64]
) -> NDArray[np.float64]:
    """The offsets [K] that make the labels' log-likelihoods `totals` [n, K] predict `answers` [n] best.

    Minimises the mean cross-entropy of softmax(s * totals - c) plus a ridge penalty on c around s * prior; returns c
    / s. The problem is convex in (s, c); it is solved with BFGS from s = 1, c = prior. Deterministic.
    """
    from scipy.optimize import minimize
    from scipy.special import logsumexp

    rows = np.arange(len(answers))
    centred = totals - prior

    def loss(packed: NDArray[np.float64]) -> tuple[float, NDArray[np.float64]]:
        scale, shift = packed[0], packed[1:]
        logits = scale * centred - shift
        normaliser = logsumexp(logits, axis=1)
        value = float(np.mean(normaliser - logits[rows, answers])) + RIDGE * float(shift @ shift)
        error = np.exp(logits - normaliser[:, None])
        error[rows, answers] -= 1.0
        error /= len(answers)
        slope = np.concatenate([[float((error * centred).sum())], -error.sum(axis=0) + 2 * RIDGE * shift])
        return value, slope

    start = np.concatenate([[1.0], np.zeros(totals.shape[1])])
    bounds = [(1e-3, None)] + [(None, None)] * totals.shape[1]
    packed = minimize(loss, start, jac=True, method="L-BFGS-B", bounds=bounds).x
    return np.asarray(prior + packed[1:] / packed[0], dtype=np.float64)
