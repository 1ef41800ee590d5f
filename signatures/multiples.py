"""The multiples of a number between two bounds, which llguidance counts (`multipleOf` in `%json`).

It takes multiples of 0.25 with exactly two digits behind the point, or with none; those with one are then the multiples
of 0.5, and so a step with `n` places gives `n + 1` alternatives, each with a step of its own.
"""

from __future__ import annotations

import math
from decimal import Decimal
from fractions import Fraction

from .lark import choice, embedded, fault
from .messages import Where
from .numerals import DIGITS

INEXACT_DIGITS = 6  # pydantic takes a float for a multiple within 1e-9, which rounding reaches from a million on
LARGEST = 2**53
HALF = Fraction(1, 2)
NEIGHBOURS = 32

Number = int | float | Decimal


def multiples(
    step: Number,
    low: Number | None,
    high: Number | None,
    where: Where,
    *,
    digits: int = DIGITS,
    whole: bool = False,
) -> str | None:
    """The multiples of `step` from `low` to `high`, with at most `digits` digits before the point; None for none.

    `whole`: whole numbers, without a point. Raises InputError for a step that llguidance cannot count by.
    """
    exact, limit = Fraction(str(step)), Fraction(10**digits - 1)
    least = -limit if low is None else max(-limit, Fraction(low))
    most = limit if high is None else min(limit, Fraction(high))
    places = 0
    while not whole and (exact * 10**places).denominator > 1:
        places += 1
    forms = []
    for place in range(places + 1):
        schema = _schema(_common(exact, Fraction(1, 10**place)), place, least, most)
        if schema is None:
            continue
        reason = fault(schema)
        if reason:
            raise where.error(
                f"found multiple_of={step}, which a mask cannot count by ({reason})",
                expected="a multiple with few digits, such as 5 or 0.25",
            )
        forms.append(schema)
        if place and 0 <= most < _common(exact, Fraction(1, 10**place)):
            forms.append(f'"0.{"0" * place}"')  # below 0.05 llguidance takes "0" and "0.01", but not "0.0"
    if not forms:
        return None
    return choice(forms) if whole or places else rf"({forms[0]} /\.0/?)"


def float_multiples(step: Number, low: float | None, high: float | None, where: Where) -> str | None:
    """The multiples among the floats: all of 0.25, which is a float itself; of 0.1, those that are near enough."""
    exact = Fraction(str(step))
    if Fraction(float(exact)) == exact:
        return multiples(step, low, high, where)
    found = multiples(step, low, high, where, digits=INEXACT_DIGITS)
    if found is None:
        raise where.error(
            f"found multiple_of={step} with bounds that leave no float in reach",
            expected="numbers below a million, or Decimal",
        )
    return found


def _schema(step: Fraction, places: int, least: Fraction, most: Fraction) -> str | None:
    """The multiples of `step`, with so many digits behind the point or none."""
    first, last = math.ceil(least / step), math.floor(most / step)
    if first > last:
        return None
    # Half a step beyond the outermost ones, since llguidance takes "0" but not "0.0" where 0 itself is the bound.
    limits = {"minimum": _inwards((first - HALF) * step, 1), "maximum": _inwards((last + HALF) * step, -1)}
    return embedded({"type": "number" if places else "integer", **limits, "multipleOf": _legible(step)})


def _legible(step: Fraction) -> int | float:
    """The step as a number that llguidance takes for it.

    It multiplies by ten until nothing is left behind the point, which rounding keeps it from: 0.07 is never whole, but
    the float below it is, after two steps.
    """
    if step.denominator == 1:
        return int(step)
    above = below = float(step)
    for _ in range(NEIGHBOURS):
        for near in (above, below):
            if _decimal_of(near) == step:
                return near
        above, below = math.nextafter(above, math.inf), math.nextafter(below, 0.0)
    return float(step)


def _decimal_of(number: float) -> Fraction:
    """What llguidance takes `number` for."""
    power = 0
    while number != math.floor(number):
        number *= 10
        power += 1
    return Fraction(int(number), 10**power)


def _common(first: Fraction, second: Fraction) -> Fraction:
    """The least common multiple."""
    bottom = math.lcm(first.denominator, second.denominator)
    return Fraction(math.lcm(int(first * bottom), int(second * bottom)), bottom)


def _inwards(bound: Fraction, way: int) -> int | float:
    """A bound as JSON has it: what a float holds on the side to which `way` goes."""
    if bound.denominator == 1 and abs(bound) <= LARGEST:
        return int(bound)
    held = float(bound)
    if held < bound and way > 0:
        return math.nextafter(held, math.inf)
    return math.nextafter(held, -math.inf) if held > bound and way < 0 else held
