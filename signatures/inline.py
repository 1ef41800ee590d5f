"""Inline signatures: `question, context -> answer: Literal['yes', 'no'], score: float`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from .expressions import parse_type
from .fields import FieldSpec, check_name
from .messages import Where, clip
from .scan import split

EXAMPLE = "inputs -> outputs, such as 'question -> answer: str'"


def parse_inline(source: str, types: Mapping[str, Any], where: Where) -> tuple[list[FieldSpec], list[FieldSpec]]:
    """The input and the output fields of an inline signature. Raises InputError."""
    sides = split(source, "->", where)
    if len(sides) != 2:
        found = "no '->'" if len(sides) == 1 else f"{len(sides) - 1} times '->'"
        arrow = "->" if any(other in source for other in ("=>", "\u2192")) else None
        raise where.error(f"found {found} in {clip(source)}", expected=EXAMPLE, nearest=arrow)
    inputs, outputs = (_fields(side, types, where) for side in sides)
    return inputs, outputs


def _fields(side: str, types: Mapping[str, Any], where: Where) -> list[FieldSpec]:
    """The fields on one side of the arrow."""
    if not side.strip():
        return []
    return [_field(piece, side, types, where) for piece in split(side, ",", where)]


def _field(piece: str, side: str, types: Mapping[str, Any], where: Where) -> FieldSpec:
    """One `name` or `name: type`."""
    name, *rest = split(piece, ":", where)
    name = name.strip()
    if not name and not rest:
        raise where.error(f"found no field between the commas of {clip(side.strip())}", expected="a field name")
    name = check_name(name, where)
    inside = where.at(name)
    if len(rest) > 1:
        raise inside.error(f"found {len(rest)} colons in {clip(piece.strip())}", expected="name: type")
    return FieldSpec(name, parse_type(rest[0], types, inside) if rest else str)
