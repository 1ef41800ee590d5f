"""From what a spec says to a judge.

`{metric: judge, rubric: ...}` or, the same, `{judge: {rubric: ...}}` or `{judge: rubric}`, alone or among others in a
list. Its keys are `rubric` or `criteria`, `scale`, `reference`, `field` or `fields`, `probabilities`, `format`, `model`
and `name`.
"""

from __future__ import annotations

from collections.abc import Mapping
from os import PathLike
from typing import Annotated, Any

from pydantic import BeforeValidator, ConfigDict, Field, ValidationError

from ...errors import InputError, nearest
from ...metrics import Metric, Weighted
from ...metrics import metric as registered
from ...programs.schema_tests import JUDGE, judge_unfolded
from ...programs.state import FormatChoice, Strict
from .grading import JudgeMetric, Models


def _listed(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else (value,) if isinstance(value, str) else value


Texts = Annotated[tuple[str, ...], BeforeValidator(_listed)]


class JudgeOptions(Strict):
    """What a judge can be told."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, populate_by_name=True)

    rubric: str = ""
    criteria: Texts = ()
    scale: Annotated[tuple[int, int], BeforeValidator(_listed)] = (1, 5)
    reference: bool = False
    fields_: Texts = Field((), alias="fields")
    probabilities: bool = True
    format: FormatChoice | None = None
    model: str | dict[str, Any] | None = None
    name: str = JUDGE


def metric_of(
    spec: Any,
    *,
    allow_code: bool = False,
    path: str | PathLike[str] | None = None,
    line: int | None = None,
    folder: str | PathLike[str] | None = None,
    models: Models | None = None,
) -> Metric:
    """The metric that `spec` describes, judges included; else as `metrics.metric`. `models`: where judges find theirs.

    Raises `InputError` that tells `path` and `line`.
    """
    try:
        known = _with_judges(spec, models or Models())
    except InputError as error:
        field = ".".join(part for part in ("metric", error.field) if part)
        parts = {"expected": error.expected, "nearest": error.nearest, "hint": error.hint}
        raise InputError(error.message, path=path, line=line, field=field, **parts) from None
    return registered(known, allow_code=allow_code, path=path, line=line, folder=folder)


def judge_of(options: Mapping[str, Any], models: Models | None = None) -> JudgeMetric:
    """The judge with these options. Raises `InputError`, whose `field` is the option."""
    given = dict(options)
    if "field" in given and "fields" in given:
        raise InputError("both 'field' and 'fields' are given", expected="one of them")
    if "field" in given:
        given["fields"] = given.pop("field")
    valid = ["fields" if name == "fields_" else name for name in JudgeOptions.model_fields]
    unknown = next((key for key in given if key not in valid), None)
    if unknown is not None:
        near = nearest(str(unknown), valid)
        expected = None if near else f"one of {', '.join(valid)}"
        raise InputError(f"a judge has no option {unknown!r}", expected=expected, nearest=near)
    try:
        read = JudgeOptions.model_validate(given)
    except ValidationError as error:
        first = error.errors()[0]
        key = ".".join(map(str, first["loc"]))
        raise InputError(
            f"found {first['input']!r}", field=key, expected=first["msg"].removeprefix("Input should be ")
        ) from None
    return JudgeMetric(
        read.rubric,
        criteria=read.criteria,
        scale=read.scale,
        reference=read.reference,
        fields=read.fields_,
        probabilities=read.probabilities,
        format=read.format,
        model=read.model,
        models=models,
        name=read.name,
    )


def judge_in(metric: Metric | None) -> JudgeMetric | None:
    """The judge that a metric is, or the first one in a weighted sum."""
    if isinstance(metric, JudgeMetric):
        return metric
    parts = metric.metrics if isinstance(metric, Weighted) else ()
    return next((found for part in parts if (found := judge_in(part)) is not None), None)


def _with_judges(spec: Any, models: Models) -> Any:
    """A metric's spec with its judges made."""
    if isinstance(spec, list | tuple):
        return [_with_judges(each, models) for each in spec]
    if spec == JUDGE:
        raise InputError("the judge has no rubric", expected="{metric: judge, rubric: what makes an answer good}")
    if not isinstance(spec, Mapping):
        return spec
    given = judge_unfolded(spec)
    if given.get("metric") == JUDGE:
        options = {key: value for key, value in given.items() if key not in ("metric", "weight")}
        return {"metric": judge_of(options, models), **({"weight": given["weight"]} if "weight" in given else {})}
    if given.get("metric") == "weighted" and isinstance(given.get("metrics"), list | tuple):
        return {**given, "metrics": _with_judges(given["metrics"], models)}
    return spec
