"""How a metric reads examples and predictions: which fields, which references, typed values as text or plain data."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from enum import Enum
from typing import TYPE_CHECKING, Any

from pydantic import BaseModel

from ..errors import InputError, nearest

if TYPE_CHECKING:
    from .base import Record


def labels(example: Record, fields: Iterable[str], *, metric: str) -> dict[str, Any]:
    """The gold values that `metric` compares, by field.

    `fields` names them; when it is empty they are all the labels of a `dspy.Example` whose inputs are set, and all
    values of anything else. Raises `InputError` when a field is missing or nothing is left to compare.
    """
    values = _labelled(example) if not fields else {key: example[key] for key in example.keys()}  # noqa: SIM118
    if missing := [field for field in fields if field not in values]:
        raise InputError(
            f"metric {metric!r} compares the field {missing[0]!r}, which the example does not have",
            expected=f"one of {', '.join(sorted(values))}" if values else None,
            nearest=nearest(missing[0], values),
        )
    if not values:
        raise InputError(f"metric {metric!r} has nothing to compare", expected="an example with at least one label")
    return {field: values[field] for field in fields} if fields else values


def _labelled(example: Record) -> dict[str, Any]:
    ask = None if isinstance(example, Mapping) else getattr(example, "labels", None)
    if callable(ask):
        with suppress(ValueError):  # A dspy.Example whose inputs were never set: every value counts as a label.
            example = ask()
    return {key: example[key] for key in example.keys()}  # noqa: SIM118 - a Record is not iterable


def answer(prediction: Record, field: str, *, metric: str) -> Any:
    """The value of `field` in `prediction`. Raises `InputError` when it is missing."""
    given = list(prediction.keys())
    if field not in given:
        raise InputError(
            f"metric {metric!r} compares the field {field!r}, which the prediction does not have",
            expected=f"a program that gives it, or `field:` set to one of {', '.join(sorted(given))}",
        )
    return prediction[field]


def answers(example: Record, prediction: Record, fields: Sequence[str], *, metric: str) -> dict[str, Any]:
    """The predicted values that a metric looks at which needs no gold value, by field.

    `fields` names them; when it is empty they are those that the example labels, or else the only one there is. Raises
    `InputError` when a field is missing or nothing says which one is meant.
    """
    given = list(prediction.keys())
    chosen = list(fields) or [field for field in _labelled(example) if field in given]
    if not chosen and len(given) != 1:
        raise InputError(
            f"metric {metric!r} cannot tell which field to look at: the example labels none",
            expected=f"`field:` set to one of {', '.join(sorted(given))}" if given else "a program with an output",
        )
    chosen = chosen or given
    return {field: answer(prediction, field, metric=metric) for field in chosen}


def tuple_of(value: Any) -> Any:
    """A list as a tuple and one value as a tuple of it, for options that take one value or several."""
    return tuple(value) if isinstance(value, list | tuple) else (value,)


def references(gold: Any, prediction: Any) -> Sequence[Any]:
    """The gold value as its references: a list beside a prediction that is not one is several of them.

    An empty list of references means that the right answer is to give none, as in SQuAD 2.0's evaluation script.
    """
    if isinstance(gold, list | tuple) and not isinstance(prediction, list | tuple | set | frozenset):
        return gold or ("",)
    return (gold,)


def plain(value: Any) -> Any:
    """`value` as plain data, so that a typed output equals the gold value read from a file.

    Pydantic models become mappings, enumeration members their values, tuples lists, at any depth.
    """
    if isinstance(value, BaseModel):
        return plain(value.model_dump(mode="json"))
    if isinstance(value, Enum):
        return plain(value.value)
    if isinstance(value, Mapping):
        return {key: plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    return value


def as_text(value: Any) -> str:
    """`value` as a text metric sees it.

    A string as it is, None empty, a list one item a line, a mapping or model as JSON with sorted keys, anything else by
    `str`.
    """
    value = plain(value)
    if value is None:
        return ""
    if isinstance(value, Mapping):
        return json.dumps(value, ensure_ascii=False, sort_keys=True, default=str)
    if isinstance(value, set | frozenset):
        return "\n".join(sorted(as_text(item) for item in value))
    if isinstance(value, list):
        return "\n".join(as_text(item) for item in value)
    return str(value)
