"""Regular expressions, contained texts, limits of length and edit distance."""

from __future__ import annotations

from typing import Any

import dspy
import pytest

from cuecard.errors import InputError
from cuecard.metrics import metric


def score(spec: Any, gold: Any, prediction: Any) -> float:
    return metric(spec).measure({"answer": gold}, {"answer": prediction}).score


@pytest.mark.parametrize(
    ("options", "gold", "prediction", "expected"),
    [
        ({"pattern": r"\d+ cats"}, "not looked at", "I saw 12 cats", 1),
        ({"pattern": r"\d+ cats"}, "not looked at", "I saw cats", 0),
        ({"pattern": [r"^yes", r"^no"]}, "", "no way", 1),
        ({"pattern": "cats", "match": "start"}, "", "two cats", 0),
        ({"pattern": "two", "match": "start"}, "", "two cats", 1),
        ({"pattern": "two", "match": "full"}, "", "two cats", 0),
        ({"pattern": "TWO", "ignore_case": True}, "", "two cats", 1),
        ({"pattern": "a.b"}, "", "a\nb", 0),
        ({"pattern": "(?s)a.b"}, "", "a\nb", 1),
        ({}, r"c[ao]t", "a cot", 1),
        ({}, ["dog", "c.t"], "a cot", 1),
        ({}, ["dog", "cow"], "a cot", 0),
        ({}, [], "", 1),
        ({}, [], "something", 0),
        ({"pattern": r"^\[1, 2\]$"}, "", {"a": 1}, 0),
        ({"pattern": r'"a": 1'}, "", {"a": 1}, 1),
    ],
)
def test_regex(options: dict[str, Any], gold: Any, prediction: Any, expected: float) -> None:
    assert score({"metric": "regex", **options}, gold, prediction) == expected


@pytest.mark.parametrize(
    ("options", "gold", "prediction", "expected"),
    [
        ({}, "Paris", "It is Paris.", 1),
        ({}, "paris", "It is Paris.", 0),
        ({"ignore_case": True}, "paris", "It is Paris.", 1),
        ({}, ["Rome", "Paris"], "It is Paris.", 1),
        ({"mode": "all"}, ["Rome", "Paris"], "It is Paris.", 0),
        ({"mode": "all"}, ["Rome", "Paris"], "Not Rome: Paris.", 1),
        ({"text": "sorry"}, "Paris", "sorry, no", 1),
        ({"text": ["sorry", "Rome"], "mode": "all"}, "Paris", "sorry, no", 0),
        ({}, "", "anything", 0),
        ({}, "", "", 1),
        ({}, "a.c", "abc", 0),
    ],
)
def test_contains(options: dict[str, Any], gold: Any, prediction: Any, expected: float) -> None:
    assert score({"metric": "contains", **options}, gold, prediction) == expected


@pytest.mark.parametrize(
    ("options", "prediction", "expected"),
    [
        ({"max": 3}, "one two three", 1),
        ({"max": 3}, "one two three four", 0),
        ({"min": 1}, " \n", 0),
        ({"max": 0}, "", 1),
        ({"min": 2, "max": 4, "unit": "characters"}, "東京", 1),
        ({"max": 4, "unit": "characters"}, "Tokyo", 0),
        ({"max": 2, "unit": "lines"}, "one\n\ntwo\n", 1),
        ({"max": 2, "unit": "lines"}, "one\ntwo\nthree", 0),
        ({"max": 2, "unit": "lines"}, ["one", "two", "three"], 0),
        ({"min": 1}, None, 0),
    ],
)
def test_length(options: dict[str, Any], prediction: Any, expected: float) -> None:
    assert score({"metric": "length", **options}, "not looked at", prediction) == expected


def test_a_metric_that_needs_no_gold_value_looks_at_the_field_that_is_named_labelled_or_alone() -> None:
    short = metric({"metric": "length", "max": 1})
    question = dspy.Example(question="why?").with_inputs("question")
    assert short.measure(question, dspy.Prediction(answer="because")).score == 1
    assert short.measure({"answer": "x"}, {"answer": "one two", "reasoning": "one"}).score == 0
    named = metric({"metric": "length", "max": 1, "field": "reasoning"})
    assert named.measure(question, {"answer": "one two", "reasoning": "one"}).score == 1
    assert short.worst(question).score == 0
    assert metric({"metric": "contains", "text": "x"}).worst(question).score == 0
    with pytest.raises(InputError) as caught:
        short.measure(question, {"answer": "one", "reasoning": "two"})
    assert str(caught.value) == (
        "metric 'length' cannot tell which field to look at: the example labels none; expected `field:` set to one of "
        "answer, reasoning"
    )
    with pytest.raises(InputError, match="compares the field 'reasoning', which the prediction does not have"):
        named.measure(question, {"answer": "one"})


def test_a_gold_value_that_is_no_pattern_is_refused() -> None:
    with pytest.raises(InputError, match=r"^the pattern '\[' of metric 'regex' is not a regular expression"):
        score("regex", "[", "x")


@pytest.mark.parametrize(
    ("options", "gold", "prediction", "expected"),
    [
        ({}, "kitten", "sitting", 1 - 3 / 7),
        ({}, ["cat", "kitten"], "kitten", 1),
        ({}, "", "", 1),
        ({}, "", "abc", 0),
        ({}, "Cat", "cat", 2 / 3),
        ({"ignore_case": True}, "Cat", "cat", 1),
        ({"unit": "words"}, "the cat sat down", "the cat sits down", 3 / 4),
        ({"unit": "words"}, "the  cat", "the\ncat", 1),
    ],
)
def test_levenshtein(options: dict[str, Any], gold: Any, prediction: Any, expected: float) -> None:
    assert score({"metric": "levenshtein", **options}, gold, prediction) == pytest.approx(expected)


def test_levenshtein_of_long_texts() -> None:
    long = "the cat sat on the mat " * 200
    assert score("levenshtein", long, long.replace("mat", "mit")) == pytest.approx(1 - 200 / len(long))
