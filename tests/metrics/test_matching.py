"""Exact match and token F1, against a second writing of SQuAD's evaluation script."""

from __future__ import annotations

import collections
import enum
import re
import string
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import BaseModel

from cuecard.metrics import metric

# Words, articles, punctuation and white space are drawn often, so that random texts overlap and normalise alike.
words = st.sampled_from(
    ["the", "The", "a", "an", "cat", "Cat", "cat.", "dog", "dog's", "ran", ",", "é", "東京", "an\n", " "]
)
texts = st.lists(words, max_size=8).map(" ".join) | st.text(max_size=12)


def squad_normalize(text: str) -> str:
    def remove_articles(text: str) -> str:
        return re.sub(re.compile(r"\b(a|an|the)\b", re.UNICODE), " ", text)

    exclude = set(string.punctuation)
    return " ".join(remove_articles("".join(ch for ch in text.lower() if ch not in exclude)).split())


def squad_f1(gold: str, prediction: str) -> float:
    gold_tokens, tokens = squad_normalize(gold).split(), squad_normalize(prediction).split()
    same = sum((collections.Counter(gold_tokens) & collections.Counter(tokens)).values())
    if len(gold_tokens) == 0 or len(tokens) == 0:
        return int(gold_tokens == tokens)
    if same == 0:
        return 0
    precision, recall = same / len(tokens), same / len(gold_tokens)
    return (2 * precision * recall) / (precision + recall)


@settings(max_examples=300, deadline=None)
@given(st.lists(texts, min_size=1, max_size=3), texts)
def test_f1_is_the_squad_script_with_the_best_reference(gold: list[str], prediction: str) -> None:
    expected = max(squad_f1(reference, prediction) for reference in gold)
    assert metric("f1").measure({"answer": gold}, {"answer": prediction}).score == pytest.approx(expected, abs=1e-12)


@settings(max_examples=300, deadline=None)
@given(st.lists(texts, min_size=1, max_size=3), texts)
def test_normalized_exact_match_is_the_squad_script(gold: list[str], prediction: str) -> None:
    expected = max(squad_normalize(reference) == squad_normalize(prediction) for reference in gold)
    ours = metric({"metric": "exact_match", "normalize": True})
    assert ours.measure({"answer": gold}, {"answer": prediction}).score == float(expected)


class Colour(enum.Enum):
    RED = "red"


class Place(BaseModel):
    city: str
    stars: int


@pytest.mark.parametrize(
    ("gold", "prediction", "score"),
    [
        ("Paris", " Paris\n", 1),
        ("New York", "New  \t York", 1),
        ("Paris", "paris", 0),  # Case counts.
        ("Paris", "Paris.", 0),  # Punctuation counts.
        ("", "", 1),
        ("", None, 0),
        (["Paris", "Lutetia"], "Lutetia", 1),
        (["Paris", "Lutetia"], "Rome", 0),
        ([], "", 1),  # SQuAD 2.0: no reference means that the right answer is none.
        ([], "Rome", 0),
        (["a", "b"], ["a", "b"], 1),
        (["a", "b"], ["b", "a"], 0),  # A list's order counts,
        ({"a", "b"}, {"b", "a"}, 1),  # a set has none.
        (["a", "b"], ["a "], 0),
        ([1, 2], 2, 1),
        (1, 1.0, 1),
        (1, True, 0),
        (True, True, 1),
        (False, 0, 0),
        ("1", 1, 0),
        (None, None, 1),
        ("red", Colour.RED, 1),
        ({"city": "Rome ", "stars": 3}, Place(city="Rome", stars=3), 1),
        ({"city": "Rome", "stars": 3}, Place(city="Rome", stars=4), 0),
        ("Straße", "STRASSE", 0),
    ],
)
def test_exact_match(gold: Any, prediction: Any, score: int) -> None:
    assert metric("exact_match").measure({"answer": gold}, {"answer": prediction}).score == score


@pytest.mark.parametrize(
    ("gold", "prediction", "score"),
    [
        ("The Eiffel Tower", "eiffel tower!", 1),
        ("a cat sat", "cat", 2 / 3),
        ("", "", 1),
        ("the", "!", 1),  # Both normalise to nothing.
        ("", "cat", 0),
        ("cat", "", 0),
        (["dog", "cat sat"], "cat", 2 / 3),
        ([], "", 1),
        ("cat", None, 0),
        (42, "42", 1),
        ("東京 タワー", "東京", 2 / 3),
    ],
)
def test_f1(gold: Any, prediction: Any, score: float) -> None:
    assert metric("f1").measure({"answer": gold}, {"answer": prediction}).score == pytest.approx(score)


def test_the_score_over_several_fields_is_their_mean() -> None:
    ours = metric("exact_match")
    assert ours.measure({"a": "x", "b": "y"}, {"a": "x", "b": "z", "reasoning": "because"}).score == 0.5
    assert (
        metric({"metric": "exact_match", "field": "b"}).measure({"a": "x", "b": "y"}, {"a": "x", "b": "y"}).score == 1
    )
