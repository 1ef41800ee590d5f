"""Reading a model's text, and writing values."""

from __future__ import annotations

from datetime import date, datetime, time
from decimal import Decimal
from enum import Enum
from typing import Annotated, Any, Literal
from uuid import UUID

import dspy
import pytest
from pydantic import UUID4, BaseModel, Field

from cuecard.errors import InputError, ReadError
from cuecard.signatures import read, write

Queue = Literal["billing", "technical", "very technical"]


class Color(Enum):
    RED = "red"
    TWO = 2


class Person(BaseModel):
    name: str
    age: int


@pytest.mark.parametrize(
    ("value", "type_", "text"),
    [
        (" as it is\n", str, " as it is\n"),
        (True, bool, "true"),
        (12, int, "12"),
        (0.1, float, "0.1"),
        (3, float, "3.0"),
        (1e22, float, "1e+22"),
        (None, int | None, "null"),
        ("none", str | None, '"none"'),
        ("some", str | None, "some"),
        ("5", Any, '"5"'),
        (5, Any, "5"),
        ("billing", Queue, "billing"),
        (Color.TWO, Color, "2"),
        (date(2024, 1, 2), date, "2024-01-02"),
        (datetime(2024, 1, 2, 3, 4), datetime, "2024-01-02T03:04:00"),
        (time(3, 4), time, "03:04:00"),
        (Decimal("12.50"), Decimal, "12.50"),
        (Decimal("1E+3"), Decimal, "1000"),
        (Decimal("1E-7"), Decimal, "0.0000001"),
        (Decimal("1E+30"), Decimal, "1E+30"),
        (Decimal("1.5"), str, "1.5"),
        (Decimal("1.5"), Any, '"1.5"'),
        ([Decimal("1.50")], list[Decimal], '["1.50"]'),
        (UUID(int=10), UUID, "00000000-0000-0000-0000-00000000000a"),
        ([UUID(int=10)], list[UUID], '["00000000-0000-0000-0000-00000000000a"]'),
        (["caf\u00e9", "b"], list[str], '["caf\u00e9","b"]'),
        ([Color.RED], list[Color], '["red"]'),
        ({"a": 1.5}, dict[str, float], '{"a":1.5}'),
        (Person(name="A", age=3), Person, '{"name":"A","age":3}'),
        ([Person(name="A", age=3)], list[Person], '[{"name":"A","age":3}]'),
        # what is not of its type is written by its own nature
        (["x", "y"], str, '["x","y"]'),
        (3, str, "3"),
        ("odd", int, "odd"),
        ("odd", Queue, "odd"),
        ({"name": "A"}, Person, '{"name":"A"}'),
    ],
)
def test_write(value: Any, type_: Any, text: str) -> None:
    assert write(value, type_) == text


@pytest.mark.parametrize(
    ("value", "type_", "message"),
    [
        (float("nan"), float, "found nan; expected a finite number"),
        (Decimal("nan"), Decimal, "found NaN; expected a finite number"),
        (10**400, float, "found a number with too many digits; expected a finite number"),
        ([float("inf")], list[float], "found a value that JSON cannot hold: Out of range float values are not JSON compliant; expected finite numbers and plain data"),
        (object(), Any, "found a value of type object for Any; expected a value that JSON can hold"),
    ],
)  # fmt: skip
def test_write_refuses_what_has_no_text(value: Any, type_: Any, message: str) -> None:
    with pytest.raises(InputError) as caught:
        write(value, type_)
    assert str(caught.value) == message


@pytest.mark.parametrize(
    ("text", "type_", "value"),
    [
        ("  Paris. \n", str, "Paris."),
        ('"Paris"', str, '"Paris"'),
        ("", str, ""),
        ("True", bool, True),
        ("`no`.", bool, False),
        ("Yes\nbecause it is so", bool, True),
        ("12", int, 12),
        (" 1,234 ", int, 1234),
        ("12.", int, 12),
        ("12.0", int, 12),
        ('"-7"', int, -7),
        ("+3", int, 3),
        ("1,234.5", float, 1234.5),
        (".5", float, 0.5),
        ("3.", float, 3.0),
        ("`1e-3`", float, 0.001),
        ("2024-02-29.", date, date(2024, 2, 29)),
        ("'2024-02-29T10:00'", datetime, datetime(2024, 2, 29, 10)),
        ("10:30", time, time(10, 30)),
        (" 1,234.50. ", Decimal, Decimal("1234.50")),
        ("`0.10000000000000000001`", Decimal, Decimal("0.10000000000000000001")),
        ("1e-400", Decimal, Decimal("1e-400")),
        ("n/a", Decimal | None, None),
        ("12.5, 1", list[Decimal], [Decimal("12.5"), Decimal(1)]),
        ('["12.50", 1.5]', list[Decimal], [Decimal("12.50"), Decimal("1.5")]),
        ('"0000000A-0000-4000-8000-000000000000".', UUID, UUID("0000000a-0000-4000-8000-000000000000")),
        ("{0000000a-0000-4000-8000-000000000000}", UUID, UUID("0000000a-0000-4000-8000-000000000000")),
        ("urn:uuid:0000000a-0000-4000-8000-000000000000", UUID, UUID("0000000a-0000-4000-8000-000000000000")),
        ("0000000a000040008000000000000000", UUID, UUID("0000000a-0000-4000-8000-000000000000")),
        # labels
        ("billing", Queue, "billing"),
        ("BILLING", Queue, "billing"),
        (' "Billing." ', Queue, "billing"),
        ("**billing**", Queue, "billing"),
        ("[billing]", Queue, "billing"),
        ("Very_Technical!", Queue, "very technical"),
        ("Billing\nThe customer was not charged for technical help.", Queue, "billing"),
        ("The queue is billing, I think.", Queue, "billing"),
        ("Queue: very technical", Queue, "very technical"),
        ("us", Literal["US", "us"], "us"),
        ("C", Literal["C", "C++"], "C"),
        ("C++", Literal["C", "C++"], "C++"),
        ("-1", Literal[1, -1], -1),
        ("I rate this 3.", Literal[1, 2, 3], 3),
        ("true", Literal[True, 1], True),
        ("two", Literal["one", "two"], "two"),
        ("RED", Color, Color.RED),
        ("2.", Color, Color.TWO),
        ("none", Literal["none", "some"], "none"),
        ("none", Literal["none", "some"] | None, "none"),
        ("N/A", Literal["none", "some"] | None, None),
        # None
        ("null", int | None, None),
        ("None.", int | None, None),
        ("n/a", str | None, None),
        ("", str | None, None),
        ('"none"', str | None, "none"),
        ('"word"', str | None, '"word"'),
        ("7", int | None, 7),
        ("null", Any, None),
        # lists
        ('["a", "b"]', list[str], ["a", "b"]),
        ("- a\n- `b, c`\n\n* d e.", list[str], ["a", "b, c", "d e."]),
        ("1. a\n2) b", list[str], ["a", "b"]),
        ("red, green , blue", list[str], ["red", "green", "blue"]),
        ("'red', `green`", list[str], ["red", "green"]),
        ('"a, b", "c"', list[str], ["a, b", "c"]),
        ("one", list[str], ["one"]),
        ('- say "hi"\n- [x] done', list[str], ['say "hi"', "[x] done"]),
        ("The list is [1, 2].", list[int], [1, 2]),
        ("1, 2,3", list[int], [1, 2, 3]),
        ("0.5, 1", list[float], [0.5, 1.0]),
        ("- Billing\n- technical.", list[Queue], ["billing", "technical"]),
        ("[1, 2", list[int], [1, 2]),
        ("['a', 'b',]", list[str], ["a", "b"]),
        ("```json\n[1]\n```", list[int], [1]),
        ("[]", list[str], []),
        ("[[1], []]", list[list[int]], [[1], []]),
        # objects
        ('{"name": "A", "age": 3}', Person, Person(name="A", age=3)),
        ('Here it is:\n```json\n{"name": "A", "age": 3}\n```\nDone.', Person, Person(name="A", age=3)),
        ("Sure! {'name': 'A', 'age': '3',}", Person, Person(name="A", age=3)),
        ('{"name": "```x```", "age": 3}', Person, Person(name="```x```", age=3)),
        ('{"a": 1}', dict[str, int], {"a": 1}),
        ("free text", Any, "free text"),
        ("{broken", Any, "{broken"),
        ("x = 1", dspy.Code, dspy.Code(code="x = 1")),
        ("5", Annotated[int, Field(le=5)], 5),
        (" abc ", Annotated[str, Field(min_length=3, max_length=3)], "abc"),
        ("none", Annotated[str | None, Field(min_length=5)], None),
        ("- ab\n- abc", list[Annotated[str, Field(min_length=2)]], ["ab", "abc"]),
        ("[1, 2]", Annotated[list[int], Field(max_length=2)], [1, 2]),
    ],
)
def test_read(text: str, type_: Any, value: Any) -> None:
    found = read(text, type_)
    assert found == value
    assert type(found) is type(value)


BILLING = "one of: billing, technical, very technical"
JSON_LIST = "a JSON list of whole numbers"
PERSON = "a JSON object with the keys name (str), age (int)"


@pytest.mark.parametrize(
    ("text", "type_", "message"),
    [
        ("maybe", bool, "found 'maybe'; expected true or false"),
        ("It is true", bool, "found 'It is true'; expected true or false"),
        ("1", bool, "found '1'; expected true or false"),
        ("12.5", int, "found '12.5'; expected a whole number"),
        ("1,23", int, "found '1,23'; expected a whole number"),
        ("twelve", int, "found 'twelve'; expected a whole number"),
        ("12 apples", int, "found '12 apples'; expected a whole number"),
        ("1_000", int, "found '1_000'; expected a whole number"),
        ("\u0663", int, "found '\u0663'; expected a whole number"),
        ("9" * 5000, int, f"found '{'9' * 77}...'; expected a whole number"),
        ("", int, "found no text; expected a whole number"),
        ("60%", float, "found '60%'; expected a number"),
        ("nan", float, "found 'nan'; expected a number"),
        ("1e999", float, "found '1e999'; expected a number"),
        ("2023-02-29", date, "found '2023-02-29'; expected a date (YYYY-MM-DD)"),
        ("1700000000", date, "found '1700000000'; expected a date (YYYY-MM-DD)"),
        ("", Queue, f"found no text; expected {BILLING}"),
        ("biling", Queue, f"found 'biling'; expected {BILLING} (did you mean 'billing'?)"),
        ("refund", Queue, f"found 'refund'; expected {BILLING}"),
        ("billing or technical", Queue, f"found 'billing or technical', which may mean billing or technical; expected {BILLING}"),
        ("It is not billing.", Queue, f"found 'It is not billing.', which names billing beside a denial; expected {BILLING}"),
        ("billing/refund", Queue, f"found 'billing/refund'; expected {BILLING} (did you mean 'billing'?)"),
        ("Us", Literal["US", "us"], "found 'Us', which may mean US or us; expected one of: US, us"),
        ("non-toxic comment", Literal["toxic", "fine"], "found 'non-toxic comment'; expected one of: toxic, fine"),
        ("2.5", Literal[2, 3], "found '2.5'; expected one of: 2, 3"),
        ("5%", Literal[5, 6], "found '5%'; expected one of: 5, 6 (did you mean '5'?)"),
        ("3/5", Literal[1, 3], "found '3/5'; expected one of: 1, 3"),
        ("maybe", Literal["a"] | None, "found 'maybe'; expected one of: a, null"),
        ("x" * 200, Queue, f"found '{'x' * 77}...'; expected {BILLING}"),
        ("some", int | None, "found 'some'; expected a whole number, or null"),
        ("1,234", list[int], f"found '1,234', where a comma may part thousands or items; expected {JSON_LIST}"),
        ("a,,b", list[str], "found an empty item in 'a,,b'; expected a JSON list of strings"),
        ("one\ntwo", list[str], "found 2 lines without bullets; expected a JSON list of strings"),
        ('say "hi", go', list[str], "found 'say \"hi\", go', where some items have quotes and some have none; expected a JSON list of strings"),
        ("1, x", list[int], "[1]: found 'x'; expected a whole number"),
        ("", list[str], "found no text; expected a JSON list of strings"),
        ('["a"]', list[int], f"found '[\"a\"]', whose 0 is wrong (a valid integer, unable to parse string as an integer); expected {JSON_LIST}"),
        ('{"a": 1}', list[int], f"found '{{\"a\": 1}}', which is JSON of another kind; expected {JSON_LIST}"),
        ('{"name": "A"}', Person, f"found '{{\"name\": \"A\"}}', whose age is wrong (field required); expected {PERSON}"),
        ("[1]", Person, f"found '[1]', which is JSON of another kind; expected {PERSON}"),
        ("no idea", Person, f"found 'no idea', which is not JSON (Expecting value: line 1 column 1 (char 0)); expected {PERSON}"),
        ("[NaN]", list[float], "found '[NaN]', which is JSON of another kind; expected a JSON list of numbers"),
        ("6", Annotated[int, Field(le=5)], "found '6'; expected less than or equal to 5"),
        ("-1", Annotated[int, Field(gt=-1)] | None, "found '-1'; expected greater than -1"),
        ("x", Annotated[int, Field(ge=0)], "found 'x'; expected a whole number, 0 or more"),
        ("7", Annotated[int, Field(multiple_of=2)], "found '7'; expected a multiple of 2"),
        ("0.5", Annotated[Decimal, Field(decimal_places=0)], "found '0.5'; expected no more than 0 decimal places"),
        ("ab", Annotated[str, Field(min_length=3)], "found 'ab'; expected at least 3 characters"),
        ("abc", Annotated[str, Field(max_length=2)], "found 'abc'; expected at most 2 characters"),
        ("abc", Annotated[str, Field(pattern="^[0-9]+$")], "found 'abc'; expected text that matches ^[0-9]+$"),
        ("[1]", Annotated[list[int], Field(min_length=2)], "found '[1]'; expected at least 2 items, not 1"),
        ("{}", Annotated[dict[str, int], Field(min_length=1)], "found '{}'; expected at least 1 item, not 0"),
        ("2023-12-31", Annotated[date, Field(ge=date(2024, 1, 1))], "found '2023-12-31'; expected greater than or equal to 2024-01-01"),
        ("[5, 11]", list[Annotated[int, Field(le=10)]], "found '[5, 11]', whose 1 is wrong (less than or equal to 10); expected a JSON list, each item a whole number, 10 or less"),
        ("5, 11", list[Annotated[int, Field(le=10)]], "[1]: found '11'; expected less than or equal to 10"),
        ("- a\n- bc", list[Annotated[str, Field(min_length=2)]], "[0]: found 'a'; expected at least 2 characters"),
        ("12 EUR", Decimal, "found '12 EUR'; expected a decimal number"),
        ("1e99999999999999999999", Decimal, "found '1e99999999999999999999'; expected a decimal number"),
        ("NaN", Decimal, "found 'NaN'; expected a decimal number"),
        ("0000-0000a000040008000000000000000", UUID, "found '0000-0000a000040008000000000000000'; expected a UUID"),
        ("00000000-0000-1000-8000-000000000000", UUID4, "found '00000000-0000-1000-8000-000000000000'; expected UUID version 4"),
    ],
)  # fmt: skip
def test_refusals(text: str, type_: Any, message: str) -> None:
    with pytest.raises(ReadError) as caught:
        read(text, type_, field="queue")
    assert str(caught.value) in (f"queue: {message}", f"queue{message}")


def test_refusal_of_many_labels_shows_eight() -> None:
    labels = tuple(f"l{index}" for index in range(20))
    with pytest.raises(ReadError) as caught:
        read("other", Literal[labels])
    assert str(caught.value) == "value: found 'other'; expected one of: l0, l1, l2, l3, l4, l5, l6, l7, ... (20 in all)"


def test_deeply_nested_text_is_refused() -> None:
    with pytest.raises(ReadError):
        read("[" * 100_000, list[list[int]])
