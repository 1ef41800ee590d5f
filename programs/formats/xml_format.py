"""A chat in which every field stands between tags of its name.

    <reasoning>It asks for a name.</reasoning>
    <label>person</label>

Nothing is escaped, since nothing here is an XML parser: `a < b & c` stays as a person writes it. The one thing that
would end a value early is its own closing tag, so `</label>` inside a label is written `&lt;/label>`, and what already
looks like that gains one `amp;`, which makes the writing reversible.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from typing import Any, ClassVar

from ...signatures import grammar as value_grammar
from ...signatures import read as read_value
from ...signatures import write as write_value
from .base import Format, Head, Signature, Values
from .chat import conversation
from .fields import absent, instruction, is_bounded, is_text, kind, present, requirement, show, unfold
from .grammars import ANY, Answer


class Xml(Format):
    """Inputs and outputs in tags, demos as turns."""

    name: ClassVar[str] = "xml"

    def head(self, signature: Signature, demos: Sequence[Values], inputs: Values) -> Head:
        """The system's turn ends with the tags to answer in, each around what its value has to be."""
        signature, demos = unfold(signature, demos, inputs)
        asked = [(name, requirement(signature, name) or "...") for name in signature.output_fields]
        system = [instruction(signature), "Answer in these tags:", _tagged(asked)]
        return conversation(
            "\n".join(line for line in system if line),
            [_user_turn(signature, values) for values in (*demos, inputs)],
            [self.answer(signature, demo) for demo in demos],
        )

    def lead(self, signature: Signature, field: str, before: Values) -> str:
        """The elements before, each in its line, and the opening tag."""
        earlier = list(signature.output_fields)[: list(signature.output_fields).index(field)]
        shown = self.answer(signature, {name: before[name] for name in earlier if name in before})
        return f"{shown}\n<{field}>" if shown else f"<{field}>"

    def write(self, signature: Signature, field: str, value: Any) -> str:
        """The value and the closing tag."""
        return f"{_escape(write_value(value, kind(signature, field)), field)}</{field}>"

    def answer(self, signature: Signature, outputs: Values) -> str:
        """The elements, each in its line."""
        names = present(signature.output_fields, outputs)
        return "\n".join(f"<{name}>{self.write(signature, name, outputs[name])}" for name in names)

    def ends(self, signature: Signature, field: str) -> tuple[str, ...]:
        """The closing tag."""
        return (f"</{field}>",)

    def parse(self, signature: Signature, completion: str) -> dict[str, Any]:
        """The outputs by their tags, whatever stands around them.

        A tag that is never closed ends where the next output's begins, or with the answer.
        """
        names, values, position = list(signature.output_fields), {}, 0
        for name in names:
            opening = re.compile(f"<{name}>", re.I)
            start = opening.search(completion, position) or opening.search(completion)
            if start is None:
                values[name] = absent(signature, name, completion, f"a tag <{name}>")
                continue
            end = re.compile(f"</{name}>", re.I).search(completion, start.end())
            if end is None:
                others = "|".join(f"<{other}>" for other in names if other != name)
                end = re.compile(others, re.I).search(completion, start.end()) if others else None
            until = end.start() if end else len(completion)
            position = until
            text = _unescape(completion[start.end() : until].strip(), name)
            values[name] = read_value(text, kind(signature, name), field=name)
        return values

    def grammar(self, signature: Signature) -> str:
        """The elements, each in its line; a text ends at its closing tag."""
        answer = Answer()
        for here, name in enumerate(signature.output_fields):
            answer.literal(f"{'' if here == 0 else chr(10)}<{name}>")
            type_ = kind(signature, name)
            if is_bounded(type_):
                answer.bounded(type_, name, suffix=f"</{name}>")
            elif is_text(type_):
                answer.until(f"</{name}>", ANY)
            else:
                answer.value(value_grammar(type_, field=name))
                answer.literal(f"</{name}>")
        return str(answer)


def _tagged(fields: Iterable[tuple[str, str]]) -> str:
    return "\n".join(f"<{name}>{text}</{name}>" for name, text in fields)


def _user_turn(signature: Signature, values: Values) -> str:
    """The inputs in their tags; where there is none, the turn asks for the outputs."""
    shown = _tagged((name, show(signature, name, values[name])) for name in present(signature.input_fields, values))
    return shown or f"Write {_tagged((name, '...') for name in signature.output_fields)}"


def _escape(text: str, name: str) -> str:
    text = re.sub(rf"&((?:amp;)*lt;/{name}>)", r"&amp;\1", text, flags=re.I)
    return re.sub(rf"<(/{name}>)", r"&lt;\1", text, flags=re.I)


def _unescape(text: str, name: str) -> str:
    text = re.sub(rf"&lt;(/{name}>)", r"<\1", text, flags=re.I)
    return re.sub(rf"&amp;((?:amp;)*lt;/{name}>)", r"&\1", text, flags=re.I)
