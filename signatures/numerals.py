r"""Regular expressions for the numbers in a range, with a limited number of digits.

A number is written as in JSON: no sign but `-`, no leading zeros, a digit on both sides of the point. `whole` and
`real` take inclusive bounds, None for none, and give an expression that matches such texts alone, or None where there
is no number in the range. Every number of at most `DIGITS` digits before and `PLACES` behind the point is matched, as
are powers of ten up to `EXPONENT`, and more where a bound itself is larger; what is finer than `PLACES` is cut inwards.

The method: two bounds of one length share a first part; where they part, the lower one's rest is bounded below, the
upper one's above, and the digits between are free.
"""

from __future__ import annotations

from collections.abc import Iterable
from decimal import ROUND_CEILING, ROUND_FLOOR, Context, Decimal

DIGITS = 18  # fit 64 bits; without a bound a small model may write digits until its tokens run out
PLACES = 20
EXPONENT = 99
FARTHEST = 300  # however large or small a bound is; a float goes a little farther
MOST_DIGITS = 40  # however large a bound is
INT = rf"-?(0|[1-9][0-9]{{0,{DIGITS - 1}}})"
FLOAT = INT + rf"(\.[0-9]{{1,{PLACES}}})?([eE][+-]?[0-9]{{1,2}})?"
ALL = "9" * PLACES
STEP = Decimal(1).scaleb(-PLACES)
_EXACT = Context(prec=1000)


def whole(low: int | None, high: int | None) -> str | None:
    """The whole numbers from `low` to `high`."""
    most = 10 ** max(DIGITS, *(len(str(abs(bound))) for bound in (low or 0, high or 0))) - 1
    low, high = -most if low is None else low, most if high is None else high
    parts = []
    if low < 0:
        parts.append(_signed(_counts(max(-high, 0), -low)))
    if high >= 0:
        parts.append(_counts(max(low, 0), high))
    return either(parts)


def real(low: Decimal | None, high: Decimal | None) -> str | None:
    """The numbers from `low` to `high`, with or without a decimal point and a power of ten."""
    if low is not None and high is not None and low > high:
        return None
    parts = []
    if low is None or low < 0:
        below = Decimal(0) if high is None or high >= 0 else -high
        parts.append(_signed(_positive(below, None if low is None else -low)))
    if high is None or high >= 0:
        parts.append(_positive(Decimal(0) if low is None or low < 0 else low, high))
    return either(parts)


def fixed(low: str, high: str) -> str | None:
    """The texts from `low` to `high`, of one length, which differ in their digits alone (`2024-02-29`)."""
    return _between(low, high) if low <= high else None


def either(parts: Iterable[str | None]) -> str | None:
    """The alternatives that there are."""
    some = list(dict.fromkeys(part for part in parts if part is not None))
    return None if not some else some[0] if len(some) == 1 else f"({'|'.join(some)})"


def times(low: int, high: int | None) -> str:
    """How often, behind a group: `{2,3}`."""
    return f"{{{low},{'' if high is None else high}}}"


def _signed(expression: str | None) -> str | None:
    return None if expression is None else f"-{expression}"


def _counts(low: int, high: int) -> str | None:
    """The whole numbers from `low` to `high`, none of them negative: length by length, those between in one."""
    if low > high:
        return None
    shortest, longest = len(str(low)), len(str(high))
    if shortest == longest:
        return _between(str(low), str(high))
    parts: list[str | None] = [_between(str(low), "9" * shortest)]
    if shortest + 1 < longest:
        parts.append(f"[1-9][0-9]{times(shortest, longest - 2)}")
    return either([*parts, _between("1" + "0" * (longest - 1), str(high))])


def _between(low: str, high: str) -> str:
    """The texts of one length from `low` to `high`; what is no digit is the same in both."""
    if low == high:
        return "".join(character if character.isalnum() else f"\\{character}" for character in low)
    rest = low[1:]
    if low[0] == high[0]:
        return _between(low[0], high[0]) + _between(rest, high[1:])
    first, last = int(low[0]), int(high[0])
    least = "".join("0" if character.isdigit() else character for character in rest)
    most = "".join("9" if character.isdigit() else character for character in rest)
    parts: list[str | None] = []
    if rest != least:
        parts.append(low[0] + _between(rest, most))
        first += 1
    if high[1:] != most:
        last -= 1
    if first <= last:
        parts.append(_digit(first, last) + _free(rest))
    if high[1:] != most:
        parts.append(high[0] + _between(least, high[1:]))
    return either(parts) or ""


def _free(like: str) -> str:
    """Any digits in the places of those of `like`."""
    if like.isdigit():
        return "[0-9]" if len(like) == 1 else f"[0-9]{{{len(like)}}}"
    return "".join("[0-9]" if character.isdigit() else f"\\{character}" for character in like)


def _digit(first: int, last: int) -> str:
    return str(first) if first == last else f"[{first}-{last}]"


def _positive(low: Decimal, high: Decimal | None) -> str | None:
    """The numbers from `low` to `high`, none of them negative, in both notations."""
    room = max(DIGITS, *(min(len(str(int(bound))), MOST_DIGITS) for bound in (low, high or Decimal(0))))
    end = _EXACT.subtract(_EXACT.scaleb(Decimal(1), room), STEP)
    return either([_point(low, end if high is None else min(high, end)), _powers(low, high)])


def _point(low: Decimal, high: Decimal) -> str | None:
    """The numbers from `low` to `high` with a decimal point, or none."""
    if low > high:
        return None
    low, high = low.quantize(STEP, ROUND_CEILING, _EXACT), high.quantize(STEP, ROUND_FLOOR, _EXACT)
    if low > high:
        return None
    (first, above), (last, below) = _halves(low), _halves(high)
    parts: list[str | None] = []
    if first == last and above and below != ALL:
        return rf"{first}\.{_span(above, below, PLACES)}"
    if above:
        parts.append(rf"{first}\.{_from(above, PLACES)}")
        first += 1
    if below != ALL:
        last -= 1
    if first <= last:
        parts.append(f"{_counts(first, last)}{_fraction(PLACES)}")
    if below != ALL:
        parts.append(rf"{last + 1}(\.{_upto(below, PLACES)})?")
    return either(parts)


def _halves(number: Decimal) -> tuple[int, str]:
    """What stands before the point, and behind it without zeros at its end."""
    before, _, behind = format(number, "f").partition(".")
    return int(before), behind.rstrip("0")


def _fraction(room: int) -> str:
    return rf"(\.[0-9]{times(1, room)})?"


def _any(room: int) -> str:
    return f"[0-9]{times(0, room)}" if room else ""


def _zeros(low: int, room: int) -> str:
    return f"0{times(low, room)}" if room else ""


def _from(least: str, room: int) -> str:
    """Up to `room` digits behind a point, of at least `least`, which is not empty and does not end in 0."""
    digit, rest = int(least[0]), least[1:]
    parts: list[str | None] = [least[0] + (_from(rest, room - 1) if rest else _any(room - 1))]
    if digit < 9:
        parts.append(_digit(digit + 1, 9) + _any(room - 1))
    return either(parts) or ""


def _upto(most: str, room: int) -> str:
    """Up to `room` digits behind a point, at least one, of at most `most`, which does not end in 0."""
    if not most:
        return _zeros(1, room)
    digit, rest = int(most[0]), most[1:]
    tail = f"({_upto(rest, room - 1)})?" if rest else _zeros(0, room - 1)
    parts: list[str | None] = [most[0] + tail]
    if digit:
        parts.append(_digit(0, digit - 1) + _any(room - 1))
    return either(parts) or ""


def _span(least: str, most: str, room: int) -> str:
    """Up to `room` digits behind a point, at least one, from `least` to `most`; neither ends in 0."""
    if not least:
        return _upto(most, room)
    first, last = int(least[0]), int(most[0])
    above, below = least[1:], most[1:]
    if first == last:
        if above:
            return least[0] + _span(above, below, room - 1)
        return least[0] + (f"({_upto(below, room - 1)})?" if room > 1 else "")
    parts: list[str | None] = [least[0] + (_from(above, room - 1) if above else _any(room - 1))]
    if first + 1 < last:
        parts.append(_digit(first + 1, last - 1) + _any(room - 1))
    parts.append(most[0] + (f"({_upto(below, room - 1)})?" if below else _zeros(0, room - 1)))
    return either(parts) or ""


def _powers(low: Decimal, high: Decimal | None) -> str | None:
    """The numbers from `low` to `high` as one digit other than 0, more behind a point, and a power of ten.

    Where a bound lies between two powers of ten, that decade's numbers are bounded; the others' are free.
    """
    if high is not None and high <= 0:
        return None
    least, most = low.adjusted() if low else None, None if high is None else high.adjusted()
    floor = max(min(-EXPONENT, (most or 0) - 9), -FARTHEST)
    ceiling = min(max(EXPONENT, (least or 0) + 9), FARTHEST)
    first = floor if least is None else max(least, floor)
    last = ceiling if most is None else min(most, ceiling)
    one, ten = Decimal(1), Decimal(10) - STEP
    parts: list[str | None] = []
    start, stop = first, last
    if low and low.adjusted() == first and low.scaleb(-first, _EXACT) != 1:
        top = high.scaleb(-first, _EXACT) if high is not None and high.adjusted() == first else ten
        parts.append(_power(_point(low.scaleb(-first, _EXACT), top), first, first))
        start += 1
    if high is not None and high.adjusted() == last and start <= last:
        parts.append(_power(_point(one, high.scaleb(-last, _EXACT)), last, last))
        stop -= 1
    if start <= stop:
        parts.append(_power(rf"[1-9]{_fraction(PLACES)}", start, stop))
    return either(parts)


def _power(mantissa: str | None, first: int, last: int) -> str | None:
    """`mantissa` with the exponents from `first` to `last`, with a zero before a single digit or not."""
    if mantissa is None:
        return None
    parts: list[str | None] = []
    if first < 0:
        parts.append(f"-0?{_counts(max(1, -last), -first)}")
    if last >= 0:
        parts.append(rf"\+?0?{_counts(max(0, first), last)}")
    return f"{mantissa}[eE]{either(parts)}"
