"""What the formats share: fields' labels and descriptions, the values that are there, and those that are missing."""

from __future__ import annotations

import inspect
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import dspy
from dspy.adapters.utils import annotation_allows_none, format_field_value
from pydantic.fields import FieldInfo

from ...errors import ReadError
from ...signatures import describe
from ...signatures import write as write_value
from ...signatures.constraints import whole_type
from ...signatures.types import shape

if TYPE_CHECKING:
    from .base import Signature, Values

EXCERPT = 120  # characters of a model's answer that an error shows


def labels(signature: Signature) -> dict[str, str]:
    """Each field's label, by field name: `ticket_text` is "Ticket text".

    Where two labels would read the same, all fields keep their names: an answer is read back by its labels.
    """
    named = {name: " ".join(name.split("_")).strip() for name in signature.fields}
    named = {name: label[:1].upper() + label[1:] for name, label in named.items()}
    alike = len({label.casefold() for label in named.values()}) < len(named)
    return {name: name for name in named} if alike else named


def kind(signature: Signature, name: str) -> Any:
    """The type that field `name` was declared with, the constraints of its declaration (`ge=0`) as `Annotated`."""
    return whole_type(signature.fields[name])


def description(signature: Signature, name: str) -> str:
    """The field's description in one line, or "" where DSPy only put its placeholder `${name}`."""
    text = (signature.fields[name].json_schema_extra or {}).get("desc") or ""
    return "" if text == f"${{{name}}}" else " ".join(text.split())


def instruction(signature: Signature) -> str:
    """The signature's instruction as one paragraph: without indentation and blank lines, which separate blocks."""
    kept = (line.rstrip() for line in inspect.cleandoc(signature.instructions).splitlines())
    return "\n".join(line for line in kept if line)


def requirement(signature: Signature, name: str) -> str:
    """What is known of output `name`: its description, and what values its type admits. "" for a bare `str`."""
    return "; ".join(part for part in (description(signature, name), describe(kind(signature, name))) if part)


def one_line(type_: Any) -> bool:
    """Whether a value of this type always fills one line: labels, numbers, dates, true and false."""
    return not is_text(type_) and shape(type_).kind not in ("list", "json")


def is_text(type_: Any) -> bool:
    """Whether a value of this type is text, or may be."""
    return shape(type_).kind in ("str", "any")


def is_bounded(type_: Any) -> bool:
    """Whether a value of this type is text with constraints: a length, a pattern."""
    taken = shape(type_)
    return taken.kind == "str" and taken.constrained


def present(fields: Mapping[str, FieldInfo], values: Values) -> list[str]:
    """The names of those `fields` that have a value, in their order. None is a value only where the type admits it."""
    return [
        name
        for name, field in fields.items()
        if name in values and (values[name] is not None or annotation_allows_none(field.annotation))
    ]


def show(signature: Signature, name: str, value: Any) -> str:
    """An input's value as text. A string stays as it is; a list given for a `str` is numbered, as DSPy does."""
    if isinstance(value, str):
        return value
    if isinstance(value, list) and signature.fields[name].annotation is str:
        return str(format_field_value(field_info=signature.fields[name], value=value))
    return write_value(value, kind(signature, name))


def lines(signature: Signature, names: Iterable[str], values: Values) -> str:
    """The fields as `Label: value`, one after the other. The lines of a longer value are kept as they are."""
    named = labels(signature)
    return "\n".join(f"{named[name]}: {show(signature, name, values[name])}" for name in names)


def unfold(signature: Signature, demos: Sequence[Values], inputs: Values) -> tuple[Signature, list[Values]]:
    """The signature without its `dspy.History`, and what to show before the inputs: the demos, then that history.

    A demo is left out when it lacks the last output, or every input of a signature that has some.
    """
    past: list[Values] = []
    for name, field in list(signature.input_fields.items()):
        if field.annotation is dspy.History:
            signature = signature.delete(name)
            past.extend(inputs[name].messages if inputs.get(name) is not None else ())
    last = list(signature.output_fields)[-1:]
    shown = [
        demo
        for demo in (*demos, *past)
        if last == present(signature.output_fields, demo)[-1:]
        and (present(signature.input_fields, demo) or not signature.input_fields)
    ]
    return signature, shown


def absent(signature: Signature, name: str, completion: str, expected: str) -> Any:
    """The value of an output that the answer does not hold: the field's default, or None where its type admits it.

    Raises `ReadError` for a field that has neither.
    """
    field = signature.output_fields[name]
    if not field.is_required():
        return field.get_default(call_default_factory=True)
    if annotation_allows_none(field.annotation):
        return None
    raise ReadError("the answer does not hold this field", field=name, expected=expected, hint=found(completion))


def found(completion: str) -> str:
    """What was found, for an error's hint: the answer's first characters, quoted."""
    text = completion.strip()
    return f"found: {text[:EXCERPT]!r}{' ...' if len(text) > EXCERPT else ''}"
