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
from cuecard.optimizers.headed import FORMATS, headed
from cuecard.optimizers.search import Search, SearchResult
from cuecard.optimizers.space import Space
from cuecard.programs.state import NearestDemos, PredictorState

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
    assert (head.weights, head.layer, head.pooling) == ("t.route.queue.head.safetensors", 2, "mean")
    assert fits["route"]["queue"].accuracy > 0.9 and fits["route"]["queue"].head.labels == LABELS


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


# ---- against what the search has chosen


def challenged(score: Any, chosen: float = 0.5) -> tuple[SearchResult, list[Trial]]:
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
    search = Search(FakeEvaluator({"route": ROUTE}, scored), Space(()), dev, (), Budget(trials=2), 0, told.append)
    baseline = search.baseline(zero)
    best = baseline
    if chosen:
        outcomes = search.evaluator.run(prompt, search.order)
        best = Trial(1, {}, prompt, "complete", 40, chosen, chosen, measurements=tuple(o.measurement for o in outcomes))  # type: ignore[misc]
    result = SearchResult(baseline, best, None, bool(chosen), 2, "trials")
    return search.challenge(result, head, {"route.queue.head": {}}), told


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
