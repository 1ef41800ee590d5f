"""Constraints in signatures: spelled in text and mappings, kept by DSPy, written back."""

from __future__ import annotations

from datetime import date
from decimal import Decimal
from typing import Annotated, Any, Optional
from uuid import UUID

import dspy
import pytest
from annotated_types import Ge, Interval, Len
from pydantic import AfterValidator, BaseModel, Field, StringConstraints

from cuecard.errors import InputError, ReadError
from cuecard.signatures import describe, dump, field_types, grammar, read, signature, type_name
from cuecard.signatures.constraints import conditions

NUMBERS = "ge, gt, le, lt, multiple_of"


class Rating(dspy.Signature):
    """Rate it."""

    text: str = dspy.InputField()
    score: int = dspy.OutputField(ge=0, le=10)
    share: Annotated[float, Field(gt=0, lt=1)] = dspy.OutputField(desc="of all")
    tags: list[Annotated[str, Field(max_length=8)]] = dspy.OutputField(min_length=1, max_length=3)
    code: Optional[str] = dspy.OutputField(pattern="^[A-Z]{2}$")  # noqa: UP045


class Line(BaseModel):
    price: Annotated[Decimal, Field(ge=0, decimal_places=2)]
    count: int = Field(ge=1, le=99)
    item: UUID


def test_the_types_of_a_class_keep_the_constraints_of_its_fields() -> None:
    types = field_types(Rating)
    assert types["text"] is str
    found = {name: conditions(type_) for name, type_ in types.items()}
    assert found["score"] == {"ge": 0, "le": 10}
    assert found["share"] == {"gt": 0, "lt": 1}
    assert found["tags"] == {"min_length": 1, "max_length": 3}
    assert found["code"] == {"pattern": "^[A-Z]{2}$"}


@pytest.mark.parametrize(
    ("name", "good", "bad"),
    [
        ("score", "10", "11"),
        ("share", "0.5", "1"),
        ("tags", '["a"]', "[]"),
        ("tags", '["a"]', '["too long a tag"]'),
        ("code", "AB", "abc"),
    ],
)
def test_the_constraints_of_a_field_are_read_and_masked(name: str, good: str, bad: str) -> None:
    type_ = field_types(Rating)[name]
    read(good, type_, field=name)
    with pytest.raises(ReadError):
        read(bad, type_, field=name)
    assert "/" in grammar(type_, field=name)


@pytest.mark.parametrize(
    ("type_", "found"),
    [
        (int, {}),
        (Annotated[int, Ge(0)], {"ge": 0}),
        (Annotated[int, Interval(ge=1, lt=5)], {"ge": 1, "lt": 5}),
        (Annotated[list[int], Len(1, 2)], {"min_length": 1, "max_length": 2}),
        (Annotated[str, StringConstraints(min_length=2, pattern="^a")], {"min_length": 2, "pattern": "^a"}),
        (Annotated[int, Field(ge=0)] | None, {"ge": 0}),
        (Annotated[Annotated[int, Field(ge=0)] | None, Field(le=5)], {"ge": 0, "le": 5}),
        (list[Annotated[int, Field(ge=0)]], {}),
    ],
)
def test_conditions(type_: Any, found: dict[str, Any]) -> None:
    assert conditions(type_) == found


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("Annotated[int, Field(ge=0, le=10)]", "a whole number from 0 to 10"),
        ("Annotated[int, Field(ge=-5)]", "a whole number, -5 or more"),
        ("Annotated[float, Field(gt=0, lt=1.5, multiple_of=0.25)]", "a number, more than 0 and less than 1.5, a multiple of 0.25"),
        ("Annotated[int | None, Field(gt=-1)]", "a whole number, more than -1, or null"),
        ("Annotated[int, Field(le=3)] | None", "a whole number, 3 or less, or null"),
        ("Annotated[str, Field(min_length=2, pattern='^[a-z:, ]+$')]", "text, at least 2 characters, matching the regular expression ^[a-z:, ]+$"),
        ("list[Annotated[str, Field(max_length=5)]]", "a JSON list, each item text, at most 5 characters"),
        ("Annotated[list[int], Field(min_length=1, max_length=3)]", "a JSON list of whole numbers, 1 to 3 items"),
        ("dict[str, Annotated[int, Field(ge=0)]]", "a JSON object, each item a whole number, 0 or more"),
        ("Annotated[dict[str, int], Field(max_length=2)]", "a JSON object of whole numbers, at most 2 items"),
        ("Annotated[Decimal, Field(ge=0.1, max_digits=5, decimal_places=2)]", "a decimal number, 0.1 or more, at most 5 digits, at most 2 decimal places"),
        ("Annotated[date, Field(ge='2024-01-01')]", "a date (YYYY-MM-DD), not before 2024-01-01"),
        ("Decimal", "a decimal number"),
        ("list[UUID]", "a JSON list of UUIDs"),
    ],
)  # fmt: skip
def test_a_constraint_is_read_from_text_and_written_back(text: str, words: str) -> None:
    made = signature(f"question -> answer: {text}, why")
    type_ = field_types(made)["answer"]
    assert describe(type_) == words
    assert dump(made)["outputs"]["answer"] == text
    assert dump(signature(dump(made))) == dump(made)


def test_dspy_shows_a_constraint_in_its_own_prompts() -> None:
    made = signature("question -> score: Annotated[int, Field(ge=0, le=10)]")
    assert made.fields["score"].annotation is int
    assert (
        made.fields["score"].json_schema_extra["constraints"] == Rating.fields["score"].json_schema_extra["constraints"]
    )


def test_an_input_may_have_constraints_too() -> None:
    made = signature("age: Annotated[int, Field(ge=0)] -> group")
    assert conditions(field_types(made)["age"]) == {"ge": 0}


def test_a_mapping_has_constraints_beside_the_type() -> None:
    made = signature(
        {
            "outputs": {
                "score": {"type": "int", "ge": 0, "le": 10, "description": "how good"},
                "tags": {"type": "list[str]", "max_length": 3},
                "line": {
                    "type": {"price": {"type": "Decimal", "ge": 0}, "since": {"type": "date", "gt": "2020-01-01"}}
                },
            }
        }
    )
    types = field_types(made)
    assert conditions(types["score"]) == {"ge": 0, "le": 10}
    assert made.fields["score"].json_schema_extra["desc"] == "how good"
    assert conditions(types["tags"]) == {"max_length": 3}
    read('{"price": "1.50", "since": "2020-01-02"}', types["line"])
    with pytest.raises(ReadError, match="whose since is wrong"):
        read('{"price": "1.50", "since": "2020-01-01"}', types["line"])
    assert dump(made)["outputs"]["line"]["type"] == {
        "price": "Annotated[Decimal, Field(ge=0)]",
        "since": "Annotated[date, Field(gt='2020-01-01')]",
    }
    assert dump(signature(dump(made))) == dump(made)


def test_a_class_is_dumped_with_its_constraints() -> None:
    dumped = dump(signature(Rating))
    assert dumped["outputs"] == {
        "score": "Annotated[int, Field(ge=0, le=10)]",
        "share": {"type": "Annotated[float, Field(gt=0, lt=1)]", "description": "of all"},
        "tags": "Annotated[list[Annotated[str, Field(max_length=8)]], Field(min_length=1, max_length=3)]",
        "code": "Annotated[str | None, Field(pattern='^[A-Z]{2}$')]",
    }
    assert dump(signature(dumped)) == dumped


def test_a_model_is_dumped_with_its_constraints() -> None:
    dumped = dump(signature("a -> lines: list[Line]", types={"Line": Line}))
    assert dumped["types"]["Line"] == {
        "price": "Annotated[Decimal, Field(ge=0, decimal_places=2)]",
        "count": "Annotated[int, Field(ge=1, le=99)]",
        "item": "UUID",
    }
    assert dump(signature(dumped)) == dumped


def test_a_type_of_the_users_own_keeps_its_validators() -> None:
    even = Annotated[int, Field(ge=0), AfterValidator(lambda number: number if number % 2 == 0 else 1 / 0)]
    made = signature("a -> b: Even", types={"Even": even})
    assert read("4", field_types(made)["b"]) == 4
    with pytest.raises(ZeroDivisionError):
        read("3", field_types(made)["b"])


def test_names_of_types_leave_constraints_out() -> None:
    assert type_name(list[Annotated[int, Field(ge=0)]]) == "list[int]"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("Annotated", "found Annotated with nothing in brackets; expected something like Annotated[int, Field(ge=0, le=10)]"),
        ("Annotated[int]", "found Annotated without a constraint; expected Annotated[int, Field(ge=0, le=10)]"),
        ("Annotated[int, Ge(0)]", "found 'Ge(0)' in Annotated; expected Field(ge=0, le=10)"),
        ("Annotated[int, Field()]", "found 'Field()' in Annotated; expected Field(ge=0, le=10)"),
        ("Annotated[int, Field(0)]", "found 'Field(0)' in Annotated; expected Field(ge=0, le=10)"),
        ("Annotated[int, Field(**x)]", "found 'Field(**x)'; expected constraints by name"),
        ("Annotated[int, Field(ge=limit)]", "found ge='limit'; expected a number, or text in quotes"),
        ("Annotated[int, Field(ge=__import__('os').getpid())]", "found ge=\"__import__('os').getpid()\"; expected a number, or text in quotes"),
        ("Annotated[int, Field(ge=True)]", "found ge='True'; expected a number, or text in quotes"),
        ("Annotated[int, Field(gee=0)]", f"found the constraint 'gee' on int; expected {NUMBERS} (did you mean 'ge'?)"),
        ("Annotated[int, Field(min_length=1)]", f"found the constraint 'min_length' on int; expected {NUMBERS}"),
        ("Annotated[str, Field(ge=1)]", "found the constraint 'ge' on str; expected min_length, max_length, pattern"),
        ("Annotated[bool, Field(ge=1)]", "found the constraint 'ge' on bool; expected no constraint on this type"),
        ("Annotated[int, Field(ge=0.5)]", "found ge=0.5 (float); expected a whole number"),
        ("Annotated[int, Field(multiple_of=0)]", "found multiple_of=0 (int); expected a number above 0"),
        ("Annotated[float, Field(ge='0')]", "found ge='0'; expected a number"),
        ("Annotated[float, Field(le=1e999)]", "found le=inf (float); expected a number"),
        ("Annotated[str, Field(min_length=-1)]", "found min_length=-1 (int); expected a whole number, 0 or more"),
        ("Annotated[str, Field(pattern=3)]", "found pattern=3 (int); expected a regular expression in quotes"),
        ("Annotated[str, Field(pattern='(')]", "found a constraint on str that pydantic cannot check (regex parse error: ( ^ error: unclosed group); expected a constraint that fits the type"),
        ("Annotated[date, Field(ge=2024)]", "found ge=2024 (int); expected a date in quotes, in the form of ISO 8601"),
        ("Annotated[int, Field(ge=5, le=3)]", "found ge=5, le=3, which no value meets; expected bounds with values between them"),
        ("Annotated[int, Field(gt=5, le=5)]", "found gt=5, le=5, which no value meets; expected bounds with values between them"),
        ("Annotated[str, Field(min_length=4, max_length=3)]", "found min_length=4, max_length=3, which no value meets; expected bounds with values between them"),
        ("Annotated[datetime, Field(ge='2024-01-01', lt='2024-01-02T00:00+00:00')]", "found ge=2024-01-01T00:00:00, lt=2024-01-02T00:00:00+00:00, which no value meets; expected bounds with values between them"),
    ],
)  # fmt: skip
def test_refused_text(text: str, message: str) -> None:
    with pytest.raises(InputError) as caught:
        signature(f"a -> b: {text}")
    assert str(caught.value) == f"b: {message}"


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ({"ge": 0}, "found the constraints ge without a type; expected {type: int, ge: 0}\n  A record is written {type: {ge: ...}}."),
        ({"type": "int", "min": 0}, "found the key 'min' in a field; expected type, description"),
        ({"type": "int", "ge": "low"}, "found ge='low'; expected a whole number"),
        ({"type": "str", "ge": 1}, "found the constraint 'ge' on str; expected min_length, max_length, pattern"),
        ({"type": {"x": "int"}, "ge": 1}, "found the constraint 'ge' on B; expected no constraint on this type"),
    ],
)  # fmt: skip
def test_refused_mapping(spec: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError) as caught:
        signature({"outputs": {"b": spec}})
    assert str(caught.value) == f"b: {message}"


def test_a_constraint_that_pydantic_cannot_apply_is_an_input_error() -> None:
    with pytest.raises(InputError) as caught:
        read("x", Annotated[str, Field(ge=1)])
    assert str(caught.value).startswith(
        "found a constraint on str that cannot be checked (Unable to apply constraint 'ge'"
    )
    with pytest.raises(InputError, match="found a constraint on int that pydantic cannot check"):
        read("1", Annotated[int, Field(ge=0.5)])


def test_a_bound_on_a_date_is_compared() -> None:
    assert read("2024-02-29", Annotated[date, Field(gt=date(2024, 2, 28))]) == date(2024, 2, 29)
