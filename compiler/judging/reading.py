"""From what a spec says to a judge.

`{metric: judge, rubric: ...}` or, the same, `{judge: {rubric: ...}}` or `{judge: rubric}`, alone or among others in a
list; `preference` likewise. `options.py` has their keys.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from os import PathLike
from pathlib import Path
from typing import Any

from ...errors import InputError, nearest
from ...metrics import Metric
from ...metrics import metric as registered
from ...programs.problems import InputErrors
from ...programs.schema_tests import JUDGE, PERPLEXITY, PREFERENCE, unfolded
from ..evaluate import parts_of
from .asked import AskingMetric
from .grading import JudgeMetric
from .models import Models
from .options import Place, judge_of, preference_of
from .perplexity import Perplexity, perplexity_on
from .preference import PreferenceMetric


def metric_of(
    spec: Any,
    *,
    allow_code: bool = False,
    path: str | PathLike[str] | None = None,
    line: int | None = None,
    folder: str | PathLike[str] | None = None,
    models: Models | None = None,
    allow_outside: bool = False,
) -> Metric:
    """The metric that `spec` describes, judges and perplexity included; else as `metrics.metric`.

    models: where those that ask a model find one that the spec names. A compiled judge's file lies in the `folder`, by
    default that of `path`, unless `allow_outside`; where there is neither, a person wrote the spec, and it may lie
    anywhere. Raises `InputError` that tells `path` and `line`.
    """
    models = models or Models()
    place = Path(folder) if folder is not None else Path(path).parent if path is not None else None
    try:
        known = _with_judges(spec, models, Place(place, allow_outside))
    except InputError as error:
        if error.path is not None or isinstance(error, InputErrors):  # it is about the judge's own file
            raise
        field = ".".join(part for part in ("metric", error.field) if part)
        parts = {"expected": error.expected, "nearest": error.nearest, "hint": error.hint}
        raise InputError(error.message, path=path, line=line, field=field, **parts) from None
    extra = {PERPLEXITY: perplexity_on(models)}
    return registered(known, allow_code=allow_code, path=path, line=line, folder=folder, extra=extra)


def judge_in(metric: Metric | None) -> JudgeMetric | None:
    """The judge of single answers that a metric is, or the first one in a weighted sum."""
    return next((each for each in asking_in(metric) if isinstance(each, JudgeMetric)), None)


def preference_in(metric: Metric | None) -> PreferenceMetric | None:
    """The judge of pairs that a metric is, or the first one in a weighted sum."""
    return next((each for each in asking_in(metric) if isinstance(each, PreferenceMetric)), None)


def asking_in(metric: Metric | None) -> Iterator[AskingMetric]:
    """The metrics that ask a judge: the metric itself, or those of a weighted sum."""
    return (each for each in parts_of(metric) if isinstance(each, AskingMetric))


def judge_files(metric: Metric | None) -> list[str]:
    """The SHA-256 of every compiled judge's file in a metric, in order."""
    found = [each.file for each in asking_in(metric) if isinstance(each, JudgeMetric)]
    return [file.sha256 for file in found if file is not None]


def check_judges(metric: Metric | None, inputs: Iterable[str], outputs: Iterable[str]) -> None:
    """Raise `InputError` where a metric that asks a model does not fit a task with these fields, before anything runs.

    A compiled judge has to find what it reads; the outputs that any of them names have to be there.
    """
    given, made = tuple(inputs), tuple(outputs)
    for each in parts_of(metric):
        if isinstance(each, JudgeMetric):
            each.subject_of(given, made)
        named = each.fields if isinstance(each, AskingMetric | Perplexity) else ()
        unknown = next((name for name in named if name not in made), None)
        if unknown is not None:
            near = nearest(unknown, made)
            expected = None if near else f"one of {', '.join(made)}"
            message = f"metric {each.name!r} looks at the field {unknown!r}, which is no output of the program"
            raise InputError(message, expected=expected, nearest=near)


def _with_judges(spec: Any, models: Models, place: Place) -> Any:
    """A metric's spec with its judges made."""
    if isinstance(spec, list | tuple):
        return [_with_judges(each, models, place) for each in spec]
    if spec in (JUDGE, PREFERENCE):
        what = "an answer good" if spec == JUDGE else "one of two answers better"
        raise InputError("the judge has no rubric", expected=f"{{metric: {spec}, rubric: what makes {what}}}")
    if not isinstance(spec, Mapping):
        return spec
    given = unfolded(spec)
    kind = given.get("metric")
    if kind in (JUDGE, PREFERENCE):
        options = {key: value for key, value in given.items() if key not in ("metric", "weight")}
        made = judge_of(options, models, place) if kind == JUDGE else preference_of(options, models)
        return {"metric": made, **({"weight": given["weight"]} if "weight" in given else {})}
    if kind == "weighted" and isinstance(given.get("metrics"), list | tuple):
        return {**given, "metrics": _with_judges(given["metrics"], models, place)}
    return given
