r"""The token mask that a type implies, as an expression in llguidance's variant of Lark.

An expression stands on the right of a rule, in brackets: `start: "Label: " ("billing" | "technical") "\n"`. Everything
it accepts, `read` turns into the type, save what pydantic alone can tell: that a set's items or a mapping's keys
differ, a bound on a datetime or a time, a validator of the user's own. `docs/types.md` lists what each type's mask
holds.

Lexemes are greedy: free text takes every character it may, so what follows one line of it must begin with a line feed,
and nothing can follow text of several lines; `text_terminal` gives such a text for a lexeme that ends lazily.
"""

from __future__ import annotations

import json as json_
from typing import Any

from .json_rules import JsonRules
from .labels import label_text, values
from .lark import Rules, literal, regex
from .messages import Where
from .numerals import FLOAT, INT
from .scalars import ANY_LINE, bare_text, integer, json_text, number, special
from .schema import mask_schema
from .types import Shape, shape, type_name

ONE_LINE_TEXT = r"/[^\r\n]+/"
TEXT = f"/{ANY_LINE}+/"
NUMBERS = {"int": INT, "float": FLOAT}


def grammar(type_: Any, *, one_line: bool = True, json: bool = False, field: str = "value") -> str:
    r"""The expression that accepts the texts of `type_`.

    Labels are alternatives; numbers, dates and UUIDs are regexes with bounded digits; text is `/[^\r\n]+/`, or with
    `one_line=False` any characters, at least one; lists and objects are JSON. With `json` the expression accepts the
    JSON of the value instead, strings in quotes, to be parsed as JSON. Constraints (`Annotated[int, Field(ge=0)]`) are
    kept. `field` names the type's place in errors.

    Raises InputError for a type without a JSON schema, without values, and with a constraint that a mask cannot hold.

    >>> grammar(Literal["yes", "no"])
    '"yes" | "no"'
    """
    taken, where = shape(type_), Where(field=field)
    if taken.kind in ("list", "json") or (taken.kind == "any" and (json or taken.inner is not Any)):
        schema = mask_schema(type_)
        # A class of pydantic's own may be written bare, as what it stands for is: `NaiveDatetime`.
        if taken.kind != "json" or "x-kind" not in _present(schema):
            rules = JsonRules(schema, one_line=one_line)
            return rules.grammar(_known(rules.value(schema, where), type_, where))
    found = values(taken.inner)
    if found is not None:
        expression = " | ".join(literal(_json_label(value) if json else label_text(value)) for value in found)
    else:
        expression = _scalar(type_, taken, one_line, json, where)
    return f"{literal('null')} | {expression}" if taken.optional else expression


def text_terminal(type_: Any, *, one_line: bool = False, before: str = "", field: str = "value") -> str:
    r"""The terminal that accepts the texts of a `str` with its constraints, up to `before`, which they do not hold.

    It stands in a lexeme that ends lazily, at what follows: `part[suffix="</answer>"]: TERMINAL`.

    Raises InputError as `grammar`, and for a type that is not text.

    >>> text_terminal(str, before="\n\n")
    '/(?s:.)+/ & ~/(?s:.*)\\x{a}\\x{a}(?s:.*)/'
    """
    taken, where = shape(type_), Where(field=field)
    if taken.kind not in ("str", "any"):
        raise where.error(f"found the type {type_name(type_)}", expected="str")
    terminal = ONE_LINE_TEXT if one_line else TEXT
    if taken.kind == "str" and taken.constrained:
        terminal = _known(
            bare_text(_node(type_), one_line=one_line, optional=taken.optional, where=where), type_, where
        )
    mark = "".join(f"\\x{{{ord(character):x}}}" for character in before)
    free = f" & ~{regex(f'(?s:.*){mark}(?s:.*)')}" if before else ""
    return f"{terminal}{free} | {literal('null')}" if taken.optional else f"{terminal}{free}"


def _scalar(type_: Any, taken: Shape, one_line: bool, json: bool, where: Where) -> str:
    """The expression of one value other than None, neither a label nor held in brackets."""
    rules, node = Rules(), _node(type_) if taken.constrained or taken.kind not in ("str", "any", *NUMBERS) else {}
    if taken.kind in ("str", "any"):
        bounded = taken.constrained and taken.kind == "str"
        if json:
            found = json_text(node if bounded else {}, rules, stripped=bounded, where=where)
        elif bounded:
            found = bare_text(node, one_line=one_line, optional=taken.optional, where=where)
            found = rules.terminal(found) if found and " & " in found else found
        else:
            found = ONE_LINE_TEXT if one_line else TEXT
    elif taken.kind in NUMBERS and not taken.constrained:
        found = f"/{NUMBERS[taken.kind]}/"
    elif taken.kind in NUMBERS:
        found = (integer if taken.kind == "int" else number)(node, rules, where)
    else:
        found = special(node, rules, json=json, where=where)
    return rules.grammar(_known(found, type_, where))


def _node(type_: Any) -> dict[str, Any]:
    """The schema of a value other than None."""
    return _present(mask_schema(type_))


def _present(schema: dict[str, Any]) -> dict[str, Any]:
    """The part of an optional value's schema that is not None's."""
    parts: list[dict[str, Any]] = schema.get("anyOf", [schema])
    return next((part for part in parts if part.get("type") != "null"), schema)


def _known(found: str | None, type_: Any, where: Where) -> str:
    """`found`, where there is a value."""
    if found is None:
        raise where.error(f"found constraints on {type_name(type_)} that no value meets", expected="room for a value")
    return found


def _json_label(value: Any) -> str:
    """The JSON of a label: text in quotes, numbers and truth values bare."""
    plain = getattr(value, "value", value)
    return json_.dumps(plain if isinstance(plain, str | int | float) else label_text(value), ensure_ascii=False)
