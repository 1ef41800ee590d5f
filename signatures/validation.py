"""Checking plain data (what JSON, YAML or CSV hold) against a type, by pydantic, with one short reason on failure."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from decimal import Decimal
from functools import lru_cache
from typing import Any

from pydantic import BaseModel, TypeAdapter, ValidationError
from pydantic.errors import PydanticUndefinedAnnotation, PydanticUserError
from pydantic_core import ErrorDetails, SchemaError

from ..errors import InputError
from .types import type_name

# What pydantic says before it comes to what was expected.
WORDY = re.compile(
    r"^(?:Input should be |Value error, |[A-Z]\w+(?: input)? should have )| after validation(?=,)| expected$"
)
CONSTRAINT = "Unable to apply constraint"


class Mismatch(Exception):
    """Why data is not of a type. `place` is a path such as `items.0.name`, empty for the whole."""

    def __init__(self, place: str, found: Any, expected: str) -> None:
        super().__init__(f"{place}: {expected}")
        self.place = place
        self.found = found
        self.expected = expected


def new_adapter(type_: Any) -> TypeAdapter[Any]:
    """The pydantic adapter of `type_`. Raises InputError for a type that pydantic cannot describe."""
    try:
        return TypeAdapter(type_)
    except (PydanticUserError, PydanticUndefinedAnnotation) as error:
        raise InputError(
            f"found the type {type_name(type_)}, whose values cannot be read from text",
            expected="a type that pydantic can validate",
        ) from error
    except SchemaError as error:  # a pattern that is no regular expression, a bound of another type
        reason = re.sub(r"(?:Error building \S+ validator:|SchemaError:|\s)+", " ", str(error)).strip()
        raise InputError(
            f"found a constraint on {type_name(type_)} that pydantic cannot check ({reason})",
            expected="a constraint that fits the type",
        ) from error


_cached_adapter = lru_cache(maxsize=512)(new_adapter)  # a pure function of the type; building one costs a millisecond


def adapter(type_: Any) -> TypeAdapter[Any]:
    """As `new_adapter`, but made once per type."""
    try:
        hash(type_)
    except TypeError:
        return new_adapter(type_)
    return _cached_adapter(type_)


def validate(data: Any, type_: Any) -> Any:
    """`data` as a value of `type_`. Raises Mismatch; infinities and nan are no numbers here, as in JSON."""
    try:
        value = adapter(type_).validate_python(data)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        place = ".".join(str(part) for part in first["loc"])
        raise Mismatch(place, first["input"], _expected(first)) from error
    except TypeError as error:
        if CONSTRAINT not in str(error):
            raise
        raise InputError(
            f"found a constraint on {type_name(type_)} that cannot be checked ({error})",
            expected="a constraint that fits the type",
        ) from error
    except RecursionError:
        raise Mismatch("", data, "less deeply nested data") from None
    if _has_non_finite(value):
        raise Mismatch("", data, "finite numbers")
    return value


def _expected(error: ErrorDetails) -> str:
    """What pydantic expected, in words that stand behind `expected`."""
    if error["type"] == "string_pattern_mismatch":
        return f"text that matches {error['ctx']['pattern']}"
    text = WORDY.sub("", error["msg"])
    return text if text[1:2].isupper() else text[:1].lower() + text[1:]


def _has_non_finite(value: Any) -> bool:
    """Whether an infinity or nan stands anywhere in `value`."""
    if isinstance(value, float | Decimal):
        return not math.isfinite(value)
    if isinstance(value, BaseModel):
        return any(map(_has_non_finite, vars(value).values()))
    if isinstance(value, Mapping):
        return any(map(_has_non_finite, value.values()))
    return isinstance(value, list | tuple | set | frozenset) and any(map(_has_non_finite, value))
