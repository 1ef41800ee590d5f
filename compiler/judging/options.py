"""What a judge can be told in a spec or an assertion: its options, checked, and the judge that they make."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, TypeVar

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError

from ...errors import InputError, nearest
from ...programs.schema_tests import JUDGE, PREFERENCE
from ...programs.state import FormatChoice, Strict
from .grading import JudgeMetric
from .loading import load_judge
from .models import Models
from .preference import PreferenceMetric

OF_RUBRIC = ("rubric", "scale", "format")
OptionsKind = TypeVar("OptionsKind", bound=BaseModel)


@dataclass(frozen=True)
class Place:
    """Where options stand: the folder that files are read from (None: a person wrote them), and whether others are."""

    folder: Path | None = None
    allow_outside: bool = False


def _listed(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else (value,) if isinstance(value, str) else value


Texts = Annotated[tuple[str, ...], BeforeValidator(_listed)]


class _Options(Strict):
    """What all judges can be told."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, populate_by_name=True)

    rubric: str = ""
    fields_: Texts = Field((), alias="fields")
    format: FormatChoice | None = None
    model: str | dict[str, Any] | None = None


class JudgeOptions(_Options):
    """What a judge of single answers can be told."""

    criteria: Texts = ()
    scale: Annotated[tuple[int, int], BeforeValidator(_listed)] = (1, 5)
    reference: bool = False
    probabilities: bool = True
    program: str | None = None
    values: dict[Any, Any] | None = None
    name: str = JUDGE


class PreferenceOptions(_Options):
    """What a judge of pairs can be told."""

    ties: bool = True
    name: str = PREFERENCE


def judge_of(options: Mapping[str, Any], models: Models | None = None, place: Place | None = None) -> JudgeMetric:
    """The judge with these options. Raises `InputError`, whose `field` is the option."""
    read, where = _read(JudgeOptions, options, "a judge"), place or Place()
    if read.program is not None:
        other = next((key for key in OF_RUBRIC if key in read.model_fields_set), None)
        if other is not None:
            raise InputError(f"found {other!r} beside 'program'", field=other, hint="The judge's file says it.")
    elif read.values is not None:
        expected = "a judge from a file, as `program`"
        raise InputError("found 'values' without 'program'", field="values", expected=expected)
    file = None
    if read.program is not None:
        file = load_judge(read.program, where.folder, values=read.values, allow_outside=where.allow_outside)
    made = JudgeMetric(
        read.rubric,
        criteria=read.criteria,
        scale=read.scale,
        reference=read.reference,
        fields=read.fields_,
        probabilities=read.probabilities,
        format=read.format,
        model=read.model,
        models=models,
        program=file,
        name=read.name,
    )
    if file is not None and "reference" in read.model_fields_set:
        _check_reference(made, read.reference)
    return made


def preference_of(options: Mapping[str, Any], models: Models | None = None) -> PreferenceMetric:
    """The judge of pairs with these options. Raises `InputError`, whose `field` is the option."""
    read = _read(PreferenceOptions, options, "a preference")
    return PreferenceMetric(
        read.rubric,
        fields=read.fields_,
        ties=read.ties,
        format=read.format,
        model=read.model,
        models=models,
        name=read.name,
    )


def _read(kind: type[OptionsKind], options: Mapping[str, Any], what: str) -> OptionsKind:
    given = dict(options)
    if "field" in given and "fields" in given:
        raise InputError("both 'field' and 'fields' are given", expected="one of them")
    if "field" in given:
        given["fields"] = given.pop("field")
    valid = ["fields" if name == "fields_" else name for name in kind.model_fields]
    unknown = next((key for key in given if key not in valid), None)
    if unknown is not None:
        near = nearest(str(unknown), valid)
        expected = None if near else f"one of {', '.join(valid)}"
        raise InputError(f"{what} has no option {unknown!r}", expected=expected, nearest=near)
    try:
        return kind.model_validate(given)
    except ValidationError as error:
        first = error.errors()[0]
        key = ".".join(map(str, first["loc"]))
        raise InputError(
            f"found {first['input']!r}", field=key, expected=first["msg"].removeprefix("Input should be ")
        ) from None


def _check_reference(judge: JudgeMetric, wanted: bool) -> None:
    """Raise `InputError` where a compiled judge does not see the reference that it is given, or has none."""
    if judge.sees_reference is not wanted:
        found = "the judge reads no reference" if wanted else "the judge reads a reference, and is given none"
        raise InputError(found, field="reference", expected=f"{str(not wanted).lower()}, as its file says")
