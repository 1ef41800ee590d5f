"""Two programs run now, on the same examples, their model calls in the same batches, and compared row by row: by
metrics and, where there is one, by a judge that says which of two answers is better.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import dspy

from ..errors import InputError, RunError, nearest
from ..metrics import Measurement, Metric
from ..models.lm import language_model
from ..models.target import Target
from ..optimizers.base import Outcome, Row
from ..programs.schema import Spec
from .diff import Difference, Flip, compare, compare_rows, flips
from .evaluate import Observer, gold_fields, measured_again, open_models, run_programs
from .evaluator import predictors_of
from .judging import PreferenceMetric, Preferences, prefer
from .judging.preference import Answers
from .sides import program_side

Named = tuple[str, Spec, dspy.Module]


@dataclass(frozen=True)
class Both:
    """A row by its name, and both programs' answers to it."""

    key: str
    inputs: Mapping[str, Any]
    answers: tuple[Any, Any]


@dataclass(frozen=True)
class Ab:
    """Two programs on the same rows: how they differ, how many rows failed in either, and what a judge prefers.

    A row that some metric has no score for failed, too. rows: those that did not fail, in order.
    """

    difference: Difference
    failed: int
    rows: tuple[Both, ...]
    preferences: Preferences | None = None


def run_judged(
    programs: tuple[Named, Named],
    rows: Sequence[Row],
    metrics: Sequence[Metric],
    target: Target,
    *,
    judge: PreferenceMetric | None = None,
    seed: int = 0,
    observer: Observer | None = None,
) -> Ab:
    """The difference between two programs (name, spec, program) on the rows, by metrics and by a judge of pairs.

    With a judge there need be no metric. Examples flip by the first metric. Raises `InputError` without rows,
    `RunError` when every one failed.
    """
    if not rows:
        raise InputError("there are no examples")
    before, after = programs
    for _, _, program in programs:
        for predictor in predictors_of(program).values():
            predictor.lm = None
    lm = language_model(target.engine)
    with dspy.context(lm=lm):
        for metric in (*metrics, judge):
            open_models(metric)
    first = metrics[0] if metrics else None
    ran = run_programs([before[2], after[2]], rows, lm=lm, metric=first, observer=observer)
    with dspy.context(lm=lm):  # a judge asks the model while it measures
        measured = [ran, *(_measured(programs, ran, metric) for metric in metrics[1:])]
    errors = [_error(measured, place) for place in range(len(rows))]
    kept = [place for place, error in enumerate(errors) if error is None]
    if not kept:
        raise RunError(f"all {len(rows)} examples failed", hint=f"The first failure: {errors[0]}")
    there = [tuple(side[place] for side in ran) for place in kept]
    sides = [program_side(name, spec) for name, spec, _ in programs]
    found = compare(*(replace(side, scores={}) for side in sides), seed=seed)
    pairs = zip(metrics, measured, strict=False)  # without a metric there is nothing to compare
    keyed = [(metric, _keyed(both[0], kept), _keyed(both[1], kept)) for metric, both in pairs]
    compared = compare_rows(keyed, seed=seed)
    by_key = {key_of(pair[0]): pair for pair in there}
    changed = flips(*keyed[0][1:]) if keyed else ([], [])
    better, worse = (tuple(with_answers(flip, by_key[flip.key]) for flip in part) for part in changed)
    done = replace(found, comparisons=compared, better=better, worse=worse)
    preferences = None if judge is None else _preferred(programs, there, judge, lm)
    return Ab(done, len(rows) - len(there), tuple(map(_both, there)), preferences)


def _preferred(
    programs: tuple[Named, Named], there: Sequence[tuple[Outcome, ...]], judge: PreferenceMetric, lm: dspy.LM
) -> Preferences:
    """What the judge says of the answers, by its own fields or else by the outputs that an example has labels for."""
    gold = gold_fields(programs[0][2])
    rows: list[Answers] = [(before.row.inputs, _read(before), _read(after)) for before, after in there]
    given = list(dict.fromkeys(name for _, *both in rows for answer in both for name in answer or ()))
    fields = judge.fields or tuple(name for name in given if gold is None or name in gold)
    missing = next((name for name in fields if given and name not in given), None)
    if missing is not None:
        near = nearest(missing, given)
        expected = None if near else f"one of {', '.join(given)}"
        raise InputError(f"the programs have no output {missing!r}", expected=expected, nearest=near)
    return prefer(judge, rows, fields, lm)


def _read(outcome: Outcome) -> Mapping[str, Any] | None:
    return None if outcome.unread is not None else outcome.prediction


def _measured(programs: tuple[Named, Named], ran: Sequence[Sequence[Outcome]], metric: Metric) -> list[list[Outcome]]:
    """The outcomes of both programs with the measurements of another metric."""
    return [measured_again(program, side, metric) for (_, _, program), side in zip(programs, ran, strict=True)]


def _error(measured: Sequence[Sequence[Sequence[Outcome]]], place: int) -> str | None:
    """Why a row failed, in either program or by any metric."""
    return next((side[place].error for both in measured for side in both if side[place].error), None)


def _keyed(side: Sequence[Outcome], places: Sequence[int]) -> dict[str, Measurement]:
    return {key_of(side[place]): found for place in places if (found := side[place].measurement) is not None}


def key_of(outcome: Outcome) -> str:
    """The name of an outcome's row, the same for both programs; sorted they are in the rows' order."""
    return f"example {outcome.row.id + 1:06d}"


def with_answers(flip: Flip, pair: Sequence[Outcome]) -> Flip:
    """A flip with its row's inputs and both answers, from what became of the row in both programs."""
    both = _both(pair)
    return replace(flip, key=both.key, inputs=both.inputs, answers=both.answers)


def _both(pair: Sequence[Outcome]) -> Both:
    before, after = pair
    return Both(f"example {before.row.id + 1}", before.row.inputs, (_answer(before), _answer(after)))


def _answer(outcome: Outcome) -> Any:
    if outcome.unread is not None:
        return "unread"
    gold = set(outcome.row.labels)
    given = dict(outcome.prediction or {})
    return {name: value for name, value in given.items() if name in gold} or given
