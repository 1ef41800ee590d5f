"""Calibration of choices: what to subtract from each label's log-likelihood.

- contextual: the label's log-likelihood for content-free inputs (Zhao et al. 2021, arXiv 2102.09690; averaged over
  `N/A`, `[MASK]` and the empty text, as there);
- batch: its mean over unlabelled inputs (Zhou et al. 2023, arXiv 2309.17249): those that the candidate runs on anyway
  (`by_batch`), which costs nothing but to choose again (`overtaken`). Where spans are copied, it is null that is
  calibrated so: to be taken as often as in train;
- bias: fitted on labelled rows by multinomial logistic regression with one bias per label and one common scale, drawn
  towards the batch calibration by a ridge penalty (under the read-out `channel`, which has no favourite labels, towards
  none: on TREC's questions that came to .59 to .63 in place of .52 to .59). Only the argmax is used, so the scale
  divides out.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..programs.readout import Choice, calibrated
from ..programs.state import Calibration, PredictorState
from .base import Candidate, Evaluator, Outcome, Row
from .copied import by_share, retaken
from .shown import Shown, shown

CONTENT_FREE = ("N/A", "[MASK]", "")
BIAS_ROWS = 128
RIDGE = 0.05


def calibrate(
    evaluator: Evaluator,
    candidate: Candidate,
    methods: Mapping[str, str],
    rows: Sequence[Row],
    *,
    limit: int | None = None,
) -> Candidate:
    """`candidate` with calibrations fitted for the predictors named in `methods` (predictor -> `contextual` or `bias`).

    rows: labelled rows; of those that are not among the demos the first 128 serve `bias`, or the first `limit`, where
    it is lower.
    """
    states = dict(candidate.states)
    for name in sorted(name for name, method in methods.items() if method == "contextual"):
        states[name] = _with(states[name], "contextual", _contextual(evaluator, candidate, name))
    biased = sorted(name for name, method in methods.items() if method == "bias")
    if biased:
        demos = [demo for state in candidate.states.values() for demo in state.demos]
        unseen = [row for row in rows if not any(shows(demo, row) for demo in demos)]
        outcomes = evaluator.run(candidate, unseen[: BIAS_ROWS if limit is None else min(BIAS_ROWS, limit)])
        for name in biased:
            offsets = {f: rounded(each.labels, bias(each)) for f, each in shown(evaluator, name, outcomes).items()}
            states[name] = _with(states[name], "bias", offsets)
    return Candidate(states)


def by_batch(
    evaluator: Evaluator,
    candidate: Candidate,
    names: Sequence[str],
    outcomes: Sequence[Outcome],
    rows: Sequence[Row] = (),
) -> Candidate:
    """`candidate` with batch calibrations of the predictors `names`, by what it has seen in `outcomes`. rows: labelled
    ones, which tell how often a field is null that is copied.
    """
    states = dict(candidate.states)
    for name in names:
        if states[name].readout.kind == "span":
            states[name] = by_share(evaluator, candidate, name, outcomes, rows).states[name]
            continue
        seen = shown(evaluator, name, outcomes)
        offsets = {field: rounded(each.labels, each.totals.mean(axis=0)) for field, each in seen.items()}
        states[name] = _with(states[name], "batch", offsets)
    return Candidate(states)


def overtaken(candidate: Candidate, names: Sequence[str], outcomes: Sequence[Outcome]) -> list[int]:
    """The places of the outcomes in which the predictors `names` of `candidate` would choose otherwise now."""

    def chooses(name: str, choice: Choice) -> str:
        scores = calibrated(candidate.states[name].readout, choice.field, choice.labels, choice.totals)
        return max(scores, key=lambda label: scores[label])

    return [
        place
        for place, outcome in enumerate(outcomes)
        if any(name in names and chooses(name, choice) != choice.chosen for name, choice in outcome.choices)
        or any(retaken(candidate, name, outcome) for name in names)
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
    totals = {field: np.array([choice.totals for choice in made]) for field, made in by_field.items()}
    return {field: rounded(made[0].labels, totals[field].mean(axis=0)) for field, made in by_field.items()}


def bias(shown: Shown) -> NDArray[np.float64]:
    """The offsets [K] fitted on the gold labels, or, where there are none, what they are drawn towards: those of a
    batch calibration, or under the read-out `channel` none.
    """
    prior, known = np.zeros(len(shown.labels)) if shown.channel else shown.totals.mean(axis=0), shown.known
    return fit_bias(shown.totals[known], shown.answers[known], prior) if known.any() else prior


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
