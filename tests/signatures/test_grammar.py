"""Grammars, against llguidance itself with a tokenizer of single bytes."""

from __future__ import annotations

import json
from datetime import date, datetime, time
from decimal import Decimal
from enum import Enum
from typing import Annotated, Any, Literal
from uuid import UUID

import llguidance
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import BaseModel, Field

from cuecard.signatures import grammar, write

TOKENIZER = llguidance.LLTokenizer("byte")


class Color(Enum):
    RED = "red"
    TWO = 2
    PAIR = (1, 2)


class Address(BaseModel):
    city: str


class Person(BaseModel):
    name: str
    age: int
    home: Address | None = None


def accepts(rule: str, text: str) -> bool:
    """Whether the grammar `start: rule` accepts exactly `text`."""
    lark = llguidance.LLMatcher.grammar_from_lark(f"start: {rule}")
    assert llguidance.LLMatcher.validate_grammar(lark, TOKENIZER) == ""
    matcher = llguidance.LLMatcher(TOKENIZER, lark)
    tokens = list(text.encode())
    return matcher.try_consume_tokens(tokens) == len(tokens) and matcher.is_accepting()


@pytest.mark.parametrize(
    ("type_", "good", "bad"),
    [
        (str, ["a", "two words", '"quoted"', "\u00e9\U0001f600"], ["", "a\nb", "a\rb"]),
        (bool, ["true", "false"], ["True", "yes", "t", ""]),
        (int, ["0", "-12", "1" + "0" * 17], ["", "01", "+1", "1.5", "1" + "0" * 18, "1,000", "-"]),
        (float, ["0", "-1.5", "1e-05", "3.0", "1.5E+10"], [".5", "1.", "nan", "inf", "1e100", "60%", "1,5"]),
        (
            date,
            ["2024-02-29", "2023-02-28", "2000-02-29", "0001-01-01", "9999-12-31"],
            ["2023-02-29", "1900-02-29", "2024-04-31", "2024-13-01", "2024-1-1", "0000-01-01", "2024-01-00"],
        ),
        (datetime, ["2024-02-29T23:59", "2024-01-01T00:00:00.5+05:30", "2024-01-01T00:00:00Z"], ["2024-01-01", "2024-01-01T24:00"]),
        (time, ["10:00", "10:00:59.123456", "10:00Z"], ["10", "10:60", "24:00", "10:00+24:00"]),
        (Decimal, ["0", "-12.50", "1E+5", "0.0000001"], ["1.", ".5", "1e100", "NaN", '"1"']),
        (UUID, ["0000000a-0000-4000-8000-00000000000A"], ["0000000a000040008000000000000000", "0000000g-0000-4000-8000-000000000000"]),
        (Annotated[date, Field(ge=date(2024, 2, 28), lt=date(2024, 4, 1))], ["2024-02-29", "2024-03-31"], ["2024-02-27", "2024-04-01", "2024-02-30", "2025-03-01"]),
        (Literal["yes", "yes please", "no"], ["yes", "yes please", "no"], ["", "ye", "yes pleas", "Yes", "maybe"]),
        (Literal['a"b', "c\\d", "e\nf", "g/h", "\u00e9", 3, True], ['a"b', "c\\d", "e\nf", "g/h", "\u00e9", "3", "true"], ["a", "4"]),
        (Color, ["red", "2", "PAIR"], ["RED", "blue", "(1, 2)"]),
        (Color | None, ["red", "null"], ["none", ""]),
        (int | None, ["5", "null"], ["nul", ""]),
        (list[str], ['["a", "b"]', '["a","b"]', "[]"], ["a, b", "[1]", '["a",  "b"]', '["a",\n"b"]', '["a"']),
        (list[Literal["x", "y"]], ['["x"]'], ['["z"]']),
        (dict[str, int], ['{"a": 1}', "{}"], ['{"a": "b"}', "[]"]),
        (Person, ['{"name": "A", "age": 3}', '{"name":"A","age":3,"home":{"city":"B"}}', '{"name":"A","age":3,"home":null}'],
         ["{}", '{"age": 3, "name": "A"}', '{"name": "A", "age": 3, "x": 1}', '{"name": "A", "age": "3"}']),
        (Person | None, ["null", '{"name": "A", "age": 3}'], ["{}", "none"]),
        (Annotated[int, Field(ge=1, le=12)], ["1", "12"], ["0", "13", "-1"]),
        (Annotated[int, Field(ge=1)] | None, ["1", "null"], ["0"]),
        (Annotated[float | None, Field(ge=0, le=1)], ["0.5", "null"], ["2"]),
        (Annotated[float, Field(ge=0, lt=1)], ["0", "0.999", "1e-05", "0.0"], ["1", "1.0", "-0.1", "1e0", "10e-1"]),
        (Annotated[float, Field(gt=0.25)], ["0.26", "1e+22", "2.51e-1"], ["0.25", "2.5e-1", "0", "-1"]),
        (Annotated[float, Field(multiple_of=0.25, ge=0)], ["0", "0.0", "0.5", "0.50", "7.25"], ["0.3", "-0.5", "0.125", "1e2"]),
        (Annotated[int, Field(multiple_of=7, gt=0, lt=30)], ["7", "28"], ["0", "14.0", "35", "29"]),
        (Annotated[int, Field(ge=10**20)], ["1" + "0" * 20, "9" * 21], ["9" * 20, "1" + "0" * 21]),
        (Annotated[str, Field(min_length=2, max_length=3)], ["ab", "a b", "\u00e9\U0001f600"], ["a", "abcd", " ab", "ab ", "a\nb"]),
        (Annotated[str, Field(max_length=1)], ["a"], ["", "ab", " "]),
        (Annotated[str, Field(pattern=r"^\d{2}[a-z/]+$")], ["12a", "12a/b"], ["1a", "12", "12A", "x12a"]),
        (Annotated[str, Field(pattern="[0-9]")], ["a1b", "1"], ["ab", " 1"]),
        (Annotated[str | None, Field(max_length=4)], ["null", "abcd", '"a"b'], ["abcde", '"nul"']),
        (Annotated[Decimal, Field(max_digits=4, decimal_places=2)], ["99.99", "-0.5", "12"], ["100", "1.234", "1e1"]),
        (Annotated[Decimal, Field(max_digits=3)], ["123", "1.23", "0.123", "12.3"], ["1234", "12.34", "0.1234", "1e2"]),
        (Annotated[Decimal, Field(gt=0, multiple_of=Decimal("0.05"))], ["0.05", "12.5", "3"], ["0", "0.01"]),
        (Annotated[list[int], Field(min_length=1, max_length=2)], ["[1]", "[1, 2]"], ["[]", "[1,2,3]"]),
        (list[Annotated[int, Field(ge=0, le=9)]], ["[0,9]", "[]"], ["[10]", "[-1]"]),
        (dict[str, Annotated[str, Field(max_length=2)]], ['{"a": "bc"}'], ['{"a": "bcd"}']),
        (Annotated[dict[str, int], Field(max_length=1)], ['{"a": 1}', "{}"], ['{"a": 1, "b": 2}']),
        (list[Decimal], ['[1.5, "2.50"]'], ['["x"]', '["1" ]2']),
        (list[date], ['["2024-02-29"]'], ['["2024-04-31"]', "[2024-02-29]"]),
        (tuple[int, bool], ["[1, true]"], ["[1]", "[1, true, 2]", "[true, 1]"]),
        (Any, ["anything", '{"a": 1}'], ["", "a\nb"]),
    ],
)  # fmt: skip
def test_grammar(type_: Any, good: list[str], bad: list[str]) -> None:
    expression = grammar(type_)
    for text in good:
        assert accepts(f'"Label: " ({expression}) "\\n"', f"Label: {text}\n"), text
    for text in bad:
        assert not accepts(f'"Label: " ({expression}) "\\n"', f"Label: {text}\n"), text


@pytest.mark.parametrize(
    ("type_", "good", "bad"),
    [
        (str, ['"a"', '"a\\nb"', '""', '"\u00e9"'], ["a", '"a', '"a\nb"']),
        (bool, ["true"], ['"true"']),
        (int, ["12"], ['"12"', "012"]),
        (float, ["-1.5e3"], ['"1"', "1."]),
        (date, ['"2024-02-29"'], ["2024-02-29", '"2023-02-29"']),
        (Literal["yes", 'a"b', "\u00e9", 3, True], ['"yes"', '"a\\"b"', '"\u00e9"', "3", "true"], ["yes", '"3"', '"true"']),
        (Color, ['"red"', "2", '"PAIR"'], ["red", '"2"']),
        (Color | None, ["null", '"red"'], ['"null"']),
        (str | None, ["null", '"null"', '"x"'], ["x"]),
        (list[int], ["[1, 2]"], ['"[1, 2]"']),
        (Decimal, ["1.5", '"1.50"', "1e-08"], ['"x"', "1" * 16]),
        (UUID, ['"0000000a-0000-4000-8000-00000000000A"'], ["0000000a-0000-4000-8000-00000000000A"]),
        (Annotated[str, Field(min_length=2, max_length=3)], ['"ab"', '"a\\nb"', '"a\\ud83d\\ude00b"'], ['"a"', '"abcd"', '" ab"', '"ab\\n"']),
        (Annotated[str, Field(max_length=2)], ['""', '"ab"'], ['"abc"', '" "']),
        (Annotated[str, Field(pattern='^"[a-z]+"$')], ['"\\"ab\\""'], ['"ab"']),
        (Any, ["1", '"a"', '{"a": [null]}'], ["a"]),
    ],
)  # fmt: skip
def test_grammar_of_the_json(type_: Any, good: list[str], bad: list[str]) -> None:
    expression = grammar(type_, json=True)
    for text in good:
        json.loads(text)
        assert accepts(f'"{{\\"key\\": " ({expression}) "}}"', f'{{"key": {text}}}'), text
    for text in bad:
        assert not accepts(f'"{{\\"key\\": " ({expression}) "}}"', f'{{"key": {text}}}'), text


def test_several_lines_are_allowed_on_demand() -> None:
    assert accepts(grammar(str, one_line=False), "one\ntwo\n\nthree")
    assert not accepts(grammar(str, one_line=False), "")
    assert accepts(grammar(list[int], one_line=False), "[\n  1,\n  2\n]")
    assert not accepts(grammar(list[int], one_line=False), "[" + " " * 100 + "1]")


def test_expressions_stand_beside_one_another() -> None:
    parts = [grammar(type_) for type_ in (str, list[int], Person, Color)]
    rule = ' "\\n" '.join(f"({part})" for part in parts)
    assert accepts(rule, 'text\n[1, 2]\n{"name": "A", "age": 3}\nred')
    assert not accepts(rule, 'text\n["a"]\n{"name": "A", "age": 3}\nred')


def test_a_grammar_is_the_same_text_every_time() -> None:
    assert grammar(Literal["b", "a"]) == '"b" | "a"'
    assert grammar(Person) == grammar(Person)


WRITTEN: list[tuple[Any, st.SearchStrategy[Any]]] = [
    (int, st.integers(-(10**17), 10**17)),
    (float, st.floats(-1e90, 1e90).filter(lambda number: number == 0 or abs(number) > 1e-90)),
    (date, st.dates()),
    (datetime, st.datetimes()),
    (time, st.times()),
    (Color, st.sampled_from(Color)),
    (str, st.text(st.characters(exclude_characters="\r\n", exclude_categories=["Cs"]), min_size=1)),
    (list[str], st.lists(st.text(st.characters(exclude_characters="\x7f", exclude_categories=["Cs"])), max_size=3)),
    (Person, st.builds(Person, name=st.just("A"), age=st.integers(-9, 9), home=st.none() | st.builds(Address, city=st.just("B")))),
]  # fmt: skip


@settings(max_examples=100, deadline=None)
@given(st.sampled_from(WRITTEN), st.data())
def test_a_grammar_accepts_what_write_writes(typed: tuple[Any, st.SearchStrategy[Any]], data: st.DataObject) -> None:
    type_, values = typed
    text = write(data.draw(values), type_)
    assert accepts(grammar(type_), text)
