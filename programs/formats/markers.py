"""DSPy's own format: `[[ ## field ## ]]` before every value, as `dspy.ChatAdapter` writes and reads it.

Prompts and reading are DSPy's, to the letter, so that what is measured for this format is what a DSPy user has today.
Only the second call that DSPy makes after an unreadable answer, in JSON, is left out. DSPy's limits are kept too: the
None of an optional text is written "None" and read back as that text.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from types import NoneType
from typing import Annotated, Any, ClassVar, get_args, get_origin

import dspy
from dspy.adapters.utils import annotation_allows_none, format_field_value

from ...errors import InputError, ReadError
from ...models.engine import Turn
from ...signatures import choices
from ...signatures import grammar as value_grammar
from ...signatures import read as read_value
from .base import Format, Head, Signature, Values
from .fields import found, is_bounded, is_text, kind
from .grammars import ANY, Answer, quote

END = "[[ ## completed ## ]]"


class Markers(Format):
    """DSPy's field markers. Incomplete demos come first, with a remark, as in DSPy."""

    name: ClassVar[str] = "dspy"

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self._adapter = dspy.ChatAdapter(use_json_adapter_fallback=False)

    def format(self, signature: Signature, demos: Sequence[Values], inputs: Values) -> list[dict[str, Any]]:
        """DSPy's messages, also where an input is an image or another type that is not text."""
        messages: list[dict[str, Any]] = self._adapter.format(signature, list(demos), dict(inputs))
        return messages

    def format_user_message_content(self, signature: Signature, inputs: Values, *args: Any, **options: Any) -> str:
        """As DSPy writes it."""
        return str(self._adapter.format_user_message_content(signature, inputs, *args, **options))

    def head(self, signature: Signature, demos: Sequence[Values], inputs: Values) -> Head:
        """DSPy's messages as turns. Raises `InputError` for content that is not text."""
        messages = self._adapter.format(signature, list(demos), dict(inputs))
        for message in messages:
            if not isinstance(message["content"], str) or message["role"] not in ("system", "user", "assistant"):
                raise InputError(f"a {message['role']} message of the prompt is not text", expected="text inputs")
        return Head(turns=tuple(Turn(message["role"], message["content"]) for message in messages))

    def lead(self, signature: Signature, field: str, before: Values) -> str:
        """The marked values before, and the marker's line."""
        names = list(signature.output_fields)
        earlier = [name for name in names[: names.index(field)] if name in before]
        shown = "".join(f"{_marker(name)}{self.write(signature, name, before[name])}\n\n" for name in earlier)
        return shown + _marker(field)

    def write(self, signature: Signature, field: str, value: Any) -> str:
        """The value as DSPy writes it: structures as JSON, the rest with `str()`."""
        return str(format_field_value(field_info=signature.output_fields[field], value=value))

    def answer(self, signature: Signature, outputs: Values) -> str:
        """DSPy's assistant message: the marked values, and the marker that ends them."""
        for name in signature.output_fields:
            signature = signature if name in outputs else signature.delete(name)
        return str(self._adapter.format_assistant_message_content(signature, dict(outputs)))

    def ends(self, signature: Signature, field: str) -> tuple[str, ...]:
        """The next field's marker, or the one that ends the answer."""
        names = list(signature.output_fields)
        following = names[names.index(field) + 1 :]
        return (*(f"[[ ## {name} ## ]]" for name in following[:1]), END)

    def parse(self, signature: Signature, completion: str) -> dict[str, Any]:
        """The outputs as DSPy reads them; its error is told as a `ReadError`."""
        try:
            values: dict[str, Any] = self._adapter.parse(_texts_plain(signature), completion)
        except dspy.AdapterParseError as error:
            raise _unreadable(error, signature, completion) from error
        return values

    def grammar(self, signature: Signature) -> str:
        """The markers, each in its line, and blank lines between."""
        answer, names = Answer(), list(signature.output_fields)
        answer.literal(_marker(names[0]))
        for name, following in zip(names, [*map(_marker, names[1:]), f"{END}\n"], strict=True):
            type_ = kind(signature, name)
            if is_bounded(type_):
                answer.bounded(_not_none(type_), name, suffix=f"\n\n{following}")
            elif is_text(type_):
                answer.until(f"\n\n{following}", ANY)
            else:
                answer.value(self._expression(signature, name))
                answer.literal(f"\n\n{following}")
        return str(answer)

    def _expression(self, signature: Signature, name: str) -> str:
        """The value's grammar, with choices and None as DSPy writes them: `True` where ours is `true`."""
        type_ = kind(signature, name)
        values = [read_value(label, type_, field=name) for label in choices(type_) or ()]
        if values:
            return " | ".join(quote(self.write(signature, name, value)) for value in values)
        return value_grammar(type_, field=name) + (' | "None"' if annotation_allows_none(type_) else "")


def _not_none(type_: Any) -> Any:
    """An optional text's type without None, which DSPy reads as a text."""
    if get_origin(type_) is Annotated:
        inner, *metadata = get_args(type_)
        return Annotated[_not_none(inner), *metadata]
    members = [member for member in get_args(type_) if member is not NoneType]
    return _not_none(members[0]) if members else type_


def _texts_plain(signature: Signature) -> Signature:
    """Optional texts without conditions: DSPy takes `Annotated[str, ...] | None` for JSON, even `[so` and `12`."""
    for name, field in signature.output_fields.items():
        if is_bounded(kind(signature, name)) and annotation_allows_none(field.annotation):
            signature = signature.with_updated_fields(name, type_=str | None)
    return signature


def _marker(name: str) -> str:
    return f"[[ ## {name} ## ]]\n"


def _unreadable(error: dspy.AdapterParseError, signature: Signature, completion: str) -> ReadError:
    """DSPy's error, with the field that it is about."""
    if error.parsed_result is None:
        match = re.match(r"Failed to parse field (\w+) with value", str(error))
        reason = str(error).split("Error message:")[-1].split("\n\nAdapter")[0].strip()
        return ReadError(f"DSPy cannot read it: {reason}", field=match[1] if match else None, hint=found(completion))
    missing = next(name for name in signature.output_fields if name not in error.parsed_result)
    return ReadError(
        "the answer does not hold this field", field=missing, expected=_marker(missing).strip(), hint=found(completion)
    )
