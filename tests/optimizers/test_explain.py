"""What is taken back from a winner, and what is made of the scores without it."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from fakes import FakeEvaluator
from hypothesis import given
from hypothesis import strategies as st

import cuecard
from cuecard.compiler.examples import Example
from cuecard.metrics import Measurement
from cuecard.metrics import metric as metric_named
from cuecard.metrics.statistics import holm
from cuecard.models.engine import Decoding
from cuecard.optimizers.base import Candidate, Outcome
from cuecard.optimizers.explain import Variant, ablations, compare, demos_left_out, effects
from cuecard.optimizers.likelihood import label_likelihoods, likelihood_added
from cuecard.programs.heads import Head, choice_of
from cuecard.programs.readout import Choice
from cuecard.programs.state import Calibration, NearestDemos, PredictorState, ReadOut

EXACT = metric_named("exact_match")
ROUTE = cuecard.signature("ticket -> queue: Literal['billing', 'technical']")
DEMOS = tuple({"ticket": f"t{n}", "queue": "billing"} for n in range(3))
OFFSETS = Calibration(method="batch", offsets={"queue": {"billing": 1.0, "technical": -1.0}})
BASE = PredictorState(instructions="the user's own")
CHANGES: dict[str, dict[str, Any]] = {
    "instruction": {"instructions": "another"},
    "demos": {"demos": DEMOS},
    "nearest": {"nearest": NearestDemos(count=2, pool=DEMOS)},
    "format": {"format": "completion"},
    "readout": {"readout": ReadOut(kind="constrained")},
    "decoding.temperature": {"temperature": 0.5},
    "decoding.max_tokens": {"max_tokens": 9},
}


def changed(names: set[str]) -> PredictorState:
    """The baseline's state with these dimensions at another value."""
    given = {key: value for name in names for key, value in CHANGES[name].items()}
    settings = {key: given.pop(key) for key in ("temperature", "max_tokens") if key in given}
    return BASE.model_copy(update={**given, "decoding": Decoding(**settings)})


def rows(count: int) -> list[Example]:
    return [Example({"ticket": f"t{n}"}, {"queue": "billing"}, n) for n in range(count)]


def ran(score: Callable[[int], float | str], count: int = 12) -> list[Outcome]:
    """Outcomes by row number: a score, or why the call failed."""
    evaluator = FakeEvaluator({"p": ROUTE}, lambda candidate, row: score(row.id))
    return evaluator.run(Candidate({"p": BASE}), rows(count))


# ---- what is taken back


@given(st.sets(st.sampled_from(sorted(CHANGES))))
def test_each_dimension_that_differs_goes_back_alone(names: set[str]) -> None:
    winner, baseline = Candidate({"p": changed(names)}), Candidate({"p": BASE})
    found = ablations(winner, baseline)
    assert {variant.dimension for variant in found} == names
    assert len(found) == len(names)
    for variant in found:
        assert variant.candidate == Candidate({"p": changed(names - {variant.dimension})})
        assert variant.along is None


def test_predictors_go_back_one_by_one() -> None:
    winner = Candidate({"a": changed({"instruction"}), "b": changed({"format"})})
    found = ablations(winner, Candidate({"a": BASE, "b": BASE}))
    assert [(v.predictor, v.dimension, v.before, v.after) for v in found] == [
        ("a", "instruction", "the user's own", "another"),
        ("b", "format", "chat", "completion"),
    ]
    assert found[0].candidate.states == {"a": BASE, "b": winner.states["b"]}


def test_a_format_is_the_same_however_it_is_written() -> None:
    state = BASE.model_copy(update={"format": {"name": "chat"}})
    assert ablations(Candidate({"p": state}), Candidate({"p": BASE})) == []


def test_a_calibration_goes_with_the_choice_that_it_belongs_to() -> None:
    state = BASE.model_copy(update={"readout": ReadOut(kind="choice", calibration=OFFSETS)})
    readout, calibration = ablations(Candidate({"p": state}), Candidate({"p": BASE}))
    assert (readout.dimension, readout.along, readout.before, readout.after) == (
        "readout",
        "calibration",
        "text",
        "choice",
    )
    assert readout.candidate.states["p"] == BASE
    assert (calibration.dimension, calibration.before, calibration.after) == ("calibration", "none", "batch")
    assert calibration.candidate.states["p"].readout == ReadOut(kind="choice")


def test_the_baselines_own_calibration_comes_back() -> None:
    own = ReadOut(kind="choice", calibration=Calibration(method="bias", offsets={"queue": {"billing": 0.5}}))
    states = [BASE.model_copy(update={"readout": each}) for each in (ReadOut(kind="choice", calibration=OFFSETS), own)]
    (found,) = ablations(*(Candidate({"p": state}) for state in states))
    assert (found.dimension, found.before, found.after) == ("calibration", "bias", "batch")
    assert found.candidate.states["p"].readout == own


def matrix() -> Head:
    """Logits that are twice the log-likelihoods."""
    labels, two = ("technical", "billing"), np.eye(2, dtype=np.float32) * 2
    zeros, ones = np.zeros(2, dtype=np.float32), np.ones(2, dtype=np.float32)
    return Head(labels, two, zeros, zeros, ones, None, "scores")


def test_a_matrix_is_a_calibration() -> None:
    choice = choice_of(matrix(), "x.p.queue.head.safetensors")
    states = [
        BASE.model_copy(update={"readout": ReadOut(kind="choice", **more)})
        for more in ({"heads": {"queue": choice}}, {})
    ]
    (found,) = ablations(*(Candidate({"p": state}) for state in states))
    assert (found.dimension, found.before, found.after) == ("calibration", "none", "matrix")
    assert found.candidate.states["p"].readout == ReadOut(kind="choice")


def test_each_demo_is_left_out_in_turn() -> None:
    winner = Candidate({"a": BASE, "p": changed({"demos", "format"})})
    found = demos_left_out(winner)
    assert [(variant.predictor, variant.demo, variant.after) for variant in found] == [
        ("p", number, demo) for number, demo in enumerate(DEMOS, start=1)
    ]
    assert found[1].candidate.states["p"].demos == (DEMOS[0], DEMOS[2])
    assert found[1].candidate.states["p"].format == "completion"
    listed = winner.states["p"].model_copy(update={"readout": ReadOut(kind="channel")})
    assert demos_left_out(Candidate({"p": listed})) == [], "one of dozens is nothing"


# ---- what it adds


def test_what_a_thing_adds_is_the_winners_score_less_the_one_without_it() -> None:
    winner, other = ran(lambda n: float(n < 9)), ran(lambda n: float(n < 3 or n == 11))
    found = compare(EXACT, winner, other)
    assert found is not None
    assert found.without.value == pytest.approx(4 / 12)
    assert found.adds.difference == pytest.approx(5 / 12)
    assert (found.adds.wins, found.adds.losses, found.adds.ties) == (6, 1, 5)
    shared = compare(EXACT, winner, other, tests=10)
    assert shared is not None and shared.detectable > found.detectable, "a level that is shared sees less"


def variant(name: str) -> Variant:
    return Variant("p", name, Candidate({"p": BASE}))


def test_p_values_are_corrected_for_all_effects_together() -> None:
    winner = ran(lambda n: 1.0)
    lost = {"a": 8, "b": 6, "c": 0}
    found = effects(EXACT, winner, [(variant(name), ran(lambda n, k=k: float(n >= k))) for name, k in lost.items()])
    raw = {name: compare(EXACT, winner, ran(lambda n, k=k: float(n >= k))) for name, k in lost.items()}
    plain = {name: each.adds.p_two_sided for name, each in raw.items() if each is not None}
    assert {each.dimension: each.p_value for each in found} == holm(plain)
    assert found[0].p_value == pytest.approx(3 * 2 * 0.5**8)
    assert found[2].p_value == 1.0


def test_a_failed_call_is_no_score() -> None:
    winner = ran(lambda n: "winner down" if n == 0 else 1.0)
    some, none = ran(lambda n: "down" if n == 1 else 0.0), ran(lambda n: "too long")
    first, second = effects(EXACT, winner, [(variant("a"), some), (variant("b"), none)])
    assert first.compared is not None
    assert (first.compared.adds.n, first.failed, first.compared.adds.difference) == (10, 2, 1.0)
    assert (second.compared, second.p_value, second.failed, second.reason) == (None, None, 12, "too long")
    assert first.p_value == first.compared.adds.p_two_sided, "what has no score is no test"


def test_nothing_to_explain_is_no_effect() -> None:
    assert effects(EXACT, ran(lambda n: 1.0), []) == []


# ---- log-likelihoods


def chose(totals: tuple[float, float], gold: Any = "billing", field: str = "queue") -> Outcome:
    choice = Choice(0, field, ("billing", "technical"), totals, "billing", 5)
    return Outcome(Example({"ticket": "t"}, {"queue": gold}, 0), Measurement(1.0), {}, choices=(("p", choice),))


def known(readout: ReadOut, *outcomes: Outcome) -> list[float | None]:
    return label_likelihoods("p", ROUTE, {"queue": "queue"}, readout, outcomes)


def test_a_labels_log_likelihood_is_normalised_and_calibrated() -> None:
    plain = known(ReadOut(kind="choice"), chose((-3.0, -3.0)), chose((-1.0, -2.0), "technical"))
    assert plain == [pytest.approx(math.log(0.5)), pytest.approx(-math.log(1 + math.e))]
    (moved,) = known(ReadOut(kind="choice", calibration=OFFSETS), chose((-3.0, -3.0)))
    assert moved == pytest.approx(-math.log(1 + math.exp(2.0)))
    heads = {"queue": choice_of(matrix(), "x.p.queue.head.safetensors")}
    (scaled,) = known(ReadOut(kind="choice", heads=heads), chose((-1.0, -2.0)))
    assert scaled == pytest.approx(-math.log(1 + math.exp(-2.0)))


def test_rows_without_a_choice_or_a_gold_label_have_none() -> None:
    unread = Outcome(Example({"ticket": "t"}, {"queue": "billing"}, 0), Measurement(0.0), unread="no")
    other = chose((-1.0, -1.0), gold="shipping")
    several = chose((-1.0, -1.0), gold=["billing", "technical"])
    assert known(ReadOut(kind="choice"), unread, other, several) == [None, None, None]
    assert label_likelihoods("p", ROUTE, {}, ReadOut(kind="choice"), [chose((-1.0, -1.0))]) == [None]
    assert label_likelihoods("q", ROUTE, {"queue": "queue"}, ReadOut(kind="choice"), [chose((-1.0, -1.0))]) == [None]


def test_what_is_added_to_the_log_likelihood_is_a_mean_over_the_rows_that_have_one() -> None:
    found = likelihood_added([-1.0, -2.0, None, -math.inf, -1.5], [-2.0, -2.5, -1.0, -1.0, None], "token")
    assert found is not None
    assert (found.adds, found.n, found.unit) == (pytest.approx(0.75), 2, "token")
    assert found.low <= found.adds <= found.high
    assert likelihood_added([None], [-1.0], "label") is None
    same = likelihood_added([-1.0, -1.0], [-1.0, -1.0], "label")
    assert same is not None and (same.adds, same.low, same.high) == (0.0, 0.0, 0.0)
