"""From text, mapping or class to a typed `dspy.Signature`."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from os import PathLike
from typing import TYPE_CHECKING, Any

from ..errors import nearest
from .constraints import spelled, whole_type
from .expressions import check_types
from .fields import FieldSpec
from .inline import parse_inline
from .mapping import parse_mapping
from .messages import Where, show

if TYPE_CHECKING:
    import dspy


def signature(
    source: str | Mapping[str, Any] | type[dspy.Signature],
    instructions: str | None = None,
    *,
    descriptions: Mapping[str, str] | None = None,
    types: Mapping[str, Any] | None = None,
    path: str | PathLike[str] | None = None,
    line: int | None = None,
) -> type[dspy.Signature]:
    """A signature from an inline string, a mapping (`mapping.py` gives its form) or a `dspy.Signature` class.

    A class is returned as it is, with new instructions and descriptions where given. Fields without a type are `str`.
    The default instructions are DSPy's. `types` maps the names that type expressions may use to Enums and pydantic
    models; `path` and `line` say in errors where the source stands.

    Raises InputError.

    >>> signature("question, context -> answer: Literal['yes', 'no']").output_fields["answer"].annotation
    typing.Literal['yes', 'no']
    """
    import dspy

    where = Where(path, line)
    if not isinstance(instructions, str | None):
        raise where.at("instructions").error(f"found {show(instructions)}", expected="text")
    if isinstance(source, type) and issubclass(source, dspy.Signature):
        if not source.output_fields:
            raise where.error(f"found no output field in {source.__name__}", expected="at least one dspy.OutputField()")
        made = source if instructions is None else source.with_instructions(instructions)
        return _described(made, descriptions or {}, where)
    names = dict(types or {})
    check_types(names, where)
    if isinstance(source, str):
        inputs, outputs = parse_inline(source, names, where)
    elif isinstance(source, Mapping):
        inputs, outputs, own_instructions = parse_mapping(source, names, where)
        instructions = own_instructions if instructions is None else instructions
    else:
        raise where.error(
            f"found {show(source)}",
            expected="text such as 'question -> answer', a mapping with inputs and outputs, or a dspy.Signature class",
        )
    _check_fields(inputs, outputs, where)
    fields = {
        **{spec.name: _declaration(spec, dspy.InputField) for spec in inputs},
        **{spec.name: _declaration(spec, dspy.OutputField) for spec in outputs},
    }
    return _described(dspy.Signature(fields, instructions), descriptions or {}, where)


def field_types(signature: type[dspy.Signature]) -> dict[str, Any]:
    """The type of every field by name, inputs first; constraints of its declaration (`ge=0`) stand as `Annotated`."""
    return {name: whole_type(field) for name, field in signature.fields.items()}


def _declaration(spec: FieldSpec, field: Callable[..., Any]) -> tuple[Any, Any]:
    """A field's type and how it is declared: with its constraints, which DSPy shows in its own prompts."""
    described = {} if spec.description is None else {"desc": spec.description}
    inner, constraints = spelled(spec.type_)
    return inner, field(**constraints, **described)


def _check_fields(inputs: list[FieldSpec], outputs: list[FieldSpec], where: Where) -> None:
    """Refuse a signature without outputs, and a name that stands twice."""
    if not outputs:
        raise where.error("found no output field", expected="at least one, such as 'question -> answer'")
    for side, specs in (("inputs", inputs), ("outputs", outputs)):
        names = [spec.name for spec in specs]
        for name in names:
            if names.count(name) > 1:
                raise where.error(f"found the field name {name!r} twice among the {side}", expected="every name once")
    both = {spec.name for spec in inputs}
    for spec in outputs:
        if spec.name in both:
            raise where.error(
                f"found the field name {spec.name!r} in both inputs and outputs", expected="every name once"
            )


def _described(made: type[dspy.Signature], descriptions: Mapping[str, str], where: Where) -> type[dspy.Signature]:
    """`made` with these descriptions."""
    for name, text in descriptions.items():
        if name not in made.fields:
            raise where.error(
                f"found a description of {name!r}, which is no field",
                expected=", ".join(made.fields),
                nearest=nearest(str(name), made.fields),
            )
        if not isinstance(text, str):
            raise where.at(name).error(f"found the description {show(text)}", expected="text")
        made = made.with_updated_fields(name, desc=text)
    return made
