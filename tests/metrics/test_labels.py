"""Metrics over labels: how the labels are known, several references, texts that are no label."""

from __future__ import annotations

import enum
from typing import Any

import pytest

from cuecard.errors import InputError
from cuecard.metrics import metric

GOLDS = ["billing", "billing", "technical", "account"]


def aggregate(spec: Any, golds: list[Any], predictions: list[Any]) -> float:
    ours = metric(spec)
    pairs = zip(golds, predictions, strict=True)
    return ours.aggregate([ours.measure({"queue": gold}, {"queue": prediction}) for gold, prediction in pairs])


class Queue(enum.Enum):
    BILLING = "billing"
    OTHER = "other"


@pytest.mark.parametrize(
    ("gold", "prediction", "score"),
    [
        ("billing", " billing\n", 1),
        ("billing", "Billing", 0),
        (["billing", "account"], "account", 1),
        ("billing", Queue.BILLING, 1),
        (True, "true", 1),
        (1, True, 0),
        (3, "3", 1),
        (None, None, 1),
        (None, "null", 1),
        ("billing", "", 0),
    ],
)
def test_accuracy(gold: Any, prediction: Any, score: float) -> None:
    assert aggregate("accuracy", [gold], [prediction]) == score


def test_case_is_ignored_where_the_option_says_so() -> None:
    assert aggregate({"metric": "accuracy", "ignore_case": True}, ["Billing"], ["bILLING"]) == 1
    spec = {"metric": "macro_f1", "labels": ["Billing", "account"], "ignore_case": True}
    assert aggregate(spec, ["billing", "Account"], ["BILLING", "account"]) == 1


def test_macro_f1_weighs_labels_alike_and_leaves_out_those_that_never_occur() -> None:
    spec = {"metric": "macro_f1", "labels": ["billing", "technical", "account", "never"]}
    predictions = ["billing", "billing", "billing", "account"]
    assert aggregate(spec, GOLDS, predictions) == pytest.approx((0.8 + 0 + 1) / 3)
    assert aggregate("accuracy", GOLDS, predictions) == 0.75


def test_a_text_that_is_no_label_is_a_miss_and_not_a_label_of_its_own() -> None:
    spec = {"metric": "macro_f1", "labels": ["billing", "technical", "account"]}
    assert aggregate(spec, GOLDS, ["I do not know", "billing", "technical", "account"]) == pytest.approx(
        (2 / 3 + 2) / 3
    )
    ours = metric(spec)
    assert ours.worst({"queue": "billing"}).statistics == ours.measure({"queue": "billing"}, {"queue": "?"}).statistics


def test_one_of_several_gold_labels_is_enough() -> None:
    spec = {"metric": "macro_f1", "labels": ["billing", "technical", "account"]}
    assert aggregate(spec, [["billing", "account"], "technical"], ["account", "technical"]) == 1
    # Where none is met the first is the one that was missed.
    assert aggregate(spec, [["billing", "account"]], ["technical"]) == 0
    assert metric(spec).measure({"q": ["billing", "account"]}, {"q": "technical"}).statistics[:3] == (1, 0, 0)


def test_mcc_is_one_for_all_right_minus_one_for_all_wrong_and_zero_for_a_constant() -> None:
    spec = {"metric": "mcc", "labels": ["yes", "no"]}
    golds = ["yes", "no", "no", "yes"]
    assert aggregate(spec, golds, golds) == 1
    assert aggregate(spec, golds, ["no", "yes", "yes", "no"]) == -1
    assert aggregate(spec, golds, ["no"] * 4) == 0
    assert aggregate(spec, ["yes", "yes"], ["yes", "yes"]) == 0  # Nothing to correlate with.
    assert metric(spec).measure({"x": "yes"}, {"x": "no"}).score == -1


def test_labels_come_from_the_type_of_the_field() -> None:
    told = metric("macro_f1").with_labels({"queue": ("billing", "technical", "account"), "sure": ("true", "false")})
    assert told.width == 3 * 5
    one = metric({"metric": "mcc", "field": "sure"}).with_labels({"queue": ("billing",), "sure": ("true", "false")})
    assert one.width == 3 * 2
    assert one.measure({"sure": True}, {"sure": False}).statistics == (1, 0, 0, 1, 0, 0)
    weighted = metric(["macro_f1", "f1"]).with_labels({"queue": ("billing", "technical")})
    assert weighted.width == 3 * 2 + 2


def test_the_option_goes_before_the_type_and_others_do_not_care() -> None:
    given = metric({"metric": "macro_f1", "labels": ["a", "b"]})
    assert given.with_labels({"queue": ("x", "y")}) is given
    for spec in ("f1", ["f1", "bleu"]):
        other = metric(spec)
        assert other.with_labels({"queue": ("x", "y")}) is other
    unknown = metric("macro_f1")
    assert unknown.with_labels({}) is unknown


@pytest.mark.parametrize(
    ("spec", "gold", "message"),
    [
        (
            "macro_f1",
            "billing",
            "metric 'macro_f1' does not know the labels; expected the option `labels`, such as [billing, technical], or "
            "a field whose type names them",
        ),
        (
            {"metric": "mcc", "labels": ["billing", "technical"]},
            "biling",
            "metric 'mcc' found the gold label 'biling'; expected one of billing, technical (did you mean 'billing'?)",
        ),
    ],
)
def test_refusals(spec: Any, gold: str, message: str) -> None:
    with pytest.raises(InputError) as caught:
        metric(spec).measure({"queue": gold}, {"queue": "billing"})
    assert str(caught.value) == message


def test_what_a_metric_over_labels_declares_does_not_need_the_labels() -> None:
    assert metric("mcc").describe().aggregation == metric(["mcc", "f1"]).describe().aggregation == "corpus"
    assert metric("mcc").describe().low == -1
