"""Assertions in one cell of a table, as promptfoo writes them in `__expected` columns.

`contains: refund`, `not-icontains: sorry`, `rouge-n(0.6): the reference`, `contains-any: yes, sure`, `latency(500)`,
`is-json`; a text without a type before it is an `equals`.
(https://www.promptfoo.dev/docs/configuration/test-cases/#csv-with-assertions)
"""

from __future__ import annotations

import difflib
import json
import re
from typing import Any

from ...errors import InputError
from ...programs.schema_tests import AssertSpec
from .kinds import KINDS, NEGATION

_NAMES = "|".join(map(re.escape, sorted(KINDS, key=len, reverse=True)))
_CELL = re.compile(
    rf"(?P<type>(?:{NEGATION})?(?:{_NAMES}))(?:\((?P<threshold>\d+(?:\.\d+)?)\))?(?::(?P<value>.*))?", re.S
)
_PREFIX = re.compile(r"(?:not-)?(?P<type>[a-z][a-z0-9-]*)(?:\([\d.]+\))?:")
_OF_OTHERS = frozenset(
    {
        *("answer-relevance", "classifier", "contains-html", "contains-json", "contains-sql", "contains-xml", "cost"),
        *("eval", "factuality", "file", "fn", "g-eval", "gleu", "grade", "is-html", "is-refusal", "is-sql", "is-xml"),
        *("javascript", "meteor", "model-graded-closedqa", "model-graded-factuality", "moderation"),
        *("perplexity", "pi", "ruby", "select-best", "webhook"),
    }
)
_LIKE_A_TYPE = 0.8
_AS_TEXT = "To compare with this text itself, write: equals: ..."


def read_cell(text: str, field: str | None = None) -> AssertSpec:
    """The assertion that a cell stands for, on the output `field`.

    Raises `InputError` for a type that promptfoo has and we do not, and for a word that is nearly a type: it would
    otherwise be compared as text, and quietly mean something else.

    >>> read_cell("rouge-n(0.6): a lamp").threshold
    0.6
    """
    cell = text.strip()
    found = _CELL.fullmatch(cell)
    given: dict[str, Any] = {} if field is None else {"field": field}
    if found is None:
        _check_prefix(cell)
        return AssertSpec.model_validate({"type": "equals", "value": text, **given})
    kind = found["type"].removeprefix(NEGATION)
    if found["threshold"] is not None:
        given["threshold"] = float(found["threshold"])
    if found["value"] is not None and found["value"].strip():
        value = found["value"].strip()
        if kind in ("latency", "tokens") and found["threshold"] is None:
            given["threshold"] = _number(value, kind)
        else:
            given["value"] = _data(value) if kind in ("is-json", "word-count") else value
    return AssertSpec.model_validate({"type": found["type"], **given})


def _check_prefix(cell: str) -> None:
    prefix = _PREFIX.match(cell)
    if prefix is None:
        return
    if prefix["type"] in _OF_OTHERS:
        message = f"there is no assertion {prefix['type']!r} here"
        raise InputError(message, expected=f"one of {', '.join(KINDS)}", hint=_AS_TEXT)
    near = difflib.get_close_matches(prefix["type"], sorted(KINDS), n=1, cutoff=_LIKE_A_TYPE)
    if near:
        raise InputError(f"there is no assertion {prefix['type']!r}", nearest=near[0], hint=_AS_TEXT)


def _number(text: str, kind: str) -> float:
    try:
        return float(text)
    except ValueError:
        raise InputError(f"found {text!r}", expected=f"a number, such as {kind}(500)") from None


def _data(text: str) -> Any:
    try:
        return json.loads(text)
    except ValueError as error:
        raise InputError(f"found {text[:60]!r}, which is not JSON: {error}") from None
