"""A found candidate with the dev rows among its near demos."""

from __future__ import annotations

from typing import Any

from fakes import FakeEvaluator

import cuecard
from cuecard.compiler.examples import Example
from cuecard.metrics import Measurement
from cuecard.optimizers.base import Candidate, Outcome, Step
from cuecard.optimizers.refit import shown_itself, with_rows
from cuecard.programs.state import NearestDemos, PredictorState

ROUTE = cuecard.signature("ticket -> queue")
REPLY = cuecard.signature("ticket, queue -> reply")
POOL = ({"ticket": "a", "queue": "billing"}, {"ticket": "b", "queue": "technical"})


def never(candidate: Candidate, row: Any) -> float:
    raise AssertionError("nothing should run")


def row(number: int, ticket: str, **labels: str) -> Example:
    return Example({"ticket": ticket}, labels, number)


def test_labelled_rows_join_the_pool_and_known_inputs_do_not() -> None:
    evaluator = FakeEvaluator({"p": ROUTE}, never)
    state = PredictorState(nearest=NearestDemos(count=2, pool=POOL))
    rows = [row(0, "c", queue="billing"), row(1, "a", queue="technical"), row(2, "d"), row(3, "c", queue="account")]
    found = with_rows(evaluator, Candidate({"p": state}), rows)
    assert found is not None
    nearest = found.states["p"].nearest
    assert nearest == NearestDemos(count=2, pool=(*POOL, {"ticket": "c", "queue": "billing"}))
    assert evaluator.spent == 0


def test_a_predictor_without_near_demos_or_without_gold_values_stays_as_it_is() -> None:
    evaluator = FakeEvaluator({"route": ROUTE, "sort": ROUTE}, never)
    near = NearestDemos(count=1, pool=POOL)
    states = {"route": PredictorState(), "sort": PredictorState(nearest=near)}
    assert with_rows(evaluator, Candidate(states), [row(0, "c")]) is None
    found = with_rows(evaluator, Candidate(states), [row(0, "c", queue="billing")])
    assert found is not None
    assert found.states["route"] == states["route"]
    assert found.states["sort"].nearest is not None
    assert len(found.states["sort"].nearest.pool) == 3
    written = Candidate({"route": PredictorState(), "sort": states["sort"]})
    assert with_rows(evaluator, Candidate(states), [row(0, "c", queue="billing")], written) is None, "the user's own"


def test_a_predictor_that_is_given_what_another_has_made_stays_as_it_is() -> None:
    evaluator = FakeEvaluator({"route": ROUTE, "reply": REPLY}, never)
    near = NearestDemos(count=1, pool=({"ticket": "a", "queue": "billing", "reply": "Paid."},))
    states = {"route": PredictorState(), "reply": PredictorState(nearest=near)}
    labelled = [row(0, "c", queue="billing", reply="Done.")]
    assert with_rows(evaluator, Candidate(states), labelled) is None, "with another queue its own reply would be shown"


def test_a_program_that_changes_its_inputs_is_found_out() -> None:
    evaluator = FakeEvaluator({"p": ROUTE}, never)
    grown = Candidate({"p": PredictorState(nearest=NearestDemos(count=1, pool=POOL))})
    given = row(0, "The Ticket", queue="billing")
    same = Outcome(given, Measurement(1.0), steps=(Step("p", {"ticket": "The Ticket"}, {"queue": "billing"}),))
    other = Outcome(given, Measurement(1.0), steps=(Step("p", {"ticket": "the ticket"}, {"queue": "billing"}),))
    assert shown_itself(evaluator, grown, [same]) is None
    assert "p is given other inputs" in (shown_itself(evaluator, grown, [same, other]) or "")
