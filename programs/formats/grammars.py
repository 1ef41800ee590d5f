"""Building the Lark grammar of a whole answer, in llguidance's dialect: literal scaffolding around masked values.

A value that is free text needs care, since the lexer is greedy: nothing after `/(?s:.+)/` is ever reached. Text that
something follows is therefore a lazy lexeme, which ends at the first occurrence of its suffix and takes it in.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field

TEXT = r"(?s:.+)"
ANY = r"(?s:.*)"
PARAGRAPH = r"[^\n]+(\n[^\n]+)*"
# A model ends a block of running text with a blank line, not with its end-of-text token. A mask without it would make a
# text, or a number, go on.
BLOCK_END = r"\n\n?"


@dataclass
class Answer:
    """The grammar of an answer, put together from its start to its end."""

    sequence: list[str] = field(default_factory=list)
    rules: list[str] = field(default_factory=list)

    def literal(self, text: str) -> None:
        """Exactly `text`."""
        if text:
            self.sequence.append(quote(text))

    def value(self, expression: str) -> None:
        """A value, as an expression of the grammar."""
        self._rule("", expression)

    def optional(self, regex: str) -> None:
        """What may come here and need not."""
        self._rule("", f"/{regex}/")
        self.sequence[-1] += "?"

    def until(self, suffix: str, regex: str = TEXT) -> None:
        """Text of the form `regex` up to the first `suffix`, and the suffix itself."""
        self._rule(f"[suffix={quote(suffix)}]", f"/{regex}/")

    def _rule(self, attributes: str, expression: str) -> None:
        name = f"part_{len(self.rules)}"
        self.sequence.append(name)
        self.rules.append(f"{name}{attributes}: {expression}")

    def __str__(self) -> str:
        return "\n".join([f"start: {' '.join(self.sequence)}", *self.rules]) + "\n"


def quote(text: str) -> str:
    """`text` as a Lark string: JSON's quoting."""
    return json.dumps(text, ensure_ascii=False)
