"""Votes: which answer most agree with, how they are drawn, and what is wrong with them in a spec."""

from __future__ import annotations

from typing import Any

import dspy
import pytest
from fakes import FakeEngine, fake_target
from hypothesis import given
from hypothesis import strategies as st

import cuecard
from cuecard.errors import ReadError
from cuecard.programs.predictor import Predictor
from cuecard.programs.state import PredictorState, ReadOut
from cuecard.programs.votes import TEMPERATURE, pick, voters

NUMBER = cuecard.signature("question -> answer: int")
TEXT = cuecard.signature("question -> answer")
THOUGHT = cuecard.signature("question -> reasoning, answer: int")


@given(st.lists(st.integers(0, 4), min_size=1, max_size=9))
def test_values_are_elected_by_a_majority_and_ties_go_to_the_first(values: list[int]) -> None:
    found = pick(NUMBER, [{"answer": value} for value in values])
    most = max(values.count(value) for value in values)
    assert found == next(place for place, value in enumerate(values) if values.count(value) == most)


def test_the_reasoning_has_no_vote() -> None:
    answers = [{"reasoning": "a b c d", "answer": 1}, {"reasoning": "w", "answer": 2}, {"reasoning": "v", "answer": 2}]
    assert pick(THOUGHT, answers) == 1
    alone = cuecard.signature("question -> reasoning")
    assert pick(alone, [{"reasoning": "w"}, {"reasoning": "a b"}, {"reasoning": "a b"}]) == 1


def test_of_texts_the_one_is_taken_that_is_most_like_the_others() -> None:
    texts = ["a cat sat on the mat today", "a cat sat on a mat", "dogs run", "the cat sat on a mat"]
    assert pick(TEXT, [{"answer": text} for text in texts]) == 1


def test_votes_are_drawn_warmer_with_seeds_of_their_own() -> None:
    state = PredictorState(readout=ReadOut(votes=4))
    drawn = voters(state, 4)
    assert [one.decoding.temperature for one in drawn] == [0.0, TEMPERATURE, TEMPERATURE, TEMPERATURE]
    assert len({one.decoding.seed for one in drawn}) == 4 and drawn[0].decoding.seed == state.decoding.seed
    assert all(one.readout.votes is None for one in drawn)


def asked(texts: list[str], signature: type[dspy.Signature] = NUMBER, votes: int = 3) -> Any:
    """What a predictor answers whose draws are these texts, in this order."""
    left = iter(texts)
    engine = FakeEngine(lambda prompt, decoding, sample: next(left))
    predictor = Predictor(signature, PredictorState(format="completion", readout=ReadOut(votes=votes)))
    predictor.set_lm(fake_target(engine).lm)
    return predictor(question="how many?")


def test_what_cannot_be_read_has_no_vote() -> None:
    assert asked([" none", " 7", " 7"]).answer == 7
    with pytest.raises(ReadError):
        asked([" none", " many", " few"])


def test_a_majority_overrules_the_likeliest() -> None:
    assert asked([" 3", " 4", " 4"]).answer == 4


def test_it_is_written_back_in_a_spec_as_it_was() -> None:
    assert ReadOut(kind="text").model_dump() == "text"
    assert ReadOut(kind="text", votes=5).model_dump() == {"kind": "text", "votes": 5}
