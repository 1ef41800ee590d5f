"""Regular expressions for numbers and dates in a range, against the range itself."""

from __future__ import annotations

import re
from datetime import date, timedelta
from decimal import Decimal
from uuid import UUID

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cuecard.signatures.moments import day, uuid
from cuecard.signatures.numerals import real, whole

often = settings(max_examples=300, deadline=None)
near = st.integers(0, 6).flatmap(lambda digits: st.integers(-(10**digits), 10**digits))
decimals = st.builds(lambda count, places: Decimal(count).scaleb(-places), near, st.integers(0, 9))


def inside(value: Decimal | int | date, low: Decimal | int | date | None, high: Decimal | int | date | None) -> bool:
    return (low is None or value >= low) and (high is None or value <= high)  # type: ignore[operator]


@often
@given(st.none() | near, st.none() | near, near)
def test_whole_numbers(low: int | None, high: int | None, value: int) -> None:
    expression = whole(low, high)
    around = [bound + step for bound in (low, high) if bound is not None for step in (-1, 0, 1)]
    for number in (value, *around):
        assert bool(expression and re.fullmatch(expression, str(number))) == inside(number, low, high), number


@often
@given(st.none() | decimals, st.none() | decimals, decimals)
def test_numbers_with_a_point_and_with_a_power_of_ten(
    low: Decimal | None, high: Decimal | None, value: Decimal
) -> None:
    expression = real(low, high)
    step = Decimal("1e-9")
    around = [bound + change for bound in (low, high) if bound is not None for change in (-step, Decimal(0), step)]
    for number in (value, *around):
        texts = [format(number, "f"), format(number, "f") + ("0" if "." in format(number, "f") else ".00")]
        texts += [f"{number.normalize():E}"] if number else []
        for text in texts:
            written = Decimal(text)
            if re.match("-0(\\.0*)?$", text):
                continue  # both signs of nothing are nothing
            found = bool(expression and re.fullmatch(expression, text))
            if "E" in text and not re.match("-?[1-9](\\.|E)", text):
                continue  # one digit stands before the point there
            assert found == inside(written, low, high), text


def test_numbers_end() -> None:
    for expression in (whole(None, None), whole(0, None), real(None, None), real(Decimal("0.5"), None)):
        assert expression is not None
        assert not re.fullmatch(expression, "1" * 300)
        assert not re.fullmatch(expression, "1." + "1" * 300)
        assert not re.fullmatch(expression, "1e" + "1" * 300)


@pytest.mark.parametrize(("low", "high"), [(3, 2), (1, 0), (-4, -5)])
def test_there_is_nothing_between_bounds_the_wrong_way_round(low: int, high: int) -> None:
    assert whole(low, high) is None
    assert real(Decimal(low), Decimal(high)) is None


def test_a_bound_beyond_the_usual_digits_is_kept() -> None:
    expression = whole(10**20, None)
    assert expression is not None
    assert re.fullmatch(expression, str(10**20))
    assert not re.fullmatch(expression, str(10**20 - 1))
    far = real(Decimal("1e100"), None)
    assert far is not None
    assert re.fullmatch(far, "1e+100")
    assert not re.fullmatch(far, "9.9e+99")


@often
@given(st.none() | st.dates(), st.none() | st.dates(), st.dates())
def test_days(low: date | None, high: date | None, value: date) -> None:
    expressions = day(low, high)
    around = [bound for bound in (low, high) if bound is not None]
    around += [bound + timedelta(days=1) for bound in around if bound < date.max]
    for when in (value, *around):
        found = bool(expressions) and all(re.fullmatch(expression, when.isoformat()) for expression in expressions)
        assert found == inside(when, low, high), when


@pytest.mark.parametrize("text", ["2023-02-29", "1900-02-29", "2024-04-31", "2024-00-10", "2024-13-01", "0000-01-01"])
def test_no_day_that_is_none(text: str) -> None:
    assert not re.fullmatch(day()[0], text)


def test_every_leap_day_of_four_centuries() -> None:
    for year in range(1900, 2301):
        leap = year % 4 == 0 and (year % 100 != 0 or year % 400 == 0)
        assert bool(re.fullmatch(day()[0], f"{year}-02-29")) == leap


@often
@given(st.uuids(version=4), st.uuids())
def test_uuids(fourth: UUID, any_: UUID) -> None:
    assert re.fullmatch(uuid(4), str(fourth))
    assert re.fullmatch(uuid(), str(any_).upper())
    assert bool(re.fullmatch(uuid(4), str(any_))) == (any_.version == 4)
