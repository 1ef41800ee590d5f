"""Calibration: the offsets of each method, and that a fitted bias is the one that was there."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest
from fakes import FakeEvaluator
from hypothesis import given, settings
from hypothesis import strategies as st

import cuecard
from cuecard.compiler.examples import Example
from cuecard.metrics import Measurement
from cuecard.optimizers.base import Candidate, Outcome
from cuecard.optimizers.calibrate import BIAS_ROWS, CONTENT_FREE, by_batch, calibrate, fit_bias
from cuecard.programs.readout import Choice
from cuecard.programs.state import Calibration, PredictorState, ReadOut

LABELS = ("billing", "technical", "account")
ROUTE = cuecard.signature("ticket -> queue: Literal['billing', 'technical', 'account']")
CANDIDATE = Candidate({"p": PredictorState(format="json", readout=ReadOut(kind="choice"))})


def rows(count: int) -> list[Example]:
    return [Example({"ticket": f"t{n}"}, {"queue": LABELS[n % 3]}, n) for n in range(count)]


def choosing(totals: Any, *, field: str = "queue", labels: tuple[str, ...] = LABELS) -> Any:
    """Outcomes in which `p` saw the log-likelihoods `totals(row)`; None stands for a failed call."""

    def outcome(candidate: Candidate, row: Any) -> Outcome:
        seen = totals(row)
        if seen is None:
            return Outcome(row, error="it broke")
        made = Choice(1, field, labels, tuple(map(float, seen)), labels[int(np.argmax(seen))], 9)
        return Outcome(row, Measurement(1.0), {}, choices=(("p", made),))

    return outcome


def fitted(evaluator: FakeEvaluator, method: str, given: list[Example], name: str = "p") -> Calibration | None:
    if method == "batch":
        states = by_batch(evaluator, CANDIDATE, [name], evaluator.run(CANDIDATE, given)).states
    else:
        states = calibrate(evaluator, CANDIDATE, {name: method}, given).states
    assert states["p"].format == "json"
    assert states["p"].readout.kind == "choice"
    return states["p"].readout.calibration


def no_score(candidate: Candidate, row: Any) -> float:
    raise AssertionError


# ---- batch


def test_batch_is_the_mean_less_the_mean_of_the_means() -> None:
    totals = {0: (-1.0, -4.0, -7.0), 1: (-3.0, -4.0, -5.0)}
    evaluator = FakeEvaluator({"p": ROUTE}, no_score, outcome=choosing(lambda row: totals[row.id]))
    found = fitted(evaluator, "batch", rows(2))
    assert found == Calibration(method="batch", offsets={"queue": {"billing": 2.0, "technical": 0.0, "account": -2.0}})


def test_a_bias_of_the_channel_is_drawn_towards_none() -> None:
    """Without gold labels nothing else is known: a choice's favourites are taken off, and the channel has none."""
    for channel, expected in ((False, {"billing": 2.0, "technical": 0.0, "account": -2.0}), (True, None)):

        def outcome(candidate: Candidate, row: Any, channel: bool = channel) -> Outcome:
            made = Choice(1, "queue", LABELS, (-2.0, -4.0, -6.0), "billing", 9, channel)
            return Outcome(row, Measurement(1.0), {}, choices=(("p", made),))

        given = [Example({"ticket": "t"}, {}, 0)]
        found = fitted(FakeEvaluator({"p": ROUTE}, no_score, outcome=outcome), "bias", given)
        assert found is not None
        assert found.offsets["queue"] == (expected or dict.fromkeys(LABELS, 0.0))


def test_a_bias_takes_the_first_rows_once_for_all_predictors() -> None:
    def outcome(candidate: Candidate, row: Any) -> Outcome:
        made = [Choice(n, "queue", LABELS, (-1.0, -2.0, -2.0), "billing", 9) for n in (1, 2)]
        return Outcome(row, Measurement(1.0), {}, choices=tuple(zip(("a", "b"), made, strict=True)))

    states = {"a": PredictorState(), "b": PredictorState()}
    for limit, expected in ((None, BIAS_ROWS), (16, 16), (1000, BIAS_ROWS)):
        evaluator = FakeEvaluator({"a": ROUTE, "b": ROUTE}, no_score, outcome=outcome)
        made = calibrate(evaluator, Candidate(states), {"a": "bias", "b": "bias"}, rows(200), limit=limit).states
        assert [ids for _, ids in evaluator.runs] == [list(range(expected))]
        assert [made[name].readout.calibration is not None for name in "ab"] == [True, True]


def test_failed_calls_are_left_out() -> None:
    evaluator = FakeEvaluator(
        {"p": ROUTE}, no_score, outcome=choosing(lambda row: None if row.id % 2 else (-1.0, -2.0, -3.0))
    )
    found = fitted(evaluator, "batch", rows(9))
    assert found is not None
    assert found.offsets["queue"] == {"billing": 1.0, "technical": 0.0, "account": -1.0}


def test_where_no_choice_was_made_there_is_no_calibration() -> None:
    for outcome in (choosing(lambda row: None), choosing(lambda row: (-1, -2, -3), field="other")):
        evaluator = FakeEvaluator({"p": ROUTE}, no_score, outcome=outcome)
        assert fitted(evaluator, "batch", rows(4)) is None
    assert fitted(FakeEvaluator({"p": ROUTE}, no_score, outcome=choosing(lambda row: (1, 2, 3))), "bias", []) is None


def test_of_several_calls_in_a_run_the_last_counts() -> None:
    def outcome(candidate: Candidate, row: Any) -> Outcome:
        made = [Choice(1, "queue", LABELS, totals, "billing", 9) for totals in ((9.0, 0, 0), (-1.0, -2.0, -3.0))]
        return Outcome(row, Measurement(1.0), {}, choices=tuple(("p", choice) for choice in made))

    found = fitted(FakeEvaluator({"p": ROUTE}, no_score, outcome=outcome), "batch", rows(3))
    assert found is not None
    assert found.offsets["queue"]["billing"] == 1.0


def test_each_output_field_has_its_own_offsets() -> None:
    signature = cuecard.signature("ticket -> note: str, a: bool, b: Literal['x', 'y']")

    def outcome(candidate: Candidate, row: Any) -> Outcome:
        a = Choice(1, "a", ("true", "false"), (-1.0, -3.0), "true", 9)
        b = Choice(1, "b", ("x", "y"), (-5.0, -1.0), "y", 9)
        return Outcome(row, Measurement(1.0), {}, choices=(("p", a), ("p", b)))

    found = fitted(FakeEvaluator({"p": signature}, no_score, outcome=outcome), "batch", rows(3))
    assert found is not None
    assert found.offsets == {"a": {"true": 1.0, "false": -1.0}, "b": {"x": -2.0, "y": 2.0}}


# ---- contextual


def test_contextual_is_the_mean_over_empty_inputs_and_runs_no_rows() -> None:
    asked: list[Mapping[str, Any]] = []

    def probe(candidate: Candidate, name: str, inputs: Mapping[str, Any]) -> list[Choice]:
        asked.append(inputs)
        nats = {"N/A": -1.0, "[MASK]": -2.0, "": -3.0}[inputs["ticket"]]
        return [Choice(1, "queue", LABELS, (nats, -2.0, -5.0), "billing", 9)]

    evaluator = FakeEvaluator({"p": ROUTE}, no_score, choices=probe)
    found = fitted(evaluator, "contextual", rows(50))
    assert [inputs["ticket"] for inputs in asked] == list(CONTENT_FREE)
    assert found == Calibration(
        method="contextual", offsets={"queue": {"billing": 1.0, "technical": 1.0, "account": -2.0}}
    )
    assert evaluator.runs == []
    assert evaluator.spent == 3


def test_contextual_without_an_answer_is_no_calibration() -> None:
    assert fitted(FakeEvaluator({"p": ROUTE}, no_score), "contextual", rows(3)) is None


# ---- bias


def test_the_fitted_bias_is_the_one_that_was_put_in() -> None:
    """Log-likelihoods that know the answer, plus a constant per label: the constant comes back, up to its mean."""
    random = np.random.default_rng(0)
    answers = random.integers(3, size=600)
    bias = np.array([4.0, 0.0, -4.0])
    totals = random.normal(size=(600, 3)) + bias - 20.0
    totals[np.arange(600), answers] += 2.0
    found = fit_bias(totals, answers, totals.mean(axis=0))
    assert found - found.mean() == pytest.approx(bias, abs=0.35)
    before = np.mean(np.argmax(totals, axis=1) == answers)
    after = np.mean(np.argmax(totals - found, axis=1) == answers)
    assert after > 0.8 > 0.5 > before


def test_a_bias_corrects_what_the_batch_cannot_know() -> None:
    """Nine in ten answers are the first label: the batch mean would take its likelihood for bias."""
    random = np.random.default_rng(1)
    answers = (random.random(400) > 0.9).astype(int)
    totals = random.normal(scale=0.7, size=(400, 2))
    totals[np.arange(400), answers] += 1.5
    prior = totals.mean(axis=0)
    found = fit_bias(totals, answers, prior)
    right = [np.mean(np.argmax(totals - offsets, axis=1) == answers) for offsets in (found, prior)]
    assert right[0] > right[1]


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 999), shift=st.floats(-50, 50), count=st.integers(1, 40))
def test_a_bias_does_not_depend_on_a_constant_and_is_finite(seed: int, shift: float, count: int) -> None:
    random = np.random.default_rng(seed)
    totals, answers = random.normal(size=(count, 3)), random.integers(3, size=count)
    one = fit_bias(totals, answers, totals.mean(axis=0))
    other = fit_bias(totals + shift, answers, (totals + shift).mean(axis=0))
    assert np.all(np.isfinite(one))
    chosen = [np.argmax(totals - one, axis=1), np.argmax(totals + shift - other, axis=1)]
    assert np.mean(chosen[0] == chosen[1]) >= 0.9, "at most a near tie falls the other way"


def test_one_label_alone_is_fitted_without_running_off() -> None:
    totals = np.random.default_rng(0).normal(size=(20, 3))
    found = fit_bias(totals, np.zeros(20, dtype=np.int64), totals.mean(axis=0))
    assert np.all(np.abs(found) < 1e4)
    assert found.argmin() == 0, "the label that is always right is helped"


def test_the_same_rows_give_the_same_offsets_to_the_last_digit() -> None:
    def totals(row: Any) -> Any:
        return np.random.default_rng(row.id).normal(size=3)

    made = [fitted(FakeEvaluator({"p": ROUTE}, no_score, outcome=choosing(totals)), "bias", rows(40)) for _ in "ab"]
    assert made[0] == made[1]
    assert made[0] is not None
    assert sum(made[0].offsets["queue"].values()) == pytest.approx(0, abs=2e-4), "offsets are centred"
    assert all(value == round(value, 4) for value in made[0].offsets["queue"].values())


def test_a_bias_without_gold_labels_is_the_batch_mean() -> None:
    evaluator = FakeEvaluator(
        {"p": ROUTE}, no_score, outcome=choosing(lambda row: (-1.0, -2.0, -3.0)), columns={"p": {"ticket": "ticket"}}
    )
    found = fitted(evaluator, "bias", rows(9))
    assert found is not None
    assert found.offsets["queue"] == {"billing": 1.0, "technical": 0.0, "account": -1.0}


def test_gold_values_that_are_no_label_are_left_out() -> None:
    given = [*rows(30), *(Example({"ticket": "odd"}, {"queue": value}, 30) for value in ("Billing", 3, ["billing"]))]

    def totals(row: Any) -> Any:
        return np.random.default_rng(row.id).normal(size=3)

    with_them = fitted(FakeEvaluator({"p": ROUTE}, no_score, outcome=choosing(totals)), "bias", given)
    assert with_them is not None
    assert with_them.method == "bias"


def test_typed_gold_values_are_found() -> None:
    """A bool's gold value is True, its label `true`."""
    signature = cuecard.signature("ticket -> urgent: bool")
    given = [Example({"ticket": "t"}, {"urgent": n % 4 != 0}, n) for n in range(40)]

    def totals(row: Any) -> Any:
        return np.random.default_rng(row.id).normal(size=2) - (3.0 if row.labels["urgent"] else 0.0, 3.0)

    outcome = choosing(totals, field="urgent", labels=("true", "false"))
    found = fitted(FakeEvaluator({"p": signature}, no_score, outcome=outcome), "bias", given)
    batch = fitted(FakeEvaluator({"p": signature}, no_score, outcome=outcome), "batch", given)
    assert found is not None and batch is not None
    assert found.offsets != batch.offsets


def test_null_is_a_label_like_others_where_the_type_has_it() -> None:
    signature = cuecard.signature("ticket -> queue: Optional[Literal['a', 'b']]")
    labels = ("a", "b", "null")
    given = [Example({"ticket": "t"}, {"queue": None if n % 2 else "a"}, n) for n in range(30)]

    def totals(row: Any) -> Any:
        return (-1.0 + np.random.default_rng(row.id).normal(), -9.0, -5.0)

    found = fitted(FakeEvaluator({"p": signature}, no_score, outcome=choosing(totals, labels=labels)), "bias", given)
    batch = fitted(FakeEvaluator({"p": signature}, no_score, outcome=choosing(totals, labels=labels)), "batch", given)
    assert found is not None and batch is not None
    gained = {label: batch.offsets["queue"][label] - found.offsets["queue"][label] for label in labels}
    assert gained["null"] > gained["b"], "it is right on every other row"


def test_predictors_that_are_not_named_stay_as_they_are() -> None:
    states = {"p": PredictorState(), "q": PredictorState(format="xml")}
    evaluator = FakeEvaluator({"p": ROUTE, "q": ROUTE}, no_score, outcome=choosing(lambda row: (-1, -2, -3)))
    made = calibrate(evaluator, Candidate(states), {"p": "bias"}, rows(4)).states
    assert made["q"] is states["q"]
    assert calibrate(evaluator, Candidate(states), {}, rows(4)).states == states
