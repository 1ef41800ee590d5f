"""A program's score on examples, from Python: `cuecard.evaluate`."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from ..errors import InputError, RunError
from ..metrics import Score, interval
from ..models.lm import language_model
from ..models.target import Target
from ..optimizers.base import Outcome
from ..programs.predictor import adopt
from ..programs.state import PredictorState
from .compiled import Compiled
from .evaluate import run_program
from .evaluator import predictors_of
from .given import Data, MetricLike, Program, check_program, checked_examples, opened_target
from .judging import metric_of
from .label_metrics import knowing_labels


@dataclass(frozen=True)
class Evaluation:
    """A program's score on examples. `unread`: answers that could not be read, which count as the metric's worst;
    `failed`: examples whose call failed, which have no score and are not in `score.n`."""

    score: Score
    outcomes: tuple[Outcome, ...]

    @property
    def unread(self) -> int:
        """How many answers could not be read."""
        return sum(outcome.unread is not None for outcome in self.outcomes)

    @property
    def failed(self) -> int:
        """How many calls failed."""
        return sum(outcome.error is not None for outcome in self.outcomes)


def evaluate(
    program: Program,
    examples: Data,
    metric: MetricLike,
    *,
    target: Target | str | None = None,
    seed: int = 0,
    observer: Callable[[int], None] | None = None,
) -> Evaluation:
    """Score a program on examples. See `compile` for the arguments; `seed` is the bootstrap interval's.

    Raises `RunError` when every call failed, since there is nothing to score then.

    >>> cuecard.evaluate(program, dev, "exact_match").score
    Score(value=0.61, low=0.54, high=0.67, n=200)
    """
    check_program(program)
    lm = language_model(opened_target(target).engine)
    program = adopt(program.program if isinstance(program, Compiled) else program, PredictorState(format="dspy"))
    for predictor in predictors_of(program).values():
        predictor.lm = None
    rows = checked_examples(examples, program)
    read_metric = knowing_labels(metric_of(metric), program)
    outcomes = run_program(program, rows, lm=lm, metric=read_metric, observer=observer)
    measured = [outcome.measurement for outcome in outcomes if outcome.measurement is not None]
    if not measured:
        failed = next((outcome.error for outcome in outcomes if outcome.error), None)
        if failed is None:
            raise InputError("there are no examples")
        raise RunError(f"all {len(outcomes)} examples failed", hint=f"The first failure: {failed}")
    return Evaluation(interval(read_metric, measured, seed), tuple(outcomes))
