"""A chat whose answers are JSON objects with the outputs as keys, in the signature's order and in one line.

    {"reasoning": "It asks for a name.", "label": "person"}

Parsing is Python's json, then json_repair (quotation marks forgotten, brackets left open); what cannot be repaired into
an object with one of the keys is unreadable.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from contextlib import suppress
from decimal import Decimal
from enum import Enum
from typing import Any, ClassVar

import json_repair
from dspy.adapters.utils import annotation_allows_none

from ...errors import ReadError
from ...signatures import grammar as value_grammar
from ...signatures import read as read_value
from ...signatures import write as write_value
from ...signatures.scalars import EXACT_DIGITS
from .base import Format, Head, Signature, Values
from .chat import conversation, user_turn
from .fields import absent, found, instruction, is_text, kind, one_line, present, requirement, unfold
from .grammars import Answer


class Json(Format):
    """Demos as turns, like `turns`; the answer is a JSON object, and the system's turn names its keys."""

    name: ClassVar[str] = "json"

    def head(self, signature: Signature, demos: Sequence[Values], inputs: Values) -> Head:
        """The system's turn ends with the object's keys, each with what its value has to be."""
        signature, demos = unfold(signature, demos, inputs)
        keys = (f'"{name}": {requirement(signature, name) or "text"}' for name in signature.output_fields)
        system = [instruction(signature), "Answer with a JSON object that has these keys:", *keys]
        return conversation(
            "\n".join(line for line in system if line),
            [user_turn(signature, values) for values in (*demos, inputs)],
            [self.answer(signature, demo) for demo in demos],
        )

    def lead(self, signature: Signature, field: str, before: Values) -> str:
        """The object up to the key's colon."""
        earlier = list(signature.output_fields)[: list(signature.output_fields).index(field)]
        members = [self._member(signature, name, before[name]) for name in earlier if name in before]
        return "{" + ", ".join([*members, f"{json.dumps(field)}:"])

    def write(self, signature: Signature, field: str, value: Any) -> str:
        """A space, and the value as JSON; a string with both its quotation marks."""
        return f" {json.dumps(_plain(value, kind(signature, field)), ensure_ascii=False)}"

    def answer(self, signature: Signature, outputs: Values) -> str:
        """The object."""
        names = present(signature.output_fields, outputs)
        return "{" + ", ".join(self._member(signature, name, outputs[name]) for name in names) + "}"

    def _member(self, signature: Signature, name: str, value: Any) -> str:
        return f"{json.dumps(name)}:{self.write(signature, name, value)}"

    def ends(self, signature: Signature, field: str) -> tuple[str, ...]:
        """The next key after the value, or what closes the object, as far as it cannot stand inside a value.

        A brace ends a choice or a number. In a text it may be a character like any other, so there it has to stand
        beside a line break, which no JSON string holds; a list or an object in the answer is ended by a blank line.
        """
        type_, names = kind(signature, field), list(signature.output_fields)
        following = names[names.index(field) + 1 :]
        if following:
            return (f", {json.dumps(following[0])}:",)
        if one_line(type_):
            return ("}",)
        return ('"}\n', '"\n}') if is_text(type_) else ("\n\n", "\n```")

    def stops(self, signature: Signature) -> tuple[str, ...]:
        """As in the base; a brace alone ends no answer whose earlier values may hold one."""
        ends = super().stops(signature)
        return ("}\n", "\n}") if ends == ("}",) and len(signature.output_fields) > 1 else ends

    def parse(self, signature: Signature, completion: str) -> dict[str, Any]:
        """The outputs of the first object that has one of the keys; code fences and words around it do no harm."""
        members = _object(completion, set(map(_key, signature.output_fields)))
        values = {}
        for name in signature.output_fields:
            if _key(name) in members:
                values[name] = _typed(members[_key(name)], kind(signature, name), name)
            elif members:
                values[name] = absent(signature, name, completion, f"the key {name!r} in the JSON object")
            else:
                raise ReadError("no JSON object to read", field=name, hint=found(completion))
        return values

    def grammar(self, signature: Signature) -> str:
        """The object in one line, with single spaces where `answer` has them."""
        answer = Answer()
        for here, name in enumerate(signature.output_fields):
            answer.literal(f"{'{' if here == 0 else ', '}{json.dumps(name)}: ")
            answer.value(value_grammar(kind(signature, name), json=True, field=name))
        answer.literal("}")
        return str(answer)


def _plain(value: Any, type_: Any) -> Any:
    """The value as JSON's own kinds of data, from its text: an Enum's member is its value, a date a string.

    A decimal is a number where a float holds it to its last digit, else a string.
    """
    if isinstance(value, Enum):
        return value.value if isinstance(value.value, str | int | float) else value.name
    if isinstance(value, str):
        return value
    text = write_value(value, type_)
    if isinstance(value, Decimal) and not _is_float(value):
        return text
    try:
        return json.loads(text)
    except ValueError:
        return text


def _is_float(value: Decimal) -> bool:
    """Whether a float has all digits of `value`."""
    return len(value.as_tuple().digits) <= EXACT_DIGITS and Decimal(repr(float(value))) == value


def _key(name: str) -> str:
    """A key as it is compared: models write `Ticket text` for `ticket_text`."""
    return re.sub(r"\W+", "_", name.strip()).casefold()


def _object(completion: str, keys: set[str]) -> dict[str, Any]:
    """The members, by `_key`, of the first object in the text that has one of `keys`; nothing where there is none."""
    candidates: list[Any] = []
    starts = [match.start() for match in re.finditer(r"{", completion)]
    for text in (completion, completion + "}"):  # a stop string may have taken the brace, which repair guesses about
        for start in starts:
            with suppress(json.JSONDecodeError):
                candidates.append(json.JSONDecoder(strict=False).raw_decode(text, start)[0])
    if starts:
        repaired = json_repair.loads(completion[starts[0] :])
        candidates.extend(repaired if isinstance(repaired, list) else [repaired])
    for candidate in candidates:
        members = {_key(name): value for name, value in candidate.items()} if isinstance(candidate, dict) else {}
        if keys & members.keys():
            return members
    return {}


def _typed(value: Any, type_: Any, field: str) -> Any:
    """A member's value in the output's type."""
    if (value is None and annotation_allows_none(type_)) or (isinstance(value, str) and type_ is str):
        return value
    text = write_value(value, type_) if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    return read_value(text, type_, field=field)
