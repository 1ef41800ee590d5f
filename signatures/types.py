"""What a type stands for, as far as text is concerned, and its name as a type expression.

Every reader, writer and grammar of this package asks `shape` first. `Optional[T]` and `T | None` are T that may be
absent; `Annotated[T, ...]` is T with constraints, which pydantic checks once the value has been read.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from datetime import date, datetime, time
from decimal import Decimal
from enum import Enum
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin
from uuid import UUID

Kind = Literal[
    "str", "bool", "int", "float", "decimal", "date", "datetime", "time", "uuid", "labels", "list", "json", "any"
]

SCALARS: dict[Any, Kind] = {
    str: "str",
    bool: "bool",
    int: "int",
    float: "float",
    Decimal: "decimal",
    date: "date",
    datetime: "datetime",
    time: "time",
    UUID: "uuid",
}


@dataclass(frozen=True)
class Shape:
    """A type taken apart.

    kind: how its values look as text; inner: the type without `None` and `Annotated`; optional: whether None is a
    value; constrained: whether `Annotated` adds conditions.
    """

    kind: Kind
    inner: Any
    optional: bool = False
    constrained: bool = False

    @property
    def item(self) -> Any:
        """The type of a list's items (`Any` for a bare `list`)."""
        return next(iter(get_args(self.inner)), Any)


def is_union(type_: Any) -> bool:
    """Whether `type_` is `A | B`, `Union[A, B]` or `Optional[A]`."""
    return get_origin(type_) in (Union, UnionType)


def shape(type_: Any) -> Shape:
    """Take `type_` apart."""
    inner, optional, constrained = type_, False, False
    while True:
        if get_origin(inner) is Annotated:
            inner, constrained = get_args(inner)[0], True
            continue
        members = get_args(inner) if is_union(inner) else ()
        if len(members) == 2 and NoneType in members:
            inner, optional = next(member for member in members if member is not NoneType), True
            continue
        break
    kind = _kind(inner)
    return Shape(kind, inner, optional and kind != "any", constrained)


def _kind(type_: Any) -> Kind:
    """The kind of a type that is neither optional nor annotated. Unions of several types are free: `any`."""
    origin = get_origin(type_)
    if origin is Literal or (isinstance(type_, type) and issubclass(type_, Enum)):
        return "labels"
    if type_ is list or origin is list:
        return "list"
    if type_ is Any or is_union(type_):
        return "any"
    return SCALARS.get(type_, "json") if isinstance(type_, type) else "json"


def type_name(type_: Any) -> str:
    """The type expression that reads back as `type_`; an Enum or a pydantic model goes by its name.

    >>> type_name(list[Literal["a", "b"]])
    "list[Literal['a', 'b']]"
    """
    return expression(type_, lambda class_: class_.__name__)


def expression(type_: Any, name: Callable[[type], str], constrained: Callable[[Any], str] | None = None) -> str:
    """The type expression of `type_`, with `name` naming the classes that are not built in.

    `constrained` writes what `Annotated` adds (", Field(ge=0)", or nothing); without it, that is left out.
    """
    if type_ is None or type_ is NoneType:
        return "None"
    if type_ is Any:
        return "Any"
    origin, arguments = get_origin(type_), get_args(type_)
    if origin is Annotated:
        inner, conditions = expression(arguments[0], name, constrained), constrained(type_) if constrained else ""
        return f"Annotated[{inner}{conditions}]" if conditions else inner
    if origin is Literal:
        return literal(arguments)
    if is_union(type_):
        return " | ".join(expression(argument, name, constrained) for argument in arguments)
    if isinstance(origin, type):
        inside = ("..." if argument is ... else expression(argument, name, constrained) for argument in arguments)
        return f"{origin.__name__}[{', '.join(inside)}]"
    if isinstance(type_, type):
        return type_.__name__ if type_ in SCALARS or type_ in (list, dict) else name(type_)
    return str(type_)


def literal(values: Iterable[Any]) -> str:
    """The `Literal[...]` of `values`. The member of an Enum stands as its value, or as its name if that is no label."""
    plain = (v if not isinstance(v, Enum) else v.value if isinstance(v.value, str | int) else v.name for v in values)
    return f"Literal[{', '.join(map(repr, plain))}]"
