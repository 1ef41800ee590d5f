"""References between nodes: `${inputs.ticket}`, `${summary.summary}`, alone or inside text.

A reference that is the whole text keeps the value's type; inside text the value is written out. `$${` is a plain `${`.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from pydantic import BaseModel

from ..errors import InputError

INPUTS = "inputs"
"""The name under which the program's own inputs are referred to."""

_PLACE = re.compile(r"\$\$\{|\$\{([^${}]*)\}|\$\{")
_NAMES = re.compile(r"\s*([^\W\d]\w*)\.([^\W\d]\w*)\s*")


@dataclass(frozen=True)
class Reference:
    """One field of one node, or of the program's inputs (`node` is then `inputs`)."""

    node: str
    field: str

    def __str__(self) -> str:
        return f"${{{self.node}.{self.field}}}"


@dataclass(frozen=True)
class Template:
    """Text with references in it: `parts`, in order."""

    parts: tuple[str | Reference, ...]

    @property
    def references(self) -> tuple[Reference, ...]:
        """The references, in order."""
        return tuple(part for part in self.parts if isinstance(part, Reference))

    @property
    def whole(self) -> Reference | None:
        """The reference, where it is all there is: its value then keeps its type."""
        only = self.parts[0] if len(self.parts) == 1 else None
        return only if isinstance(only, Reference) else None

    @property
    def plain(self) -> str | None:
        """The text, where there is no reference in it."""
        return None if self.references else "".join(map(str, self.parts))

    def fill(self, values: Mapping[str, Mapping[str, Any]], write: Callable[[Reference, Any], str]) -> Any:
        """The value, given `node -> field -> value`; `write` puts a reference's value into text."""
        if self.whole:
            return values[self.whole.node][self.whole.field]
        return "".join(
            part if isinstance(part, str) else write(part, values[part.node][part.field]) for part in self.parts
        )


def parse_template(text: str) -> Template:
    """Find the references in `text`. Raises `InputError` for `${` that is not followed by `NODE.FIELD}`."""
    parts: list[str | Reference] = []
    plain, end = "", 0
    for place in _PLACE.finditer(text):
        plain += text[end : place.start()]
        end = place.end()
        if place.group() == "$${":
            plain += "${"
            continue
        names = _NAMES.fullmatch(place.group(1) or "")
        if names is None:
            found = place.group() if place.group(1) is not None else text[place.start() : place.start() + 30]
            raise InputError(
                f"found {found!r}",
                expected="${inputs.NAME} or ${NODE.FIELD}",
                hint="A plain '${' is written '$${'.",
            )
        if plain:
            parts.append(plain)
        parts.append(Reference(names[1], names[2]))
        plain = ""
    plain += text[end:]
    if plain or not parts:
        parts.append(plain)
    return Template(tuple(parts))


def fits(source: Any, target: Any) -> bool:
    """Whether a value of type `source` can stand where type `target` is asked for.

    Any value can stand where text is asked for (it is written out), a whole number where a number is, and labels where
    their type or a superset of them is.
    """
    if source == target or source is Any or target in (str, Any, object):
        return True
    if get_origin(target) is Annotated or get_origin(source) is Annotated:
        return fits(_plain(source), _plain(target))
    if get_origin(source) in (Union, UnionType):
        return all(fits(part, target) for part in get_args(source))
    if get_origin(target) in (Union, UnionType):
        return any(fits(source, part) for part in get_args(target))
    if get_origin(source) is Literal:
        values = get_args(source)
        if get_origin(target) is Literal:
            return all((type(value), value) in [(type(other), other) for other in get_args(target)] for value in values)
        return all(fits(type(value), target) for value in values)
    if source is int and target is float:
        return True
    outer_source, outer_target = get_origin(source) or source, get_origin(target) or target
    if not (isinstance(outer_source, type) and isinstance(outer_target, type)):
        return False
    if issubclass(outer_source, BaseModel) and issubclass(outer_target, BaseModel):
        return _record_fits(outer_source, outer_target)
    if not issubclass(outer_source, outer_target) or (source is bool and target is int):
        return False
    inner = get_args(target)
    return not inner or (len(inner) == len(get_args(source)) and all(map(fits, get_args(source), inner)))


def _record_fits(source: type[BaseModel], target: type[BaseModel]) -> bool:
    """Records that are declared in two nodes are two classes; what counts is that every field asked for is there."""
    given = {name: field.annotation for name, field in source.model_fields.items()}
    asked = {name: field.annotation for name, field in target.model_fields.items()}
    return issubclass(source, target) or all(name in given and fits(given[name], asked[name]) for name in asked)


def _plain(kind: Any) -> Any:
    return get_args(kind)[0] if get_origin(kind) is Annotated else kind
