"""Pieces of llguidance's Lark, and checking that llguidance takes them.

An expression that needs rules of its own is a nested grammar, `%lark { ... }`, so that it can stand anywhere in another
one. A text that several expressions must match is a terminal, `/a/ & /b/`, which rules can only call by name.
Syntax: https://github.com/guidance-ai/llguidance/blob/main/docs/syntax.md
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any

COMPACT = {"x-guidance": {"whitespace_flexible": False}}


@dataclass
class Rules:
    """The rules that an expression stands on."""

    names: dict[tuple[str, str], str] = field(default_factory=dict)

    def rule(self, body: str) -> str:
        """The name of the rule with this body."""
        return self.names.setdefault(("r", body), f"r{len(self.names)}")

    def terminal(self, body: str) -> str:
        """The name of the terminal with this body."""
        return self.names.setdefault(("T", body), f"T{len(self.names)}")

    def text(self, *expressions: str) -> str:
        """What matches all of `expressions`, as one lexeme."""
        return regex(*expressions) if len(expressions) == 1 else self.terminal(regex(*expressions))

    def grammar(self, start: str) -> str:
        """`start` with its rules, as one expression."""
        if not self.names:
            return start
        lines = "\n".join(f"{name}: {body}" for (_, body), name in self.names.items())
        return f"%lark {{\nstart: {start}\n{lines}\n}}"


def regex(*expressions: str) -> str:
    """A terminal: what matches all of `expressions`."""
    return " & ".join(f"/{_slashed(expression)}/" for expression in expressions)


def literal(text: str) -> str:
    """Exactly `text`. JSON's escapes are Lark's, and keep every character printable."""
    return json.dumps(text)


def embedded(schema: Mapping[str, Any]) -> str:
    """A JSON schema as an expression, without white space."""
    return f"%json {json.dumps({**schema, **COMPACT})}"


def choice(options: Sequence[str]) -> str:
    """One of `options`."""
    some = list(dict.fromkeys(options))
    return some[0] if len(some) == 1 else f"({' | '.join(some)})"


def repeated(item: str, low: int, high: int | None) -> str:
    """`item`, at least `low` and at most `high` times; nothing where that is never."""
    if high == 0:
        return ""
    if (low, high) in ((0, None), (0, 1), (1, 1)):
        return f"({item}){'*' if high is None else '?' if low == 0 else ''}"
    return f"({item}){{{low},{'' if high is None else high}}}"


@lru_cache(maxsize=512)
def fault(expression: str) -> str | None:
    """Why llguidance refuses a grammar of this expression alone, in one line, or None."""
    from llguidance import LLMatcher

    lines: list[str] = LLMatcher.validate_grammar(LLMatcher.grammar_from_lark(f"start: {expression}\n")).splitlines()
    if not lines:
        return None
    reasons = [line for line in lines if line.startswith("error:")]
    return reasons[0].removeprefix("error: ") if reasons else lines[0].partition(": ")[2]


def _slashed(expression: str) -> str:
    """An expression with its slashes escaped."""
    parts, escaped = [], False
    for character in expression:
        parts.append("\\/" if character == "/" and not escaped else character)
        escaped = character == "\\" and not escaped
    return "".join(parts)
