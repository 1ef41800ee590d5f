r"""The token mask that a type implies, as an expression in llguidance's variant of Lark.

An expression stands on the right of a rule, in brackets: `start: "Label: " ("billing" | "technical") "\n"`. Everything
it accepts, `read` turns into the type, save a number in JSON with an exponent past 308 and what only a validator of the
user's own refuses. Syntax: https://github.com/guidance-ai/llguidance/blob/main/docs/syntax.md

Lexemes are greedy: free text takes every character it may, so what follows one line of it must begin with a line feed,
and nothing can follow text of several lines.
"""

from __future__ import annotations

import json as json_
from typing import Any

from .labels import label_text, values
from .schema import json_schema, subschemas
from .types import Shape, shape

# 18 digits fit 64 bits; without a bound a small model may write digits until its tokens run out.
INT = "-?(0|[1-9][0-9]{0,17})"
MOST = 10**18 - 1
BOUNDS = {"minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum", "multipleOf", "enum", "const"}
FLOAT = INT + r"(\.[0-9]{1,20})?([eE][+-]?[0-9]{1,2})?"
_YEAR = "([0-9]{3}[1-9]|[0-9]{2}[1-9][0-9]|[0-9][1-9][0-9]{2}|[1-9][0-9]{3})"
_LEAP = "([0-9]{2}(0[48]|[2468][048]|[13579][26])|(0[48]|[2468][048]|[13579][26])00)"
_DAYS = (
    "(0[13578]|1[02])-(0[1-9]|[12][0-9]|3[01])",
    "(0[469]|11)-(0[1-9]|[12][0-9]|30)",
    "02-(0[1-9]|1[0-9]|2[0-8])",
)
DATE = f"({_YEAR}-({'|'.join(_DAYS)})|{_LEAP}-02-29)"
TIME = r"([01][0-9]|2[0-3]):[0-5][0-9](:[0-5][0-9](\.[0-9]{1,6})?)?(Z|[+-]([01][0-9]|2[0-3]):[0-5][0-9])?"
REGEXES = {"int": INT, "float": FLOAT, "date": DATE, "datetime": f"{DATE}T{TIME}", "time": TIME}
NUMBERS = ("int", "float")
# JSON white space: at most one space a place on one line; else room for an indented object, but no endless run.
ONE_LINE_SPACE = "[ ]"
SPACE = r"[ \t\n]{1,24}"


def grammar(type_: Any, *, one_line: bool = True, json: bool = False) -> str:
    r"""The expression that accepts the texts of `type_`.

    Labels are alternatives; numbers and dates are regexes with bounded digits; text is `/[^\r\n]+/`, or with
    `one_line=False` any characters, at least one; lists, objects and numbers with bounds are `%json` with their schema.
    With `json` the expression accepts the JSON of the value instead, strings in quotes, to be parsed as JSON.

    Raises InputError for a type without a JSON schema.

    >>> grammar(Literal["yes", "no"])
    '"yes" | "no"'
    """
    taken = shape(type_)
    expression = _expression(type_, taken, one_line, json)
    return f"{_quoted('null')} | {expression}" if taken.optional and not _is_schema(taken) else expression


def _is_schema(taken: Shape) -> bool:
    """Whether the type is left to `%json`, None included."""
    return taken.kind in ("list", "json") or (taken.constrained and taken.kind in NUMBERS)


def _expression(type_: Any, taken: Shape, one_line: bool, json: bool) -> str:
    """The expression of `type_`; of its values other than None, where they are no schema."""
    if _is_schema(taken) or (taken.kind == "any" and (json or taken.inner is not Any)):
        return _json(json_schema(type_), one_line)
    found = values(taken.inner)
    if found is not None:
        return " | ".join(_quoted(_json_label(value) if json else label_text(value)) for value in found)
    if taken.kind in ("str", "any"):
        return _json({"type": "string"}, one_line) if json else r"/[^\r\n]+/" if one_line else r"/(?s:.+)/"
    regex = REGEXES[taken.kind]
    return f'/"{regex}"/' if json and taken.kind not in NUMBERS else f"/{regex}/"


def _json_label(value: Any) -> str:
    """The JSON of a label: text in quotes, numbers and truth values bare."""
    plain = getattr(value, "value", value)
    return json_.dumps(plain if isinstance(plain, str | int | float) else label_text(value), ensure_ascii=False)


def _quoted(text: str) -> str:
    """`text` as a Lark literal; JSON's escapes are Lark's, and keep every character printable."""
    return json_.dumps(text)


def _json(schema: dict[str, Any], one_line: bool) -> str:
    """The schema as an inline grammar, which gives whole numbers without bounds those of `INT`."""
    for part in subschemas(schema):
        if part.get("type") == "integer" and not part.keys() & BOUNDS:
            part |= {"minimum": -MOST, "maximum": MOST}
    space = {"x-guidance": {"whitespace_pattern": ONE_LINE_SPACE if one_line else SPACE}}
    return f"%json {json_.dumps({**schema, **space})}"
