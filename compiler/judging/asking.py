"""Asking judges: many calls, of one judge or of several, in one batch, and what each of them said.

Where the label is chosen by likelihood, all labels are scored after the same prompt, so that one forward pass gives a
probability for each: the softmax of their log-likelihoods, less the calibration that the judge has learned. The mean of
grades under these probabilities is G-Eval's score (Liu et al. 2023, arXiv 2303.16634, section 2.3), here exact and not
estimated from samples.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import dspy

from ...optimizers.base import Outcome
from ...programs.predictor import Predictor
from ...programs.readout import calibrated
from ...signatures.labels import label_text
from ..evaluate import run_program
from ..examples import Example
from .programs import JudgeProgram


@dataclass(frozen=True)
class Judgement:
    """The label that a judge gave. `probabilities` are those of all labels, empty where the model wrote the label."""

    label: str
    probabilities: Mapping[str, float]

    def expected(self, values: Mapping[str, float]) -> float:
        """The mean of the labels' values under their probabilities; the given label's value where there are none."""
        if not self.probabilities:
            return values[self.label]
        return math.fsum(values[label] * share for label, share in self.probabilities.items())


@dataclass(frozen=True)
class NoJudgement:
    """A judge gave no verdict: its call failed or, with `unread`, what it wrote could not be read."""

    reason: str
    unread: bool = False

    def __str__(self) -> str:
        return (
            f"the judge's verdict could not be read: {self.reason}"
            if self.unread
            else f"the judge failed: {self.reason}"
        )


class _Bench(dspy.Module):
    """Several judges as one program, which is told whom to ask."""

    def __init__(self, judges: Sequence[JudgeProgram]) -> None:
        super().__init__()
        self.judges = list(judges)

    def forward(self, judge: int, inputs: Mapping[str, str]) -> dspy.Prediction:
        """What that judge says."""
        return self.judges[judge](**inputs)


def ask(questions: Sequence[tuple[JudgeProgram, Mapping[str, str]]], lm: dspy.LM) -> list[Judgement | NoJudgement]:
    """What each judge says of its inputs, in the order of the questions, all of them in one batch.

    Raises `RunError` when the engine dies, `InputError` when a judge cannot run on it.
    """
    judges = list({id(judge): judge for judge, _ in questions}.values())
    places = {id(judge): place for place, judge in enumerate(judges)}
    rows = [
        Example({"judge": places[id(judge)], "inputs": dict(inputs)}, {}, number)
        for number, (judge, inputs) in enumerate(questions)
    ]
    bench = _Bench(judges)
    parts = {name: part for name, part in bench.named_predictors() if isinstance(part, Predictor)}
    outcomes = run_program(bench, rows, lm=lm)
    return [_said(outcome, judge, parts) for outcome, (judge, _) in zip(outcomes, questions, strict=True)]


def _said(outcome: Outcome, judge: JudgeProgram, parts: Mapping[str, Predictor]) -> Judgement | NoJudgement:
    if outcome.error is not None:
        return NoJudgement(outcome.error)
    if outcome.unread is not None or outcome.prediction is None:
        return NoJudgement(outcome.unread or "nothing was said", unread=True)
    field, label = judge.asked, label_text(outcome.prediction[judge.field])
    for name, choice in reversed(outcome.choices):
        if choice.field == field:
            scores = calibrated(parts[name].readout, choice.field, choice.labels, choice.totals)
            return Judgement(label, dict(zip(scores, softmax(list(scores.values())), strict=True)))
    return Judgement(label, {})


def softmax(totals: Sequence[float]) -> list[float]:
    """Log-likelihoods as probabilities that sum to 1."""
    most = max(totals)
    weights = [math.exp(total - most) if most > -math.inf else 1.0 for total in totals]
    whole = math.fsum(weights)
    return [weight / whole for weight in weights]
