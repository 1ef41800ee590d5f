"""Demos: gold ones from labelled rows, bootstrapped ones from good runs, and the sets that are drawn from them."""

from __future__ import annotations

from typing import Any

import pytest
from fakes import FakeEvaluator, Plain
from hypothesis import given, settings
from hypothesis import strategies as st

import cuecard
from cuecard.compiler.examples import Example
from cuecard.metrics import Measurement
from cuecard.optimizers.base import Candidate, Outcome, Step
from cuecard.optimizers.demos import label_counts, label_sets, pools, sets
from cuecard.programs.state import PredictorState

ROUTE = cuecard.signature("ticket -> queue: Literal['billing', 'technical']")
THOUGHT = cuecard.signature("ticket -> reasoning: str, queue: Literal['billing', 'technical']")
SUMMARY = cuecard.signature("ticket -> summary: str")
ANY = Candidate({"p": PredictorState()})


def rows(count: int, **labels: Any) -> list[Example]:
    made = [{"queue": ("billing", "technical")[n % 2], **labels} for n in range(count)]
    return [Example({"ticket": f"t{n}"}, labels, n) for n, labels in enumerate(made)]


def never(candidate: Candidate, row: Any) -> float:
    raise AssertionError("nothing should run")


def runs(scores: dict[int, float], outputs: Any, *, unread: frozenset[int] = frozenset()) -> Any:
    """Outcomes in which predictor `p` gave `outputs(row)` and the run scored `scores[row]`; no score is a failure."""

    def outcome(candidate: Candidate, row: Any) -> Outcome:
        if row.id not in scores:
            return Outcome(row, error="it broke")
        step = Step("p", dict(row.inputs), outputs(row))
        why = "not readable" if row.id in unread else None
        return Outcome(row, Measurement(scores[row.id]), None if why else {}, why, steps=(step,))

    return outcome


def reasoned(row: Any) -> dict[str, Any]:
    return {"reasoning": f"because of {row.id}", "queue": "technical"}


# ---- labelled


def test_null_is_a_value_where_the_type_has_it() -> None:
    signature = cuecard.signature("ticket -> queue: Literal['billing', 'technical'], order: Optional[str]")
    given = [*rows(2, order=None), *rows(1, order="A7"), *rows(1)]
    found = pools(FakeEvaluator({"p": signature}, never), ANY, given)["p"]
    assert [demo["order"] for demo in found] == [None, None, "A7"], "the last row says nothing of an order"
    lacking = FakeEvaluator({"p": SUMMARY}, never, outcome=runs({0: 1.0}, lambda row: {"summary": "own"}))
    assert pools(lacking, ANY, rows(1, summary=None)) == {"p": [{"ticket": "t0", "summary": "own"}]}


def test_labelled_rows_are_demos_and_nothing_runs() -> None:
    evaluator = FakeEvaluator({"p": ROUTE}, never)
    assert pools(evaluator, ANY, rows(2)) == {
        "p": [{"ticket": "t0", "queue": "billing"}, {"ticket": "t1", "queue": "technical"}]
    }
    assert evaluator.spent == 0


def test_columns_of_other_names_are_followed() -> None:
    evaluator = FakeEvaluator({"p": SUMMARY}, never, columns={"p": {"ticket": "ticket", "summary": "short"}})
    assert pools(evaluator, ANY, rows(1, short="In brief.")) == {"p": [{"ticket": "t0", "summary": "In brief."}]}


def test_rows_that_lack_a_value_are_left_out() -> None:
    given = [*rows(2), Example({"ticket": "t2"}, {}, 2), Example({"ticket": "t3"}, {"queue": None}, 3)]
    assert len(pools(FakeEvaluator({"p": ROUTE}, never), ANY, given)["p"]) == 2


def test_false_and_nought_are_values() -> None:
    signature = cuecard.signature("ticket -> urgent: bool, count: int")
    given = [Example({"ticket": "t"}, {"urgent": False, "count": 0}, 0)]
    assert pools(FakeEvaluator({"p": signature}, never), ANY, given)["p"] == [
        {"ticket": "t", "urgent": False, "count": 0}
    ]


@pytest.mark.parametrize("type_", ["str", "str | None"])
def test_of_several_references_the_first_is_shown(type_: str) -> None:
    signature = cuecard.signature(f"ticket -> note: {type_}")
    given = [Example({"ticket": "t"}, {"note": ["first", "second"]}, 0)]
    assert pools(FakeEvaluator({"p": signature}, never), ANY, given)["p"] == [{"ticket": "t", "note": "first"}]


def test_of_three_references_and_more_the_one_is_shown_that_the_others_are_most_like() -> None:
    signature = cuecard.signature("ticket -> note: str")
    typical = "Pay the second invoice back today."
    notes = ["Call them.", "You must pay the second invoice back.", typical, "Pay the invoice back today."]
    given = [Example({"ticket": "t"}, {"note": notes}, 0)]
    assert pools(FakeEvaluator({"p": signature}, never), ANY, given)["p"] == [{"ticket": "t", "note": typical}]


def test_a_row_whose_references_are_empty_shows_nothing() -> None:
    signature = cuecard.signature("ticket -> note: str")
    given = [Example({"ticket": "t"}, {"note": []}, 0), Example({"ticket": "u"}, {"note": ["n"]}, 1)]
    assert pools(FakeEvaluator({"p": signature}, never), ANY, given)["p"] == [{"ticket": "u", "note": "n"}]


def test_a_list_that_is_the_value_stays_a_list() -> None:
    signature = cuecard.signature("passages: str, ticket -> words: list[str]")
    given = [Example({"passages": ["one", "two"], "ticket": "t"}, {"words": ["a", "b"]}, 0)]
    assert pools(FakeEvaluator({"p": signature}, never), ANY, given)["p"] == [
        {"passages": ["one", "two"], "ticket": "t", "words": ["a", "b"]}
    ], "a list given for an input is no list of references"


# ---- bootstrapped


def test_only_predictors_without_labels_make_the_program_run() -> None:
    evaluator = FakeEvaluator(
        {"p": THOUGHT, "labelled": ROUTE}, never, outcome=runs(dict.fromkeys(range(4), 1.0), reasoned)
    )
    found = pools(evaluator, ANY, rows(4))
    assert [ids for _, ids in evaluator.runs] == [[0, 1, 2, 3]]
    assert len(found["p"]) == len(found["labelled"]) == 4


def test_gold_values_replace_the_programs_own() -> None:
    evaluator = FakeEvaluator({"p": THOUGHT}, never, outcome=runs({0: 1.0, 1: 1.0}, reasoned))
    assert pools(evaluator, ANY, rows(2))["p"] == [
        {"ticket": "t0", "reasoning": "because of 0", "queue": "billing"},
        {"ticket": "t1", "reasoning": "because of 1", "queue": "technical"},
    ]


def test_the_bootstrap_candidate_is_what_runs() -> None:
    evaluator = FakeEvaluator({"p": THOUGHT}, never, outcome=runs({0: 1.0}, reasoned))
    pools(evaluator, ANY, rows(1))
    assert evaluator.runs[0][0] is ANY


def test_only_the_best_runs_of_a_yes_or_no_metric_are_kept() -> None:
    scores = {0: 1.0, 1: 0.0, 2: 1.0, 4: 1.0}  # 3 failed
    outcome = runs(scores, reasoned, unread=frozenset({4}))
    found = pools(FakeEvaluator({"p": THOUGHT}, never, outcome=outcome), ANY, rows(5))
    assert [demo["ticket"] for demo in found["p"]] == ["t0", "t2"]


def test_of_a_graded_metric_the_better_half_is_kept() -> None:
    outcome = runs({0: 0.1, 1: 0.2, 2: 0.3, 3: 0.4, 4: 0.9}, reasoned)
    found = pools(FakeEvaluator({"p": THOUGHT}, never, outcome=outcome), ANY, rows(5))
    assert [demo["ticket"] for demo in found["p"]] == ["t2", "t3", "t4"]


def test_the_worst_score_is_never_good_enough() -> None:
    outcome = runs({0: 0.0, 1: 0.0, 2: 0.0, 3: 0.5}, reasoned)
    found = pools(FakeEvaluator({"p": THOUGHT}, never, outcome=outcome), ANY, rows(4))
    assert [demo["ticket"] for demo in found["p"]] == ["t3"]


def test_a_metrics_own_range_counts() -> None:
    class Signed(Plain):
        low, high = -1.0, 1.0

    outcome = runs({0: -1.0, 1: 1.0}, reasoned)
    found = pools(FakeEvaluator({"p": THOUGHT}, never, outcome=outcome, metric=Signed()), ANY, rows(2))
    assert [demo["ticket"] for demo in found["p"]] == ["t1"]


@pytest.mark.parametrize("scores", [{0: 0.0, 1: 0.0}, {}])
def test_without_a_good_run_the_pool_is_empty(scores: dict[int, float]) -> None:
    found = pools(FakeEvaluator({"p": THOUGHT}, never, outcome=runs(scores, reasoned)), ANY, rows(2))
    assert found == {"p": []}


def test_the_last_call_of_a_predictor_is_the_demo() -> None:
    def outcome(candidate: Candidate, row: Any) -> Outcome:
        steps = [Step("p", {"ticket": f"try {n}"}, {"reasoning": f"r{n}", "queue": "billing"}) for n in range(3)]
        return Outcome(row, Measurement(1.0), {}, steps=(*steps, Step("other", {}, {})))

    evaluator = FakeEvaluator({"p": THOUGHT}, never, outcome=outcome, columns={})
    assert pools(evaluator, ANY, rows(1))["p"] == [{"ticket": "try 2", "reasoning": "r2", "queue": "billing"}]


def test_values_that_are_no_fields_are_not_shown() -> None:
    def extra(row: Any) -> dict[str, Any]:
        return {**reasoned(row), "history": "x"}

    evaluator = FakeEvaluator({"p": THOUGHT}, never, outcome=runs({0: 1.0}, extra))
    assert set(pools(evaluator, ANY, rows(1))["p"][0]) == {"ticket", "reasoning", "queue"}


def test_no_rows_no_runs() -> None:
    evaluator = FakeEvaluator({"p": THOUGHT}, never)
    assert pools(evaluator, ANY, []).get("p", []) == []
    assert evaluator.runs == []


# ---- sets


POOL = [{"ticket": f"t{n}"} for n in range(10)]


@settings(max_examples=40, deadline=None)
@given(count=st.integers(0, 5), size=st.integers(0, 14), seed=st.integers(0, 99))
def test_sets_hold_no_demo_twice_and_are_the_same_each_time(count: int, size: int, seed: int) -> None:
    drawn = sets(POOL, count, size, seed=seed, name="p")
    assert drawn == sets(POOL, count, size, seed=seed, name="p")
    assert len(drawn) == count
    for demos in drawn:
        names = [demo["ticket"] for demo in demos]
        assert len(set(names)) == len(names) == min(size, len(POOL))


def test_more_sets_begin_with_the_same_ones() -> None:
    assert sets(POOL, 8, 4, seed=0, name="p")[:3] == sets(POOL, 3, 4, seed=0, name="p")


def test_seed_and_predictor_make_other_sets() -> None:
    drawn = [sets(POOL, 4, 6, seed=seed, name=name) for seed in (0, 1) for name in ("p", "q")]
    assert len(set(map(repr, drawn))) == 4
    assert len(set(map(repr, drawn[0]))) > 1


def test_demos_with_a_label_stand_in_orders_of_their_own() -> None:
    route = cuecard.signature("ticket -> queue: Literal['a', 'b', 'c'], urgent: bool | None, note")
    pool = [{"ticket": str(n), "queue": "ca"[n % 2], "urgent": n % 4 == 0, "note": ""} for n in range(20)]
    other = [{"ticket": "x", "note": ""}, {"ticket": "y", "queue": "d"}, {"ticket": "z", "urgent": None}]
    first, second = label_sets([*pool, *other], route, 2, seed=3, name="p")
    for drawn in (first, second):
        assert sorted(map(repr, drawn)) == sorted(map(repr, [*pool, other[2]])), "null is a label where it may be one"
    assert first != second
    assert (first, second) == label_sets([*pool, *other], route, 2, seed=3, name="p")
    assert first != label_sets([*pool, *other], route, 1, seed=4, name="p")[0]
    counts = label_counts(route, [*pool, *other])
    assert counts == {"queue": {"a": 10, "c": 10}, "urgent": {"true": 5, "false": 15, "null": 1}}
