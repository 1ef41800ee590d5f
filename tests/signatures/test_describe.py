"""Types in words, and as JSON schema."""

from __future__ import annotations

import doctest
import importlib
from datetime import date, datetime, time
from decimal import Decimal
from typing import Annotated, Any, Literal
from uuid import UUID

import pytest
from pydantic import BaseModel, Field

from cuecard.errors import InputError
from cuecard.signatures import describe, json_schema, type_name


class Address(BaseModel):
    city: str


class Person(BaseModel):
    name: str
    age: int = 0
    home: Address | None = None


class Scored(BaseModel):
    score: int = Field(ge=0, le=10)


@pytest.mark.parametrize(
    ("type_", "text"),
    [
        (str, ""),
        (Any, ""),
        (bool, "true or false"),
        (int, "a whole number"),
        (float, "a number"),
        (date, "a date (YYYY-MM-DD)"),
        (datetime, "a date and time (YYYY-MM-DDTHH:MM:SS)"),
        (time, "a time (HH:MM:SS)"),
        (Decimal, "a decimal number"),
        (UUID, "a UUID"),
        (list[Decimal], "a JSON list of decimal numbers"),
        (Literal["billing", "technical", "account"], "one of: billing, technical, account"),
        (Literal["a", "b"] | None, "one of: a, b, or null"),
        (str | None, "text, or null"),
        (int | None, "a whole number, or null"),
        (list, "a JSON list"),
        (list[str], "a JSON list of strings"),
        (list[int], "a JSON list of whole numbers"),
        (list[Literal["a", "b"]], "a JSON list, each item one of: a, b"),
        (list[str | None], "a JSON list, each item text, or null"),
        (list[list[int]], "a JSON list, each item a JSON list of whole numbers"),
        (dict, "a JSON object"),
        (dict[str, float], "a JSON object of numbers"),
        (Address, "a JSON object with the keys city (str)"),
        (
            Person,
            "a JSON object with the keys name (str), age (int), home (an object with the keys city (str), or null)",
        ),
    ],
)
def test_describe(type_: Any, text: str) -> None:
    assert describe(type_) == text


@pytest.mark.parametrize(
    ("type_", "text"),
    [
        (Annotated[int, Field(ge=0, le=10)], "a whole number from 0 to 10"),
        (Annotated[int, Field(gt=0)] | None, "a whole number, more than 0, or null"),
        (Annotated[float | None, Field(ge=0, lt=1)], "a number, 0 or more and less than 1, or null"),
        (Annotated[float, Field(le=1, multiple_of=0.5)], "a number, 1 or less, a multiple of 0.5"),
        (
            Annotated[Decimal, Field(max_digits=5, decimal_places=1)],
            "a decimal number, at most 5 digits, at most 1 decimal place",
        ),
        (Annotated[date, Field(ge=date(2024, 1, 1))], "a date (YYYY-MM-DD), not before 2024-01-01"),
        (Annotated[str, Field(max_length=20)], "text, at most 20 characters"),
        (Annotated[str, Field(min_length=2, max_length=3)] | None, "text, 2 to 3 characters, or null"),
        (Annotated[str, Field(pattern="^[A-Z]+$")], "text, matching the regular expression ^[A-Z]+$"),
        (Annotated[list[str], Field(min_length=1)], "a JSON list of strings, at least 1 item"),
        (Annotated[list[int], Field(min_length=3, max_length=3)], "a JSON list of whole numbers, 3 items"),
        (list[Annotated[int, Field(ge=0)]], "a JSON list, each item a whole number, 0 or more"),
        (dict[str, Annotated[str, Field(max_length=1)]], "a JSON object, each item text, at most 1 character"),
        (Scored, "a JSON object with the keys score (int from 0 to 10)"),
    ],
)
def test_describe_tells_constraints(type_: Any, text: str) -> None:
    assert describe(type_) == text


def test_describe_names_every_label() -> None:
    labels = tuple(f"label{index}" for index in range(20))
    assert describe(Literal[labels]) == "one of: " + ", ".join(labels)


def test_json_schema_closes_objects() -> None:
    schema = json_schema(list[Person])
    assert schema["type"] == "array"
    assert schema["$defs"]["Person"]["additionalProperties"] is False
    assert schema["$defs"]["Address"]["additionalProperties"] is False
    assert json_schema(dict[str, int]) == {"type": "object", "additionalProperties": {"type": "integer"}}


def test_json_schema_keeps_constraints_and_the_order_of_labels() -> None:
    assert json_schema(Annotated[int, Field(ge=1)]) == {"type": "integer", "minimum": 1}
    assert json_schema(list[Literal["b", "a"]])["items"]["enum"] == ["b", "a"]
    assert json_schema(list[Literal["a", "b"]])["items"]["enum"] == ["a", "b"]


def test_json_schema_refuses_what_has_none() -> None:
    class Plain:
        pass

    with pytest.raises(InputError) as caught:
        json_schema(Plain)
    expected = "found the type Plain, whose values cannot be read from text; expected a type that pydantic can validate"
    assert str(caught.value) == expected


def test_type_name_of_types_that_expressions_do_not_have() -> None:
    assert type_name(tuple[int, str]) == "tuple[int, str]"
    assert type_name(Annotated[int, Field(ge=1)]) == "int"
    assert type_name(int | str) == "int | str"


@pytest.mark.parametrize(
    "module",
    ["constraints", "describe", "grammar", "labels", "patterns", "reader", "rows", "signature", "types", "writer"],
)
def test_examples_in_docstrings(module: str) -> None:
    found = importlib.import_module(f"cuecard.signatures.{module}")
    result = doctest.testmod(found, extraglobs={"Literal": Literal})
    assert result.attempted > 0
    assert result.failed == 0
