"""Building the Lark grammar of a whole answer, in llguidance's dialect: literal scaffolding around masked values.

A value that is free text needs care, since the lexer is greedy: nothing after `/(?s:.+)/` is ever reached. Text that
something follows is therefore a lazy lexeme, which ends at the first occurrence of its suffix and takes it in.

A text with constraints is masked by them and by its suffix; that it holds no other scaffolding of its format is left to
the reader, since llguidance's lexer gives up on a length beside more than one thing that may not stand in the text.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from typing import Any

from ...signatures import text_terminal

TEXT = r"(?s:.+)"
ANY = r"(?s:.*)"
PARAGRAPH = r"[^\n]+(\n[^\n]+)*"
# A model ends a block of running text with a blank line, not with its end-of-text token. A mask without it would make a
# text, or a number, go on.
BLOCK_END = r"\n\n?"
# What models write between a text and its end. A text with constraints ends in no white space itself, and a mask that
# took it for the text's would make the text go on.
SPACE_END = r"[ \n]{1,2}"


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

    def bounded(self, type_: Any, name: str, *, suffix: str = "", also: str = "", ending: str = SPACE_END) -> None:
        """Text with constraints, the value of field `name`; as `until` where there is a `suffix`.

        also: a regular expression that the text matches besides; ending: one of what may follow it and is no part of
        it. Raises `InputError` for constraints that a mask cannot hold.
        """
        terminal = text_terminal(type_, before=suffix, field=name)
        text = f"TEXT_{len(self.rules)}"
        ended = f"{text} /{ending}/?"
        if suffix:
            self._rule(f"[suffix={quote(suffix)}]", ended)
        else:
            self.value(f"{text}_END")
            self.rules.append(f"{text}_END: {ended}")
        self.rules.append(f"{text}: ({terminal}) & /{also}/" if also else f"{text}: {terminal}")

    def _rule(self, attributes: str, expression: str) -> None:
        name = f"part_{len(self.rules)}"
        self.sequence.append(name)
        self.rules.append(f"{name}{attributes}: {expression}")

    def __str__(self) -> str:
        return "\n".join([f"start: {' '.join(self.sequence)}", *self.rules]) + "\n"


def quote(text: str) -> str:
    """`text` as a Lark string: JSON's quoting."""
    return json.dumps(text, ensure_ascii=False)
