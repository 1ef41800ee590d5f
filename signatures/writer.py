"""The canonical text of a value.

Text stands as it is; `true` and `false`; numbers in their shortest form, decimals with all their digits; dates in ISO
8601; UUIDs with hyphens; Literals and Enums as their label; None as `null`; everything else as compact JSON. `read`
turns each of them back into the value.
"""

from __future__ import annotations

import json
import math
from datetime import date, time
from decimal import Decimal
from enum import Enum
from typing import Any

from pydantic_core import PydanticSerializationError

from ..errors import InputError
from .labels import label_text
from .numerals import DIGITS, PLACES
from .types import Shape, shape, type_name
from .validation import adapter

NULL_WORDS = ("", "null", "none", "n/a")


def is_null(text: str) -> bool:
    """Whether `text` says that there is no value: null, none, n/a or nothing, in any case, a full stop allowed."""
    return text.strip().removesuffix(".").casefold() in NULL_WORDS


def write(value: Any, type_: Any = Any) -> str:
    """The text of `value` as a `type_`. Raises InputError for a value without text (an infinity, an arbitrary object).

    A value that is not of its type is written by its own nature: text may be the only thing an input is declared as.

    >>> write([1, 2], list[int]), write(True, bool), write(None, int | None)
    ('[1,2]', 'true', 'null')
    """
    taken = shape(type_)
    if value is None or isinstance(value, bool | Enum):
        return label_text(value)
    if isinstance(value, str):
        return _text(value, taken)
    if isinstance(value, int | float):
        return _number(value, taken)
    if isinstance(value, Decimal) and taken.kind != "any":
        return _decimal(value)
    if isinstance(value, date | time):
        return value.isoformat()
    data = _data(value, taken)
    return _text(data, taken) if isinstance(data, str) else to_json(data)


def to_json(data: Any) -> str:
    """Compact JSON on one line, in UTF-8. Raises InputError for what JSON cannot say."""
    try:
        return json.dumps(data, ensure_ascii=False, separators=(",", ":"), allow_nan=False)
    except (TypeError, ValueError, RecursionError) as error:
        raise InputError(
            f"found a value that JSON cannot hold: {error}", expected="finite numbers and plain data"
        ) from error


def _text(value: str, taken: Shape) -> str:
    """A string as it is, or in quotes where bare it would read as something else."""
    if taken.kind in ("any", "json"):
        quoted = value != value.strip() or _is_json(value)
    else:
        quoted = taken.kind == "str" and taken.optional and needs_quotes(value)
    return to_json(value) if quoted else value


def needs_quotes(value: str) -> bool:
    """Whether an optional string needs quotes: bare it would read as None, or as another string's quoted form."""
    return is_null(value) or (value[:1] == '"' and (inner := json_string(value)) is not None and needs_quotes(inner))


def json_string(text: str) -> str | None:
    """The string whose JSON `text` is, or None."""
    try:
        inner = json.loads(text)
    except (ValueError, RecursionError):
        return None
    return inner if isinstance(inner, str) else None


def _is_json(text: str) -> bool:
    try:
        json.loads(text)
    except (ValueError, RecursionError):
        return False
    return True


def _number(value: int | float, taken: Shape) -> str:
    """The shortest text that reads back as the number."""
    try:
        number = float(value) if taken.kind == "float" else value
        text = repr(number)
    except (OverflowError, ValueError) as error:  # more digits than a float, or than Python will print
        raise InputError("found a number with too many digits", expected="a finite number") from error
    if isinstance(number, float) and not math.isfinite(number):
        raise InputError(f"found {text}", expected="a finite number")
    return text


def _decimal(value: Decimal) -> str:
    """All the digits of a decimal, without a power of ten where that is not long."""
    if not value.is_finite():
        raise InputError(f"found {value}", expected="a finite number")
    exponent = value.as_tuple().exponent
    plain = isinstance(exponent, int) and exponent >= -PLACES and value.adjusted() < DIGITS
    return format(value, "f") if plain else str(value)


def _data(value: Any, taken: Shape) -> Any:
    """`value` as plain data."""
    type_ = taken.inner if taken.kind in ("list", "json", "any") else Any
    try:
        return adapter(type_).dump_python(value, mode="json", by_alias=True, warnings=False)
    except (PydanticSerializationError, RecursionError) as error:
        raise InputError(
            f"found a value of type {type(value).__name__} for {type_name(type_)}",
            expected="a value that JSON can hold",
        ) from error
