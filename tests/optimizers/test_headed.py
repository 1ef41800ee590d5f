"""Heads on top of what a search has found: which prompt they read, and how they are set against it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pytest
from fakes import LABELS, FakeEvaluator, examples

import cuecard
from cuecard.models.hidden import Features
from cuecard.optimizers.base import Budget, Candidate, FieldFeatures, Trial
from cuecard.optimizers.challenges import readings, sampled, ways_after
from cuecard.optimizers.front import FrontRule
from cuecard.optimizers.headed import FORMATS, headed
from cuecard.optimizers.pacing import Way, afforded, kept_back
from cuecard.optimizers.search import Search, SearchResult
from cuecard.optimizers.space import Space
from cuecard.programs.heads import loaded
from cuecard.programs.schema import SearchSpec
from cuecard.programs.state import NearestDemos, PredictorState, ReadOut

ROUTE = cuecard.signature("text -> queue: Literal['billing', 'technical', 'account'], why: str")
DEMO = {"text": "t", "queue": "billing"}
FOUND = PredictorState(demos=(DEMO,), nearest=NearestDemos(count=1, pool=(DEMO,)), format="json", instructions="Route.")


def label(row: Any) -> str:
    return LABELS[row.id % 3]


def features(rows: Sequence[Any], answers: Sequence[str], spread: float) -> FieldFeatures:
    """Hidden states of two layers around a centre per label: far apart in the mean of the second, else at one place."""
    drawn = np.random.default_rng(len(rows))
    made = []
    for row in rows:
        noise = drawn.normal(size=(2, 2, 4)).astype(np.float32)
        noise[1, 1, row.id % 3] += spread
        made.append(Features(noise[0], noise[1]))
    return FieldFeatures((1, 2), tuple(made), tuple(answers))


class Asked:
    """Answers `Evaluator.features`; the hidden states of `best` tell most."""

    def __init__(self, best: str = "completion", answers: Sequence[str] | None = None) -> None:
        self.best, self.answers = best, answers
        self.states: list[tuple[str, str, PredictorState]] = []

    def __call__(self, candidate: Candidate, name: str, field: str, rows: Sequence[Any]) -> FieldFeatures | None:
        state = candidate.states[name]
        self.states.append((name, field, state))
        answers = self.answers or [label(row) for row in rows]
        return features(rows, answers, 6.0 if state.format == self.best else 1.0)


def evaluator(asked: Any, signatures: Mapping[str, Any] | None = None, **options: Any) -> FakeEvaluator:
    return FakeEvaluator(signatures or {"route": ROUTE}, lambda candidate, row: 0.0, features=asked, **options)


ROWS = examples(30, queue=lambda n: LABELS[n % 3])


@pytest.mark.parametrize("best", FORMATS)
def test_the_format_is_the_one_whose_states_tell_most(best: str) -> None:
    asked = Asked(best)
    candidate, fits = headed(evaluator(asked), Candidate({"route": FOUND}), ROWS, stem="t")
    state = candidate.states["route"]
    assert state.format == best and {bare.format for _, _, bare in asked.states} == set(FORMATS)
    assert (state.demos, state.nearest, state.instructions) == ((), None, "Route.")
    assert state.readout.kind == "head" and list(state.readout.heads) == ["queue"]
    head = state.readout.heads["queue"]
    assert (head.layer, head.pooling) == (2, "mean")
    assert head.weights == f"t.route.queue.{head.sha256[:12]}.head.safetensors"
    assert fits["route"]["queue"].accuracy > 0.9 and fits["route"]["queue"].head.labels == LABELS


def test_a_head_says_on_which_target_it_was_fitted() -> None:
    given = Candidate({"route": FOUND})
    candidate, fits = headed(evaluator(Asked()), given, ROWS, stem="t", target="5b0c")
    assert fits["route"]["queue"].head.target == "5b0c"
    assert loaded(candidate.states["route"].readout.heads["queue"]) == fits["route"]["queue"].head


def test_only_outputs_with_labels_are_asked_for() -> None:
    asked = Asked()
    headed(evaluator(asked), Candidate({"route": FOUND}), ROWS, stem="t")
    assert {(name, field) for name, field, _ in asked.states} == {("route", "queue")}


def test_the_same_rows_give_the_same_head() -> None:
    first, second = (headed(evaluator(Asked()), Candidate({"route": FOUND}), ROWS, stem="t")[0] for _ in range(2))
    assert first == second and first.digest == second.digest


@pytest.mark.parametrize("asked", [lambda *_: None, Asked(answers=["billing"] * 30), Asked(answers=["no label"] * 30)])
def test_where_nothing_can_be_learned_the_candidate_stays(asked: Any) -> None:
    given = Candidate({"route": FOUND})
    candidate, fits = headed(evaluator(asked), given, ROWS, stem="t")
    assert candidate == given and fits == {}


def test_one_predictor_may_have_a_head_and_another_none() -> None:
    signatures = {"write": cuecard.signature("text -> why: str"), "route": ROUTE}
    given = Candidate({"write": FOUND, "route": FOUND})
    candidate, fits = headed(evaluator(Asked(), signatures), given, ROWS, stem="t")
    assert candidate.states["write"] == FOUND and list(fits) == ["route"]


# ---- what it takes


def ways(train: Sequence[Any] = ROWS, candidate: Candidate | None = None, **search: Any) -> dict[str, list[Way]]:
    return ways_after(
        evaluator(Asked()), SearchSpec(**{"recalibrate": False, **search}), train, ROWS[:10], 2, candidate
    )


def test_a_prompt_is_read_for_each_label_output_of_a_row_that_holds_what_it_needs() -> None:
    assert readings(evaluator(Asked()), ROWS) == 30
    assert readings(evaluator(Asked()), examples(30, why=str)) == 0, "no gold labels"
    assert readings(evaluator(Asked()), examples(30, queue=lambda n: "billing" if n < 7 else None)) == 7
    empty = {"route": cuecard.signature("text -> queue: Optional[Literal['billing', 'technical', 'account']]")}
    assert readings(evaluator(Asked(), empty), examples(30, queue=lambda n: "billing" if n < 7 else None)) == 30
    two = cuecard.signature("text, level -> queue: Literal['billing', 'technical', 'account'], urgent: bool")
    rows = examples(6, queue=lambda n: "billing", urgent=lambda n: True, level=lambda n: "high" if n else None)
    assert readings(evaluator(Asked(), {"route": two}), rows) == 10


def test_nothing_is_tried_that_is_not_asked_for() -> None:
    assert ways() == {} and ways(readouts=("text", "choice"), calibrations=("none", "bias")) == {}


def test_a_head_takes_a_call_for_each_row_and_format_and_those_of_dev() -> None:
    assert ways(readouts=("head",)) == {"head": [Way(40, 30, 1), Way(70, 30, 2)]}
    many = ways(examples(200, queue=lambda n: LABELS[n % 3]), readouts=("head",))["head"]
    assert [(way.rows, way.formats) for way in many] == [(64, 1), (128, 1), (200, 1), (200, 2)]
    assert [way.calls for way in many] == [74, 138, 210, 410]
    assert ways(examples(30, why=str), readouts=("head",)) == {}, "nothing to learn from"


def test_a_matrix_takes_the_rows_that_no_demo_shows_where_a_label_is_chosen() -> None:
    shown = {"text": "row 3", "queue": "billing"}
    choice = Candidate({"route": PredictorState(readout=ReadOut(kind="choice"), demos=(shown,))})
    assert ways(calibrations=("none", "matrix")) == {"matrix": [Way(40, 30)]}
    assert ways(candidate=choice, calibrations=("none", "matrix")) == {"matrix": [Way(39, 29)]}
    assert ways(candidate=Candidate({"route": FOUND}), calibrations=("none", "matrix")) == {}


def test_votes_take_the_rows_of_dev_where_anything_is_generated() -> None:
    assert ways(votes=5) == ways(candidate=Candidate({"route": FOUND}), votes=5) == {"votes": [Way(10)]}
    labels = {"route": cuecard.signature("text -> queue: Literal['billing', 'technical']")}
    choice = Candidate({"route": PredictorState(readout=ReadOut(kind="choice"))})
    assert (
        ways_after(evaluator(Asked(), labels), SearchSpec(votes=5, recalibrate=False), ROWS, ROWS[:10], 2, choice) == {}
    )


def test_demos_can_grow_by_the_rows_of_dev_before_labels_are_recalibrated() -> None:
    labels = {"route": cuecard.signature("text -> queue: Literal['billing', 'technical', 'account']")}

    def found(**about: Any) -> dict[str, list[Way]]:
        known = Candidate({"route": FOUND})
        return ways_after(evaluator(Asked(), labels), SearchSpec(), ROWS, ROWS[:10], 2, known, **about)

    after = found(refits=True)
    assert after["refit"] == [Way(10)]
    assert afforded(after, 14) == {"refit": Way(10), "recalibrate": Way(4)}
    assert afforded(after, 9) == {"refit": None, "recalibrate": Way(9)}
    assert "refit" not in found()


def test_labels_are_recalibrated_on_as_many_rows_as_there_is_room_for_and_half_of_dev_is_kept_back() -> None:
    assert ways(candidate=Candidate({"route": FOUND}), recalibrate=True)["recalibrate"] == [
        Way(n) for n in range(1, 11)
    ]
    assert ways(recalibrate=True)["recalibrate"] == [Way(n) for n in range(1, 6)]
    free = {"route": cuecard.signature("text -> why: str")}
    assert ways_after(evaluator(Asked(), free), SearchSpec(), ROWS, ROWS[:10], 2, chooses=False) == {}
    assert ways_after(evaluator(Asked()), SearchSpec(), ROWS, ROWS[:10], 2, chooses=False) == {}


@pytest.mark.parametrize(
    ("room", "expected", "kept"),
    [
        (1000, {"head": Way(70, 30, 2), "votes": Way(10)}, 80),
        (160, {"head": Way(70, 30, 2), "votes": Way(10)}, 80),
        (79, {"head": Way(70, 30, 2), "votes": None}, 10),
        (50, {"head": Way(40, 30, 1), "votes": Way(10)}, 10),
        (39, {"head": None, "votes": Way(10)}, 10),
        (9, {"head": None, "votes": None}, 0),
    ],
)
def test_the_best_that_there_is_room_for_is_tried(room: int, expected: dict[str, Any], kept: int) -> None:
    """Half of the room at most is kept back for it: in 79 calls that is 39, which only votes would fit in."""
    asked = ways(readouts=("head",), votes=5)
    assert afforded(asked, room) == expected
    assert kept_back(asked, room) == kept


def test_rows_are_drawn_in_their_order_and_all_of_them_are_all() -> None:
    drawn = sampled(ROWS, 7, 0)
    assert len(drawn) == 7 and [row.id for row in drawn] == sorted({row.id for row in drawn})
    assert sampled(ROWS, 7, 0) == drawn != sampled(ROWS, 7, 1)
    assert sampled(ROWS, 30, 0) == list(ROWS) == sampled(ROWS, 99, 0)


# ---- against what the search has chosen


def challenged(
    score: Any, chosen: float = 0.5, rule: FrontRule | None = None, **about: Any
) -> tuple[SearchResult, list[Trial]]:
    """What becomes of a candidate with `score(row)`, a number or a failure, against a baseline of 0 and a prompt that
    gets the first `chosen` of 40 rows right.
    """
    told: list[Trial] = []
    head = Candidate({"route": PredictorState(format="completion")})
    prompt, zero = Candidate({"route": FOUND}), Candidate({"route": PredictorState()})

    def scored(candidate: Candidate, row: Any) -> float | str:
        if candidate is head:
            return score(row)  # type: ignore[no-any-return]
        return float(candidate is prompt and row.id < 40 * chosen)

    dev = examples(40)
    search = Search(
        FakeEvaluator({"route": ROUTE}, scored),
        Space(()),
        dev,
        (),
        Budget(trials=2),
        0,
        told.append,
        rule=rule or FrontRule(),
    )
    baseline = search.baseline(zero)
    best = baseline
    if chosen:
        outcomes = search.evaluator.run(prompt, search.order)
        best = Trial(1, {}, prompt, "complete", 40, chosen, chosen, measurements=tuple(o.measurement for o in outcomes))  # type: ignore[misc]
    result = SearchResult(baseline, best, None, bool(chosen), 2, "trials")
    return search.challenge(result, head, {"route.queue.head": {}}, **about), told


def test_a_head_that_is_better_is_chosen_and_the_prompt_is_kept() -> None:
    result, told = challenged(lambda row: float(row.id < 30))
    assert result.accepted and result.chosen is told[-1] and result.chosen.best
    assert (result.chosen.number, result.trials, result.chosen.score) == (2, 3, 0.75)
    assert result.prompt_only is not None and result.prompt_only.score == 0.5
    assert result.verdict is not None and result.verdict.difference == 0.75 and result.verdict.p_value < 0.05


def test_a_head_that_is_worse_is_a_trial_and_no_more() -> None:
    result, told = challenged(lambda row: float(row.id < 10))
    assert result.chosen is result.prompt_only and result.chosen.number == 1
    assert (told[-1].status, told[-1].score, told[-1].best, result.trials) == ("complete", 0.25, False, 3)


def test_a_lead_over_the_baseline_that_may_be_chance_is_not_enough() -> None:
    result, told = challenged(lambda row: float(row.id < 2), chosen=0.0)
    assert not result.accepted and result.chosen.number == 0 and told[-1].score == 0.05


def test_a_head_whose_call_fails_is_a_failed_trial() -> None:
    result, told = challenged(lambda row: "no room" if row.id == 7 else 1.0)
    assert (told[-1].status, told[-1].reason, told[-1].estimate) == ("failed", "no room", None)
    assert result.chosen is result.prompt_only and not told[-1].best


def test_one_whose_outcomes_can_not_be_trusted_is_a_failed_trial() -> None:
    result, told = challenged(lambda row: 1.0, prompts=True, unfair=lambda outcomes: f"{len(outcomes)} saw themselves")
    assert (told[-1].status, told[-1].reason) == ("failed", "40 saw themselves")
    assert result.chosen.number == 1 and not result.front


def test_one_that_ran_on_all_of_dev_is_a_point_of_the_front() -> None:
    result, _ = challenged(lambda row: float(row.id < 30), prompts=True)
    assert [(point.trial, point.score) for point in result.front] == [(2, 0.75)]


def test_one_with_longer_prompts_than_the_rule_allows_is_not_tried() -> None:
    rule = FrontRule(at_most_tokens=-1.0)
    result, told = challenged(lambda row: 1.0, rule=rule, prompts=True)
    assert (result.chosen.number, result.trials, told[1:]) == (1, 2, [])
