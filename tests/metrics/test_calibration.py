"""The calibration error: equal to a plain computation and to scikit-learn's, and what it says where it can't be told."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.calibration import calibration_curve

from cuecard.errors import InputError
from cuecard.metrics import Measurement, Metric, metric
from cuecard.metrics.calibration import CalibrationError, LabelChoice
from cuecard.metrics.statistics import interval, paired_test

LABELS = ("billing", "technical", "account", "other")


@dataclass(frozen=True)
class Case:
    """An answer beside the choices that it was made of."""

    gold: Mapping[str, Any]
    prediction: Mapping[str, Any]
    choices: Mapping[str, LabelChoice] = field(default_factory=dict)


def chosen(gold: Any, scores: Sequence[float], name: str = "queue") -> Case:
    """The likeliest of the labels, of these log-likelihoods."""
    label = LABELS[int(np.argmax(scores))]
    return Case({name: gold}, {name: label}, {name: LabelChoice(label, dict(zip(LABELS, scores, strict=False)))})


def sure(confidence: float, right: bool) -> Case:
    """An answer of this confidence, of two labels."""
    scores = (math.log(confidence), math.log(1 - confidence))
    case = chosen("billing" if right else "technical", scores)
    choice = LabelChoice("billing", dict(zip(LABELS, scores, strict=False)))
    return Case(case.gold, {"queue": "billing"}, {"queue": choice})


def measured(cases: Sequence[Case], bins: int = 10) -> list[Measurement]:
    found = CalibrationError(bins=bins).measure_all(cases)
    assert all(isinstance(each, Measurement) for each in found)
    return [each for each in found if isinstance(each, Measurement)]


def error(cases: Sequence[Case], bins: int = 10) -> float:
    return 1 - CalibrationError(bins=bins).aggregate(measured(cases, bins))


def drawn(seed: int, count: int, labels: int, spread: float) -> tuple[list[Case], np.ndarray, np.ndarray]:
    """Random answers, their confidences and which of them are right, the two by plain numpy."""
    generator = np.random.default_rng(seed)
    scores = generator.normal(scale=spread, size=(count, labels))
    golds = generator.integers(labels, size=count)
    weights = np.exp(scores)
    confidence = (weights / weights.sum(axis=1, keepdims=True)).max(axis=1)
    cases = [chosen(LABELS[gold], row) for gold, row in zip(golds, scores.tolist(), strict=True)]
    return cases, confidence, scores.argmax(axis=1) == golds


random_answers = given(
    seed=st.integers(0, 2**32 - 1),
    count=st.integers(1, 20),
    labels=st.integers(2, 4),
    spread=st.sampled_from([0.01, 0.5, 2.0, 8.0]),
    bins=st.integers(1, 20),
)


@settings(max_examples=5000, deadline=None)
@random_answers
def test_it_equals_a_plain_computation(seed: int, count: int, labels: int, spread: float, bins: int) -> None:
    cases, confidence, right = drawn(seed, count, labels, spread)
    expected = 0.0
    for place in range(bins):
        inside = (confidence > place / bins) & (confidence <= (place + 1) / bins)
        if inside.any():
            expected += inside.mean() * abs(right[inside].mean() - confidence[inside].mean())
    assert error(cases, bins) == pytest.approx(expected, abs=1e-12)


def test_it_equals_scikit_learns_curve_weighted() -> None:
    generator = np.random.default_rng(0)
    for seed in range(5000):
        count, labels, bins = (int(generator.integers(*ends)) for ends in ((1, 21), (2, 5), (1, 21)))
        cases, confidence, right = drawn(seed, count, labels, float(generator.choice([0.01, 0.5, 2.0, 8.0])))
        accuracy, mean = calibration_curve(right, confidence, n_bins=bins)
        edges = np.linspace(0, 1, bins + 1)
        counts = np.bincount(np.searchsorted(edges[1:-1], confidence), minlength=bins)
        expected = np.sum(counts[counts > 0] * abs(accuracy - mean)) / count
        assert error(cases, bins) == pytest.approx(expected, abs=1e-9), (seed, count, labels, bins)


@settings(max_examples=200, deadline=None)
@random_answers
def test_scores_stay_in_the_declared_range(seed: int, count: int, labels: int, spread: float, bins: int) -> None:
    ours = CalibrationError(bins=bins)
    found = measured(drawn(seed, count, labels, spread)[0], bins)
    for score in (*(each.score for each in found), ours.aggregate(found)):
        assert ours.low <= score <= ours.high
    assert {len(each.statistics) for each in (*found, ours.worst({"queue": "billing"}))} == {ours.width}
    assert ours.aggregate(found[::-1]) == ours.aggregate(found)


def test_what_it_declares() -> None:
    told = metric({"metric": "calibration_error", "bins": 5}).describe()
    assert (told.name, told.low, told.high) == ("calibration_error", 0, 1)
    assert (told.aggregation, told.direction) == ("corpus", "higher is better")


def test_ten_answers_that_are_80_percent_sure() -> None:
    assert error([sure(0.8, n < 8) for n in range(10)]) == pytest.approx(0, abs=1e-12)
    assert error([sure(0.8, n < 5) for n in range(10)]) == pytest.approx(0.3)
    assert error([sure(0.8, True)]) == pytest.approx(0.2)
    assert [each.score for each in measured([sure(0.8, True), sure(0.8, False)])] == pytest.approx([0.8, 0.2])


def test_gaps_cancel_out_within_a_bin_only() -> None:
    cases = [sure(0.6, True)] * 5 + [sure(0.9, False)] * 5
    assert error(cases, 10) == pytest.approx(0.5 * 0.4 + 0.5 * 0.9)
    assert error(cases, 1) == pytest.approx(abs(0.5 - 0.75))


def test_an_edge_belongs_to_the_bin_below_and_certainty_to_the_last() -> None:
    half = chosen("billing", (0.0, 0.0))
    assert measured([half], 2)[0].statistics == (1, 0, 0.5, 0, 1, 0)
    certain = chosen("technical", (0.0, -math.inf))
    assert measured([certain], 2)[0].statistics == (0, 1, 0, 1, 0, 0)


@given(st.lists(st.floats(-80, 0), min_size=2, max_size=4), st.floats(-5, 5))
def test_confidence_depends_on_differences_alone(scores: list[float], shift: float) -> None:
    ours = chosen("billing", scores).choices["queue"]
    moved = LabelChoice(ours.label, {label: score + shift for label, score in ours.scores.items()})
    assert moved.confidence == pytest.approx(ours.confidence)
    whole = math.fsum(LabelChoice(label, ours.scores).confidence for label in ours.scores)
    assert whole == pytest.approx(1)


def test_an_unreadable_output_is_a_wrong_answer_that_the_program_was_sure_of() -> None:
    ours = CalibrationError()
    worst = ours.worst({"queue": "billing"})
    assert (worst.score, ours.aggregate([worst])) == (0, 0)
    assert ours.aggregate([worst, *measured([sure(1 - 1e-15, True)])]) == pytest.approx(0.5)


def test_several_references_and_several_fields() -> None:
    assert measured([chosen(["account", "billing"], (0.0, -50.0))])[0].score == pytest.approx(1)
    one, other = chosen("billing", (0.0, -50.0)), chosen("billing", (-50.0, 0.0), "team")
    both = Case({**one.gold, **other.gold}, {**one.prediction, **other.prediction}, {**one.choices, **other.choices})
    found = measured([both])
    assert found[0].score == pytest.approx(0.5)
    assert CalibrationError().aggregate(found) == pytest.approx(0.5)
    assert CalibrationError(fields=("queue",)).measure_all([both]) == measured([one])


def test_values_of_other_types_are_labels_too() -> None:
    choice = LabelChoice("true", {"true": 0.0, "false": -50.0})
    assert measured([Case({"spam": True}, {"spam": True}, {"spam": choice})])[0].score == pytest.approx(1)
    assert measured([Case({"spam": "false"}, {"spam": True}, {"spam": choice})])[0].score == pytest.approx(0)


def test_an_answer_without_a_choice_says_what_to_do() -> None:
    [told] = CalibrationError().measure_all([Case({"queue": "billing"}, {"queue": "billing"})])
    assert isinstance(told, str)
    assert told.startswith("the field 'queue' was not chosen among labels")
    assert "`readout: choice`" in told and "--replay" in told


def test_an_answer_that_is_not_what_was_chosen() -> None:
    case = chosen("billing", (0.0, -1.0))
    [told] = CalibrationError().measure_all([Case(case.gold, {"queue": "other"}, case.choices)])
    assert told == "the field 'queue' is 'other', and what was chosen is 'billing'"


def test_labels_that_are_all_impossible_have_no_confidence() -> None:
    [told] = CalibrationError().measure_all([chosen("billing", (-math.inf, -math.inf))])
    assert told == "none of the labels of the field 'queue' is possible to the model"


def test_an_answer_alone_is_refused() -> None:
    with pytest.raises(InputError, match=r"an answer alone does not tell\n  Run the program"):
        metric("calibration_error").measure({"queue": "billing"}, {"queue": "billing"})


@pytest.mark.parametrize("bins", [0, 1001, "ten"])
def test_bins_that_cannot_be(bins: Any) -> None:
    with pytest.raises(InputError, match=f"option 'bins' of metric 'calibration_error' is {bins!r}; expected"):
        metric({"metric": "calibration_error", "bins": bins})


def test_it_can_be_resampled_and_compared() -> None:
    generator = np.random.default_rng(0)
    confidence = generator.uniform(0.5, 1.0, 200).tolist()
    ours: Metric = CalibrationError()
    honest = measured([sure(each, bool(generator.random() < each)) for each in confidence])
    boasting = measured([sure(0.99, bool(generator.random() < each)) for each in confidence])
    score = interval(ours, honest)
    assert score.low < score.value < score.high
    found = paired_test(ours, honest, boasting, resamples=500)
    assert found.low > 0 and found.p_value < 0.05


def test_few_answers_make_the_error_too_large() -> None:
    """The numbers of the documentation."""
    generator = np.random.default_rng(0)

    def mean_score(count: int, repeats: int) -> float:
        scores = []
        for _ in range(repeats):
            confidence = generator.uniform(0.5, 1.0, count).tolist()
            scores.append(1 - error([sure(each, bool(generator.random() < each)) for each in confidence]))
        return float(np.mean(scores))

    assert f"{mean_score(50, 40):.2f}" == "0.90"
    assert f"{mean_score(5000, 3):.2f}" == "0.99"


def test_always_the_most_frequent_label_is_perfectly_calibrated() -> None:
    assert error([sure(0.6, n % 5 < 3) for n in range(50)]) == pytest.approx(0, abs=1e-12)
