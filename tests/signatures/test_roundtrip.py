"""What holds for every type and every value: `read` undoes `write`, and a grammar accepts only what can be read."""

from __future__ import annotations

import random
from datetime import date, datetime, time
from enum import Enum
from typing import Any, Literal

import llguidance
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import BaseModel

from cuecard.errors import ReadError
from cuecard.signatures import check_value, choices, grammar, read, write

TOKENIZER = llguidance.LLTokenizer("byte")


class Color(Enum):
    RED = "red"
    TWO = 2
    PLUS = "+"


class Person(BaseModel):
    name: str
    age: int | None
    born: date
    tags: list[Literal["a", "b"]]


Typed = tuple[Any, "st.SearchStrategy[Any]"]

people = st.builds(
    Person,
    name=st.text(),
    age=st.none() | st.integers(),
    born=st.dates(),
    tags=st.lists(st.sampled_from(["a", "b"]), max_size=3),
)
label_sets = st.lists(st.text(min_size=1).filter(str.strip), min_size=1, max_size=5, unique=True)
plain: st.SearchStrategy[Typed] = st.one_of(
    st.sampled_from(
        [
            (str, st.text()),
            (bool, st.booleans()),
            (int, st.integers()),
            (float, st.floats(allow_nan=False, allow_infinity=False)),
            (date, st.dates()),
            (datetime, st.datetimes()),
            (time, st.times()),
            (Color, st.sampled_from(Color)),
            (Literal["yes", "no", 3, True], st.sampled_from(["yes", "no", 3, True])),
            (Person, people),
        ]
    ),
    label_sets.map(lambda labels: (Literal[tuple(labels)], st.sampled_from(labels))),
)


def wrap(inner: st.SearchStrategy[Typed]) -> st.SearchStrategy[Typed]:
    optional = inner.filter(lambda typed: "null" not in (choices(typed[0]) or ()))
    return st.one_of(
        inner.map(lambda typed: (list[typed[0]], st.lists(typed[1], max_size=4))),  # type: ignore[valid-type]
        inner.map(lambda typed: (dict[str, typed[0]], st.dictionaries(st.text(), typed[1], max_size=3))),  # type: ignore[valid-type]
        optional.map(lambda typed: (typed[0] | None, st.none() | typed[1])),
    )


# A `str` on its own loses the white space around it; inside anything else it does not.
bare: Typed = (str, st.text().map(str.strip))
data = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=5,
)
nested = st.recursive(plain, wrap, max_leaves=4).map(lambda typed: bare if typed[0] is str else typed)
every: st.SearchStrategy[Typed] = st.one_of(
    nested.map(lambda typed: (str | None, st.none() | st.text().map(str.strip)) if typed[0] == str | None else typed),
    st.just((Any, data)),
)  # fmt: skip


@settings(max_examples=150, deadline=None)
@given(every, st.data())
def test_read_undoes_write(typed: Typed, draw: st.DataObject) -> None:
    type_, values = typed
    value = draw.draw(values)
    back = read(write(value, type_), type_)
    assert back == value
    assert type(back) is type(value)


@settings(max_examples=100, deadline=None)
@given(
    st.sampled_from(["null", "None", "n/a", "", ".", '"null"', '"', "'none'", "NULL.", '"\\"null\\""', "x", '"x"', "5"])
)
def test_read_undoes_write_of_strings_that_look_like_nothing(value: str) -> None:
    for type_ in (str | None, Any):
        assert read(write(value, type_), type_) == value


@settings(max_examples=100, deadline=None)
@given(st.text(), every)
def test_any_text_is_read_or_refused(text: str, typed: Typed) -> None:
    try:
        value = read(text, typed[0])
    except ReadError as error:
        assert str(error).startswith("value")
    else:
        check_value(value, typed[0], field="value")  # refuses what is not of the type


GRAMMAR_TYPES: list[Any] = [
    bool, int, float, date, datetime, time, Color, Person, str, str | None, int | None, Color | None,
    Literal["yes", "yes please", 'a"b\\c\n/d', "caf\u00e9", "\x7f"], list[str], list[Color], dict[str, int],
    list[int] | None, Person | None, Any, int | str,
]  # fmt: skip


def walk(expression: str, source: random.Random, steps: int = 120) -> str | None:
    """A random text of the grammar, chosen byte by byte; None when it is not complete after `steps` bytes."""
    matcher = llguidance.LLMatcher(TOKENIZER, llguidance.LLMatcher.grammar_from_lark(f"start: ({expression})"))
    assert not matcher.is_error(), matcher.get_error()
    written = bytearray()
    while True:
        if matcher.is_accepting() and (matcher.is_stopped() or source.random() < 0.2):
            return written.decode(errors="strict")
        allowed = [byte for byte, bias in enumerate(matcher.compute_logit_bias()[:128]) if bias]
        if len(written) == steps or not allowed:
            return None
        byte = source.choice(allowed)
        assert matcher.consume_token(byte)
        written.append(byte)


@settings(max_examples=100, deadline=None)
@given(st.sampled_from(GRAMMAR_TYPES), st.integers(0, 10**6), st.booleans(), st.booleans())
def test_what_a_grammar_accepts_can_be_read(type_: Any, seed: int, one_line: bool, json: bool) -> None:
    text = walk(grammar(type_, one_line=one_line, json=json), random.Random(seed))
    if text is not None:
        check_value(read(text, type_), type_, field="value")
        assert not one_line or "\n" not in text or "\n" in "".join(choices(type_) or ())
