"""How a span stands to the words of the other inputs."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cuecard.programs.beside import OWN, WINDOW, beside

TEXT = "Ada wrote the first program in 1843. Grace wrote the first compiler in 1952."


def test_what_stands_by_the_words_that_are_asked_for_has_more() -> None:
    ada, grace = beside(["Ada", "Grace"], [TEXT], ["Who made the compiler?"])
    assert grace > ada


def test_what_is_made_of_the_words_that_are_asked_for_has_less() -> None:
    asked, other = beside(["compiler", "in"], [TEXT], ["the first compiler"])
    assert other > 0 > asked


def test_a_rare_word_counts_more() -> None:
    near_first, near_compiler = beside(["program in 1843", "in 1952"], [TEXT], ["first compiler"])
    assert near_compiler > near_first


def test_the_whole_scale() -> None:
    assert beside(["b"], ["a b"], ["a"]) == (1 - 1 / WINDOW,)
    assert beside(["a"], ["a b"], ["a"]) == (-OWN,)
    assert beside(["b"], ["a " + "c " * WINDOW + "b"], ["a"]) == (0.0,)
    assert beside(["a b"], ["a b"], ["A!"]) == (-OWN / 2,)


def test_the_best_of_its_places_counts() -> None:
    (twice,) = beside(["x"], ["x " + "c " * 40 + "a x"], ["a"])
    (apart,) = beside(["x"], ["x " + "c " * 40, "a x"], ["a"])
    assert twice == apart == 1 - 1 / WINDOW


@pytest.mark.parametrize("others", [[], [""], ["?!"], ["nothing of it"]])
def test_where_the_others_have_no_word_of_the_text_nothing_is_beside(others: list[str]) -> None:
    assert beside(["Ada", None, ""], [TEXT], others) == (0.0, 0.0, 0.0)


def test_null_and_what_stands_nowhere_are_beside_nothing() -> None:
    assert beside([None, "", "Alan"], [TEXT], ["compiler"]) == (0.0, 0.0, 0.0)


WORDS = st.lists(st.sampled_from(["a", "b", "c", "D", "é", "日本", ".", "1"]), max_size=12).map(" ".join)


@given(source=WORDS, other=WORDS, data=st.data())
def test_it_stays_on_its_scale_and_case_does_not_matter(source: str, other: str, data: st.DataObject) -> None:
    words = source.split(" ")
    first = data.draw(st.integers(0, len(words) - 1))
    span = " ".join(words[first : data.draw(st.integers(first, len(words))) + 1])
    (found,) = beside([span], [source], [other])
    assert -OWN <= found <= 1
    assert beside([span.swapcase()], [source.swapcase()], [other]) == (found,)
