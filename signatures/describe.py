"""A type in short English, for prompts and for errors."""

from __future__ import annotations

from typing import Any, get_args, get_origin

from pydantic import BaseModel

from .labels import choices
from .messages import SHOWN_LABELS, one_of
from .types import Shape, shape, type_name

ONE = {
    "bool": "true or false",
    "int": "a whole number",
    "float": "a number",
    "date": "a date (YYYY-MM-DD)",
    "datetime": "a date and time (YYYY-MM-DDTHH:MM:SS)",
    "time": "a time (HH:MM:SS)",
}
MANY = {
    "str": "strings",
    "bool": "true or false values",
    "int": "whole numbers",
    "float": "numbers",
    "date": "dates (YYYY-MM-DD)",
    "datetime": "dates and times (YYYY-MM-DDTHH:MM:SS)",
    "time": "times (HH:MM:SS)",
}


def describe(type_: Any) -> str:
    """What a value of `type_` looks like; nothing for `str` and `Any`, which need no words.

    >>> describe(Literal["billing", "technical"]), describe(list[str])
    ('one of: billing, technical', 'a JSON list of strings')
    """
    taken = shape(type_)
    if taken.kind in ("str", "any"):
        return "text, or null" if taken.optional else ""
    return _one(taken, None) + (", or null" if taken.optional else "")


def describe_short(type_: Any) -> str:
    """As `describe`, for errors: never empty, and no more than eight labels."""
    taken = shape(type_)
    if taken.kind in ("str", "any"):
        return describe(type_) or "text"
    return _one(taken, SHOWN_LABELS) + (", or null" if taken.optional else "")


def _one(taken: Shape, limit: int | None) -> str:
    """One value that is neither text nor free."""
    if taken.kind == "labels":
        return one_of(choices(taken.inner) or (), limit)
    if taken.kind == "list":
        return _items("a JSON list", "of", shape(taken.item), limit)
    if taken.kind in ONE:
        return ONE[taken.kind]
    arguments = get_args(taken.inner)
    if get_origin(taken.inner) is dict and len(arguments) == 2:
        return _items("a JSON object", "of", shape(arguments[1]), limit)
    if isinstance(taken.inner, type) and issubclass(taken.inner, BaseModel):
        return f"a JSON object with the keys {_keys(taken.inner)}"
    return "a JSON object" if taken.inner is dict else f"a JSON value ({type_name(taken.inner)})"


def _items(holder: str, of: str, item: Shape, limit: int | None) -> str:
    """A list or an object of items."""
    if item.kind == "any":
        return holder
    if item.kind in MANY and not item.optional:
        return f"{holder} {of} {MANY[item.kind]}"
    each = "text" if item.kind == "str" else _one(item, limit)
    return f"{holder}, each item {each}{', or null' if item.optional else ''}"


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
            written = type_name(field.annotation)
        parts.append(f"{field.alias or name} ({written})")
    return ", ".join(parts)
