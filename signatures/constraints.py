"""Conditions on a type's values, under pydantic's names: `Annotated[int, Field(ge=0, le=10)]`.

They are found in a type (written in Python, or kept by `dspy.OutputField(ge=0)` as a field's metadata), made from the
constants that an expression spells, written back as an expression, and told in words. Pydantic checks them.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping
from datetime import date, time
from decimal import Decimal
from types import MappingProxyType, NoneType
from typing import Annotated, Any, get_args, get_origin

from pydantic import Field
from pydantic.fields import FieldInfo

from ..errors import InputError, nearest
from .messages import Where, show
from .types import is_union, shape, type_name
from .validation import new_adapter

LOWER, UPPER = ("ge", "gt"), ("le", "lt")
BOUNDS = (*LOWER, *UPPER)
LENGTHS = ("min_length", "max_length")
DIGITS = ("max_digits", "decimal_places")
NAMES = (*BOUNDS, "multiple_of", *LENGTHS, "pattern", *DIGITS)
TAKEN: Mapping[str, tuple[str, ...]] = MappingProxyType(
    {
        "int": (*BOUNDS, "multiple_of"),
        "float": (*BOUNDS, "multiple_of"),
        "decimal": (*BOUNDS, "multiple_of", *DIGITS),
        "date": BOUNDS,
        "datetime": BOUNDS,
        "time": BOUNDS,
        "str": (*LENGTHS, "pattern"),
        "list": LENGTHS,
        "dict": LENGTHS,
    }
)
MOMENTS = ("date", "datetime", "time")


def conditions(type_: Any) -> dict[str, Any]:
    """The conditions that stand on `type_` itself, not on what it holds, by name.

    >>> conditions(Annotated[int, Field(ge=0, le=10)])
    {'ge': 0, 'le': 10}
    """
    found: dict[str, Any] = {}
    inner = type_
    while True:
        members = get_args(inner) if is_union(inner) else ()
        if get_origin(inner) is Annotated:
            inner, *metadata = get_args(inner)
            found = {**_named(metadata), **found}
        elif len(members) == 2 and NoneType in members:
            inner = next(member for member in members if member is not NoneType)
        else:
            return {name: found[name] for name in NAMES if name in found}


def whole_type(field: FieldInfo) -> Any:
    """The type of a model's or a signature's field, with the conditions that its declaration adds."""
    return Annotated[field.annotation, *field.metadata] if field.metadata else field.annotation


def _named(metadata: Iterable[Any]) -> dict[str, Any]:
    """The conditions in one `Annotated`, whichever of pydantic's classes hold them."""
    found: dict[str, Any] = {}
    for part in _flat(metadata):
        for name in NAMES:
            value = getattr(part, name, None)
            if value is not None and not callable(value):
                found[name] = getattr(value, "pattern", value)  # a compiled pattern goes by its text
    return found


def _flat(metadata: Iterable[Any]) -> Iterator[Any]:
    for part in metadata:
        yield from _flat(part.metadata) if isinstance(part, FieldInfo) else (part,)


def constrain(type_: Any, given: Mapping[str, Any], where: Where) -> Any:
    """`type_` with the conditions `given`, which are constants that somebody wrote. Raises InputError."""
    taken = shape(type_)
    kind = "dict" if taken.kind == "json" and (get_origin(taken.inner) or taken.inner) is dict else taken.kind
    valid = TAKEN.get(kind, ())
    values = {}
    for name, value in given.items():
        if name not in valid:
            raise where.error(
                f"found the constraint {name!r} on {type_name(type_)}",
                expected=", ".join(valid) or "no constraint on this type",
                nearest=nearest(name, valid),
            )
        values[name] = _constant(name, value, kind, taken.inner, where)
    _check_order(values, where)
    made = Annotated[type_, *Field(**values).metadata] if values else type_
    try:
        new_adapter(made)
    except InputError as error:
        raise where.error(error.message, expected=error.expected) from error
    return made


def spelled(type_: Any) -> tuple[Any, dict[str, Any]]:
    """What `constrain` made `type_` from: a type and its conditions. Any other type is given back, with none."""
    if get_origin(type_) is Annotated:
        inner, *metadata = get_args(type_)
        given = _named(metadata)
        if repr(metadata) == repr(Field(**given).metadata):
            return inner, given
    return type_, {}


def _constant(name: str, value: Any, kind: str, inner: Any, where: Where) -> Any:
    """The value of one condition, as the type compares with it."""
    plain = isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
    if name in (*LENGTHS, *DIGITS):
        good, expected = plain and isinstance(value, int) and value >= 0, "a whole number, 0 or more"
    elif name == "pattern":
        good, expected = isinstance(value, str), "a regular expression in quotes"
    elif kind in MOMENTS:
        try:
            return inner.fromisoformat(value)
        except (TypeError, ValueError):
            good, expected = False, f"a {kind} in quotes, in the form of ISO 8601"
    elif kind == "int":
        good, expected = plain and isinstance(value, int), "a whole number"
    else:
        good, expected = plain, "a number"
    if good and name == "multiple_of":
        good, expected = value > 0, "a number above 0"
    if not good:
        raise where.error(f"found {name}={show(value)}", expected=expected)
    return Decimal(str(value)) if kind == "decimal" and isinstance(value, float) else value


def _check_order(values: Mapping[str, Any], where: Where) -> None:
    """Refuse bounds that leave nothing between them."""
    pairs = [(low, high) for low in LOWER for high in UPPER] + [LENGTHS]
    for low, high in pairs:
        if low in values and high in values:
            strict = low == "gt" or high == "lt"
            try:
                empty = values[low] > values[high] or (strict and values[low] == values[high])
            except TypeError:  # one moment with a time zone and one without
                empty = True
            if empty:
                found = ", ".join(f"{name}={_shown(values[name])}" for name in (low, high))
                raise where.error(f"found {found}, which no value meets", expected="bounds with values between them")


def _shown(value: Any) -> str:
    return value.isoformat() if isinstance(value, date | time) else str(value)


def as_expression(type_: Any) -> str:
    """What stands behind the type in `Annotated[...]`: `, Field(ge=0, le=10)`, or nothing.

    A condition that `constrain` would not take on this type is left out.
    """
    found = conditions(type_)
    spelled = []
    for name, value in found.items():
        plain = _shown(value) if isinstance(value, date | time) else value
        if isinstance(value, Decimal):
            plain = int(value) if value == value.to_integral_value() else float(value)
        spelled.append((name, plain))
    try:
        constrain(get_args(type_)[0], dict(spelled), Where())
    except InputError:
        return ""
    return f", Field({', '.join(f'{name}={value!r}' for name, value in spelled)})" if spelled else ""


def in_words(type_: Any) -> str:
    """The conditions on `type_`, to stand behind its description: ` from 0 to 10`, `, at most 3 items`, or nothing."""
    found, kind = conditions(type_), shape(type_).kind
    parts = _bounds(found, kind)
    if "multiple_of" in found:
        parts.append(f", a multiple of {_shown(found['multiple_of'])}")
    unit = "character" if kind == "str" else "item"
    parts += _count(found.get("min_length") or 0, found.get("max_length"), unit)
    if "pattern" in found:
        parts.append(f", matching the regular expression {found['pattern']}")
    if "max_digits" in found:
        parts += _count(0, found["max_digits"], "digit")
    if "decimal_places" in found:
        parts += _count(0, found["decimal_places"], "decimal place")
    return "".join(parts)


def _bounds(found: Mapping[str, Any], kind: str) -> list[str]:
    """A range, or each bound alone."""
    shown = {name: _shown(found[name]) for name in BOUNDS if name in found}
    if set(shown) == {"ge", "le"}:
        return [f" from {shown['ge']} to {shown['le']}"]
    forms = {"ge": "{} or more", "gt": "more than {}", "le": "{} or less", "lt": "less than {}"}
    if kind in MOMENTS:
        forms = {"ge": "not before {}", "gt": "after {}", "le": "not after {}", "lt": "before {}"}
    return [f", {' and '.join(forms[name].format(value) for name, value in shown.items())}"] if shown else []


def _count(low: int, high: int | None, unit: str) -> list[str]:
    """How many, where that is limited."""
    if not low and high is None:
        return []
    if high is None:
        number, last = f"at least {low}", low
    else:
        number, last = str(low) if low == high else f"{low} to {high}" if low else f"at most {high}", high
    return [f", {number} {unit}{'' if last == 1 else 's'}"]
