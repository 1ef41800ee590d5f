"""A signature as a mapping that `signature` reads back.

What a mapping cannot say is left out: defaults and validators of fields and models. An Enum is written as
the Literal of its values, so the values that come back are plain. A type that has no expression (an image) is written
by its name; that, and a model that holds itself, `signature` reads back only where its `types` has them.
"""

from __future__ import annotations

from enum import Enum
from typing import TYPE_CHECKING, Any, TypeGuard

from pydantic import BaseModel

from .constraints import as_expression, whole_type
from .mapping import record_name
from .types import expression, literal, shape

if TYPE_CHECKING:
    import dspy


def dump(signature: type[dspy.Signature]) -> dict[str, Any]:
    """The mapping form of `signature`: inputs, outputs, instructions, and `types` where expressions need names.

    A field is `name: type`, or `{type, description}` when it is described. A pydantic model is a nested mapping, or
    stands under its name in `types`.
    """
    models = _Models()
    sides = {
        side: {
            name: models.field(name, whole_type(field), _description(name, field.json_schema_extra))
            for name, field in fields.items()
        }
        for side, fields in (("inputs", signature.input_fields), ("outputs", signature.output_fields))
    }
    dumped: dict[str, Any] = {**sides, "instructions": signature.instructions}
    return {**dumped, "types": models.records} if models.records else dumped


def _description(name: str, extra: Any) -> str | None:
    """What the user said about the field; DSPy's placeholder says nothing."""
    found: str | None = (extra or {}).get("desc")
    return None if found == f"${{{name}}}" else found


class _Models:
    """Writes types, and collects the models that stand inside other types, which need a name."""

    def __init__(self) -> None:
        self.records: dict[str, Any] = {}
        self._names: dict[type, str] = {}
        self._nesting: list[type] = []

    def field(self, name: str, type_: Any, description: str | None) -> Any:
        """The field called `name`. A model is nested where reading it gives it the name that it has."""
        taken = shape(type_)
        nested = (
            _is_model(taken.inner)
            and not taken.optional
            and taken.inner.__name__ == record_name(name)
            and taken.inner not in self._nesting
        )
        written = self.record(taken.inner) if nested else expression(type_, self.name, as_expression)
        if nested or description:
            return {"type": written} | ({"description": description} if description else {})
        return written

    def record(self, model: type[BaseModel]) -> dict[str, Any]:
        """A pydantic model as a nested mapping."""
        self._nesting.append(model)  # a model that holds itself is named there, not nested without end
        fields = {
            name: self.field(name, whole_type(field), field.description) for name, field in model.model_fields.items()
        }
        self._nesting.pop()
        return fields

    def name(self, class_: type) -> str:
        """What an expression calls `class_`."""
        if issubclass(class_, Enum):
            return literal(class_)
        if not _is_model(class_):
            return class_.__name__
        if class_ not in self._names:
            same = sum(known.__name__ == class_.__name__ for known in self._names)
            self._names[class_] = class_.__name__ if not same else f"{class_.__name__}{same + 1}"
            self.records[self._names[class_]] = {}  # its place is kept before what it refers to
            self.records[self._names[class_]] = self.record(class_)
        return self._names[class_]


def _is_model(type_: Any) -> TypeGuard[type[BaseModel]]:
    """Whether `type_` is a pydantic model with fields to write."""
    return isinstance(type_, type) and issubclass(type_, BaseModel) and bool(type_.model_fields)
