"""A type in short English, for prompts and for errors."""

from __future__ import annotations

from typing import Any, get_args, get_origin

from pydantic import BaseModel

from .constraints import in_words, whole_type
from .labels import choices
from .messages import SHOWN_LABELS, one_of
from .types import Shape, shape, type_name

ONE = {
    "bool": "true or false",
    "int": "a whole number",
    "float": "a number",
    "decimal": "a decimal number",
    "date": "a date (YYYY-MM-DD)",
    "datetime": "a date and time (YYYY-MM-DDTHH:MM:SS)",
    "time": "a time (HH:MM:SS)",
    "uuid": "a UUID",
}
MANY = {
    "str": "strings",
    "bool": "true or false values",
    "int": "whole numbers",
    "float": "numbers",
    "decimal": "decimal numbers",
    "date": "dates (YYYY-MM-DD)",
    "datetime": "dates and times (YYYY-MM-DDTHH:MM:SS)",
    "time": "times (HH:MM:SS)",
    "uuid": "UUIDs",
}


def describe(type_: Any) -> str:
    """What a value of `type_` looks like, its constraints included; nothing for a bare `str` and `Any`.

    >>> describe(Literal["billing", "technical"]), describe(list[str])
    ('one of: billing, technical', 'a JSON list of strings')
    """
    taken, bounds = shape(type_), in_words(type_)
    if taken.kind in ("str", "any") and not bounds:
        return "text, or null" if taken.optional else ""
    return _one(taken, None) + bounds + (", or null" if taken.optional else "")


def describe_short(type_: Any) -> str:
    """As `describe`, for errors: never empty, and no more than eight labels."""
    taken = shape(type_)
    return _one(taken, SHOWN_LABELS) + in_words(type_) + (", or null" if taken.optional else "")


def _one(taken: Shape, limit: int | None) -> str:
    """One value other than None."""
    if taken.kind in ("str", "any"):
        return "text"
    if taken.kind == "labels":
        return one_of(choices(taken.inner) or (), limit)
    if taken.kind == "list":
        return _items("a JSON list", taken.item, limit)
    if taken.kind in ONE:
        return ONE[taken.kind]
    arguments = get_args(taken.inner)
    if get_origin(taken.inner) is dict and len(arguments) == 2:
        return _items("a JSON object", arguments[1], limit)
    if isinstance(taken.inner, type) and issubclass(taken.inner, BaseModel):
        return f"a JSON object with the keys {_keys(taken.inner)}"
    return "a JSON object" if taken.inner is dict else f"a JSON value ({type_name(taken.inner)})"


def _items(holder: str, type_: Any, limit: int | None) -> str:
    """A list or an object of items."""
    item, bounds = shape(type_), in_words(type_)
    if item.kind == "any":
        return holder
    if item.kind in MANY and not item.optional and not bounds:
        return f"{holder} of {MANY[item.kind]}"
    return f"{holder}, each item {_one(item, limit)}{bounds}{', or null' if item.optional else ''}"


def _keys(model: type[BaseModel], inside: tuple[type, ...] = ()) -> str:
    """`name (str), age (int)`; a model inside a model is taken apart too, once."""
    parts = []
    for name, field in model.model_fields.items():
        taken = shape(field.annotation)
        nested = taken.inner if isinstance(taken.inner, type) and issubclass(taken.inner, BaseModel) else None
        if nested and nested not in (model, *inside):
            written = (
                f"an object with the keys {_keys(nested, (model, *inside))}{', or null' if taken.optional else ''}"
            )
        else:
            written = type_name(field.annotation) + in_words(whole_type(field))
        parts.append(f"{field.alias or name} ({written})")
    return ", ".join(parts)
