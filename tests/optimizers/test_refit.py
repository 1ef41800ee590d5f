"""A found candidate with the dev rows among its near demos, and among those of each label."""

from __future__ import annotations

from typing import Any

from fakes import FakeEvaluator

import cuecard
from cuecard.compiler.examples import Example
from cuecard.metrics import Measurement
from cuecard.optimizers.base import Candidate, Outcome, Step, Trial
from cuecard.optimizers.refit import dearer, shown_itself, to_refit, with_rows
from cuecard.programs.state import NearestDemos, PredictorState, ReadOut

ROUTE = cuecard.signature("ticket -> queue")
REPLY = cuecard.signature("ticket, queue -> reply")
POOL = ({"ticket": "a", "queue": "billing"}, {"ticket": "b", "queue": "technical"})


def never(candidate: Candidate, row: Any) -> float:
    raise AssertionError("nothing should run")


def row(number: int, ticket: str, **labels: Any) -> Example:
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


LABELLED = cuecard.signature("ticket -> queue: Literal['billing', 'technical'], urgent: bool | None")
DEMOS = tuple({**demo, "urgent": False} for demo in POOL)


def channelled(demos: Any = DEMOS, **readout: Any) -> Candidate:
    return Candidate({"p": PredictorState(demos=demos, readout=ReadOut(kind="channel", **readout))})


def test_labelled_rows_join_the_demos_of_each_label_up_to_a_number() -> None:
    evaluator = FakeEvaluator({"p": LABELLED}, never)
    rows = [
        row(number, ticket, queue="billing", urgent=urgent)
        for number, (ticket, urgent) in enumerate([("c", False), ("a", True), ("d", None), ("e", False), ("f", True)])
    ]
    found = with_rows(evaluator, channelled(per_label=1), rows, per_label={"p": 2})
    assert found is not None
    state = found.states["p"]
    assert [demo["ticket"] for demo in state.demos] == ["a", "b", "c", "d", "f"], "e is the third, of both its labels"
    assert state.readout.per_label == 2
    alone = with_rows(evaluator, channelled(), rows, per_label={"p": 9})
    assert alone is not None and len(alone.states["p"].demos) == 6, "the row whose inputs a demo has stays out"
    assert alone.states["p"].readout.per_label is None, "all of them, as before"
    assert with_rows(evaluator, channelled(), rows) is None, "where the channel was not searched"
    assert with_rows(evaluator, channelled(), rows[:1], per_label={"p": 1}) is None
    assert with_rows(evaluator, channelled(), rows, channelled(), {"p": 9}) is None, "the user's own"


def test_a_row_among_the_demos_costs_what_follows_it() -> None:
    class Long(FakeEvaluator):
        def own_tokens(self, candidate: Candidate, rows: Any) -> float:
            return 40.0

        def prompt_tokens(self, candidate: Candidate, rows: Any) -> float:
            return 40.0 + 10.0 * len(candidate.states["p"].demos)

    evaluator = Long({"p": LABELLED}, never)
    rows = [row(number, f"t{number}", queue="technical", urgent=True) for number in range(16)]
    found = with_rows(evaluator, channelled(), rows, per_label={"p": 99})
    assert found is not None
    assert dearer(evaluator, channelled(), found, rows[:2]) == 1.0 + 160 / (2 * 2 * 40), "half of a label's, of two"
    near = Candidate({"p": PredictorState(nearest=NearestDemos(count=1, pool=DEMOS))})
    grown = with_rows(evaluator, near, rows)
    assert grown is not None and dearer(evaluator, near, grown, rows[:2]) == 1.0, "as many demos as before"


def test_a_program_that_changes_its_inputs_is_found_out() -> None:
    evaluator = FakeEvaluator({"p": ROUTE}, never)
    grown = Candidate({"p": PredictorState(nearest=NearestDemos(count=1, pool=POOL))})
    given = row(0, "The Ticket", queue="billing")
    same = Outcome(given, Measurement(1.0), steps=(Step("p", {"ticket": "The Ticket"}, {"queue": "billing"}),))
    other = Outcome(given, Measurement(1.0), steps=(Step("p", {"ticket": "the ticket"}, {"queue": "billing"}),))
    assert shown_itself(evaluator, grown, [same]) is None
    assert "p is given other inputs" in (shown_itself(evaluator, grown, [same, other]) or "")
    assert "p is given other inputs" in (shown_itself(evaluator, channelled(), [other]) or "")
    assert shown_itself(evaluator, Candidate({"p": PredictorState(demos=POOL)}), [other]) is None


def trial(number: int, candidate: Candidate, score: float) -> Trial:
    return Trial(number, {}, candidate, "dropped", 16, score, score)


def test_a_channel_that_had_no_dev_rows_is_given_them_unless_it_is_far_behind() -> None:
    evaluator = FakeEvaluator({"p": LABELLED}, never)
    rows = [row(number, f"t{number}", queue="technical", urgent=True) for number in range(20)]
    near = Candidate({"p": PredictorState(nearest=NearestDemos(count=1, pool=DEMOS))})
    grown = with_rows(evaluator, near, rows)
    assert grown is not None
    best, close, poor = trial(1, grown, 0.7), trial(2, channelled(), 0.61), trial(3, channelled(), 0.59)
    most = {"p": 9}
    found = to_refit(evaluator, best, close, rows, None, most)
    assert found == (close, with_rows(evaluator, close.candidate, rows, None, most))
    assert to_refit(evaluator, best, poor, rows, None, most) is None
    assert to_refit(evaluator, best, None, rows, None, most) is None
    chosen = trial(4, near, 0.7)
    assert to_refit(evaluator, chosen, close, rows, None, most) == (chosen, grown), "the chosen one first"
