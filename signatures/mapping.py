"""Signatures as mappings, the way a YAML file holds them.

```yaml
inputs: {ticket: str, when: {type: date, description: the day it came in}}
outputs:
  queue: Literal['billing', 'technical']
  urgency: {type: int, ge: 0, le: 10}         # or Annotated[int, Field(ge=0, le=10)], which can stand anywhere
  sender: {type: {name: str, age: int}}       # a nested mapping is a record: a pydantic model
  copies: list[Person]
types: {Person: {name: str, age: int}}        # names for types that expressions use
instructions: Route the ticket.
```
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from ..errors import nearest
from .constraints import NAMES, constrain
from .expressions import parse_type
from .fields import FieldSpec, check_name
from .messages import Where, show

KEYS = ("inputs", "outputs", "instructions", "types")
FIELD_KEYS = ("type", "description")


def parse_mapping(
    source: Mapping[Any, Any], types: Mapping[str, Any], where: Where
) -> tuple[list[FieldSpec], list[FieldSpec], str | None]:
    """The input fields, the output fields and the instructions of a signature in mapping form. Raises InputError."""
    check_keys(source, KEYS, "a signature", where)
    names = _Names(_mapping(source.get("types"), "types", where), types, where)
    inputs, outputs = (
        [_field(name, spec, names, where) for name, spec in _mapping(source.get(side), side, where).items()]
        for side in ("inputs", "outputs")
    )
    instructions = source.get("instructions")
    if not isinstance(instructions, str | None):
        raise where.at("instructions").error(f"found {show(instructions)}", expected="text")
    return inputs, outputs, instructions


def check_keys(source: Mapping[Any, Any], valid: Iterable[str], what: str, where: Where) -> None:
    """Refuse a key that is not one of `valid`."""
    for key in source:
        if key not in valid:
            close = nearest(key, valid) if isinstance(key, str) else None
            raise where.error(f"found the key {key!r} in {what}", expected=", ".join(valid), nearest=close)


def _mapping(found: Any, name: str, where: Where) -> Mapping[Any, Any]:
    """`found`, when it is a mapping; nothing is an empty one."""
    if found is None:
        return {}
    if not isinstance(found, Mapping):
        raise where.at(name).error(f"found {show(found)}", expected="a mapping such as {ticket: str}")
    return found


def _field(name: Any, spec: Any, names: Mapping[str, Any], where: Where, *, record: bool = False) -> FieldSpec:
    """One field from `type`, `{type, description}`, or nothing, which is `str`."""
    name = check_name(name, where, record=record)
    inside = where.at(name)
    if not isinstance(spec, Mapping):
        return FieldSpec(name, str if spec is None else _type(name, spec, names, inside))
    if spec and not any(key in (*FIELD_KEYS, *NAMES) or nearest(str(key), FIELD_KEYS) for key in spec):
        raise inside.error(
            f"found the keys {', '.join(map(str, spec))}",
            expected="type, description",
            hint=f"A record is written {{type: {{{next(iter(spec))}: ...}}}}.",
        )
    constraints = {key: value for key, value in spec.items() if key in NAMES}
    if constraints and "type" not in spec:
        raise inside.error(
            f"found the constraints {', '.join(constraints)} without a type",
            expected="{type: int, ge: 0}",
            hint=f"A record is written {{type: {{{next(iter(spec))}: ...}}}}.",
        )
    check_keys({key: value for key, value in spec.items() if key not in constraints}, FIELD_KEYS, "a field", inside)
    description = spec.get("description")
    if not isinstance(description, str | None):
        raise inside.at("description").error(f"found {show(description)}", expected="text")
    found = spec.get("type")
    type_ = str if found is None else _type(name, found, names, inside)
    return FieldSpec(name, constrain(type_, constraints, inside) if constraints else type_, description)


def _type(name: str, found: Any, names: Mapping[str, Any], where: Where) -> Any:
    """The type that stands in a mapping: an expression or a record. A record is named after `name`."""
    if isinstance(found, Mapping):
        return _record(record_name(name), found, names, where)
    if isinstance(found, str):
        return parse_type(found, names, where)
    hint = f"Labels are written Literal{list(map(str, found))}." if isinstance(found, list) and found else None
    raise where.error(f"found {show(found)}", expected="a type expression such as list[str], or a mapping", hint=hint)


def record_name(field: str) -> str:
    """What a record under the field `home_address` is called: HomeAddress."""
    return "".join(part[:1].upper() + part[1:] for part in field.split("_"))


def _record(title: str, fields: Mapping[Any, Any], names: Mapping[str, Any], where: Where) -> Any:
    """The pydantic model called `title` with these fields, each required."""
    from pydantic import Field, create_model

    if not fields:
        raise where.error("found a record without fields", expected="a mapping such as {name: str, age: int}")
    specs = [_field(name, spec, names, where, record=True) for name, spec in fields.items()]
    definitions: dict[str, Any] = {spec.name: (spec.type_, Field(description=spec.description)) for spec in specs}
    return create_model(title, **definitions)


class _Names(Mapping[str, Any]):
    """The names that type expressions may use; those of the mapping's own `types` are read when they are asked for."""

    def __init__(self, own: Mapping[Any, Any], given: Mapping[str, Any], where: Where) -> None:
        self._known = dict(given)
        self._own = {check_name(name, where.at("types"), record=True): spec for name, spec in own.items()}
        self._where = where.at("types")
        self._open: list[str] = []
        for name in self._own:
            self[name]

    def __getitem__(self, name: str) -> Any:
        if name not in self._known and name in self._own:
            if name in self._open:
                circle = " -> ".join([*self._open[self._open.index(name) :], name])
                raise self._where.error(f"found types that need one another: {circle}", expected="no circle")
            self._open.append(name)
            self._known[name] = _type(name, self._own[name], self, self._where.at(name))
            self._open.pop()
        return self._known[name]

    def __iter__(self) -> Iterator[str]:
        return iter({**self._own, **self._known})

    def __len__(self) -> int:
        return len(set(self))
