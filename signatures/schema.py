"""The JSON schema of a type."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from pydantic.errors import PydanticUserError

from ..errors import InputError
from .types import type_name
from .validation import new_adapter

DATA = ("default", "const", "enum", "examples")


def json_schema(type_: Any) -> dict[str, Any]:
    """The JSON schema (draft 2020-12) of `type_`: pydantic's, with objects closed to keys that they do not declare.

    Raises InputError for a type without one.
    """
    try:
        # Not the cached adapter: types that are equal but list their labels in another order have other schemas.
        schema = new_adapter(type_).json_schema()
    except PydanticUserError as error:
        raise InputError(f"found the type {type_name(type_)}, which has no JSON schema") from error
    for part in subschemas(schema):
        if part.get("type") == "object" and isinstance(part.get("properties"), dict):
            part.setdefault("additionalProperties", False)
    return schema


def subschemas(schema: Any) -> Iterator[dict[str, Any]]:
    """Every mapping in `schema`, itself first; what stands in data (a default, a label) is no schema."""
    if isinstance(schema, list):
        for part in schema:
            yield from subschemas(part)
    elif isinstance(schema, dict):
        yield schema
        for key, part in schema.items():
            if key not in DATA:
                yield from subschemas(part)
