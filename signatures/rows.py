"""Checking one value of a data row against the type of its field.

Rows are the user's, so this is stricter than reading a model's text: a label must be spelled as declared. Numbers,
truth values and JSON may stand in a string, since a CSV file holds nothing else.
"""

from __future__ import annotations

import json
import re
from datetime import date, datetime, time
from decimal import Decimal
from enum import Enum
from os import PathLike
from typing import Any
from uuid import UUID

from .describe import describe_short
from .labels import choice_value, choices, values
from .messages import Where, nearest_label, one_of, show
from .reader import READERS
from .types import Shape, shape
from .validation import Mismatch, validate

NUMBER = r"[+-]?([0-9]+\.?[0-9]*|\.[0-9]+)([eE][+-]?[0-9]+)?"
TEXTS = {
    "bool": re.compile("true|false|yes|no", re.IGNORECASE),
    "int": re.compile(r"[+-]?[0-9]{1,4000}"),
    "float": re.compile(NUMBER),
    "decimal": re.compile(NUMBER),
    "date": re.compile(".*"),
    "datetime": re.compile(".*"),
    "time": re.compile(".*"),
    "uuid": re.compile(".*"),
}


def check_value(
    value: Any, type_: Any, *, field: str, path: str | PathLike[str] | None = None, line: int | None = None
) -> Any:
    """The typed value that `value`, from a data row, stands for.

    Raises InputError, with what was found, what was expected, and the nearest label.

    >>> check_value("3", int, field="count")
    3
    """
    where = Where(path, line, field)
    taken = shape(type_)
    if value is None or (value == "" and taken.optional and taken.kind != "str"):
        if taken.optional or taken.kind == "any":
            return None
        raise where.error("found null", expected=describe_short(type_))
    if taken.kind == "labels":
        return _label(value, taken, type_, where)
    plain = _plain(value, taken)
    if plain is None:
        hint = "Put it in quotes, or declare another type." if taken.kind == "str" else None
        raise where.error(f"found {show(value)}", expected=describe_short(type_), hint=hint)
    try:
        return validate(plain, type_)
    except Mismatch as error:
        labels = re.findall(r"'([^']*)'", error.expected)
        close = nearest_label(error.found, labels) if isinstance(error.found, str) and labels else None
        inside = where.at(error.place) if error.place else where
        raise inside.error(f"found {show(error.found)}", expected=error.expected, nearest=close) from error


def _label(value: Any, taken: Shape, type_: Any, where: Where) -> Any:
    """The member of a Literal or Enum that `value` is, or is the text or the value of."""
    for member in values(taken.inner) or ():
        plain = member.value if isinstance(member, Enum) else member
        if any(type(value) is type(same) and value == same for same in (member, plain)):
            return member
    labels = choices(taken.inner) or ()
    if isinstance(value, str) and value in labels:
        return choice_value(taken.inner, value)
    close = nearest_label(value, labels) if isinstance(value, str) else None
    raise where.error(f"found {show(value)}", expected=one_of(choices(type_) or ()), nearest=close)


def _plain(value: Any, taken: Shape) -> Any:
    """What pydantic shall validate; None when `value` is of another kind, which pydantic would bend into shape."""
    kind = taken.kind
    if kind == "str":
        return value if isinstance(value, str) else None
    if kind in TEXTS and isinstance(value, str):
        text = value.strip()
        return READERS[kind](text) if TEXTS[kind].fullmatch(text) else None
    if kind == "bool":
        return value if isinstance(value, bool) else None
    if kind in ("int", "float", "decimal"):
        whole = kind == "int" and isinstance(value, float) and not value.is_integer()
        numbers = int | float | Decimal if kind == "decimal" else int | float
        return value if isinstance(value, numbers) and not isinstance(value, bool) and not whole else None
    if kind == "uuid":
        return value if isinstance(value, UUID) else None
    if kind in ("date", "datetime", "time"):
        return value if isinstance(value, date | datetime | time) else None
    return _parsed(value, taken) if isinstance(value, str) else value


def _parsed(value: str, taken: Shape) -> Any:
    """The JSON in a CSV cell, unless the type takes the text as it is."""
    try:
        validate(value, taken.inner)
    except Mismatch:
        try:
            return json.loads(value)
        except (ValueError, RecursionError):
            return None
    return value
