"""Other weights of spans for candidates that ran on dev: chosen by what was seen, measured on rows that did not fit
them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from fakes import FakeEvaluator

import cuecard
from cuecard.compiler.examples import Example
from cuecard.metrics import Measurement, Metric
from cuecard.metrics.function import FunctionMetric
from cuecard.metrics.matching import ExactMatch
from cuecard.models.engine import SpanScore
from cuecard.optimizers.base import Candidate, Outcome, Trial
from cuecard.optimizers.copied import MARGIN, by_share, retaken
from cuecard.optimizers.recalibrate import FOLDS
from cuecard.optimizers.reweigh import fitted, offered, reweighed
from cuecard.programs.spans import Copy
from cuecard.programs.state import PredictorState, ReadOut, SpanChoice, SpanWeights

SIGNATURE = cuecard.signature("text -> who: str | None, note: str")
SPANS = Candidate({"p": PredictorState(readout=ReadOut(kind="span", span=SpanChoice(reward=0.35, contrast=0.0)))})
Offer = Callable[[int], Copy]
GOLD = ["Ada", "Grace", None]


def rows(gold: Sequence[str | None], column: str = "who") -> list[Example]:
    return [Example({"text": f"t{n}"}, {column: value}, n) for n, value in enumerate(gold)]


def model(offer: Offer) -> FakeEvaluator:
    """Runs a program that copies `who` from what `offer(row)` shows, by the candidate's weights, as the real one does."""

    def outcome(candidate: Candidate, row: Any) -> Outcome:
        copy = offer(row.id)
        choice = candidate.states["p"].readout.span or SpanChoice()
        copy = replace(copy, chosen=copy.best(choice.of(copy.field)))
        value = copy.chosen
        right = value == row.labels.get("who")
        return Outcome(row, Measurement(float(right)), {"who": value}, copies=(("p", copy),))

    def never(candidate: Candidate, row: Any) -> float:
        raise AssertionError

    return FakeEvaluator({"p": SIGNATURE}, never, metric=ExactMatch(), outcome=outcome)


def copy_of(
    row: int, *spans: tuple[str, float, float, int], null: float | None = None, beside: Sequence[float] = ()
) -> Copy:
    """The copy of a row: each span with its two log-likelihoods and its length."""
    scores = tuple(SpanScore(place, length, total, against) for place, (_, total, against, length) in enumerate(spans))
    held = None if null is None else (null, 0.0)
    return Copy(1, "who", tuple(text for text, *_ in spans), scores, tuple(beside) or (0.0,) * len(scores), held, None)


def ran(evaluator: FakeEvaluator, candidate: Candidate, examples: Sequence[Example]) -> tuple[Trial, list[Outcome]]:
    outcomes = evaluator.run(candidate, examples)
    scores = [outcome.measurement.score for outcome in outcomes if outcome.measurement is not None]
    return Trial(1, {}, candidate, "complete", len(scores), float(np.mean(scores)), None), outcomes


def score(outcomes: Sequence[Outcome]) -> float:
    return float(np.mean([outcome.measurement.score for outcome in outcomes if outcome.measurement is not None]))


def weights_of(candidate: Candidate) -> SpanWeights:
    span = candidate.states["p"].readout.span
    assert span is not None
    return span.of("who")


def test_null_gets_the_threshold_that_tells_it_from_what_stands_there() -> None:
    """Null is always the likelier one, by less where the name is right."""
    examples = rows(["Ada" if n % 3 else None for n in range(60)])
    offer = lambda n: copy_of(n, ("Ada", -4.0 if n % 3 else -6.0, 0.0, 1), null=-1.0)  # noqa: E731
    evaluator = model(offer)
    known = [ran(evaluator, SPANS, examples)]
    assert known[0][0].score == pytest.approx(1 / 3)
    found = reweighed(evaluator, known)
    assert found is not None and found.methods == {"p": "span"}
    assert weights_of(found.candidate) == SpanWeights(reward=0.35, contrast=0.0, absent=-3.65)
    assert score(found.run(evaluator, examples)) == 1.0


def test_where_nothing_is_to_be_found_null_is_taken_everywhere() -> None:
    examples = rows([None] * 20)
    evaluator = model(lambda n: copy_of(n, ("Ada", -1.0 - n / 9, 0.0, 1), null=-4.0))
    found = reweighed(evaluator, [ran(evaluator, SPANS, examples)])
    assert found is not None
    assert weights_of(found.candidate).absent == pytest.approx(-1.0 + 0.35 + 4.0 + MARGIN)
    assert score(found.run(evaluator, examples)) == 1.0


def test_reward_and_contrast_are_those_that_take_the_best_spans() -> None:
    examples = rows(["Ada Lovelace" if n % 2 else "Ada" for n in range(40)])

    def offer(n: int) -> Copy:
        """The longer one loses by half a nat, and where it is wrong it is likely in any case."""
        return copy_of(n, ("Ada", -2.0, -9.0, 1), ("Ada Lovelace", -2.5, -9.0 if n % 2 else -7.0, 2))

    evaluator = model(offer)
    contrasted = Candidate({"p": PredictorState(readout=ReadOut(kind="span", span=SpanChoice()))})
    known = [ran(evaluator, contrasted, examples)]
    assert known[0][0].score == 0.5
    found = reweighed(evaluator, known)
    assert found is not None
    weights = weights_of(found.candidate)
    assert weights.contrast > 0 and weights.absent == 0.0
    assert score(found.run(evaluator, examples)) == 1.0


def test_each_row_is_measured_by_what_the_other_folds_have_shown() -> None:
    """In one fold null is right below a margin that no other fold has: there it can't be known."""
    examples = rows([None if n % FOLDS == 3 else "Ada" for n in range(40)])
    evaluator = model(lambda n: copy_of(n, ("Ada", -2.0 if n % FOLDS == 3 else -1.0, 0.0, 1), null=-3.0))
    known = [ran(evaluator, SPANS, examples)]
    assert known[0][0].score == 0.9
    assert reweighed(evaluator, known) is None, "what only its own fold shows promises nothing"
    whole = fitted(offered(evaluator, "p", known[0][1])["who"], SpanWeights(contrast=0.0))
    assert -2.0 + 0.35 + 3.0 < whole.absent < -1.0 + 0.35 + 3.0


def test_only_rows_of_which_something_else_is_taken_are_run_and_no_more_than_there_is_room_for() -> None:
    examples = rows(["Ada" if n % 2 else None for n in range(40)])
    evaluator = model(lambda n: copy_of(n, ("Ada", -1.0 if n % 2 else -2.0, 0.0, 1), null=-3.0))
    known = [ran(evaluator, SPANS, examples)]
    found = reweighed(evaluator, known)
    assert found is not None and found.calls == 20
    before = evaluator.spent
    outcomes = found.run(evaluator, examples)
    assert evaluator.spent - before == 20
    assert [outcome.row.id for outcome in outcomes] == list(range(40))
    assert reweighed(evaluator, known, most_calls=20) is not None
    assert reweighed(evaluator, known, most_calls=19) is None


@pytest.mark.parametrize(("beside", "expected"), [((0.0, 0.5), 13.0), ((0.5, 0.0), 0.0)])
def test_what_standing_beside_the_other_inputs_is_worth_is_fitted(beside: tuple[float, float], expected: float) -> None:
    """Grace is right: where she stands beside what is asked for, by so much that it takes more than by default."""
    examples = rows(["Grace"] * 20)
    worse = -5.0 if expected else 1.0  # how likely Grace is, next to Ada
    evaluator = model(lambda n: copy_of(n, ("Ada", -1.0, 0.0, 1), ("Grace", -1.0 + worse, 0.0, 1), beside=beside))
    known = [ran(evaluator, SPANS, examples)]
    assert known[0][0].score == 0.0
    found = reweighed(evaluator, known)
    assert found is not None and score(found.run(evaluator, examples)) == 1.0
    weight = weights_of(found.candidate).beside
    assert weight > 10.0 if expected else weight < 2.0


def test_weights_that_are_as_good_as_any_stay() -> None:
    examples = rows(["Ada"] * 20)
    evaluator = model(lambda n: copy_of(n, ("Ada", -1.0, 0.0, 1), null=-3.0))
    known = [ran(evaluator, SPANS, examples)]
    assert reweighed(evaluator, known) is None
    now = SpanWeights(reward=0.6, contrast=0.0, absent=0.25)
    assert fitted(offered(evaluator, "p", known[0][1])["who"], now) == now


def test_rows_with_nothing_to_copy_are_null_and_tell_nothing() -> None:
    examples = rows(["Ada" if n % 2 else None for n in range(20)])
    evaluator = model(lambda n: copy_of(n, ("Ada", -3.0, 0.0, 1), null=-1.0) if n % 2 else copy_of(n))
    found = reweighed(evaluator, [ran(evaluator, SPANS, examples)])
    assert found is not None
    assert score(found.run(evaluator, examples)) == 1.0
    bare = model(copy_of)
    assert reweighed(bare, [ran(bare, SPANS, examples)]) is None


@pytest.mark.parametrize("kind", ["text", "span"])
def test_what_was_not_copied_or_has_no_gold_values_is_left_alone(kind: Any) -> None:
    candidate = Candidate({"p": PredictorState(readout=ReadOut(kind=kind))})
    evaluator = model(lambda n: copy_of(n, ("Ada", -3.0, 0.0, 1), null=-1.0))
    examples = rows(["Ada"] * 20, "who" if kind == "text" else "something else")
    assert reweighed(evaluator, [ran(evaluator, candidate, examples)]) is None


@pytest.mark.parametrize(
    ("metric", "expected"),
    [
        (ExactMatch(), [1.0, 0.0]),
        (ExactMatch(fields=("note",)), [1.0, pytest.approx(2 / 3)]),
        (FunctionMetric(lambda example, prediction: 1.0), [1.0, pytest.approx(2 / 3)]),
    ],
)
def test_a_value_is_as_good_as_the_metric_says_or_its_token_f1(metric: Metric, expected: list[Any]) -> None:
    evaluator = model(lambda n: copy_of(n, ("Ada", -1.0, 0.0, 1), ("Ada wrote", -2.0, 0.0, 2)))
    evaluator.metric = metric
    (example,) = rows(["Ada"])
    found = offered(evaluator, "p", evaluator.run(SPANS, [example]))["who"]
    assert found.good.tolist() == [expected]
    assert found.null.tolist() == [0.0]


@pytest.mark.parametrize(("share", "expected"), [(0, 0), (1, 10), (0.5, 5), (0.24, 2)])
def test_null_is_taken_as_often_as_in_the_labelled_rows(share: float, expected: int) -> None:
    evaluator = model(lambda n: copy_of(n, ("Ada", -1.0 - n, 0.0, 1), null=-4.2))
    outcomes = evaluator.run(SPANS, rows(["?"] * 10))
    held = rows([None] * round(100 * share) + ["Ada"] * round(100 - 100 * share))
    found = by_share(evaluator, SPANS, "p", outcomes, held)
    again = evaluator.run(found, [outcome.row for outcome in outcomes])
    assert [outcome.copies[0][1].chosen for outcome in again] == ["Ada"] * (10 - expected) + [None] * expected
    changed = [now.copies[0][1].chosen != was.copies[0][1].chosen for now, was in zip(again, outcomes, strict=True)]
    assert [retaken(found, "p", outcome) for outcome in outcomes] == changed


def test_where_no_labelled_row_tells_how_often_a_field_is_null_its_weight_stays() -> None:
    evaluator = model(lambda n: copy_of(n, ("Ada", -1.0 - n, 0.0, 1), null=-4.2))
    outcomes = evaluator.run(SPANS, rows(["?"] * 10))
    assert by_share(evaluator, SPANS, "p", outcomes, rows(["x"], "other")) is SPANS
