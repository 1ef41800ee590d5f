"""Numbers with a tolerance, records field by field, extracted sets and entities."""

from __future__ import annotations

import datetime
from decimal import Decimal
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import BaseModel

from cuecard.errors import InputError
from cuecard.metrics import metric


def score(spec: Any, gold: Any, prediction: Any) -> float:
    return metric(spec).measure({"answer": gold}, {"answer": prediction}).score


@pytest.mark.parametrize(
    ("options", "gold", "prediction", "expected"),
    [
        ({}, 12, "So there are 3 boxes and 12 cats.", 1),
        ({"take": "first"}, 12, "So there are 3 boxes and 12 cats.", 0),
        ({"take": "only"}, 12, "12 cats", 0),
        ({"take": "only"}, 12, " $12.00 ", 1),
        ({"take": "only"}, 12, "12%", 1),
        ({}, "1,200.5", 1200.5, 1),
        ({}, 1200, "$1,200", 1),
        ({}, 3, "1,2,3", 1),
        ({}, -3, "x = \u22123", 1),
        ({}, 5, "2024-05", 1),  # A hyphen between digits is no sign.
        ({}, 7, "R2D7", 0),
        ({}, 0.5, ".5", 1),
        ({}, 1200, "1.2e3", 1),
        ({}, 0.3, Decimal("0.30"), 1),
        ({}, 1, True, 0),
        ({}, 1, float("nan"), 0),
        ({}, 1, "one", 0),
        ({}, 1, None, 0),
        ({}, None, "none", 1),
        ({}, None, "2", 0),
        ({}, [1, 2], "2", 1),
        ({"absolute": 0.05}, 1, "1.05", 1),
        ({"absolute": 0.05}, 1, "1.0500001", 0),
        ({"relative": 0.01}, 200, "202", 1),
        ({"relative": 0.01}, 200, "202.1", 0),
        ({"relative": 0.01, "absolute": 3}, 200, "203", 1),
        ({}, 10**15 + 1, str(10**15), 0),
        ({}, 1, "9" * 5000, 0),
    ],
)
def test_numeric(options: dict[str, Any], gold: Any, prediction: Any, expected: float) -> None:
    assert score({"metric": "numeric", **options}, gold, prediction) == expected


@settings(max_examples=200, deadline=None)
@given(st.text(max_size=20), st.sampled_from(["first", "last", "only"]))
def test_no_text_breaks_numeric(text: str, take: str) -> None:
    assert score({"metric": "numeric", "take": take}, 1, text) in (0, 1)


@settings(max_examples=200, deadline=None)
@given(st.floats(allow_nan=False, allow_infinity=False) | st.integers(-(10**20), 10**20))
def test_a_number_equals_how_it_is_written(number: float) -> None:
    assert score("numeric", number, f"the answer is {number}") == 1


class Place(BaseModel):
    city: str
    stars: int


ORDER = {"id": 7, "customer": {"name": "Ann Lee", "city": "Rome"}, "items": [{"price": 1.5}, {"price": 2}]}


@pytest.mark.parametrize(
    ("options", "gold", "prediction", "expected"),
    [
        ({}, ORDER, ORDER, 1),
        ({}, {"a": 1, "b": 2}, '{"b": 2, "a": 1}', 1),
        ({}, {"a": 1, "b": 2}, 'Here you are:\n```json\n{"b": 2, "a": 3}\n```', 1 / 2),
        ({}, '{"a": 1}', {"a": 1}, 1),
        ({}, {"a": 1}, "a is 1", 0),
        ({}, {"a": 1}, '{"a": NaN}', 0),
        ({}, {"a": 1}, "[" * 100_000, 0),
        ({}, {"a": 1}, {"a": 1, "b": 2}, 1 / 2),
        ({"extra": "ignore"}, {"a": 1}, {"a": 1, "b": 2}, 1),
        ({}, {"a": 1, "b": 2}, {"a": 1}, 1 / 2),
        ({}, {"a": 1}, {"a": "1"}, 0),
        ({}, {"a": 1}, {"a": True}, 0),
        ({}, {"a": 1}, {"a": 1.0}, 1),
        ({"tolerance": 0.1}, {"a": 1}, {"a": 1.1}, 1),
        ({}, {"a": "x  y"}, {"a": "x y\n"}, 1),
        ({}, {"a": "X"}, {"a": "x"}, 0),
        ({"ignore_case": True}, {"a": "X"}, {"a": "x"}, 1),
        ({}, {"a": []}, {"a": []}, 1),
        ({}, {"a": []}, {"a": {}}, 0),
        ({}, {}, {}, 1),
        ({}, {"city": "Rome", "stars": 3}, Place(city="Rome", stars=4), 1 / 2),
        ({}, {"when": datetime.date(2024, 2, 29)}, {"when": "2024-02-29"}, 1),
        ({}, [1, 2], "[1, 2]", 1),
        ({}, [1, 2], [2, 1], 0),
        ({}, [], "[]", 1),
        ({}, [{"a": 1}, {"a": 2}], {"a": 2}, 1),  # A list beside a record: several references.
        ({}, ["a", "b"], "[", 0),
        ({"ignore": ["id", "items.price"]}, ORDER, {**ORDER, "id": 8, "items": [{"price": 9}, {"price": 9}]}, 1),
        ({"ignore": "customer"}, ORDER, {**ORDER, "customer": None}, 1),
    ],
)
def test_json_fields(options: dict[str, Any], gold: Any, prediction: Any, expected: float) -> None:
    assert score({"metric": "json_fields", **options}, gold, prediction) == pytest.approx(expected)


@pytest.mark.parametrize(
    ("spec", "gold", "message"),
    [
        ("numeric", "twelve", "metric 'numeric' found the gold value 'twelve'; expected a number"),
        (
            "json_fields",
            "{a: 1}",
            "metric 'json_fields' found the gold value '{a: 1}', which is not JSON: Expecting property name enclosed in "
            "double quotes: line 1 column 2 (char 1); expected a record, a list or JSON text",
        ),
    ],
)
def test_gold_values_of_another_kind_are_refused(spec: str, gold: str, message: str) -> None:
    with pytest.raises(InputError) as caught:
        score(spec, gold, "{}")
    assert str(caught.value) == message


@pytest.mark.parametrize(
    ("options", "gold", "prediction", "expected"),
    [
        ({}, ["red", "blue"], ["blue", "red", "red"], 1),
        ({}, ["red", "blue"], ["red"], 2 / 3),
        ({"score": "precision"}, ["red", "blue"], ["red"], 1),
        ({"score": "recall"}, ["red", "blue"], ["red"], 1 / 2),
        ({}, {"red", "blue"}, "red, blue", 1),
        ({}, ["red", "blue"], "- red\n- blue", 1),
        ({}, ["red", "blue"], "1. red\n2. blue\n", 1),
        ({}, ["red", "blue"], '["red", "blue"]', 1),
        ({}, ["Paris, France"], "Paris, France\nRome, Italy", 2 / 3),
        ({"separator": ";"}, ["a", "b"], "a; b", 1),
        ({}, ["Red"], ["red"], 0),
        ({"ignore_case": True}, ["Red"], ["red"], 1),
        ({}, [], [], 1),
        ({}, [], "", 1),
        ({}, [], ["red"], 0),
        ({}, ["red"], None, 0),
        ({}, [["red"], ["blue", "green"]], ["green", "blue"], 1),
        ({}, [1, 2], "1, 2", 1),
    ],
)
def test_set_f1(options: dict[str, Any], gold: Any, prediction: Any, expected: float) -> None:
    assert score({"metric": "set_f1", **options}, gold, prediction) == pytest.approx(expected)


ANN, BOB = {"label": "PER", "text": "Ann"}, {"label": "PER", "text": "Bob"}
ROME = {"label": "LOC", "text": "Rome"}


@pytest.mark.parametrize(
    ("options", "gold", "prediction", "expected"),
    [
        ({}, [ANN, ROME], [ROME, ANN], 1),
        ({}, [ANN, ROME], [ANN, {**ROME, "label": "PER"}], 1 / 2),
        ({"keys": ["text"]}, [ANN, ROME], [ANN, {**ROME, "label": "PER"}], 1),
        ({}, [ANN, ANN], [ANN], 2 / 3),  # One found twice must be there twice.
        ({}, {"PER": ["Ann", "Bob"]}, '{"PER": ["Ann"]}', 2 / 3),
        ({}, {"PER": ["Ann"]}, [["PER", "Ann"]], 1),
        ({}, [["PER", 0, 3]], '[["PER", 0, 3], ["LOC", 5, 9]]', 2 / 3),
        ({}, [["PER", 0, 3]], [["PER", 0, 4]], 0),
        ({}, ["PER: Ann", "LOC: Rome"], "PER: Ann\nLOC: Rome", 1),
        ({}, [[ANN], [BOB]], [BOB], 1),
        ({}, [], [], 1),
        ({}, [ANN], "no JSON", 0),
        ({"score": "precision"}, [ANN, ROME], [ANN], 1),
    ],
)
def test_span_f1(options: dict[str, Any], gold: Any, prediction: Any, expected: float) -> None:
    assert score({"metric": "span_f1", **options}, gold, prediction) == pytest.approx(expected)


def test_extraction_is_averaged_over_entities_or_over_examples() -> None:
    pairs = [([ANN, BOB, ROME], [ANN, BOB, ROME]), ([ANN], [])]
    for average, expected in (("micro", 2 * 3 / (3 + 4)), ("examples", 1 / 2)):
        ours = metric({"metric": "span_f1", "average": average})
        measured = [ours.measure({"x": gold}, {"x": prediction}) for gold, prediction in pairs]
        assert ours.aggregate(measured) == pytest.approx(expected)
        assert ours.aggregate([measured[0], ours.worst({"x": [ANN]})]) == pytest.approx(expected)
