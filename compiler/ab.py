"""Two programs run now, on the same examples, their model calls in the same batches, and compared row by row."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import dspy

from ..errors import InputError, RunError
from ..metrics import Measurement, Metric
from ..models.lm import language_model
from ..models.target import Target
from ..optimizers.base import Outcome, Row
from ..programs.schema import Spec
from .diff import Difference, Flip, compare, compare_rows, flips
from .evaluate import Observer, measured, run_programs
from .evaluator import predictors_of
from .sides import program_side

Named = tuple[str, Spec, dspy.Module]


def run_ab(
    programs: tuple[Named, Named],
    rows: Sequence[Row],
    metrics: Sequence[Metric],
    target: Target,
    *,
    seed: int = 0,
    observer: Observer | None = None,
) -> tuple[Difference, int]:
    """The difference between two programs (name, spec, program) on the rows, and how many of those failed in either.

    Examples flip by the first metric. Raises `InputError` without rows, `RunError` when every one failed.
    """
    if not rows:
        raise InputError("there are no examples")
    before, after = programs
    for _, _, program in programs:
        for predictor in predictors_of(program).values():
            predictor.lm = None
    outcomes = run_programs(
        [before[2], after[2]], rows, lm=language_model(target.engine), metric=metrics[0], observer=observer
    )
    there = [pair for pair in zip(*outcomes, strict=True) if not any(outcome.error for outcome in pair)]
    if not there:
        first = next(outcome.error for each in outcomes for outcome in each if outcome.error)
        raise RunError(f"all {len(rows)} examples failed", hint=f"The first failure: {first}")
    sides = [program_side(name, spec) for name, spec, _ in programs]
    found = compare(*(replace(side, scores={}) for side in sides), seed=seed)
    with dspy.context(lm=language_model(target.engine)):  # a judge asks the model while it measures
        keyed = [_measured(programs, there, metric) for metric in metrics]
    compared = compare_rows([(m, *pair) for m, pair in zip(metrics, keyed, strict=True)], seed=seed)
    by_key = {_key(pair[0]): pair for pair in there}
    better, worse = (tuple(_told(flip, by_key[flip.key]) for flip in part) for part in flips(*keyed[0]))
    done = replace(found, comparisons=compared, better=better, worse=worse)
    return done, len(rows) - len(there)


def _measured(
    programs: tuple[Named, Named], there: Sequence[tuple[Outcome, ...]], metric: Metric
) -> tuple[dict[str, Measurement], dict[str, Measurement]]:
    keys = [_key(pair[0]) for pair in there]
    found = [
        dict(zip(keys, measured(program, [pair[place] for pair in there], metric), strict=True))
        for place, (_, _, program) in enumerate(programs)
    ]
    return found[0], found[1]


def _key(outcome: Outcome) -> str:
    return f"example {outcome.row.id + 1:06d}"


def _told(flip: Flip, pair: Sequence[Outcome]) -> Flip:
    answers = [_answer(outcome) for outcome in pair]
    inputs = pair[0].row.inputs
    return replace(flip, key=f"example {pair[0].row.id + 1}", inputs=inputs, answers=(answers[0], answers[1]))


def _answer(outcome: Outcome) -> Any:
    if outcome.unread is not None:
        return "unread"
    gold = set(outcome.row.labels)
    given = dict(outcome.prediction or {})
    return {name: value for name, value in given.items() if name in gold} or given
