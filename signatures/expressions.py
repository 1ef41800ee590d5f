"""Type expressions: `list[Literal['a', 'b']]`, `dict[str, int]`, `Person | None`, read into types.

The text is parsed by Python's `ast` and the tree is walked here. Nothing is evaluated, imported, or looked up anywhere
but in the names that are given, so an expression from a file can name a type and do nothing else.
"""

from __future__ import annotations

import ast
import re
import warnings
from collections import Counter
from collections.abc import Mapping
from datetime import date, datetime, time
from decimal import Decimal
from enum import Enum
from typing import Any, Literal, get_origin
from uuid import UUID

from ..errors import nearest
from .constraints import constrain
from .labels import choices, label_text
from .messages import Where, clip, show
from .scan import check_balance
from .types import literal

PLAIN: dict[str, Any] = {
    "str": str,
    "bool": bool,
    "int": int,
    "float": float,
    "Decimal": Decimal,
    "Any": Any,
    "date": date,
    "datetime": datetime,
    "time": time,
    "UUID": UUID,
    "list": list,
    "dict": dict,
}
# What typing calls them, and what people coming from JSON Schema call them.
ALIASES = {"List": "list", "Dict": "dict"}
FOREIGN = {
    "string": "str",
    "text": "str",
    "number": "float",
    "decimal": "Decimal",
    "uuid": "UUID",
    "integer": "int",
    "boolean": "bool",
    "array": "list",
    "object": "dict",
    "enum": "Literal",
    "choice": "Literal",
}
EXAMPLES = {
    "Literal": "Literal['a', 'b']",
    "Optional": "Optional[str]",
    "Annotated": "Annotated[int, Field(ge=0, le=10)]",
}
QUOTED = re.compile(r"'[^']*'|\"[^\"]*\"")
EXPECTED = (
    "str, bool, int, float, Decimal, date, datetime, time, UUID, Any, Literal[...], list[...], dict[str, ...], "
    "Optional[...] or Annotated[...]"
)


def parse_type(text: str, types: Mapping[str, Any], where: Where) -> Any:
    """The type that `text` names; `types` adds names to the built-in ones.

    Raises InputError, with the nearest name that would do.
    """
    check_balance(text, where)
    return _Reader(types, where).type_of(_tree(text.strip(), where))


def _tree(text: str, where: Where) -> ast.expr:
    """The syntax tree of `text`."""
    if not text:
        raise where.error("found no type", expected=EXPECTED)
    try:
        with warnings.catch_warnings():  # a doubtful escape such as '\d' is a label like any other
            warnings.simplefilter("ignore")
            tree = ast.parse(text, mode="eval").body
    except (SyntaxError, ValueError, MemoryError, RecursionError):
        empty = re.search(r"([\w.]+)\s*\[\s*\]", QUOTED.sub("''", text))
        if empty:
            example = "Literal['a', 'b']" if empty[1] == "Literal" else f"{empty[1]}[str]"
            raise where.error(f"found {empty[1]} with nothing between its brackets", expected=example) from None
        raise where.error(f"found {clip(text)}, which is not a type", expected=EXPECTED) from None
    return tree


class _Reader:
    """Walks one syntax tree."""

    def __init__(self, types: Mapping[str, Any], where: Where) -> None:
        self.types = types
        self.where = where

    def type_of(self, node: ast.expr) -> Any:
        """The type at `node`."""
        if isinstance(node, ast.Name | ast.Attribute):
            return self.named(ast.unparse(node))
        if isinstance(node, ast.Subscript):
            return self.generic(ast.unparse(node.value), _elements(node.slice))
        if isinstance(node, ast.BinOp) and isinstance(node.op, ast.BitOr):
            return self.union(_alternatives(node), _shown(node))
        if isinstance(node, ast.Constant) and isinstance(node.value, str):
            raise self.where.error(
                f"found the text {clip(node.value)} where a type belongs", expected=f"Literal[{node.value!r}]"
            )
        raise self.where.error(f"found {clip(_shown(node))}, which is not a type", expected=EXPECTED)

    def named(self, name: str) -> Any:
        """The type called `name`."""
        if name in self.types:
            return self.types[name]
        plain = ALIASES.get(name, name)
        if plain in PLAIN:
            return PLAIN[plain]
        if plain in EXAMPLES:
            example = EXAMPLES[plain]
            raise self.where.error(f"found {plain} with nothing in brackets", expected=f"something like {example}")
        close = FOREIGN.get(name.casefold()) or nearest(name, [*self.types, *PLAIN, *EXAMPLES])
        own = "".join(f", {known}" for known in sorted(self.types))
        raise self.where.error(f"found the type {clip(name)}", expected=EXPECTED + own, nearest=close)

    def generic(self, name: str, arguments: list[ast.expr]) -> Any:
        """`name[arguments]`."""
        plain = ALIASES.get(name, name)
        if plain == "Literal":
            return self.literal(arguments)
        if plain == "Union":
            return self.union(arguments, f"Union[{', '.join(_shown(a) for a in arguments)}]")
        if plain == "Annotated":
            return self.annotated(arguments)
        if plain == "Optional":
            (argument,) = self.arguments("Optional", arguments, 1)
            return self.optional(self.type_of(argument))
        if plain == "list":
            (argument,) = self.arguments("list", arguments, 1)
            return list[self.type_of(argument)]  # type: ignore[misc]
        if plain == "dict":
            key, argument = self.arguments("dict", arguments, 2)
            if not (isinstance(key, ast.Name) and key.id == "str"):
                raise self.where.error(f"found a dict with keys of type {clip(_shown(key))}", expected="dict[str, ...]")
            return dict[str, self.type_of(argument)]  # type: ignore[misc]
        self.named(name)  # an unknown name is told first
        raise self.where.error(f"found brackets after {name}, which takes none", expected=name)

    def arguments(self, name: str, arguments: list[ast.expr], count: int) -> list[ast.expr]:
        """`arguments`, when there are `count` of them."""
        if len(arguments) != count:
            example = "dict[str, int]" if count == 2 else f"{name}[str]"
            found = f"found {name} with {len(arguments)} {'type' if len(arguments) == 1 else 'types'} in brackets"
            raise self.where.error(found, expected=f"{count}, such as {example}")
        return arguments

    def annotated(self, arguments: list[ast.expr]) -> Any:
        """`Annotated[T, Field(ge=0, le=10)]`: a type with constraints, which are constants."""
        if len(arguments) < 2:
            raise self.where.error("found Annotated without a constraint", expected=EXAMPLES["Annotated"])
        given: dict[str, Any] = {}
        for node in arguments[1:]:
            named = isinstance(node, ast.Call) and ast.unparse(node.func).rpartition(".")[2] == "Field"
            if not isinstance(node, ast.Call) or not named or node.args or not node.keywords:
                raise self.where.error(f"found {clip(_shown(node))} in Annotated", expected="Field(ge=0, le=10)")
            for keyword in node.keywords:
                if keyword.arg is None:
                    raise self.where.error(f"found {clip(_shown(node))}", expected="constraints by name")
                given[keyword.arg] = self.constant(keyword.arg, keyword.value)
        return constrain(self.type_of(arguments[0]), given, self.where)

    def constant(self, name: str, node: ast.expr) -> str | int | float:
        """The number or text that a constraint is."""
        sign = -1 if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.USub) else 1
        inside = node.operand if isinstance(node, ast.UnaryOp) and sign < 0 else node
        value = inside.value if isinstance(inside, ast.Constant) else None
        if isinstance(value, str) and sign > 0:
            return value
        if isinstance(value, int | float) and not isinstance(value, bool):
            return sign * value
        raise self.where.error(f"found {name}={clip(_shown(node))}", expected="a number, or text in quotes")

    def union(self, nodes: list[ast.expr], shown: str) -> Any:
        """`A | B`, of which one must be None: text does not say which of several types it is meant as."""
        rest = [node for node in nodes if not (isinstance(node, ast.Constant) and node.value is None)]
        texts = [node.value for node in rest if isinstance(node, ast.Constant) and isinstance(node.value, str)]
        if texts and len(texts) == len(rest):
            raise self.where.error(f"found the texts {clip(shown)} where a type belongs", expected=literal(texts))
        if len(rest) != 1:
            raise self.where.error(f"found the union {clip(shown)}", expected="one type, or one type and None")
        inner = self.type_of(rest[0])
        return inner if len(nodes) == 1 else self.optional(inner)

    def optional(self, inner: Any) -> Any:
        """`inner | None`."""
        if "null" in (choices(inner) or ()):
            raise self.where.error(
                "found the label 'null' in an optional type, where null stands for None", expected="another label"
            )
        return inner | None

    def literal(self, nodes: list[ast.expr]) -> Any:
        """`Literal[nodes]`."""
        if not nodes:
            raise self.where.error("found Literal with nothing between its brackets", expected="Literal['a', 'b']")
        values = tuple(self.label(node) for node in nodes)
        check_labels(values, "Literal", self.where)
        return Literal[values]

    def label(self, node: ast.expr) -> str | int | bool:
        """One value of a Literal."""
        if isinstance(node, ast.Constant) and isinstance(node.value, str | int):
            return node.value
        negative = isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.USub)
        if negative and isinstance(node.operand, ast.Constant) and type(node.operand.value) is int:  # type: ignore[attr-defined]
            return -node.operand.value  # type: ignore[attr-defined]
        shown = _shown(node)
        if isinstance(node, ast.Name):
            raise self.where.error(f"found the label {shown} without quotes", expected=repr(shown))
        if isinstance(node, ast.Constant) and node.value is None:
            raise self.where.error("found the label None", expected="Literal[...] | None")
        raise self.where.error(
            f"found the label {clip(shown)}", expected="text in quotes, a whole number, True or False"
        )


def check_labels(values: tuple[Any, ...], name: str, where: Where) -> None:
    """Refuse a set of labels that text cannot tell apart."""
    texts = Counter(label_text(value) for value in values)
    if not texts:
        raise where.error(f"found {name} without any label", expected="at least one")
    if any(not text.strip() for text in texts):
        raise where.error(f"found an empty label in {name}", expected="labels with at least one character")
    twice = [text for text, count in texts.items() if count > 1]
    if twice:
        raise where.error(f"found the label {clip(twice[0])} twice in {name}", expected="every label once")


def check_types(types: Mapping[str, Any], where: Where) -> None:
    """Refuse a name that does not stand for a type, or for an Enum whose labels text cannot tell apart."""
    for name, type_ in types.items():
        if not isinstance(type_, type) and get_origin(type_) is None:
            raise where.error(f"found {show(type_)} as the type {name}", expected="an Enum or a pydantic model")
        if isinstance(type_, type) and issubclass(type_, Enum):
            check_labels(tuple(type_), name, where)


def _elements(node: ast.expr) -> list[ast.expr]:
    """What stands between brackets, split at its commas."""
    return list(node.elts) if isinstance(node, ast.Tuple) else [node]


def _alternatives(node: ast.expr) -> list[ast.expr]:
    """The members of `a | b | c`, in order; a loop, since the tree is as deep as the union is long."""
    members: list[ast.expr] = []
    while isinstance(node, ast.BinOp) and isinstance(node.op, ast.BitOr):
        members.append(node.right)
        node = node.left
    return [node, *reversed(members)]


def _shown(node: ast.expr) -> str:
    """The source of `node`."""
    try:
        return ast.unparse(node)
    except RecursionError:
        return "a very deep expression"
