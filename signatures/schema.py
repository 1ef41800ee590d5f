"""The JSON schema of a type, and what a mask needs to know beyond it."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from datetime import date
from enum import Enum
from typing import Any

from pydantic.errors import PydanticUserError
from pydantic.json_schema import GenerateJsonSchema
from pydantic_core import CoreSchema

from ..errors import InputError
from .types import type_name
from .validation import new_adapter

DATA = ("default", "const", "enum", "examples")
FLAGS = {re.IGNORECASE: "i", re.MULTILINE: "m", re.DOTALL: "s", re.VERBOSE: "x"}


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


def mask_schema(type_: Any) -> dict[str, Any]:
    """The schema that a mask is made from: the JSON schema, and what pydantic checks that it does not say.

    `x-kind` marks decimals, dates, times and UUIDs, whose conditions stand beside it under pydantic's names; `x-strip`
    a text whose outer white space is taken away before it is checked; `propertyNames` gives every mapping's keys.
    Raises InputError for a type without a JSON schema.
    """
    try:
        return new_adapter(type_).json_schema(schema_generator=_MaskSchema)
    except PydanticUserError as error:
        raise InputError(f"found the type {type_name(type_)}, which has no JSON schema") from error


class _MaskSchema(GenerateJsonSchema):
    """Pydantic's generator, where JSON schema has no word for what pydantic checks."""

    ignored_warning_kinds = {"skipped-choice", "non-serializable-default"}  # noqa: RUF012

    def str_schema(self, schema: Any) -> dict[str, Any]:
        """A text, with the flags of a compiled pattern, and whether it is stripped."""
        made = super().str_schema(schema)
        pattern = schema.get("pattern")
        if isinstance(pattern, re.Pattern):
            flags = "".join(sign for flag, sign in FLAGS.items() if pattern.flags & flag)
            made["pattern"] = (f"(?{flags})" if flags else "") + pattern.pattern
        if schema.get("strip_whitespace", self._config.str_strip_whitespace):
            made["x-strip"] = True
        return made

    def decimal_schema(self, schema: Any) -> dict[str, Any]:
        """A decimal, as text or as a number."""
        return _kind("decimal", schema, ("ge", "gt", "le", "lt", "multiple_of", "max_digits", "decimal_places"))

    def date_schema(self, schema: Any) -> dict[str, Any]:
        """A date."""
        return _kind("date", schema, ("ge", "gt", "le", "lt"))

    def time_schema(self, schema: Any) -> dict[str, Any]:
        """A time of day; its bounds are left to the reader."""
        return _kind("time", schema, ("tz_constraint",))

    def datetime_schema(self, schema: Any) -> dict[str, Any]:
        """A date and time; its bounds are left to the reader."""
        return _kind("datetime", schema, ("tz_constraint",))

    def uuid_schema(self, schema: Any) -> dict[str, Any]:
        """A UUID."""
        return _kind("uuid", schema, ("version",))

    def enum_schema(self, schema: Any) -> dict[str, Any]:
        """An Enum's values, as far as JSON has the very value: a member with a tuple is not found by a list."""
        return {"enum": [member.value for member in schema["members"] if _is_plain(member.value)]}

    def literal_schema(self, schema: Any) -> dict[str, Any]:
        """A Literal's values; a member of an Enum goes by its value."""
        found = (label.value if isinstance(label, Enum) else label for label in schema["expected"])
        return {"enum": [value for value in found if _is_plain(value)]}

    def dict_schema(self, schema: Any) -> dict[str, Any]:
        """A mapping, with what its keys have to be."""
        made: dict[str, Any] = {"type": "object", "propertyNames": {"type": "string"}, "additionalProperties": True}
        if "keys_schema" in schema:
            made["propertyNames"] = self.generate_inner(schema["keys_schema"])
        if "values_schema" in schema:
            made["additionalProperties"] = self.generate_inner(schema["values_schema"])
        self.update_with_validations(made, schema, self.ValidationsMapping.object)
        return made


def _kind(kind: str, schema: CoreSchema | Mapping[str, Any], names: tuple[str, ...]) -> dict[str, Any]:
    """A value of `kind`, with the conditions that the schema holds."""
    found = {name: schema.get(name) for name in names}
    plain = {name: value.isoformat() if isinstance(value, date) else value for name, value in found.items()}
    return {"x-kind": kind, **{name: value for name, value in plain.items() if value is not None}}


def _is_plain(value: Any) -> bool:
    return value is None or isinstance(value, str | int | float)


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
