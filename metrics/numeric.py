"""Numbers compared with a tolerance, exactly: 1.05 is within 0.05 of 1, which it is not in floating point.

Numbers are read from text as answers to word problems are (Cobbe et al., "Training Verifiers to Solve Math Word
Problems", 2021, and the evaluations after it): the last one counts, thousands may be parted by commas.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from decimal import Decimal
from fractions import Fraction
from typing import Annotated, Any, Literal

from pydantic import Field

from ..errors import InputError
from .base import FieldMetric, Measurement
from .values import as_text, plain

_NUMBER = re.compile(
    r"(?<![^\W_])(?<![0-9]\.)(?P<sign>[-+\u2212]?)[$€£¥]?"
    r"(?P<digits>(?:[0-9]{1,3}(?:,[0-9]{3})+(?![0-9,])|[0-9]+)(?:\.[0-9]+)?|\.[0-9]+)(?P<exponent>[eE][-+]?[0-9]{1,3})?"
)
_MOST_DIGITS = 1000
_Tolerance = Annotated[float, Field(ge=0, allow_inf_nan=False)]


def read_number(value: Any, take: Literal["first", "last", "only"] = "last") -> Fraction | None:
    """The number that `value` is or that its text names; None when there is none.

    Signs of currency, percent signs and units are passed over: `$1,200` is 1200 and `12%` is 12. True and False, NaN
    and infinity are no numbers. `take: only` wants a text of nothing but one number (and a currency or percent sign).
    """
    value = plain(value)
    if isinstance(value, bool) or (isinstance(value, float | Decimal) and not math.isfinite(value)):
        return None
    if isinstance(value, int | Fraction):
        return Fraction(value)
    text = as_text(value).strip()
    if take == "only":
        match = _NUMBER.fullmatch(text.removesuffix("%").rstrip())
        return None if match is None else _fraction(match)
    found = [match for match in _NUMBER.finditer(text) if len(match["digits"]) <= _MOST_DIGITS]
    return None if not found else _fraction(found[0 if take == "first" else -1])


@dataclass(frozen=True, kw_only=True)
class Numeric(FieldMetric):
    """1 where the number is within the tolerance of a gold number, else 0.

    It is where the difference is at most `absolute`, or at most `relative` times the gold number: the larger of the two
    decides, and both are 0 by default. `take` says which number of a text counts.
    """

    name = "numeric"
    fields: tuple[str, ...] = ()
    absolute: _Tolerance = 0.0
    relative: _Tolerance = 0.0
    take: Literal["first", "last", "only"] = "last"

    def compare(self, gold: Sequence[Any], prediction: Any) -> Measurement:
        """See `FieldMetric.compare`. An empty gold value means that no number is the right answer."""
        ours = read_number(prediction, self.take)
        return Measurement(float(any(self._near(self._gold_number(one), ours) for one in gold)))

    def _gold_number(self, gold: Any) -> Fraction | None:
        number = read_number(gold, self.take)
        if number is None and (gold is not None and gold != ""):
            raise InputError(f"metric {self.name!r} found the gold value {gold!r}", expected="a number")
        return number

    def _near(self, gold: Fraction | None, ours: Fraction | None) -> bool:
        if gold is None or ours is None:
            return gold is ours
        return abs(gold - ours) <= max(exact(self.absolute), exact(self.relative) * abs(gold))


def exact(number: float) -> Fraction:
    """The decimal number that a float is written as, exactly."""
    return Fraction(Decimal(repr(float(number))))


def _fraction(match: re.Match[str]) -> Fraction:
    number = Fraction(Decimal(match["digits"].replace(",", "") + (match["exponent"] or "")))
    return -number if match["sign"] in ("-", "\u2212") else number
