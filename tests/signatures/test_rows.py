"""Values of data rows."""

from __future__ import annotations

from datetime import date, datetime
from decimal import Decimal
from enum import Enum
from typing import Annotated, Any, Literal
from uuid import UUID

import pytest
from pydantic import BaseModel, Field

from cuecard.errors import InputError
from cuecard.signatures import check_value


class Color(Enum):
    RED = "red"
    TWO = 2


class Person(BaseModel):
    name: str
    mood: Literal["happy", "sad"] = "happy"


@pytest.mark.parametrize(
    ("value", "type_", "typed"),
    [
        ("as it is ", str, "as it is "),
        ("", str, ""),
        ("3", int, 3),
        (3, int, 3),
        (3.0, int, 3),
        (3, float, 3.0),
        ("-.5", float, -0.5),
        ("1e3", float, 1000.0),
        (True, bool, True),
        ("False", bool, False),
        ("yes", bool, True),
        ("billing", Literal["billing", "technical"], "billing"),
        ("1", Literal[1, 2], 1),
        (True, Literal[1, True], True),
        ("true", Literal[1, True], True),
        ("red", Color, Color.RED),
        (2, Color, Color.TWO),
        ("2", Color, Color.TWO),
        (Color.RED, Color, Color.RED),
        (None, int | None, None),
        ("", int | None, None),
        ("", str | None, ""),
        (None, Any, None),
        ("[1", Any, "[1"),
        (["a"], list[str], ["a"]),
        ('["a"]', list[str], ["a"]),
        ({"name": "A"}, Person, Person(name="A")),
        ('{"name": "A"}', Person, Person(name="A")),
        (Person(name="A"), Person, Person(name="A")),
        ("2024-01-02", date, date(2024, 1, 2)),
        (datetime(2024, 1, 2), date, date(2024, 1, 2)),
        ("2024-01-02T03:04:05", datetime, datetime(2024, 1, 2, 3, 4, 5)),
        ("5", Annotated[int, Field(le=5)], 5),
        ("0.10", Decimal, Decimal("0.10")),
        (0.1, Decimal, Decimal("0.1")),
        (3, Decimal, Decimal(3)),
        ("0000000a-0000-4000-8000-000000000000", UUID, UUID("0000000a-0000-4000-8000-000000000000")),
        (UUID(int=1), UUID, UUID(int=1)),
    ],
)
def test_values(value: Any, type_: Any, typed: Any) -> None:
    found = check_value(value, type_, field="x")
    assert found == typed
    assert type(found) is type(typed)


@pytest.mark.parametrize(
    ("value", "type_", "message"),
    [
        (3, str, "found 3 (int); expected text\n  Put it in quotes, or declare another type."),
        (None, str, "found null; expected text"),
        (None, Literal["a"], "found null; expected one of: a"),
        ("3.5", int, "found '3.5'; expected a whole number"),
        (3.5, int, "found 3.5 (float); expected a whole number"),
        (True, int, "found True (bool); expected a whole number"),
        ("1,234", int, "found '1,234'; expected a whole number"),
        ("three", float, "found 'three'; expected a number"),
        ("nan", float, "found 'nan'; expected a number"),
        (float("inf"), float, "found inf (float); expected finite numbers"),
        (1, bool, "found 1 (int); expected true or false"),
        ("biling", Literal["billing", "technical"], "found 'biling'; expected one of: billing, technical (did you mean 'billing'?)"),
        ("BILLING", Literal["billing", "technical"], "found 'BILLING'; expected one of: billing, technical (did you mean 'billing'?)"),
        ("zzz", Color, "found 'zzz'; expected one of: red, 2"),
        (True, Literal[1, 2], "found True (bool); expected one of: 1, 2"),
        (5, Color | None, "found 5 (int); expected one of: red, 2, null"),
        ("2024-02-30", date, "found '2024-02-30'; expected a date (YYYY-MM-DD)"),
        (20240102, date, "found 20240102 (int); expected a date (YYYY-MM-DD)"),
        ("a, b", list[str], "found 'a, b'; expected a JSON list of strings"),
        ([1], list[str], "found 1 (int); expected a valid string"),
        ({"mood": "sad"}, Person, "found {'mood': 'sad'} (dict); expected field required"),
        ({"name": "A", "mood": "sat"}, Person, "found 'sat'; expected 'happy' or 'sad' (did you mean 'sad'?)"),
        (6, Annotated[int, Field(le=5)], "found 6 (int); expected less than or equal to 5"),
        ("toolong", Annotated[str, Field(max_length=3)], "found 'toolong'; expected at most 3 characters"),
        ("1,5", Decimal, "found '1,5'; expected a decimal number"),
        (True, Decimal, "found True (bool); expected a decimal number"),
        (float("nan"), Decimal, "found nan (float); expected a finite number"),
        (5, UUID, "found 5 (int); expected a UUID"),
    ],
)  # fmt: skip
def test_refusals(value: Any, type_: Any, message: str) -> None:
    with pytest.raises(InputError) as caught:
        check_value(value, type_, field="x", path="train.csv", line=4)
    assert str(caught.value).startswith("train.csv:4: x")
    assert str(caught.value).partition(": found ")[2] == message.partition("found ")[2]


def test_a_refusal_inside_a_value_names_the_place() -> None:
    with pytest.raises(InputError) as caught:
        check_value([{"name": "A"}, {"name": 3}], list[Person], field="people")
    assert str(caught.value) == "people.1.name: found 3 (int); expected a valid string"


def test_many_labels_are_cut() -> None:
    labels = tuple(f"label_{index}" for index in range(150))
    with pytest.raises(InputError) as caught:
        check_value("label_x", Literal[labels], field="intent")
    shown = ", ".join(labels[:8])
    assert str(caught.value).startswith(f"intent: found 'label_x'; expected one of: {shown}, ... (150 in all) (did you")
